"""It works: WASH's averaged model is as good as its ensemble, separate training's is not.

By simulation, which equals distributed runs bit for bit (test_population.py). What is recorded in
benchmarks/results is larger: more seeds, more images, longer training.
"""

from __future__ import annotations

from statistics import mean

import pytest

from washp2p.config.config import RunConfig
from workers.simulation.simulate import simulate
from workers.training.data import DEBIAN_FASHION_MNIST, load_data


def shortfalls(tmp_path, seeds, **options):
    """Ensemble minus averaged, in points, for each seed."""
    found = []
    for seed in seeds:
        config = RunConfig.resolve(seed=seed, **options)
        data = load_data(config, tmp_path, download=False)
        folder = tmp_path / f"{config.method.name}-{seed}"
        accuracy = simulate(config, data, folder, on_epoch=lambda _: None)["accuracy"]
        found.append(accuracy["ensemble"] - accuracy["averaged"])
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_digits(tmp_path):
    assert mean(shortfalls(tmp_path, range(2), n=5)) <= 1.0
    assert mean(shortfalls(tmp_path, range(2), n=5, method="none")) >= 5.0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_fashion_mnist(tmp_path):
    options = {"n": 3, "p": 0.05, "epochs": 6, "data": "fashion-mnist", "train_limit": 2000}
    assert mean(shortfalls(tmp_path, [0], **options)) <= 0.7
    assert mean(shortfalls(tmp_path, [0], method="none", **options)) >= 10.0

"""`washp2p soup` and `washp2p evaluate` on a run that was made."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from washp2p.cli.main import main
from washp2p.config.config import RunConfig
from washp2p.evaluation import average_state
from workers.simulation.simulate import simulate
from workers.training.data import load_data
from workers.training.models import build_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three members, trained apart: what alignment and REPAIR are for."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = RunConfig.resolve(n=3, method="none", epochs=2)
    folder.mkdir()
    simulate(config, load_data(config, folder, download=False), folder, on_epoch=lambda _: None)
    return folder


def members(run):
    return [load_file(run / "members" / f"{k}.safetensors") for k in range(3)]


def plain(state):
    """The plain model with a state, which must fit it to the name."""
    model = build_model("cnn", (1, 8, 8), 10)
    model.load_state_dict(state, strict=True)
    return model


def soup(run, capsys, *flags):
    assert main(["soup", str(run), *flags]) == 0
    said = capsys.readouterr().out
    place, test, held_out = re.fullmatch(
        r"(\S+): ([\d.]+) % of the test .* ([\d.]+) %.*\n", said
    ).groups()
    return load_file(place), place, float(test), float(held_out)


def test_the_average_is_the_mean_of_the_members(run, capsys):
    state, place, test, _ = soup(run, capsys)
    assert place == str(run / "soup-average.safetensors")
    wanted = average_state(members(run))
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    plain(state)
    summary = json.loads((run / "summary.json").read_text())
    assert test == pytest.approx(summary["accuracy"]["averaged"], abs=0.006)


def test_the_greedy_soup_is_never_below_the_best_member_on_held_out_images(run, capsys):
    best, _, _, best_held_out = soup(run, capsys, "--kind=best")
    _, _, test, held_out = soup(run, capsys, "--kind=greedy")
    assert held_out >= best_held_out
    assert any(all(torch.equal(best[k], m[k]) for k in best) for m in members(run))
    summary = json.loads((run / "summary.json").read_text())
    assert test == pytest.approx(summary["accuracy"]["greedy_soup"], abs=0.006)


@pytest.mark.parametrize(
    "flags",
    [
        ["--align"],
        ["--repair"],
        ["--update-bn"],
        ["--kind=greedy", "--align", "--repair", "--update-bn"],
    ],
)
def test_every_soup_loads_into_the_plain_model(run, capsys, flags, tmp_path):
    output = tmp_path / "x.safetensors"
    state, place, *_ = soup(run, capsys, *flags, f"--output={output}")
    assert place == str(output)
    plain(state)


def test_a_soup_of_identical_models_is_that_model(run, capsys, tmp_path):
    files = []
    for number in range(3):
        files.append(run / f"same-{number}.safetensors")
        save_file(members(run)[0], files[-1])
    for flags in ([], ["--kind=greedy"], ["--align"], ["--repair"]):
        output = tmp_path / "soup.safetensors"
        assert main(["soup", *map(str, files), *flags, f"--output={output}"]) == 0
        made = load_file(output)
        for name, tensor in members(run)[0].items():
            assert torch.allclose(made[name], tensor, atol=1e-5), (flags, name)
    for file in files:
        file.unlink()
    capsys.readouterr()


def test_all_models_are_evaluated(run, capsys):
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((run / "summary.json").read_text())["accuracy"]
    for number, value in enumerate(summary["members"]):
        assert found[f"member {number}"] == pytest.approx(value)
    assert found["Ensemble"] == pytest.approx(summary["ensemble"])
    assert found["Averaged"] == pytest.approx(summary["averaged"])
    assert found["averaged.safetensors"] == pytest.approx(summary["averaged"])
    assert found["GreedySoup"] == pytest.approx(summary["greedy_soup"])
    assert found["Best"] == found[f"member {summary['members'].index(found['Best'])}"]
    assert 0 < found["Ensemble of logits"] <= 100
    assert main(["evaluate", str(run)]) == 0
    assert "Ensemble of logits" in capsys.readouterr().out


def test_what_is_no_model_is_named(run, capsys, tmp_path):
    wrong = run / "wrong.safetensors"
    save_file({"x": torch.zeros(2)}, wrong)
    for place, words in (
        (wrong, "expected a model of the run"),
        (run / "nothing.safetensors", "cannot read"),
        (tmp_path, "is in no run folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["soup", str(place)])
        assert words in capsys.readouterr().err
    wrong.unlink()

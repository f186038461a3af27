"""The accuracies that the papers report, from a population's final state dicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from washp2p.evaluation import accuracy, ensemble, greedy_soup, probabilities

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch.utils.data import Dataset

    from workers.training.data import Data

    State = dict[str, torch.Tensor]


class Accuracies(TypedDict):
    """Accuracies on the test set, in per cent."""

    members: list[float]
    ensemble: float
    averaged: float
    greedy_soup: float


def evaluate_population(
    model: torch.nn.Module,
    states: Sequence[State],
    averaged: State,
    data: Data,
    device: torch.device,
) -> Accuracies:
    """The accuracies of each member, the Ensemble, the Averaged model and the GreedySoup.

    `states` has the members' state dicts in MemberId order, `averaged` that of the averaged model.
    Overwrites the parameters of `model`.
    """

    def outputs(state: State, dataset: Dataset[object]) -> tuple[torch.Tensor, torch.Tensor]:
        model.load_state_dict(state)
        return probabilities(model, data.evaluation_batches(dataset), device)

    def held_out_accuracy(state: State) -> float:
        return accuracy(*outputs(state, data.held_out))

    members = [outputs(state, data.test) for state in states]
    labels = members[0][1]
    return {
        "members": [accuracy(predicted, labels) for predicted, _ in members],
        "ensemble": accuracy(ensemble([predicted for predicted, _ in members]), labels),
        "averaged": accuracy(*outputs(averaged, data.test)),
        "greedy_soup": accuracy(*outputs(greedy_soup(states, held_out_accuracy), data.test)),
    }

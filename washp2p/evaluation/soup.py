"""GreedySoup (Wortsman et al. 2022; PAPA, Algorithm 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.evaluation.average import average_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    State = dict[str, torch.Tensor]


def greedy_soup(states: Sequence[State], accuracy: Callable[[State], float]) -> State:
    """The soup of `states` (state dicts) by held-out `accuracy`, and nothing of the test set.

    Members are tried from best to worst (ties in the order given); each stays in if the mean with
    it is no less accurate than the mean without.
    """
    ranked = sorted(states, key=accuracy, reverse=True)
    chosen = [ranked[0]]
    soup = average_state(chosen)
    best = accuracy(soup)
    for state in ranked[1:]:
        candidate = average_state([*chosen, state])
        score = accuracy(candidate)
        if score >= best:
            chosen.append(state)
            soup, best = candidate, score
    return soup

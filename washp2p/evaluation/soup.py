"""GreedySoup (Wortsman et al. 2022; PAPA, Algorithm 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.model.means import average_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    State = dict[str, torch.Tensor]


def greedy_soup(states: Sequence[State], accuracy: Callable[[State], float]) -> State:
    """The mean of the members of `states` (state dicts) that GreedySoup chooses.

    The callback `accuracy` tests a state dict on held-out data, never on the test set. Members are
    tried from best to worst, ties in the order given. A member is chosen if the mean with it is at
    least as accurate as the mean without it.
    """
    return average_state(greedy_choice(states, accuracy))


def greedy_choice(
    states: Sequence[State],
    accuracy: Callable[[State], float],
    fit: Callable[[State, State], State] | None = None,
) -> list[State]:
    """The members of `states` (state dicts) that GreedySoup chooses by held-out `accuracy`.

    The callback `fit` takes a member and the soup so far. It returns the state dict to add in the
    member's place, such as the member aligned with the soup.
    """
    ranked = sorted(states, key=accuracy, reverse=True)
    chosen = [ranked[0]]
    soup = average_state(chosen)
    best = accuracy(soup)
    for member in ranked[1:]:
        state = fit(member, soup) if fit is not None else member
        candidate = average_state([*chosen, state])
        score = accuracy(candidate)
        if score >= best:
            chosen.append(state)
            soup, best = candidate, score
    return chosen

"""Evaluates N trained members, and makes one model of them: average, ensemble, soup."""

from washp2p.evaluation.ensemble import accuracy, ensemble, logits, probabilities
from washp2p.evaluation.repair import reset_batch_norm
from washp2p.evaluation.soup import greedy_choice, greedy_soup
from washp2p.model.means import average_state, mean

__all__ = [
    "accuracy",
    "average_state",
    "ensemble",
    "greedy_choice",
    "greedy_soup",
    "logits",
    "mean",
    "probabilities",
    "reset_batch_norm",
]

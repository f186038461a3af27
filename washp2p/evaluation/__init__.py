"""From N trained members to numbers and to one model: average, ensemble, soup."""

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

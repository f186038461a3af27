"""A member's part in REPAIR after a mean (PAPA, Algorithm 1).

Members tell each other the moments of their features. Each member then restores the mean moments in
its model, using its own inputs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from washp2p.evaluation.repair import moments, restore_mean
from washp2p.protocol.ledger import Kind
from washp2p.protocol.messages.frames import MOMENTS
from washp2p.rounds.round_state import Beside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from washp2p.plan.plan import Plan
    from washp2p.protocol.roster import MemberId, Roster

    Inputs = Callable[[], Sequence[torch.Tensor]]


class Repairer:
    """Restores the moments of one member's features after a mean. The function `inputs` returns
    training batches, made of the same images in all members.
    """

    def __init__(self, model: torch.nn.Module, me: MemberId, inputs: Inputs) -> None:
        self._model = model
        self._me = me
        self._inputs = inputs

    def moments(self) -> torch.Tensor:
        """The moments of this member's features. To be called before a mean is taken."""
        return moments(self._model, self._inputs())

    def begin(self, own: torch.Tensor, roster: Roster, plan: Plan) -> Beside:
        """Return the extra vectors to exchange. This member's moments `own` go to the members to
        whose mean it contributes. Moments are expected from the contributors to its own mean.
        """
        assert plan.mean is not None
        to, of = (
            {roster.members[position] for position, _, _ in route.parts}
            for route in (plan.send, plan.receive)
        )
        if plan.mean.shared:
            to = of = to | of
        among = of | {self._me} if plan.mean.own else of
        return Beside(
            leg=MOMENTS,
            kind=Kind.REPAIR,
            fingerprint=plan.fingerprint,
            outgoing=dict.fromkeys(to, own),
            incoming=dict.fromkeys(of, len(own)),
            finish=partial(self._finish, own, [m for m in roster.members if m in among]),
        )

    def _finish(
        self, own: torch.Tensor, among: list[MemberId], came: dict[MemberId, torch.Tensor]
    ) -> None:
        """Give the model's features the mean of the contributors' moments. `came` has the
        others' moments by sender; if it is empty, nothing changes. Moments that are not
        finite are left out.
        """
        if came:
            counted = {self._me: own, **came}
            present = [counted[m].to(own.device) for m in among if m in counted]
            restore_mean(self._model, present, self._inputs)

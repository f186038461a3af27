"""A member's part in surveys of how far members are apart: `--track-consensus`."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from washp2p.model.means import as_array
from washp2p.plan.survey import Survey
from washp2p.protocol.ledger import Kind
from washp2p.protocol.messages.frames import SURVEY
from washp2p.protocol.messages.from_worker import Surveyed
from washp2p.rounds.round_state import Beside

if TYPE_CHECKING:
    import torch

    from washp2p.model.store import Store
    from washp2p.protocol.roster import MemberId, Roster


class Surveyor:
    """Takes part in a survey every `every` rounds. The surveyed scalars are drawn from `seed`."""

    def __init__(self, store: Store, me: MemberId, *, seed: int, every: int) -> None:
        self._store = store
        self._me = me
        self._seed = seed
        self._every = every
        self._last: tuple[Roster, Survey] | None = None
        self.found: list[Surveyed] = []
        """Results that the coordinator has not been told yet."""

    def due(self, number: int) -> bool:
        """Whether a survey follows round `number`, besides those at checkpoints."""
        return number % self._every == 0

    def begin(self, number: int, roster: Roster, *, exact: bool) -> Beside:
        """Begin a survey after a round, of all scalars if `exact`. Returns what to exchange.

        Once all members' values in this member's shard have arrived, and the result is finite, the
        shard's part of the distance is in `found`.
        """
        self._store.refresh()
        survey = self._survey(roster, exact=exact)
        plan, copies = survey.plan, self._store.copies
        values, own = (
            self._store.keep(copies.upload(indices))[0]
            for indices in (plan.send.indices, plan.receive.indices)
        )
        members = roster.members

        def finish(came: dict[MemberId, torch.Tensor]) -> None:
            if len(came) == len(plan.receive.parts):
                held = {self._me: own, **came}
                arrays = [as_array(held[member]) for member in members if member in held]
                found = survey.squares(arrays)
                if all(map(isfinite, found)):  # else somebody has diverged
                    self.found.append(Surveyed(number, len(members), exact, found))

        return Beside(
            leg=SURVEY,
            kind=Kind.CONSENSUS,
            fingerprint=plan.fingerprint,
            outgoing={members[p]: values[begin:end] for p, begin, end in plan.send.parts},
            incoming={members[p]: end - begin for p, begin, end in plan.receive.parts},
            finish=finish,
        )

    def _survey(self, roster: Roster, *, exact: bool) -> Survey:
        if not exact and self._last is not None and self._last[0] is roster:
            return self._last[1]
        n, position = len(roster.members), roster.position(self._me)
        survey = Survey(self._store.layout, self._seed, n, position, exact=exact)
        if not exact:
            self._last = roster, survey
        return survey

"""Warnings about a member, logged and sent to the coordinator once each.

They are about steps without rounds, members that hold the same model, and optimizers whose state
cannot be kept or that keep copies of the parameters. Training goes on, but the average is worth
less than it seems.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from washp2p.model.means import as_array
from washp2p.model.missed_steps import MissedSteps
from washp2p.model.optimizers import NATURAL, copies_in, parameters_outside, why_not_restorable
from washp2p.protocol.messages.fields import shortened
from washp2p.protocol.messages.from_worker import NoSnapshots, Notice
from washp2p.rounds.identical_members import Likeness

if TYPE_CHECKING:
    import torch

    from washp2p.model.store import Store
    from washp2p.rounds.merging import Merger
    from washp2p.rounds.ports import ControlPlane

_log = logging.getLogger("washp2p")


class Advice:
    """The warnings of one member. Nothing is watched before `begin`.

    Only the training thread may call the methods, except `tell`, which any thread may call.
    """

    def __init__(
        self,
        *,
        connection: ControlPlane,
        store: Store,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        merger: Merger,
    ) -> None:
        self._me = connection.member
        self._connection = connection
        self._store = store
        self._model = model
        self._optimizer = optimizer
        self._merger = merger
        self._topics: set[str] = set()
        self._watch: MissedSteps | None = None
        self._stepped = False
        self.no_snapshots = why_not_restorable(optimizer)
        """Why the optimizer's state cannot be given to others or saved; empty if it can be."""

    def tell(self, topic: str, text: str) -> None:
        """Warn people with `text`, once for each `topic`. Any thread may call this."""
        if topic not in self._topics:
            self._topics.add(topic)
            _log.warning("member %d: %s", self._me, text)
            self._connection.tell(Notice(topic, shortened(text)))

    def begin(self, slots: tuple[str, ...]) -> None:
        """Begin to watch. `slots` names the optimizer state that is exchanged."""
        kind = type(self._optimizer).__name__
        if self._connection.config.method.name == "wash-opt" and not slots:
            self.tell(
                "wash-opt",
                f"{kind} has no state shaped like its parameters: wash-opt shuffles parameters "
                "alone here, as wash does",
            )
        if self.no_snapshots:
            self._say_no_snapshots()
        if outside := parameters_outside(self._model, self._optimizer):
            self.tell(
                "outside the model",
                f"{kind} steps {outside} parameters that the model does not have: they are neither "
                "exchanged nor averaged; put all that is trained into one module",
            )
        self._merger.likeness = Likeness(as_array(self._store.vector))
        self._watch = MissedSteps(self._store.parameters, self._optimizer, self.tell)

    def before_round(self) -> None:
        """Check the model and the optimizer's state. Call this after each step.

        Only the first call checks. It raises UsageError if `Store.check_model` does.
        """
        if self._stepped:
            return
        self._stepped = True
        self._store.check_model()
        if not self.no_snapshots:
            try:
                self._store.optimizer_state()
            except NATURAL as error:
                self.no_snapshots = f"{error}"[:200] or type(error).__name__
                self._connection.tell(NoSnapshots(shortened(self.no_snapshots)))
                self._say_no_snapshots()
        if names := copies_in(self._optimizer):
            self.tell(
                "master weights",
                f"{type(self._optimizer).__name__} keeps copies of the parameters in its state "
                f"({', '.join(names)}): if its steps write the model from them, what a round has "
                "written is lost and members train apart",
            )

    def after_round(self, number: int, members: tuple[int, ...]) -> None:
        """Warn of members with equal parameters. Call this after round `number` of `members`."""
        assert self._watch is not None
        self._watch.stepped()
        likeness = self._merger.likeness
        if likeness is None:
            return
        for peer in likeness.same:
            self.tell(
                "one model",
                f"members {self._me} and {peer} are one model: after {number} rounds all values "
                "that they have exchanged are equal; seed each member differently, by member.id or "
                "connect(address, seed=True), for data, dropout and augmentation to differ",
            )
        likeness.conclude(set(members) - {self._me})
        if not likeness.watches:
            self._merger.likeness = None

    def before_average(self) -> None:
        """Warn if the model has trained since its last round.

        Raises UsageError if it has trained and no round has followed at all.
        """
        if self._watch is not None:
            self._watch.check()

    def close(self) -> None:
        """Stop watching. Harmless when called twice."""
        if self._watch is not None:
            self._watch.close()

    def _say_no_snapshots(self) -> None:
        self.tell(
            "no snapshots",
            f"{type(self._optimizer).__name__}'s state cannot be written to a file "
            f"({self.no_snapshots}): nobody can join late, and no checkpoint is kept",
        )

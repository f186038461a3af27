"""What a worker says again to a coordinator that is back."""

from __future__ import annotations

from washp2p.config.config import RunConfig
from washp2p.coordinator_link.conversation import Conversation
from washp2p.protocol.messages.control import messages
from washp2p.protocol.messages.from_coordinator import Discard, Welcome
from washp2p.protocol.messages.from_worker import Saved


class Talk(Conversation):
    """A conversation with a coordinator that is not there."""

    def __init__(self):
        super().__init__("tcp://127.0.0.1:5555", "host", 1, "here", None)
        self.forgotten = []
        config = RunConfig.resolve(n=2).to_wire()
        self.hear(messages.encode(Welcome(0, b"run", b"run", "name", config, False)))

    def _send(self, data):
        pass

    def _answer(self, data):
        pass

    def _announce(self):
        pass

    def _open_folder(self, name):
        pass

    def _held(self, name, rounds):
        return []

    def _forget(self, rounds):
        self.forgotten += rounds


def said_again(talk):
    return [messages.decode(data) for data in talk.what_may_be_missed()]


def test_a_checkpoint_that_was_discarded_is_not_claimed_again():
    talk = Talk()
    talk.saved(8, "")
    talk.hear(messages.encode(Discard(7)))
    assert Saved(8, "") in said_again(talk)
    talk.hear(messages.encode(Discard(8)))
    assert talk.forgotten == [7, 8]
    assert not any(isinstance(message, Saved) for message in said_again(talk))


def test_a_checkpoint_that_could_not_be_saved_is_reported_again():
    talk = Talk()
    talk.saved(8, "no room")
    talk.hear(messages.encode(Discard(8)))
    assert Saved(8, "no room") in said_again(talk)

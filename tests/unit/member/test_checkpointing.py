"""What a checkpoint has besides the member's state is read whole, or refused."""

from __future__ import annotations

import pytest

from washp2p.errors import ProtocolError
from washp2p.member.checkpointing import kept_in

EXTRA = {
    "seconds": 1.5,
    "waited": 0.5,
    "generations": [(3, 1, 9)],
    "ledger": [],
    "values": [7, 1],
    "lost": {"too late": 2},
    "log": (120, True),
    "state": {"pass": 2},
}


def test_it_is_read():
    kept = kept_in(EXTRA)
    assert (kept.seconds, kept.generations, kept.values) == (1.5, [(3, 1, 9)], (7, 1))
    assert kept.log == (120, True)
    assert kept_in({**EXTRA, "log": None}).log is None


def test_earlier_versions_said_epochs():
    older = {("epochs" if key == "generations" else key): value for key, value in EXTRA.items()}
    assert kept_in(older) == kept_in(EXTRA)


def test_the_loop_may_keep_what_it_likes():
    assert kept_in({**EXTRA, "state": [1, 2]}).state == [1, 2]


@pytest.mark.parametrize("name", sorted(EXTRA.keys() - {"state"}))
@pytest.mark.parametrize("value", ["wrong", 5])
def test_a_wrong_value_is_refused(name, value):
    with pytest.raises(ProtocolError, match="it holds"):
        kept_in({**EXTRA, name: value})


@pytest.mark.parametrize("name", sorted(EXTRA))
def test_a_missing_value_is_refused(name):
    with pytest.raises(ProtocolError, match="it holds"):
        kept_in({key: value for key, value in EXTRA.items() if key != name})

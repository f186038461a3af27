"""Counts that a member sends are taken as they are, or refused with one kind of error."""

from __future__ import annotations

import pytest

from washp2p.protocol.ledger import Channel, Kind, Ledger

ROW = {
    "peer": 1,
    "kind": "exchange",
    "wire": "tcp",
    "payload": 400,
    "header": 28,
    "messages": 1,
    "expected": 400,
}


def test_rows_come_back():
    ledger = Ledger()
    ledger.sent(Channel(1, Kind.EXCHANGE, "tcp"), header=28, payload=400, expected=400)
    assert ledger.to_wire() == [ROW]
    again = Ledger()
    again.load([ROW])
    assert again.counts == ledger.counts


@pytest.mark.parametrize("name", sorted(ROW))
@pytest.mark.parametrize("value", [[], {}, None, "no such thing", -1, 1.5, True])
def test_a_wrong_value_is_refused(name, value):
    with pytest.raises(ValueError, match=r"not counts|is not a valid Kind"):
        Ledger().load([{**ROW, name: value}])


@pytest.mark.parametrize("row", [5, [], {}, {"peer": 1}, {**ROW, "more": 1}])
def test_what_is_no_row_is_refused(row):
    with pytest.raises(ValueError, match="not counts"):
        Ledger().load([row])

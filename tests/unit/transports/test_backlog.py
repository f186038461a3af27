"""What waits to be received: in order, and only so much of each origin."""

from __future__ import annotations

from washp2p.transports.backlog import BYTES, MESSAGES, Backlog
from washp2p.transports.base import Message


def message(header, size=0):
    return Message(memoryview(header), memoryview(bytes(size)))


def test_messages_wait_in_order_and_so_do_interrupts():
    backlog = Backlog()
    for origin, one in ((1, message(b"a")), (-1, None), (2, message(b"b")), (1, message(b"c"))):
        assert backlog.put(origin, one)
    popped = [backlog.pop() for _ in range(len(backlog))]
    assert [one and bytes(one.header) for one in popped] == [b"a", None, b"b", b"c"]


def test_of_an_origin_only_so_many_wait_and_others_do_not_suffer():
    backlog = Backlog()
    assert all(backlog.put(1, message(b"x")) for _ in range(MESSAGES))
    assert not backlog.put(1, message(b"x"))
    assert backlog.put(2, message(b"y"))
    backlog.pop()
    assert backlog.put(1, message(b"x"))
    assert not backlog.put(1, message(b"x"))


def test_an_origin_may_be_forgotten():
    backlog = Backlog()
    for origin in (1, 2, 1):
        backlog.put(origin, message(b"%d" % origin))
    backlog.forget(1)
    backlog.forget(3)
    assert len(backlog) == 1
    assert bytes(backlog.pop().header) == b"2"
    assert all(backlog.put(1, message(b"x")) for _ in range(MESSAGES))


def test_one_message_may_always_wait_however_large():
    backlog = Backlog()
    large = message(b"x", BYTES + 1)
    assert backlog.put(1, large)
    assert not backlog.put(1, message(b"x"))
    assert backlog.put(2, message(b"y"))
    backlog.pop()
    assert backlog.put(1, message(b"x"))
    assert not backlog.put(1, large)

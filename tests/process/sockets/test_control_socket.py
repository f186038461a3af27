"""The worker's socket to its coordinator, over loopback."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
import zmq

from tests.support.polling import eventually
from washp2p.coordinator_link.control_socket import ControlSocket

SECONDS = 30


@pytest.fixture
def context():
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


def router(context, port=0):
    """A coordinator's socket, and its port."""
    made = context.socket(zmq.ROUTER)
    made.set(zmq.LINGER, 0)
    made.set(zmq.RCVTIMEO, 1000 * SECONDS)
    made.set(zmq.ROUTER_MANDATORY, 1)
    if not port:
        return made, made.bind_to_random_port("tcp://127.0.0.1")

    def bound():
        with suppress(zmq.ZMQError):  # who had it before is still closing
            made.bind(f"tcp://127.0.0.1:{port}")
            return True
        return False

    eventually(bound)
    return made, port


@pytest.mark.timeout(60)
def test_a_coordinator_that_is_back_is_answered_before_it_is_heard(context):
    """What it says first may follow from something that this worker has missed."""
    told = []
    reading, go_on, heard = threading.Event(), threading.Event(), threading.Event()

    def receive(data):
        told.append(data)
        if data == b"before":
            reading.set()
            go_on.wait(SECONDS)
        else:
            heard.set()

    def returned():
        told.append(b"returned")
        return [b"back"]

    first, port = router(context)
    socket = ControlSocket(
        f"tcp://127.0.0.1:{port}", None, receive=receive, returned=returned, failed=told.append
    )
    socket.send(b"hello")
    worker, _ = first.recv_multipart()
    first.send_multipart([worker, b"before"])
    assert reading.wait(SECONDS)  # and it reads nothing else meanwhile
    first.close()
    second, _ = router(context, port)

    def said():
        with suppress(zmq.ZMQError):  # it is not connected yet
            second.send_multipart([worker, b"after"])
            return True
        return False

    eventually(said)
    go_on.set()
    assert heard.wait(SECONDS)
    assert told == [b"before", b"returned", b"after"]
    assert second.recv_multipart() == [worker, b"back"]
    socket.close()
    second.close()

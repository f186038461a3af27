"""Fixtures for rounds."""

from __future__ import annotations

import pytest

from tests.support.rounds import HostCopies, MemoryTransport, Population


@pytest.fixture
def population(memory_address):
    made = []

    def make(config, lane=HostCopies, wire=MemoryTransport):
        made.append(Population(config, memory_address, lane, wire))
        return made[-1]

    yield make
    for one in made:
        for outbox in one.outboxes:
            outbox.close()
        for transport in one.transports:
            transport.close()

"""A member's streams: its own, kept apart from its peers', the same in any process."""

from __future__ import annotations

import random

import numpy as np
import torch

from workers.training.streams import Streams


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_interleaved_members_draw_what_they_draw_alone():
    alone = []
    for member in (0, 1):
        with Streams(3, member).active():
            alone.append([draw() for _ in range(4)])
    assert alone[0] != alone[1]
    members = [Streams(3, member) for member in (0, 1)]
    together = [[], []]
    for _ in range(4):
        for member, streams in enumerate(members):
            with streams.active():
                together[member].append(draw())
    assert together == alone
    with Streams(4, 0).active():
        assert draw() != alone[0][0]


def test_the_global_streams_are_left_as_they_were():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = draw()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    with Streams(0, 0).active():
        draw()
    assert draw() == expected

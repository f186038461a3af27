"""What TensorBoard event files say."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray


def series(folder):
    """By tag, (step, value) in order."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [
            (e.step, pytest.approx(float(make_ndarray(e.tensor_proto))))
            for e in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }

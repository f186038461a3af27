"""Digests: what is equal on all members, and what is not finite on some alone."""

from __future__ import annotations

import torch

from washp2p.model.digests import ROW_BYTES, differing, digests_of, not_finite_alone

INF, NAN = float("inf"), float("nan")


def state(**values):
    made = {"weight": [1.0, 2.0], "mask": [0.0, -INF], "running": [1.0, 1.0]} | values
    return {name: torch.tensor(value) for name, value in made.items()}


def test_what_differs_is_named():
    rows = [digests_of(state()), digests_of(state()), digests_of(state(running=[1.0, 2.0]))]
    assert {len(row) for row in rows} == {3 * ROW_BYTES}
    assert differing(state(), rows[:2]) == []
    assert differing(state(), rows) == ["running"]
    assert differing(state(), [rows[0], digests_of(state(weight=[1.0, -2.0]))]) == ["weight"]


def test_zeros_of_either_sign_differ_since_their_bits_do():
    rows = [digests_of(state(weight=[0.0, 1.0])), digests_of(state(weight=[-0.0, 1.0]))]
    assert differing(state(), rows) == ["weight"]


def test_only_what_is_finite_on_other_members_must_be_finite():
    names = list(state())
    well, sick = digests_of(state()), digests_of(state(running=[NAN, 1.0]))
    assert not_finite_alone(names, {0: well, 1: well}) == {}  # a mask with -inf on all
    assert not_finite_alone(names, {0: sick, 1: sick}) == {}  # statistics frozen as NaN on all
    assert not_finite_alone(names, {0: well, 3: sick, 5: well}) == {3: "running"}


def test_any_dtype_has_a_digest():
    kinds = (torch.complex64, torch.float8_e4m3fn, torch.bfloat16, torch.bool, torch.uint8)
    tensors = {str(kind): torch.zeros(3).to(kind) for kind in kinds}
    tensors["empty"] = torch.zeros(0)
    row = digests_of(tensors)
    assert len(row) == 6 * ROW_BYTES
    assert not_finite_alone(tensors, {0: row, 1: row}) == {}

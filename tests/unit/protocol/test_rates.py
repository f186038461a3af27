"""Selection rates (equation 6) and what they cost."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from tests.support.layouts import make_layout
from washp2p.model.store import Store
from washp2p.protocol.rates import (
    expected_payload,
    expected_selected,
    layer_rates,
    papa_all_reduce,
    papa_payload,
    paper_payload,
)
from workers.training.models import build_model


def test_rates_fall_to_zero_rise_from_zero_or_stay():
    half = Fraction(1, 2)
    assert layer_rates("decreasing", 0.5, 3) == (half, half / 2, 0)
    assert layer_rates("increasing", 0.5, 3) == (0, half / 2, half)
    assert layer_rates("constant", 0.5, 3) == (half,) * 3
    assert layer_rates("decreasing", 0.5, 1) == layer_rates("increasing", 0.5, 1) == (half,)


def test_the_papers_rule_holds_for_equal_layers_and_many_members():
    layout = make_layout([[1000]] * 11)
    rates = layer_rates("decreasing", 0.01, 11)
    assert expected_payload(layout, rates, 10**9) == pytest.approx(
        paper_payload(layout, "decreasing", 0.01), rel=1e-6
    )
    assert paper_payload(layout, "constant", 0.01) == 0.01 * 11000 * 4
    assert papa_payload(layout) == 11000 * 4 / 10
    assert papa_all_reduce(layout, 5) == 2 * 4 / 5 * 11000 * 4 / 10


def test_real_networks_keep_most_parameters_in_late_layers():
    model = build_model("resnet18", (3, 32, 32), 10)
    layout = Store(model, torch.optim.SGD(model.parameters(), lr=0.1)).layout
    selected = expected_selected(layout, layer_rates("decreasing", 0.001, layout.layers))
    assert selected / (0.001 * layout.values) == pytest.approx(0.215, abs=0.005)

"""Average, ensemble and GreedySoup on numbers small enough to check by hand."""

from __future__ import annotations

import pytest
import torch

from washp2p.evaluation.ensemble import accuracy, ensemble, probabilities
from washp2p.evaluation.soup import greedy_soup
from washp2p.model.means import average_state, mean
from workers.simulation.reference import plain_average


def test_floats_are_averaged_in_float64_and_integers_take_the_maximum():
    small = torch.tensor([1e8, 1.0], dtype=torch.float32)
    states = [
        {"w": small, "n": torch.tensor(3), "mask": torch.tensor([True, False])},
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(7), "mask": torch.tensor([False, False])},
        {"w": torch.tensor([-1e8, 3.0]), "n": torch.tensor(5), "mask": torch.tensor([False, True])},
    ]
    result = average_state(states)
    assert torch.equal(result["w"], torch.tensor([1 / 3, 2.0]))  # float32 would have lost the one
    assert result["n"] == 7
    assert result["mask"].tolist() == [True, True]
    plain = plain_average(states)
    assert all(torch.equal(result[name], plain[name]) for name in result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_mean_keeps_the_dtype_and_of_equals_is_the_value(dtype):
    value = torch.randn(50).to(dtype)
    assert torch.equal(mean([value] * 7), value)


def test_ensemble_averages_probabilities_not_votes():
    outputs = [
        torch.tensor([[0.6, 0.4], [0.4, 0.6]]),
        torch.tensor([[0.6, 0.4], [0.4, 0.6]]),
        torch.tensor([[0.0, 1.0], [0.5, 0.5]]),
    ]
    labels = torch.tensor([1, 1])
    assert accuracy(outputs[0], labels) == 50.0
    assert accuracy(ensemble(outputs), labels) == 100.0


def test_probabilities_leave_the_model_in_its_mode():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)).train()
    before = model[0].running_mean.clone()
    batches = [(torch.randn(4, 3), torch.zeros(4)), (torch.randn(2, 3), torch.ones(2))]
    outputs, labels = probabilities(model, batches, torch.device("cpu"))
    assert outputs.shape == (6, 2)
    assert labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert model.training
    assert torch.equal(model[0].running_mean, before)


def test_greedy_soup_takes_in_what_does_not_harm():
    def state(x):
        return {"x": torch.tensor(float(x))}

    def score(s):
        return -abs(float(s["x"]) - 2.0)

    assert float(greedy_soup([state(10), state(1), state(3.5)], score)["x"]) == 2.25
    assert float(greedy_soup([state(2), state(9)], score)["x"]) == 2.0
    assert float(greedy_soup([state(2), state(2)], score)["x"]) == 2.0

"""The mean of several members' tensors, and arrays of their values to calculate with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    import numpy.typing as npt

    from washp2p.protocol.roster import MemberId


def as_array(values: torch.Tensor) -> npt.NDArray[np.floating]:
    """The values as a NumPy array on the host. Waits for the device.

    The dtype is float64 if `values` are float64, else float32.
    """
    wide = values if values.dtype is torch.float64 else values.float()
    array: npt.NDArray[np.floating] = wide.cpu().numpy()
    return array


def mean(tensors: Sequence[torch.Tensor], weights: Sequence[float] | None = None) -> torch.Tensor:
    """The elementwise mean of `tensors` (one shape, one dtype), added in the order given.

    Sums are in float64. The result is a new tensor with the dtype of the first. For integer and
    boolean tensors, such as counters and masks, it is the elementwise maximum instead. Complex
    tensors are averaged part by part. `weights` has the share of each tensor; shares add up to 1.

    >>> mean([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])])
    tensor([2., 4.])
    """
    first = tensors[0]
    if first.is_complex():
        return torch.view_as_complex(mean([torch.view_as_real(t) for t in tensors], weights))
    if not first.is_floating_point():
        result = first
        for tensor in tensors[1:]:
            result = torch.maximum(result, tensor)
        return result.clone()
    total = torch.zeros_like(first, dtype=torch.float64)
    if weights is not None:
        for tensor, weight in zip(tensors, weights, strict=True):
            total += weight * tensor.double()
        return total.to(first.dtype)
    for tensor in tensors:
        total += tensor if tensor.element_size() > 1 else tensor.double()
    return (total / len(tensors)).to(first.dtype)


def mean_of_finite(
    contributions: Iterable[tuple[MemberId, Sequence[torch.Tensor]]],
    count: int,
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> tuple[list[torch.Tensor], dict[MemberId, int]]:
    """The mean of each scalar over the contributions in which it is finite, in the order given.

    A contribution is a member and its values: for each of `dtypes` a vector of `count` scalars, on
    any device. One contribution is used up before the next is taken from the iterable. Sums are in
    float64 on `device`; the means are new vectors there. A contribution does not count for a scalar
    that is not finite in one of the contribution's vectors. If none counts, the scalar's mean is
    NaN. The second result has, for each member with such scalars, their number.
    """
    totals = [torch.zeros(count, dtype=torch.float64, device=device) for _ in dtypes]
    number: torch.Tensor | int = 0
    unusable = {}
    for member, values in contributions:
        vectors = [vector.to(device) for vector in values]
        usable = torch.stack([vector.isfinite() for vector in vectors]).all(dim=0)
        if not usable.all():
            unusable[member] = count - int(usable.sum())
            vectors = [vector.where(usable, 0.0) for vector in vectors]
            number = number + usable
        else:
            number = number + 1
        for total, vector in zip(totals, vectors, strict=True):
            total.add_(vector)
    means = [(total / number).to(dtype) for total, dtype in zip(totals, dtypes, strict=True)]
    return means, unusable


def average_state(
    states: Sequence[dict[str, torch.Tensor]], weights: Sequence[float] | None = None
) -> dict[str, torch.Tensor]:
    """The `mean` of `states`, state dicts with the same keys, tensor by tensor.

    `weights` has the share of each state; shares add up to 1, and are equal if not given.

    >>> import torch
    >>> states = [{"w": torch.tensor([1.0, 2.0]), "steps": torch.tensor(k)} for k in (3, 5)]
    >>> average_state(states)
    {'w': tensor([1., 2.]), 'steps': tensor(5)}
    """
    return {name: mean([state[name] for state in states], weights) for name in states[0]}

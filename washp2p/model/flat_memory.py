"""Flat memory: one vector with a place for every trainable parameter.

A round then takes one gather and one scatter, whatever the number of parameters. Each parameter has
a storage of its own within the vector, of exactly its size. So code that saves, copies or shares
the parameter sees an ordinary tensor. A parameter in memory shared with other processes stays where
it is. Each round copies it in and out; for all parameters that costs O(model).

Nothing here knows of plans, sockets or the optimizer.
"""

from __future__ import annotations

import logging
import mmap
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.dlpack import from_dlpack

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from washp2p.protocol.layout import Entry

LARGE = 4 << 20
"""Bytes from which memory is asked for in large pages."""

_log = logging.getLogger("washp2p")
Owner = dict[str, "torch.nn.Parameter | None"]
_pointer, _strides = torch.Tensor.data_ptr, torch.Tensor.stride


class FlatParameters:
    """Holds `parameters` in one vector, at the offsets of `entries`.

    Their values and the Parameter objects stay the same. Raises UsageError for parameters that
    share their memory with each other.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        entries: Sequence[Entry],
        size: int,
        owners: Sequence[tuple[Owner, str]],
    ) -> None:
        """Move the parameters into a new vector of `size` scalars.

        `owners` is what the function `owners` (module `parameters`) returns for them.
        """
        first = parameters[0]
        self._owners = owners
        self._owned = [where[name] for where, name in owners]
        self._parameters = parameters
        self._entries = entries
        self.vector = flat_zeros(size, first.dtype, first.device)
        """The values of all parameters. Gaps between parameters hold zeros."""
        self._apart: set[int] = set()
        for number, parameter in enumerate(parameters):
            view_of(self.vector, entries[number]).copy_(parameter.detach())
            if _is_shared(parameter):
                self._apart.add(number)
            else:
                self._move_in(number)  # and the memory it had is free: never two models at once
        if self._apart:
            _log.warning(
                "%d parameters are in memory that other processes share, and stay there: each "
                "round copies them in and out",
                len(self._apart),
            )
        self._note()

    @property
    def copies(self) -> bool:
        """Whether some parameters live outside of the vector."""
        return bool(self._apart)

    def refresh(self) -> None:
        """Make the vector hold the parameters' present values.

        A parameter that was given other memory (`p.data = ...`) moves back into the vector with its
        new values. Raises UsageError if it has another shape, dtype or device, or is another
        object.
        """
        try:
            now: Any = [where[name] for where, name in self._owners]
            moved = (
                list(map(_pointer, now)) != self._pointers
                or list(map(_strides, now)) != self._stride
                or [p.nbytes for p in now] != self._bytes
                or [p.dtype for p in now] != self._dtypes
            )
        except (KeyError, TypeError, AttributeError, RuntimeError):  # one is gone
            moved = True
        if moved:
            self._take_in_again()
        for number in self._apart:
            view_of(self.vector, self._entries[number]).copy_(self._parameters[number].detach())

    @torch.no_grad()
    def wrote(self, numbers: Iterable[int]) -> None:
        """Copy values from the vector to those parameters `numbers` that live outside of it."""
        for number in self._apart.intersection(numbers):
            self._parameters[number].detach().copy_(view_of(self.vector, self._entries[number]))

    @torch.no_grad()
    def release(self) -> None:
        """Give every parameter memory of its own again."""
        for parameter in self._parameters:
            if parameter.numel() and self._holds(parameter.data_ptr()):
                parameter.data = torch.empty_like(parameter).copy_(parameter)

    def _move_in(self, number: int) -> None:
        parameter = self._parameters[number]
        if parameter.numel():
            parameter.data = own_storage(self.vector, self._entries[number])

    def _take_in_again(self) -> None:
        self._refuse_replaced()
        vector = self.vector
        moved = [number for number in range(len(self._entries)) if not self._is_at_home(number)]
        if moved:
            refuse_overlaps(self._named())
        values = {n: self._parameters[n].detach().clone() for n in moved}  # they may lie in there
        for number, value in values.items():
            parameter, entry = self._parameters[number], self._entries[number]
            view_of(vector, entry).copy_(value)
            if _is_shared(parameter):
                if not self._apart:
                    _log.warning(
                        "parameter %s was moved to memory that other processes share; it stays "
                        "there, and each round copies it in and out: share a model before joining "
                        "if others are to see it, or send them a copy",
                        entry.name,
                    )
                self._apart.add(number)
            else:
                self._move_in(number)
        self._note()

    def _is_at_home(self, number: int) -> bool:
        """Whether a parameter lies at its place in the vector, or may lie outside of it.

        Shared and empty parameters may. Raises UsageError if its shape, dtype or device changed.
        """
        parameter, entry, vector = self._parameters[number], self._entries[number], self.vector
        kind = (tuple(parameter.shape), parameter.dtype, parameter.device)
        if kind != (entry.shape, vector.dtype, vector.device):
            raise UsageError(
                f"parameter {entry.name} is {_describe(parameter)} now; it was "
                f"{list(entry.shape)} {str(vector.dtype).removeprefix('torch.')} on "
                f"{vector.device} when the model joined: do .to(), .half() and the like before"
            )
        there = vector.data_ptr() + entry.offset * vector.element_size()
        at_home = (parameter.data_ptr(), parameter.stride()) == (there, entry.stride)
        return at_home or number in self._apart or not parameter.numel()

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        return [(e.name, p) for e, p in zip(self._entries, self._parameters, strict=True)]

    def _refuse_replaced(self) -> None:
        """Raise UsageError for a parameter that is not the object that joined."""
        for (where, name), parameter in zip(self._owners, self._owned, strict=True):
            now = where.get(name)
            if now is not parameter:
                full = next(n for n, p in self._named() if p is parameter)
                what = "is gone" if now is None else f"is another object, of {type(now).__name__}"
                raise UsageError(
                    f"parameter {full} of the model {what}, than when it joined (a layer was "
                    "replaced or tied, or the model sharded); expected the same ones to the end: "
                    "do it before joining"
                )

    def _note(self) -> None:
        """Remember where each parameter lies."""
        owned: Any = self._owned
        self._pointers = list(map(_pointer, owned))
        self._stride = list(map(_strides, owned))
        self._bytes = [p.nbytes for p in owned]
        self._dtypes = [p.dtype for p in owned]

    def _holds(self, pointer: int) -> bool:
        return 0 <= pointer - self.vector.data_ptr() < self.vector.nbytes


def flat_zeros(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A vector of `size` zeros, to be read and written at scattered places.

    For a large one Linux is asked for pages of 2 MiB. With ordinary pages the processor looks up
    the address of nearly every scattered value, since it remembers too few.
    """
    count = size * dtype.itemsize
    if device.type != "cpu" or count < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without such pages, or no memory: torch says so
        return torch.zeros(size, dtype=dtype, device=device)
    return torch.frombuffer(memory, dtype=dtype)


def own_storage(vector: torch.Tensor, entry: Entry) -> torch.Tensor:
    """The part of `vector` for `entry`, as a tensor whose storage is exactly that part."""
    part = from_dlpack(vector[entry.offset : entry.offset + entry.size])
    return part.as_strided(entry.shape, entry.stride)


def view_of(vector: torch.Tensor, entry: Entry) -> torch.Tensor:
    """The part of `vector` for `entry`, as a view in the parameter's shape."""
    return vector.as_strided(entry.shape, entry.stride, vector.storage_offset() + entry.offset)


def _is_shared(parameter: torch.Tensor) -> bool:
    """Whether other processes may see this memory. False on CUDA, where torch always says yes."""
    return parameter.device.type == "cpu" and parameter.is_shared()


def _describe(tensor: torch.Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{list(tensor.shape)} {kind} on {tensor.device}"


def refuse_overlaps(
    parameters: Sequence[tuple[str, torch.Tensor]], others: Sequence[tuple[str, torch.Tensor]] = ()
) -> None:
    """Raise UsageError if a Parameter shares memory with another, or with one of `others`.

    Flat memory would separate the two. `others` may overlap each other.
    """
    spans = [(*_span(t), name, True) for name, t in parameters if t.numel()]
    spans += [
        (*_span(t), name, False)
        for name, t in others
        if t.layout is torch.strided and (t.is_cpu or t.is_cuda) and t.numel()
    ]
    reached = {True: (0, ""), False: (0, "")}  # by whether it trains: up to where, and whose it is
    for begin, end, name, trains in sorted(spans):
        for other_trains in (True, False) if trains else (True,):
            until, other = reached[other_trains]
            if begin < until:
                kind = "two Parameters" if other_trains and trains else "a Parameter and a tensor"
                raise UsageError(
                    f"{other} and {name} are {kind} in the same memory; expected one Parameter "
                    "that both modules have (b.weight = a.weight), or copies"
                )
        reached[trains] = max(reached[trains], (end, name))


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The address of the first byte, and of the byte after the last."""
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size()

"""Copies between a model's flat vectors and host memory, made while training goes on.

On the CPU each copy is made at once. On CUDA copies run in streams of their own and through pinned
memory; events order them against the training stream. The host waits only where it asks to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

Vectors = list[torch.Tensor]
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Places:
    """Indices (int64), held twice: on the host, and on the device of the store's vectors."""

    host: npt.NDArray[np.int64]
    device: torch.Tensor
    ready: torch.cuda.Event | None = None
    """On CUDA: an event that has happened once `device` holds the indices."""

    def __len__(self) -> int:
        return len(self.host)

    def part(self, begin: int, end: int) -> Places:
        """The indices from `begin` up to `end`; memory is shared."""
        return Places(self.host[begin:end], self.device[begin:end], self.ready)


class Mark(Protocol):
    """A point in the queue of copies. It tells whether all copies before it are done."""

    def done(self) -> bool:
        """Whether all copies up to here are done. Does not block."""

    def wait(self) -> None:
        """Block until all copies up to here are done."""


class Staging:
    """Host memory for values to send or to receive: a vector for each slot, of dtype `dtypes[k]`.

    With `reuse`, the next `take` returns the same memory again, so no copy may still be using it.
    With `pin`, the memory is pinned. `memory` has the vectors as bytes.
    """

    def __init__(self, dtypes: Sequence[torch.dtype], *, reuse: bool, pin: bool) -> None:
        self._dtypes = dtypes
        self._reuse = reuse
        self._pin = pin
        self._vectors: Vectors = []
        self._room = 0
        self.memory: list[memoryview] = []

    def take(self, count: int) -> Vectors:
        """Memory for `count` values of every slot: one vector for each slot."""
        if not self._reuse or not self._vectors or self._room < count:
            self._room = count + count // 4 if self._reuse else count
            self._vectors = [
                torch.empty(self._room, dtype=dtype, device="cpu", pin_memory=self._pin)
                for dtype in self._dtypes
            ]
            self.memory = [as_bytes(vector) for vector in self._vectors]
        return [vector[:count] for vector in self._vectors]


def as_bytes(values: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor of any dtype, as bytes. The memory is shared."""
    return values.view(torch.uint8).numpy().data


class DeviceCopies(ABC):
    """Gathers values from flat vectors and scatters values into them.

    `vectors` has a vector for each slot of the store. `values` has as many tensors, on any device.
    """

    @abstractmethod
    def staging(self, dtypes: Sequence[torch.dtype]) -> Staging:
        """Host memory that copies can use."""

    @abstractmethod
    def upload(self, indices: npt.NDArray[np.int64]) -> Places:
        """Copy indices to the device of the vectors. Any thread may call this."""

    @abstractmethod
    def gather(self, vectors: Vectors, places: Places, out: Vectors) -> Mark:
        """Copy the values at `places` to `out`, after everything that training has queued. `out`
        holds them once the mark is done.
        """

    @abstractmethod
    def keep(self, vectors: Vectors, places: Places) -> Vectors:
        """A copy of the values at `places`, for the argument `own` of `add`. It is made after
        everything that training has queued.
        """

    @abstractmethod
    def pick(self, vectors: Vectors, places: Places) -> tuple[Vectors, Mark]:
        """New vectors on the device with the values at `places`, copied after everything that
        training has queued. They hold the values once the mark is done.
        """

    @abstractmethod
    def settle(self) -> None:
        """Block until everything that training has queued is done."""

    @abstractmethod
    def finite(self, values: Vectors) -> bool:
        """Whether the sum of each vector is finite. If it is, all values of the vector are finite.

        Does not wait for training.
        """

    @abstractmethod
    def select(self, values: Vectors, kept: npt.NDArray[np.intp]) -> Vectors:
        """The values at the positions `kept`, in memory that `assign` can copy from."""

    @abstractmethod
    def assign(self, vectors: Vectors, places: Places, values: Vectors) -> None:
        """Set vector[places] = values, before whatever training queues next."""

    @abstractmethod
    def add(self, vectors: Vectors, places: Places, values: Vectors, own: Vectors) -> None:
        """Do vector[places] += values - own, before whatever training queues next."""

    @abstractmethod
    def pull(self, vectors: Vectors, places: Places, values: Vectors, weight: float) -> None:
        """Set vector[places] = (1 - weight) * vector[places] + weight * values.

        It is done before whatever training queues next. It is computed in float32 at least, and
        rounded once.
        """


class _Done:
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


DONE = _Done()


class TensorCopies(DeviceCopies):
    """Copies by torch. Everything is done on return, or queued on the vectors' device."""

    def staging(self, dtypes: Sequence[torch.dtype]) -> Staging:
        return Staging(dtypes, reuse=True, pin=False)

    def upload(self, indices: npt.NDArray[np.int64]) -> Places:
        """Wrap the indices as `Places`, which share their memory."""
        return Places(indices, torch.from_numpy(indices))

    def gather(self, vectors: Vectors, places: Places, out: Vectors) -> Mark:
        for vector, values in zip(vectors, out, strict=True):
            torch.index_select(vector, 0, places.device, out=values)
        return DONE

    def keep(self, vectors: Vectors, places: Places) -> Vectors:
        return [vector.index_select(0, places.device) for vector in vectors]

    def pick(self, vectors: Vectors, places: Places) -> tuple[Vectors, Mark]:
        return self.keep(vectors, places), DONE

    def settle(self) -> None:
        """Return at once: on the CPU training queues nothing."""

    def finite(self, values: Vectors) -> bool:
        return all(isfinite(vector.sum()) for vector in values)

    def select(self, values: Vectors, kept: npt.NDArray[np.intp]) -> Vectors:
        return [vector.index_select(0, torch.from_numpy(kept)) for vector in values]

    def assign(self, vectors: Vectors, places: Places, values: Vectors) -> None:
        for vector, new in zip(vectors, values, strict=True):
            vector.index_put_((places.device,), new)

    def add(self, vectors: Vectors, places: Places, values: Vectors, own: Vectors) -> None:
        for vector, new, old in zip(vectors, values, own, strict=True):
            now = vector.index_select(0, places.device)
            vector.index_put_((places.device,), (new - old).add_(now))

    def pull(self, vectors: Vectors, places: Places, values: Vectors, weight: float) -> None:
        for vector, new in zip(vectors, values, strict=True):
            now = vector.index_select(0, places.device)
            wide = torch.promote_types(vector.dtype, torch.float32)
            pulled = now.to(wide) * (1 - weight) + new.to(wide) * weight
            vector.index_put_((places.device,), pulled.to(vector.dtype))


class HostCopies(TensorCopies):
    """Copies for vectors in host memory, by NumPy: as fast as torch there, and often faster."""

    def gather(self, vectors: Vectors, places: Places, out: Vectors) -> Mark:
        for vector, values in zip(vectors, out, strict=True):
            _bits(vector).take(places.host, out=_bits(values), mode="clip")
        return DONE

    def keep(self, vectors: Vectors, places: Places) -> Vectors:
        taken = ((_bits(v).take(places.host, mode="clip"), v.dtype) for v in vectors)
        return [torch.from_numpy(bits).view(dtype) for bits, dtype in taken]

    def assign(self, vectors: Vectors, places: Places, values: Vectors) -> None:
        for vector, new in zip(vectors, values, strict=True):
            _bits(vector)[places.host] = _bits(new)


def _bits(values: torch.Tensor) -> npt.NDArray[np.signedinteger]:
    """The memory of a contiguous CPU tensor of floats, as integers of their size."""
    return values.view(_INTEGERS[values.itemsize]).numpy()


class CudaCopies(TensorCopies):
    """Copies for vectors on a GPU, in streams beside the training stream.

    Gathers and scatters run in one stream, and the training stream waits for them. Values that go
    to the host, and indices that come from it, use another stream, and training never waits for
    those.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._copies = torch.cuda.Stream(device)
        self._checks = torch.cuda.Stream(device)

    def staging(self, dtypes: Sequence[torch.dtype]) -> Staging:
        """Pinned memory; torch's allocator reuses it when its copies are over."""
        return Staging(dtypes, reuse=False, pin=True)

    def upload(self, indices: npt.NDArray[np.int64]) -> Places:
        with torch.cuda.stream(self._copies):
            pinned = torch.from_numpy(indices).pin_memory()
            places = pinned.to(self._device, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record(self._copies)
        places.record_stream(self._stream)
        return Places(indices, places, ready)

    def gather(self, vectors: Vectors, places: Places, out: Vectors) -> Mark:
        picked = self.keep(vectors, places)
        self._copies.wait_stream(self._stream)
        with torch.cuda.stream(self._copies):
            for values, new in zip(out, picked, strict=True):
                values.copy_(new, non_blocking=True)
                new.record_stream(self._copies)
            event = torch.cuda.Event(blocking=True)
            event.record(self._copies)
        return _Event(event)

    def keep(self, vectors: Vectors, places: Places) -> Vectors:
        with self._beside_training(places):
            return super().keep(vectors, places)

    def pick(self, vectors: Vectors, places: Places) -> tuple[Vectors, Mark]:
        picked = self.keep(vectors, places)
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        return picked, _Event(event)

    def settle(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()

    def finite(self, values: Vectors) -> bool:
        with torch.cuda.stream(self._checks):
            return super().finite(values)

    def select(self, values: Vectors, kept: npt.NDArray[np.intp]) -> Vectors:
        """Select on the device if the values are there, else into pinned host memory.

        A copy from other host memory would make the host wait.
        """
        if values[0].is_cuda:
            with torch.cuda.stream(self._stream):
                indices = torch.from_numpy(kept).to(self._device)
                selected = [vector.index_select(0, indices) for vector in values]
            for vector in values:
                vector.record_stream(self._stream)
            return selected
        selected = self.staging([vector.dtype for vector in values]).take(len(kept))
        for vector, out in zip(values, selected, strict=True):
            torch.index_select(vector, 0, torch.from_numpy(kept), out=out)
        return selected

    def assign(self, vectors: Vectors, places: Places, values: Vectors) -> None:
        uploaded = self._upload(values)
        with self._beside_training(places):
            super().assign(vectors, places, uploaded)

    def add(self, vectors: Vectors, places: Places, values: Vectors, own: Vectors) -> None:
        uploaded = self._upload(values)
        with self._beside_training(places):
            super().add(vectors, places, uploaded, own)

    def pull(self, vectors: Vectors, places: Places, values: Vectors, weight: float) -> None:
        uploaded = self._upload(values)
        with self._beside_training(places):
            super().pull(vectors, places, uploaded, weight)

    def _upload(self, values: Vectors) -> Vectors:
        with torch.cuda.stream(self._stream):
            uploaded = [vector.to(self._device, non_blocking=True) for vector in values]
        for vector in uploaded:  # it may have come straight to the device
            vector.record_stream(self._stream)
        return uploaded

    @contextmanager
    def _beside_training(self, places: Places) -> Iterator[None]:
        """Run the copies of a `with` block after training's queue. Training then waits for them."""
        training = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(training)
        if places.ready is not None:
            self._stream.wait_event(places.ready)
        with torch.cuda.stream(self._stream):
            yield
        training.wait_stream(self._stream)


class _Event:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._event.synchronize()


def copies_for(device: torch.device) -> DeviceCopies:
    """The object that copies values to and from vectors on `device`."""
    beside = CudaCopies(device) if device.type == "cuda" else TensorCopies()
    return HostCopies() if device.type == "cpu" else beside

"""Lanes: both give the same values; the CUDA one in the order that streams need.

Without a GPU its streams are stand-ins that write down who waits for whom; what runs in a stream
runs at once.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch

from washp2p.model.device_copies import CudaCopies, HostCopies, TensorCopies, copies_for

PLACES = np.array([7, 3, 90], dtype=np.int64)


class Streams:
    """Stands in for torch.cuda: names streams in order of appearance, and logs."""

    def __init__(self):
        self.log = []
        self.count = 0
        self.active = "training"

    def stream(self, *_):
        self.count += 1
        return Stream(self, ("lane", "copies", "checks")[self.count - 1])

    @contextmanager
    def use(self, stream):
        before, self.active = self.active, stream.name
        yield
        self.active = before

    def note(self, text):
        self.log.append(text)


class Stream:
    def __init__(self, streams, name):
        self.streams, self.name = streams, name

    def wait_stream(self, other):
        self.streams.note(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.streams.note(f"{self.name} waits for event of {event.where}")


class Event:
    where = ""

    def __init__(self, **_):
        pass

    def record(self, stream):
        self.where = stream.name

    def query(self):
        return True

    def synchronize(self):
        raise AssertionError("nobody asked to wait")


@pytest.fixture
def streams(monkeypatch):
    streams = Streams()
    monkeypatch.setattr(torch.cuda, "Stream", streams.stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", streams.use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(streams, "training"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch, "empty", partial(_pageable, torch.empty))
    for name in ("index_select", "index_put_", "copy_"):
        monkeypatch.setattr(torch.Tensor, name, _logged(streams, name))
    return streams


def _pageable(empty, *arguments, pin_memory, **options):
    return empty(*arguments, **options)


def _logged(streams, name):
    original = getattr(torch.Tensor, name)

    def logged(self, *arguments, **options):
        streams.note(f"{name} in {streams.active}")
        return original(self, *arguments, **options)

    return logged


def use(lane):
    """One of everything; the values at the end, and what was gathered and selected."""
    vectors = [torch.arange(100.0), torch.arange(100.0) * 2]
    places = lane.upload(PLACES)
    out = lane.staging([torch.float32] * 2).take(3)
    mark = lane.gather(vectors, places, out)
    assert mark.done()
    own = lane.keep(vectors, places)
    lane.assign(vectors, places, [torch.tensor([1.0, 2.0, 3.0])] * 2)
    lane.add(vectors, places.part(1, 3), [torch.tensor([10.0, 20.0])] * 2, [v[1:] for v in own])
    lane.pull(vectors, places.part(0, 1), [torch.tensor([5.0])] * 2, 0.25)
    kept = lane.select(out, np.array([0, 2]))
    picked, mark = lane.pick(vectors, places)
    assert mark.done()
    assert lane.finite(picked)
    assert not lane.finite([*picked, torch.tensor([0.0, float("inf")])])
    return [*vectors, *out, *kept, *picked]


def test_both_lanes_give_the_same_values(streams):
    expected = use(HostCopies())
    assert expected[0][PLACES].tolist() == [0.75 * 1 + 0.25 * 5, 10 - 3 + 2, 20 - 90 + 3]
    assert expected[2].tolist() == [7, 3, 90]
    for mine, theirs in zip(use(CudaCopies(torch.device("cpu"))), expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numpy_and_torch_copy_the_same_bits(dtype):
    """Those of numbers and of what is none, of which there are many."""
    random = np.random.default_rng(0)

    def any_bits(count):
        drawn = random.integers(0, 256, count * dtype.itemsize, dtype=np.uint8)
        return torch.from_numpy(drawn).view(dtype)

    theta, new = any_bits(500), any_bits(40)
    places = random.permutation(500)[:40]
    found = []
    for lane in (HostCopies(), TensorCopies()):
        vectors = [theta.clone()]
        at = lane.upload(places)
        out = lane.staging([dtype]).take(40)
        lane.gather(vectors, at, out)
        own = lane.keep(vectors, at)
        lane.assign(vectors, at, [new])
        found.append([vector.view(torch.uint8) for vector in (*out, *own, *vectors)])
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


def test_kernels_run_between_training_steps_and_copies_beside_them(streams):
    lane = CudaCopies(torch.device("cpu"))
    vectors, places = [torch.zeros(100)], lane.upload(PLACES)
    values = lane.staging([torch.float32]).take(3)
    streams.log.clear()
    lane.gather(vectors, places, values)
    assert streams.log == [
        "lane waits for training",
        "lane waits for event of copies",
        "index_select in lane",
        "training waits for lane",
        "copies waits for lane",
        "copy_ in copies",
    ]
    streams.log.clear()
    lane.assign(vectors, places, values)
    assert streams.log == [
        "lane waits for training",
        "lane waits for event of copies",
        "index_put_ in lane",
        "training waits for lane",
    ]
    streams.log.clear()
    lane.pick(vectors, places)
    assert streams.log == [
        "lane waits for training",
        "lane waits for event of copies",
        "index_select in lane",
        "training waits for lane",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_pull_is_computed_in_float32_at_least_and_rounded_once(dtype):
    torch.manual_seed(0)
    held, means = torch.randn(50).to(dtype), torch.randn(50).to(dtype)
    vectors = [held.clone()]
    everywhere = np.arange(50)
    HostCopies().pull(vectors, HostCopies().upload(everywhere), [means], 0.3)
    wide = torch.promote_types(dtype, torch.float32)
    expected = (held.to(wide) * 0.7 + means.to(wide) * 0.3).to(dtype)
    assert torch.equal(vectors[0], expected)
    exact = held.double() * 0.7 + means.double() * 0.3
    assert (vectors[0].double() - exact).abs().max() <= torch.finfo(dtype).eps * 3


def test_a_pull_runs_between_training_steps(streams):
    lane = CudaCopies(torch.device("cpu"))
    vectors, places = [torch.zeros(100)], lane.upload(PLACES)
    streams.log.clear()
    lane.pull(vectors, places, [torch.ones(3)], 0.5)
    assert streams.log == [
        "lane waits for training",
        "lane waits for event of copies",
        "index_select in lane",
        "index_put_ in lane",
        "training waits for lane",
    ]


def test_a_lane_for_every_device():
    assert type(copies_for(torch.device("cpu"))) is HostCopies
    assert type(copies_for(torch.device("meta"))) is TensorCopies


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_lanes_agree_on_a_gpu():
    device = torch.device("cuda")
    lane = copies_for(device)
    vector = [torch.arange(100.0, device=device)]
    places = lane.upload(PLACES)
    out = lane.staging([torch.float32]).take(3)
    mark = lane.gather(vector, places, out)
    lane.assign(vector, places, [torch.tensor([1.0, 2.0, 3.0]).pin_memory()])
    mark.wait()
    assert out[0].tolist() == [7, 3, 90]
    assert vector[0][PLACES].tolist() == [1, 2, 3]

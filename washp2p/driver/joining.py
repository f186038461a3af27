"""Joining a run: `connect` finds it, `join` or `attach` makes a model part of it."""

from __future__ import annotations

import atexit
import hashlib
import logging
import sys
import threading
import weakref
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from washp2p.coordinator_link.connection import Connection
from washp2p.driver.assembly import Choices, assemble
from washp2p.driver.lifecycle import Lifecycle
from washp2p.driver.member import Member
from washp2p.driver.replicas import Replica, Replicas, group_of, wrapped
from washp2p.errors import RunStoppedError
from washp2p.model.optimizers import plain_optimizer, plain_scaler
from washp2p.protocol.endpoints import require_loopback
from washp2p.sockets.addresses import where_to_listen
from washp2p.sockets.keys import read_join

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch

    from washp2p.member.checkpointing import Stateful
    from washp2p.rounds.repairer import Inputs

_log = logging.getLogger("washp2p")


def connect(
    address: str,
    *,
    wait: float = 60.0,
    keys: Path | None = None,
    insecure: bool = False,
    run_dir: Path | None = None,
    rank: int | None = None,
    seed: bool = False,
) -> Connection:
    """Find a run and take a place in it, before there is a model.

    `address` is the coordinator's (`tcp://HOST:PORT`). The call blocks until the coordinator
    answers, for at most `wait` seconds. `keys` is the folder with `join.key`, or the path of that
    file. With keys, connections are encrypted. Without keys, an address off loopback needs
    `insecure`. `run_dir` is where this host keeps its checkpoints (default: `runs/<the run's
    name>`). `rank` asks for this MemberId, if no member has it (default: the next free one). With
    `seed`, the run's seed and the MemberId seed the random numbers of Python, NumPy and torch, so
    that members that run the same script draw different numbers. The connection's `config` says
    what to train.

    If this thread still has an open member of the same run, as after a failed cell of a notebook,
    that member leaves first. Raises UnreachableError, JoinRefusedError, UsageError.
    """
    join_key = None if keys is None else read_join(keys)
    require_loopback(address, encrypted=join_key is not None, insecure=insecure)
    _leave_former(address)
    connection = Connection(address, wait, run_dir, join_key, rank)
    if seed:
        _seed(connection.config.seed, connection.member)
    return connection


def join(
    run: str | Connection,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    rounds: int = 0,
    bind: str | None = None,
    advertise: str | None = None,
    keys: Path | None = None,
    insecure: bool = False,
    log: Path | None = None,
    state: Stateful | None = None,
    scaler: torch.amp.GradScaler | None = None,
    repair_inputs: Inputs | None = None,
    last: str = "",
    buffers: Mapping[str, str] | None = None,
) -> Member:
    """Make `model` a member of a run and wait until the population is complete.

    `run` is the coordinator's address, or what `connect` returned. On return all members hold the
    first member's parameters and buffers; under `--init different` each member keeps its own. From
    then on each `optimizer.step()` ends with a round. If the run has already begun, this member
    takes over the whole state of a live member, optimizer included, and goes on from
    `Member.round`.

    The model's trainable parameters move into one vector until the member closes. The `Parameter`
    objects and their values stay the same, and each has a storage of its own. Move the model to its
    device and dtype before you call this.

    `rounds` is the number of rounds of the run, if it is known. `bind` is where this member's data
    plane listens (default: a free port on loopback, or on the address facing a coordinator
    elsewhere). `advertise` is the address that peers are told instead of that one
    (`tcp://HOST[:PORT]`). If `run` is an address, `keys` is the folder with `join.key`; then
    connections are encrypted. Without keys, an address other than loopback needs `insecure`. `log`
    is the file to which the run log is written.

    `state` is what a checkpoint must hold besides model and optimizer (an object with `state_dict`
    and `load_state_dict`). If the run goes on from a checkpoint, `state` has been loaded on return,
    and `Member.round` is the checkpoint's. `scaler` is the object whose `step` steps the optimizer,
    if there is one: a GradScaler, or timm's NativeScaler. If it skips a step, a round follows all
    the same. `repair_inputs` is a function that returns batches for `--repair`: made of the same
    images in all members, as the model gets them in training.

    `last` names the module whose parameters are the last layer, which the decreasing schedule never
    shuffles (default: `--last`, or the module registered last). `buffers` gives by name the rule by
    which a buffer is averaged: "mean", "max", "first" (the first member's) or "equal" (which is
    checked). The kind of any other buffer decides its rule.

    Blocks. Raises UsageError, JoinRefusedError, RunStoppedError. The optimizer's step raises
    DroppedError once the population goes on without this member; the process may then join again.
    """
    optimizer, scaler = plain_optimizer(optimizer), plain_scaler(scaler)
    replicas = Replicas.of(model)
    with nullcontext() if replicas is None else replicas.waiting():
        connection = connect(run, keys=keys, insecure=insecure) if isinstance(run, str) else run
        try:
            where = where_to_listen(
                connection.address, bind, encrypted=connection.encrypted, insecure=insecure
            )
            choices = Choices(
                rounds=rounds,
                bind=where,
                advertise=advertise,
                log=log,
                state=state,
                scaler=scaler,
                repair_inputs=repair_inputs,
                last=last,
                buffers=buffers or {},
            )
            lifecycle = Lifecycle(*assemble(connection, model, optimizer, choices))
        except BaseException as error:
            connection.leave(error)
            raise
        lifecycle.face = member = Member(lifecycle)
        with _or_leave(lifecycle):
            lifecycle.begin()
    _open.append((connection.address, threading.get_ident(), weakref.ref(lifecycle)))
    if replicas is not None:
        with _or_leave(lifecycle):
            lifecycle.replicate(replicas)
    return member


@contextmanager
def _or_leave(lifecycle: Lifecycle) -> Iterator[None]:
    """Run a block. If it raises, the member leaves the run, and the coordinator is told the
    reason.
    """
    try:
        yield
    except BaseException as error:
        lifecycle.end(error)
        raise


def attach(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    run: str | Connection,
    *,
    rounds: int = 0,
    keys: Path | None = None,
    state: Stateful | None = None,
    scaler: torch.amp.GradScaler | None = None,
    repair_inputs: Inputs | None = None,
    last: str = "",
    buffers: Mapping[str, str] | None = None,
) -> Member:
    """Like `join`, for a loop that is not in a `with` block: call `Member.close` after the loop.

    `model`, `optimizer`, `run`, `rounds`, `keys`, `state`, `scaler`, `repair_inputs`, `last` and
    `buffers` are as in `join`. To use other arguments of `connect`, pass the connection that it
    returns as `run`. If the model is in DistributedDataParallel, call this on all ranks: rank 0 of
    the group joins, and the others `follow`. If the process ends without `close`, the member leaves
    and the others go on. The member counts as finished if no step has followed its last average.

    Blocks. Raises UsageError, JoinRefusedError, RunStoppedError.
    """
    model = wrapped(model)
    group = group_of(model)
    if group is not None and group.rank():
        replica: Any = Replica(model, plain_optimizer(optimizer), plain_scaler(scaler))
        follower: Member = replica
        return follower
    member = join(
        run,
        model,
        optimizer,
        rounds=rounds,
        keys=keys,
        state=state,
        scaler=scaler,
        repair_inputs=repair_inputs,
        last=last,
        buffers=buffers,
    )
    atexit.register(_abandon, weakref.ref(member._lifecycle))
    return member


def follow(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> Replica:
    """Take part in a member that is trained by a DistributedDataParallel group.

    `model` is in DistributedDataParallel. Rank 0 of its group joins the run and is the member; all
    other ranks call this. On return the model and the optimizer's state equal those of rank 0. From
    then on each `optimizer.step()` ends by writing the values that rank 0 wrote in its round.
    `scaler` is as in `join`.

    Blocks until rank 0 has joined. Raises UsageError, RunStoppedError. The optimizer's step raises
    RunStoppedError once the member has left the run.
    """
    return Replica(wrapped(model), plain_optimizer(optimizer), plain_scaler(scaler))


_open: list[tuple[str, int, weakref.ref[Lifecycle]]] = []
"""Members of this process, each as (coordinator's address, thread that joined, lifecycle)."""


def _leave_former(address: str) -> None:
    """Close the member of the same run that this thread has left open, if there is one."""
    for entry in list(_open):
        where, thread, reference = entry
        lifecycle = reference()
        if lifecycle is None or lifecycle.closed:
            _open.remove(entry)
        elif (where, thread) == (address, threading.get_ident()):
            _open.remove(entry)
            _log.warning(
                "this process is still member %d of the run at %s: it leaves, to join again",
                lifecycle.around.connection.member,
                address,
            )
            lifecycle.finish_alone()
            lifecycle.leave()


def _seed(seed: int, member: int) -> None:
    """Seed Python, NumPy and torch for this member alone."""
    import random

    import numpy as np
    import torch

    text = f"washp2p {seed} {member}".encode()
    own = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
    random.seed(own)
    np.random.seed(own)
    torch.manual_seed(own)


def _abandon(reference: weakref.ref[Lifecycle]) -> None:
    """End a member because its process exits. Does nothing if the member is closed."""
    lifecycle = reference()
    if lifecycle is None or lifecycle.closed:
        return
    error = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    if error is None:
        lifecycle.finish_alone()
    error = error or RunStoppedError("its process has ended without Member.close()")
    lifecycle.end(error)

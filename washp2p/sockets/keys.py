"""The keys of the coordinator and of those who may join. No sockets, no torch.

A folder has two files, readable by their owner alone. `coordinator.key` stays on the coordinator's
host; `join.key` goes to every host with workers. The keys are CURVE's (curve25519).
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import zmq
from zmq.utils import z85

from washp2p.errors import UsageError
from washp2p.protocol.messages.fields import KEY_BYTES

if TYPE_CHECKING:
    from pathlib import Path

COORDINATOR, JOIN = "coordinator.key", "join.key"


@dataclass(frozen=True)
class KeyPair:
    """A public key and its secret key, 32 bytes each."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def fresh(cls) -> Self:
        """A new random pair."""
        return cls(*map(z85.decode, zmq.curve_keypair()))

    @classmethod
    def of(cls, secret: bytes) -> Self:
        """The pair with this secret key."""
        return cls(z85.decode(zmq.curve_public(z85.encode(secret))), secret)


@dataclass(frozen=True)
class CoordinatorKeys:
    """The coordinator's key pair, and the public key of those who may join."""

    own: KeyPair
    join: bytes


@dataclass(frozen=True)
class JoinKey:
    """The workers' key pair, and the public key of their coordinator."""

    own: KeyPair
    coordinator: bytes


def make(folder: Path, *, anew: bool = False) -> None:
    """Write new keys to both files in `folder`; `anew` replaces old ones. Raises UsageError."""
    there = [path for path in (folder / COORDINATOR, folder / JOIN) if path.exists()]
    if there and not anew:
        raise UsageError(
            f"{there[0]} exists; use it, or make new keys: washp2p keys rotate {folder}"
        )
    if anew and not there:
        raise UsageError(f"{folder} holds no keys; make some: washp2p keys init {folder}")
    coordinator, join = KeyPair.fresh(), KeyPair.fresh()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(folder / COORDINATOR, secret=coordinator.secret, join=join.public)
        _write(folder / JOIN, secret=join.secret, coordinator=coordinator.public)
    except OSError as error:
        raise UsageError(f"cannot write keys to {folder}: {error.strerror}") from None


def read_coordinator(place: Path) -> CoordinatorKeys:
    """The coordinator's keys, from its folder or file. Raises UsageError."""
    secret, join = _read(place, COORDINATOR, "join")
    return CoordinatorKeys(KeyPair.of(secret), join)


def read_join(place: Path) -> JoinKey:
    """A worker's keys, from their folder or file. Raises UsageError."""
    secret, coordinator = _read(place, JOIN, "coordinator")
    return JoinKey(KeyPair.of(secret), coordinator)


def _write(path: Path, **keys: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    values = {name: z85.encode(key).decode() for name, key in keys.items()}
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(values, file, indent=1)
        file.write("\n")
    partial.replace(path)


def _read(place: Path, name: str, other: str) -> tuple[bytes, bytes]:
    """Read a file's secret key, and its public key called `other`. Raises UsageError."""
    path = place / name if place.is_dir() else place
    try:
        status, text = path.stat(), path.read_text()
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"cannot read {path}: {error}; make keys with `washp2p keys init DIR`, and copy {JOIN} "
            "to every host with workers"
        ) from None
    mode = status.st_mode & 0o777
    # A secret of Kubernetes is root's, and readable to the pod's own group.
    if mode & (0o077 if status.st_uid == os.geteuid() else 0o027):
        raise UsageError(
            f"{path} has mode {mode:04o}, others can use it; expected 0600: chmod 600 {path}"
        )
    try:
        values = json.loads(text)
        secret, public = (z85.decode(values[key].encode()) for key in ("secret", other))
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        secret = public = b""
    if not len(secret) == len(public) == KEY_BYTES:
        raise UsageError(f"{path} is not a {name}; expected what `washp2p keys init` wrote")
    return secret, public

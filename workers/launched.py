"""A process's rank, and its rank on its host, as `torchrun`, `srun` and Kubernetes set them.

No other environment variables are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

LAUNCHERS = {
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
}
INDEX = "JOB_COMPLETION_INDEX"
"""The variable with the number of a pod of an Indexed Job. Each pod counts as a host of its own."""


@dataclass(frozen=True)
class Launched:
    """A process of rank `rank` among `world` processes, and of rank `local` on its host.

    For a pod, `local` is 0, and `world` is `rank` + 1 because the real number is not known.
    """

    rank: int
    local: int
    world: int

    def device(self, count: int) -> str:
        """The name of the process's GPU on a host with `count` GPUs; "" if `count` is 0."""
        return f"cuda:{self.local % count}" if count else ""


def launched(environment: Mapping[str, str]) -> Launched | None:
    """The ranks that a launcher gave to this process; None if no launcher started it.

    Raises UsageError if the launcher's variables make no sense.
    """
    for launcher, names in LAUNCHERS.items():
        if all(name in environment for name in names):
            values = {name: environment[name] for name in names}
            try:
                found = Launched(*map(int, values.values()))
            except ValueError:
                found = Launched(0, 0, 0)
            if not 0 <= found.local <= found.rank < found.world:
                said = ", ".join(f"{name}={value!r:.20}" for name, value in values.items())
                raise UsageError(f"{launcher} says {said}; expected ranks below the world's size")
            return found
    if INDEX in environment:
        index = environment[INDEX]
        if not (index.isascii() and index.isdecimal()):
            raise UsageError(f"{INDEX} is {index!r:.20}; expected the number of a pod")
        return Launched(int(index), 0, int(index) + 1)
    return None

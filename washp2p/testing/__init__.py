"""A whole population in one process and in virtual time, for tests of methods and of this package.

The members are real cores with real stores and tensors; the coordinator is the real state machine.
Only what surrounds them is simulated: network, clock, processes. Everything is drawn from one seed,
so a run can be repeated.

>>> from washp2p.testing import SimulatedRun
>>> run = SimulatedRun(seed=1, n=3, rounds=20, p=0.1)
>>> run.faults.kill(2, at=0.5)  # a worker: members are numbered as they come
>>> run.finish()
>>> run.over  # the members of the average
(0, 1)
"""

from washp2p.testing.faults import Faults
from washp2p.testing.population import SimulatedRun
from washp2p.testing.tasks import Task, ToyTask

__all__ = ["Faults", "SimulatedRun", "Task", "ToyTask"]

"""`python -m workers --coordinator tcp://HOST:5555`: train one member of a run."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from washp2p.commandline import Parser, add_link_options, report_errors
from washp2p.errors import (
    DroppedError,
    JoinRefusedError,
    RunStoppedError,
    UnreachableError,
    UsageError,
)
from washp2p.runfolder.process_log import Log, add_log_option, complain
from workers.launched import launched
from workers.options import add_data_options, add_device_option, add_threads_option

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import torch

    from washp2p import Member
    from washp2p.metrics import Exporter
    from workers.training.data import Data
    from workers.training.trainer import Trainer

    State = dict[str, torch.Tensor]

AGAIN_SECONDS = 10.0
"""How long a dropped worker looks for its coordinator, at most: the coordinator may be gone."""


def parser() -> Parser:
    """The program's parser."""
    made = Parser(prog="python -m workers", description=__doc__)
    made.add_argument("--coordinator", required=True, help="its address, tcp://HOST:PORT")
    made.add_argument(
        "--wait", type=float, default=60.0, help="seconds to wait for it (default: %(default)g)"
    )
    made.add_argument("--bind", help="where peers reach this worker, tcp://ADDRESS:PORT or :*")
    made.add_argument("--advertise", help="what peers are told instead, tcp://HOST[:PORT]")
    add_link_options(made, "join.key")
    add_data_options(made)
    add_device_option(made)
    add_threads_option(made)
    watch = made.add_argument_group("to be looked at")
    add_log_option(watch)
    watch.add_argument(
        "--metrics", metavar="HOST:PORT", help="serve Prometheus metrics there (extra `metrics`)"
    )
    watch.add_argument(
        "--public", action="store_true", help="serve them off loopback, to whoever comes"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker. Returns its exit code."""
    with report_errors("worker"):
        options = parser().parse_args(arguments)
        return work(options, Log(options.log))


def work(options: argparse.Namespace, log: Log) -> int:
    """Train one member; if the population drops it, join again as another member. Returns 0."""
    import torch

    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")  # it carries values within a machine only
    place = launched(os.environ)
    if place is not None and not options.device:
        options.device = place.device(torch.cuda.device_count())
    device = pick_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    exporter: Exporter | None = None
    if options.metrics:
        from washp2p.metrics import Exporter

        exporter = Exporter(options.metrics, public=options.public)
        log.event(f"metrics at {exporter.address}", "listening", address=exporter.address)
    dropped: DroppedError | None = None
    while True:
        try:
            rank = None if place is None else place.rank
            wait = options.wait if dropped is None else min(options.wait, AGAIN_SECONDS)
            take_part(options, device, rank, log, exporter, wait=wait)
        except DroppedError as error:
            dropped = error.with_traceback(None)  # which holds on to the whole former life
            complain(f"worker: {error}; joining again", "dropped")
        except (JoinRefusedError, UnreachableError) as refusal:
            if dropped is None:
                raise
            raise RunStoppedError(f"{dropped}, and cannot join again: {refusal}") from None
        else:
            log.event("finished", "finished")
            return 0


def take_part(
    options: argparse.Namespace,
    device: torch.device,
    rank: int | None,
    log: Log,
    exporter: Exporter | None,
    *,
    wait: float,
) -> None:
    """Join, train, average, and write this member's files. Raises WashError.

    The worker gets the MemberId `rank` if no member has it. `exporter` serves the member's metrics.
    The coordinator may take `wait` seconds to answer.
    """
    import washp2p
    from washp2p.runfolder import rundir
    from workers.training.data import load_data
    from workers.training.rescue import Rescue
    from workers.training.trainer import Trainer

    connection = washp2p.connect(
        options.coordinator,
        wait=wait,
        keys=options.keys,
        insecure=options.insecure,
        run_dir=options.run_dir,
        rank=rank,
    )
    folder = connection.folder
    rescue = Rescue(folder, connection.name, connection.member)
    connection.on_stop(rescue.on_stop)
    log.about(run=connection.name, member=connection.member)
    log.event(f"member {connection.member} of run {connection.name}", "joined")
    try:
        data = load_data(connection.config, options.data_dir, download=options.download)
        trainer = Trainer(connection.config, data, connection.member, device)
    except BaseException as error:
        connection.leave(error)
        raise
    with washp2p.join(
        connection,
        trainer.model,
        trainer.optimizer,
        rounds=trainer.steps,
        bind=options.bind,
        advertise=options.advertise,
        insecure=options.insecure,
        log=rundir.log_file(folder, connection.member),
        state=trainer,
        repair_inputs=trainer.repair_inputs,
    ) as member:
        if exporter is not None:
            exporter.watch(member, connection.name)
        trainer.round = member.round
        if connection.config.training.augment != "none" and not connection.resumes:
            member.report(augmentation=trainer.augmentation.to_wire())
        rescue.watch(trainer)
        try:
            averaged = train(member, trainer, log)
            own = member.model_of(member.id)
            assert own is not None
            about = {"member": member.id, "round": member.round}
            rescue.write(member, rundir.member_file(folder, member.id), own, **about)
            if member.leads():
                over = list(member.members)
                rescue.write(member, folder / rundir.AVERAGED, averaged, over=over)
                evaluate(member, trainer, averaged, data, device)
        except DroppedError:
            raise  # its peers have what it had, and go on
        except BaseException as error:
            rescue.keep(error)
            raise


def train(member: Member, trainer: Trainer, log: Log) -> State:
    """Train to the end. Returns the averaged model's state dict. Raises RunStoppedError."""
    with trainer.streams.active():
        for epoch in trainer.train():
            trainer.round = member.round
            if epoch is not None:
                member.report(**epoch.to_metrics())
                if log.for_programs:
                    log.event(f"epoch {epoch.number}", "metrics", **epoch.to_metrics())
    return member.average(trainer.final_state)


def evaluate(
    member: Member, trainer: Trainer, averaged: State, data: Data, device: torch.device
) -> None:
    """Evaluate the population, and report the result. Raises RunStoppedError."""
    from workers.training.evaluate import evaluate_population

    states = member.models()
    found = evaluate_population(trainer.model, list(states.values()), averaged, data, device)
    member.result(**found, over=list(states))


def pick_device(name: str) -> torch.device:
    """The device called `name`. If that is empty: CUDA if there is any, else the CPU.

    Raises UsageError if the device cannot be used.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: {first}; expected cpu, cuda or cuda:N") from None
    return device


if __name__ == "__main__":
    sys.exit(main())

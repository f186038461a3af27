"""The `washp2p` command: run, simulate, report, soup, evaluate, study, status, keys."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from washp2p.commandline import (
    Parser,
    add_link_options,
    add_observation_options,
    report_errors,
)
from washp2p.config.config import FREE
from washp2p.config.flags import add_options, config_from
from washp2p.errors import UsageError
from washp2p.reporting.report import filled, final_tables, links_table, runs_table
from washp2p.runfolder import checkpoints, rundir
from washp2p.runfolder.finished import read_runs
from washp2p.runfolder.logs import Log
from washp2p.sockets import keys
from workers.options import (
    add_data_options,
    add_device_option,
    add_devices_option,
    add_threads_option,
)
from workers.studies.command import add_study_options, make_study

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from workers.training.soup import Models


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    parser = Parser(prog="washp2p", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train a population on this machine", prog="washp2p run")
    simulate = commands.add_parser(
        "simulate",
        help="the same population in one process: the reference",
        prog="washp2p simulate",
    )
    for command in (run, simulate):
        add_options(command)
        add_data_options(command)
    add_devices_option(run)
    add_threads_option(run)
    add_observation_options(run)
    run.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder from its last checkpoint",
    )
    simulate.add_argument(
        "--replay", type=Path, metavar="RUN", help="repeat a run from its folder, bit for bit"
    )
    report = commands.add_parser(
        "report", help="bytes and accuracy of a run, or several", prog="washp2p report"
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder")
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument(
        "--html", action="store_true", help="one file with tables and pictures (extra `report`)"
    )
    report.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where that goes (default: RUN/report.html; of several runs report.html)",
    )
    soup = commands.add_parser(
        "soup", help="one model out of the members of a run", prog="washp2p soup"
    )
    evaluate = commands.add_parser(
        "evaluate", help="what each model of a run is worth", prog="washp2p evaluate"
    )
    for command in (soup, evaluate):
        command.add_argument(
            "places",
            type=Path,
            nargs="+",
            metavar="RUN|FILE",
            help="a run folder, or models (safetensors) in one",
        )
        add_data_options(command, results=False)
        add_device_option(command)
    soup.add_argument(
        "--kind",
        default="average",
        choices=("average", "greedy", "best"),
        help="the mean of all, of those that GreedySoup takes, or the best alone "
        "(default: %(default)s)",
    )
    soup.add_argument(
        "--align", action="store_true", help="permute each model's units to match the soup so far"
    )
    soup.add_argument(
        "--repair", action="store_true", help="give features their members' mean and deviation"
    )
    soup.add_argument(
        "--update-bn", action="store_true", help="compute statistics of batch norms anew"
    )
    soup.add_argument(
        "--output", type=Path, help="where it goes (default: RUN/soup-<kind and options>)"
    )
    evaluate.add_argument(
        "--features",
        action="store_true",
        help="how alike the models' features are, layer by layer (cosine similarity)",
    )
    evaluate.add_argument(
        "--align", action="store_true", help="for that permute each model's units to match"
    )
    evaluate.add_argument("--json", action="store_true", help="for programs")
    study = commands.add_parser(
        "study", help="make one of the papers' tables or figures", prog="washp2p study"
    )
    add_study_options(study)
    add_data_options(study, results=False)
    add_threads_option(study)
    add_devices_option(study)
    status = commands.add_parser("status", help="look at a run that goes on", prog="washp2p status")
    status.add_argument("coordinator", help="its address, tcp://HOST:PORT")
    status.add_argument("--json", action="store_true", help="for programs")
    status.add_argument("--once", action="store_true", help="look once, on a terminal, too")
    status.add_argument(
        "--wait", type=float, default=5.0, help="seconds to wait for it (default: %(default)g)"
    )
    add_link_options(status, "join.key")
    key = commands.add_parser(
        "keys", help="make the keys that encrypted links need", prog="washp2p keys"
    )
    actions = key.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text in (
        ("init", f"make {keys.COORDINATOR} and {keys.JOIN} in a new folder"),
        ("rotate", "new keys in the place of those in a folder: the old ones open nothing more"),
        ("show", "the public keys in a folder, and what is to go where"),
    ):
        parser_of = actions.add_parser(action, help=text, prog=f"washp2p keys {action}")
        parser_of.add_argument("folder", type=Path, metavar="DIR")
    with report_errors("washp2p"):
        options = parser.parse_args(arguments)
        what = {
            "run": _run,
            "simulate": _simulate,
            "report": _report,
            "soup": _soup,
            "evaluate": _evaluate,
            "study": make_study,
            "status": _status,
            "keys": _keys,
        }
        return what[options.command](options)


def _folder(options: argparse.Namespace) -> Path:
    folder: Path = options.run_dir or rundir.default()
    return folder.resolve()


def _run(options: argparse.Namespace) -> int:
    from washp2p.cli.launch import Launch

    known = None
    if options.resume is not None:
        if options.run_dir is not None:
            raise UsageError("--resume names the run folder; leave out --run-dir")
        folder = options.resume.resolve()
        rundir.require_unfinished(folder)
        known = rundir.read_config(folder)
    config = config_from(options, known, free=FREE)
    if known is None:
        folder = _folder(options)
    n = config.n
    if known is not None:
        n = min(n, checkpoints.members_in(folder))
        if not n:
            raise UsageError(f"{folder} has no checkpoint yet; start anew with another --run-dir")
    flags = config.flags()
    Log(options.log)
    flags += [f"--log={options.log}"]
    flags += [f"--http={options.http}"] if options.http else []
    flags += [f"--{name}" for name in ("public", "tensorboard") if getattr(options, name)]
    local = [f"--data-dir={options.data_dir}", f"--log={options.log}"]
    if options.threads:
        local.append(f"--threads={options.threads}")
    if options.download:
        local.append("--download")
    launch = Launch(
        n,
        flags,
        local,
        folder,
        devices=options.devices.split(","),
        resume=known is not None,
    )
    return asyncio.run(launch.run())


def _simulate(options: argparse.Namespace) -> int:
    replay: Path | None = options.replay
    config = rundir.read_config(replay) if replay else config_from(options)
    folder = rundir.create(_folder(options))
    from workers.simulation.simulate import differences, simulate
    from workers.training.data import load_data

    console = Console(highlight=False)
    data = load_data(config, options.data_dir, download=options.download)
    console.print(f"simulating {config.n} members in one process, run folder {folder}")
    summary = simulate(
        config,
        data,
        folder,
        on_epoch=lambda v: console.print(
            f"member {v['member']}  epoch {v['epoch']}  loss {v['loss']:.4f}"
        ),
        replay=replay,
    )
    for table in final_tables(summary):
        console.print(table)
    if replay is None:
        return 0
    if wrong := differences(folder, replay):
        console.print(f"not equal to {replay}: {', '.join(wrong)}")
        return 1
    console.print(f"all models equal those of {replay} bit for bit")
    return 0


def _keys(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    if options.action != "show":
        keys.make(folder, anew=options.action == "rotate")
    coordinator, join = keys.read_coordinator(folder), keys.read_join(folder)
    if (coordinator.own.public, coordinator.join) != (join.coordinator, join.own.public):
        raise UsageError(
            f"{folder / keys.COORDINATOR} and {folder / keys.JOIN} do not belong together; make "
            f"new ones: washp2p keys rotate {folder}"
        )
    print(f"{folder / keys.COORDINATOR}: stays with the coordinator, which listens with it")
    print(f"  its public key is {coordinator.own.public.hex()}")
    print(f"{folder / keys.JOIN}: to every host with workers; who has it may join")
    print(f"  its public key is {coordinator.join.hex()}")
    return 0


def _report(options: argparse.Namespace) -> int:
    if options.output is not None and not options.html:
        raise UsageError("--output is where --html goes; add --html")
    folders: list[Path] = options.runs
    console = Console(highlight=False)
    if options.html:
        from washp2p.reporting.html_report import page

        default = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
        place = options.output or default
        rundir.write_bytes(place, page(read_runs(folders)).encode())
        print(place)
    elif options.json:
        summaries = [rundir.read_summary(folder) for folder in folders]
        print(json.dumps(summaries[0] if len(folders) == 1 else summaries, indent=1))
    elif len(folders) == 1:
        summary = rundir.read_summary(folders[0])
        for table in (*final_tables(summary), links_table(summary)):
            console.print(table)
    else:
        console.print(runs_table(read_runs(folders)))
    return 0


def _models(options: argparse.Namespace) -> Models:
    from workers.__main__ import pick_device
    from workers.training.soup import read_models

    device = pick_device(options.device)
    return read_models(options.places, options.data_dir, device, download=options.download)


def _soup(options: argparse.Namespace) -> int:
    from workers.training.model_files import save_model
    from workers.training.soup import soup

    models = _models(options)
    made = soup(
        models,
        options.kind,
        aligned=options.align,
        repaired=options.repair,
        new_statistics=options.update_bn,
    )
    more = [name for name in ("align", "repair", "update_bn") if getattr(options, name)]
    name = "-".join(["soup", options.kind, *more]).replace("_", "-")
    place: Path = options.output or models.folder / f"{name}.safetensors"
    save_model(place, made)
    held_out, test = models.held_out(made), models.accuracy(made, models.data.test)
    print(f"{place}: {test:.2f} % of the test images, {held_out:.2f} % of those held out")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from workers.training.soup import evaluate, feature_similarities

    models = _models(options)
    if options.features:
        alike = feature_similarities(models, aligned=options.align)
        if options.json:
            print(json.dumps([one._asdict() for one in alike], indent=1))
            return 0
        lines = [[one.layer, f"{one.between:.2f}", f"{one.averaged:.2f}"] for one in alike]
        header = ["layer", "two members, %", "member and average, %"]
        table = filled("cosine similarity of features", (header, lines))
        Console(highlight=False).print(table)
        return 0
    if options.align:
        raise UsageError("--align is for --features; add that, or leave it out")
    found = evaluate(models)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        rows = [[name, f"{value:.2f}"] for name, value in found.items()]
        Console(highlight=False).print(filled("test accuracy", (["model", "%"], rows)))
    return 0


def _status(options: argparse.Namespace) -> int:
    from washp2p.cli.status import Observer, show

    join = None if options.keys is None else keys.read_join(options.keys)
    with Observer(
        options.coordinator, join, insecure=options.insecure, wait=options.wait
    ) as observer:
        return show(observer, as_json=options.json, once=options.once)


if __name__ == "__main__":
    sys.exit(main())

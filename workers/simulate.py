"""A whole population in one process, one thread, no sockets: the reference for everything else.

Members take their steps in turn, then `washp2p.reference` shuffles them. With the same
configuration a distributed run ends with the same bits, on the same machine and versions.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import torch

from washp2p import rundir
from washp2p.rates import papa_all_reduce, papa_payload
from washp2p.reference import Reference, plain_average
from washp2p.rounds import round_seed, run_key
from washp2p.store import Store
from washp2p.strategies import strategy_for
from washp2p.version import installed
from workers.checkpoint import save_model
from workers.evaluate import evaluate_population
from workers.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from washp2p.config import RunConfig
    from workers.data import Data


def simulate(
    config: RunConfig, data: Data, folder: Path, *, on_epoch: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train the population on the CPU, fill the run folder, return its summary.

    `on_epoch` gets each line of metrics.jsonl. Sets torch to one thread.
    """
    torch.set_num_threads(1)
    rundir.write_json(
        folder / rundir.CONFIG,
        {
            "run": folder.name,
            "simulated": True,
            "config": config.to_wire(),
            "versions": installed(),
        },
    )
    trainers = [Trainer(config, data, member, torch.device("cpu")) for member in range(config.n)]
    for trainer in trainers[1:]:
        trainer.model.load_state_dict(trainers[0].model.state_dict())
    reference = Reference(
        [trainer.model for trainer in trainers],
        [trainer.optimizer for trainer in trainers],
        method=config.method,
        schedule=config.schedule,
        p=config.p,
    )
    key = run_key(config.seed)
    began = time.monotonic()
    training = [trainer.train() for trainer in trainers]
    done = 0
    with (folder / rundir.METRICS).open("w") as metrics:

        def advance(member: int) -> bool:
            """Take one member to the end of its next step, or of its training."""
            with trainers[member].streams.active():
                for event in training[member]:
                    if event is None:
                        return True
                    values = {"member": member, "round": done, **event.to_metrics()}
                    metrics.write(json.dumps(values) + "\n")
                    on_epoch(values)
            return False

        while sum(advance(member) for member in range(config.n)):
            done += 1
            reference.shuffle(round_seed(key, done))
    seconds = time.monotonic() - began
    states = [
        {name: value.clone() for name, value in trainer.model.state_dict().items()}
        for trainer in trainers
    ]
    for member, state in enumerate(states):
        save_model(rundir.member_file(folder, member), state)
    averaged = plain_average(states)
    save_model(folder / rundir.AVERAGED, averaged)
    summary = _summary(config, trainers[0], reference, done, seconds)
    summary["accuracy"] = evaluate_population(
        trainers[0].model, states, averaged, data, torch.device("cpu")
    )
    rundir.write_json(folder / rundir.SUMMARY, summary)
    return summary


def _summary(
    config: RunConfig, trainer: Trainer, reference: Reference, rounds: int, seconds: float
) -> dict[str, Any]:
    strategy = strategy_for(config)
    layout = Store(trainer.model, trainer.optimizer, strategy.slots(trainer.optimizer)).layout
    rows = []
    for member, sent in enumerate(reference.sent):
        links = [
            {
                "peer": peer,
                "kind": "exchange",
                "payload": scalars * layout.scalar_bytes,
                "header": 0,
                "messages": 0,
                "expected": scalars * layout.scalar_bytes,
            }
            for peer, scalars in enumerate(sent)
            if peer != member
        ]
        payload = sum(sent) * layout.scalar_bytes
        rows.append(
            {
                "member": member,
                "host": "simulated",
                "payload": payload,
                "header": 0,
                "messages": 0,
                "expected_payload": payload,
                "theory": strategy.expected_payload(layout, config.n) * rounds,
                "paper": strategy.paper_payload(layout) * rounds,
                "papa": papa_payload(layout) * rounds,
                "papa_all_reduce": papa_all_reduce(layout, config.n) * rounds,
                "control": 0,
                "seeds_received": 0,
                "links": links,
            }
        )
    return {
        "method": config.method,
        "n": config.n,
        "rounds": rounds,
        "seconds": round(seconds, 3),
        "rounds_per_second": round(rounds / seconds, 2),
        "parameters": layout.values,
        "averaged_over": list(range(config.n)),
        "bytes": rows,
        "lost_values": 0,
    }

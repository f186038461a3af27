"""The layers of the tree: which folder may import from which."""

from __future__ import annotations

LAYERS = {
    "washp2p.errors": [],
    "washp2p.protocol": ["washp2p.errors"],
    "washp2p.protocol.messages": ["washp2p.errors", "washp2p.protocol"],
    "washp2p.plan": ["washp2p.protocol", "washp2p.protocol.messages"],
    "washp2p.model": ["washp2p.errors", "washp2p.protocol"],
    "washp2p.evaluation": ["washp2p.errors", "washp2p.model"],
    "washp2p.config": ["washp2p.errors", "washp2p.protocol"],
    "washp2p.sockets": ["washp2p.errors", "washp2p.protocol", "washp2p.protocol.messages"],
    "washp2p.transports": ["washp2p.errors", "washp2p.protocol", "washp2p.sockets"],
    "washp2p.strategies": [
        "washp2p.errors", "washp2p.protocol", "washp2p.plan", "washp2p.model", "washp2p.config",
    ],
    "washp2p.runfolder": ["washp2p.errors", "washp2p.protocol", "washp2p.config"],
    "washp2p.commandline": ["washp2p.errors", "washp2p.runfolder"],
    "washp2p.reporting": ["washp2p.errors", "washp2p.protocol", "washp2p.runfolder"],
    "washp2p.rounds": [
        "washp2p.errors", "washp2p.protocol", "washp2p.plan", "washp2p.model",
        "washp2p.evaluation", "washp2p.config", "washp2p.transports", "washp2p.runfolder",
    ],
    "washp2p.member": [
        "washp2p.errors", "washp2p.protocol", "washp2p.plan", "washp2p.model", "washp2p.strategies",
        "washp2p.transports", "washp2p.runfolder", "washp2p.rounds",
    ],
    "washp2p.coordinator_link": [
        "washp2p.errors", "washp2p.protocol", "washp2p.config", "washp2p.sockets",
        "washp2p.transports", "washp2p.runfolder",
    ],
    "washp2p.driver": [
        "washp2p.errors", "washp2p.protocol", "washp2p.model", "washp2p.config",
        "washp2p.sockets", "washp2p.transports", "washp2p.strategies", "washp2p.runfolder",
        "washp2p.rounds", "washp2p.member", "washp2p.coordinator_link",
    ],
    "washp2p.metrics": [
        "washp2p.errors", "washp2p.protocol", "washp2p.reporting", "washp2p.driver",
    ],
    "washp2p": ["washp2p.protocol", "washp2p.config", "washp2p.coordinator_link", "washp2p.driver"],
    "workers": [],
    "workers.options": [],
    "workers.launched": ["washp2p.errors"],
    "workers.training": [
        "washp2p.errors", "washp2p.config", "washp2p.evaluation", "washp2p.runfolder", "washp2p",
    ],
    "workers.simulation": [
        "washp2p.errors", "washp2p.protocol", "washp2p.plan", "washp2p.model",
        "washp2p.evaluation", "washp2p.config", "washp2p.strategies", "washp2p.runfolder",
        "workers.training",
    ],
    "workers.__main__": [
        "washp2p.errors", "washp2p.runfolder", "washp2p.commandline", "washp2p.metrics",
        "washp2p", "workers.options", "workers.launched", "workers.training",
    ],
    "workers.fork": ["workers.__main__"],
    "workers.studies": [
        "washp2p.errors", "washp2p.protocol", "washp2p.evaluation", "washp2p.config",
        "washp2p.runfolder", "washp2p.reporting", "workers.training", "workers.__main__",
    ],
    "washp2p.cli": [
        "washp2p.errors", "washp2p.protocol", "washp2p.config", "washp2p.sockets",
        "washp2p.runfolder", "washp2p.commandline", "washp2p.reporting", "workers.options",
        "workers.training", "workers.simulation", "workers.__main__", "workers.studies",
    ],
    "washp2p.__main__": ["washp2p.cli"],
    "coordinator": [],
    "coordinator.machine": ["washp2p.errors", "washp2p.protocol", "washp2p.config"],
    "coordinator.watch": [
        "washp2p.errors", "washp2p.protocol", "washp2p.runfolder", "washp2p.reporting",
        "coordinator.machine",
    ],
    "coordinator.service": [
        "washp2p.errors", "washp2p.protocol", "washp2p.config", "washp2p.sockets",
        "washp2p.runfolder", "coordinator.machine", "coordinator.watch",
    ],
    "washp2p.testing": [
        "washp2p.errors", "washp2p.protocol", "washp2p.model", "washp2p.config",
        "washp2p.transports", "washp2p.strategies", "washp2p.runfolder", "washp2p.rounds",
        "washp2p.member", "washp2p.coordinator_link", "washp2p.driver", "coordinator.machine",
        "coordinator.service",
    ],
    "coordinator.__main__": [
        "washp2p.errors", "washp2p.protocol", "washp2p.config", "washp2p.sockets",
        "washp2p.runfolder", "washp2p.commandline", "coordinator.watch", "coordinator.service",
    ],
}  # fmt: skip
"""What each package, or module beside packages, may import; it stands below. A package that may
import `washp2p.protocol` may import its messages."""

"""Two hosts, as network namespaces with a wire between them: the README's recipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.integration.conftest import ROOT

NEAR, FAR = "10.77.0.1", "10.77.0.2"


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """The names of two namespaces, at NEAR and FAR; gone afterwards."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 to make network namespaces")
    names = [f"wash-{os.getpid()}-{side}" for side in "ab"]
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot make network namespaces here: {error.stderr.decode().strip()}")
    ip("netns", "add", names[1])
    ip(
        "-n",
        names[0],
        "link",
        "add",
        "wash",
        "type",
        "veth",
        "peer",
        "name",
        "wash",
        "netns",
        names[1],
    )
    for name, address in zip(names, (NEAR, FAR), strict=True):
        ip("-n", name, "address", "add", f"{address}/24", "dev", "wash")
        ip("-n", name, "link", "set", "wash", "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield names
    for name in names:
        ip("netns", "delete", name)


def start(host, *arguments):
    return subprocess.Popen(
        ["ip", "netns", "exec", host, sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def sent_on_wire(host):
    shown = subprocess.run(
        ["ip", "-n", host, "-j", "-s", "link", "show", "wash"], check=True, capture_output=True
    )
    return json.loads(shown.stdout)[0]["stats64"]["tx"]["bytes"]


def test_two_hosts(hosts, tmp_path):
    near, far = hosts
    address = f"tcp://{NEAR}:5555"
    flags = ["--n=2", "--epochs=2", "--p=0.2", f"--run-dir={tmp_path / 'c'}"]
    processes = [start(near, "coordinator", f"--bind=tcp://{NEAR}:5555", "--insecure", *flags)]
    for number, host in enumerate((near, far)):
        processes.append(
            start(
                host,
                "workers",
                f"--coordinator={address}",
                "--insecure",
                f"--run-dir={tmp_path / str(number)}",
                *(["--bind=tcp://0.0.0.0:*"] if host == far else []),
            )
        )
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    summary = json.loads((tmp_path / "c" / "summary.json").read_text())
    # The coordinator writes what it knows, each host its own member, the first member the average.
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "summary.json",
    }
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.safetensors"))
    assert len(files) == 3
    assert {file.partition("/")[2] for file in files} == {
        "averaged.safetensors",
        "members/0.safetensors",
        "members/1.safetensors",
    }
    data = sum(
        link["payload"] + link["header"] for row in summary["bytes"] for link in row["links"]
    )
    wire = sent_on_wire(near) + sent_on_wire(far)
    assert data < wire < 2.5 * data + 100_000  # small messages: TCP/IP headers weigh on them
    # No parameter passes through the coordinator: workers sent it next to nothing.
    assert all(row["control"] < 10_000 for row in summary["bytes"])


def test_plain_text_between_hosts_needs_the_users_word(hosts):
    near, _ = hosts
    process = start(near, "coordinator", "--n=2", f"--bind=tcp://{NEAR}:5555")
    assert "add --insecure" in process.communicate(timeout=30)[0]
    assert process.returncode == 2

"""What somebody on the wire can read: known values are planted in a model and looked for."""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
import sys
import time

import pytest

from tests.support.hosts import DEVICE, missing, on_a_switch
from tests.support.processes import start
from tests.support.sources import ROOT
from washp2p.sockets import keys

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=str(missing())),
    pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed"),
]

PLANTED = 1234.5678
END = "that-was-all"
MEMBER = f"""
import sys, torch, washp2p
from pathlib import Path
from torch import nn
model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 10), nn.Linear(10, 2))
for parameter in model.parameters():
    nn.init.constant_(parameter, {PLANTED})
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
keys = Path(sys.argv[2]) if len(sys.argv) > 2 else None
with washp2p.join(sys.argv[1], model, optimizer, keys=keys, insecure=keys is None) as member:
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.ones(1, 40)).sum().backward()
        optimizer.step()
    member.average()
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("encrypted", [True, False], ids=["with keys", "insecure"])
def test_parameters_can_be_read_on_the_wire_only_without_keys(tmp_path, encrypted):
    folder = tmp_path / "keys"
    keys.make(folder)
    capture = tmp_path / "capture"
    links = [f"--keys={folder}"] if encrypted else ["--insecure"]
    with on_a_switch(2) as ((near, address), (far, _)):
        sniffer = subprocess.Popen(
            ["ip", "netns", "exec", near, "tcpdump", "-i", DEVICE, "-U", "-w", capture],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "listening on" in sniffer.stderr.readline()
        flags = ["--n=2", "--p=1", "--max-delay=0", f"--run-dir={tmp_path / 'run'}", *links]
        processes = [start(near, "coordinator", f"--bind=tcp://{address}:5555", *flags)]
        arguments = [f"tcp://{address}:5555", *([str(folder)] if encrypted else [])]
        for host in (near, far):
            command = ["ip", "netns", "exec", host, sys.executable, "-c", MEMBER, *arguments]
            processes.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
                )
            )
        try:
            outputs = [process.communicate(timeout=100)[0] for process in processes]
            last_word = f"echo {END} > /dev/udp/{address}/9"
            subprocess.run(["ip", "netns", "exec", far, "bash", "-c", last_word], check=True)
            while END.encode() not in capture.read_bytes():  # it has recorded all before, too
                time.sleep(0.1)
        finally:
            for process in processes:
                process.kill()
            sniffer.send_signal(signal.SIGINT)
            sniffer.communicate(timeout=20)
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    seen = capture.read_bytes()
    assert len(seen) > 20 * 4 * 1000  # 20 rounds of about half the parameters, each way
    assert (struct.pack("<f", PLANTED) * 4 in seen) is not encrypted
    assert (b"exchange" in seen or b"wash" in seen) is not encrypted

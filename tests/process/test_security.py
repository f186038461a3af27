"""Keys in real processes: who gets in, who does not, and what a member that turns bad can do."""

from __future__ import annotations

import contextlib
import socket

import pytest
import zmq

from tests.support.processes import Worker, command, replay, work
from washp2p.protocol.messages.control import PROTOCOL, messages
from washp2p.protocol.messages.from_worker import Hello, Metrics
from washp2p.protocol.version import DERIVATION, VERSION
from washp2p.sockets import keys
from washp2p.sockets.curve_auth import present

FLAGS = ("--n=3", "--p=0.05", "--patience=2")


@pytest.fixture
def folder(tmp_path):
    keys.make(tmp_path / "keys")
    return tmp_path / "keys"


def test_a_run_with_keys_newcomers_and_another_coordinator_needs_no_new_keys(
    runs, folder, tmp_path
):
    link = f"--keys={folder}"
    first = runs.coordinator(*FLAGS, "--min-n=2", "--epochs=14", "--max-delay=0", link)
    join = tmp_path / "elsewhere"  # a host with workers needs this one file
    join.mkdir()
    (folder / keys.JOIN).rename(join / keys.JOIN)
    workers = [runs.worker(first.address, f"--keys={join}") for _ in range(2)]
    first.until("epoch 1")
    first.kill()
    second = runs.coordinator(link, bind=first.address)
    second.until("member 1 (")
    workers.append(runs.worker(first.address, f"--keys={join / keys.JOIN}"))
    second.until("takes part from round")
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert second.wait() == 0
    assert second.summary["averaged_over"] == [0, 1, 2]
    assert second.summary["refused_messages"] == {}
    assert all(row["refused_messages"] == {} for row in second.summary["bytes"])
    (join / keys.JOIN).rename(folder / keys.JOIN)
    assert replay(second.folder, tmp_path) == []


def test_whoever_has_no_keys_or_others_is_told_what_to_do(runs, folder, tmp_path):
    coordinator = runs.coordinator(*FLAGS, f"--keys={folder}")
    keys.make(tmp_path / "others")
    theirs = keys.read_join(tmp_path / "others")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    keys._write(
        mixed / keys.JOIN,
        secret=theirs.own.secret,
        coordinator=keys.read_join(folder).coordinator,
    )
    plain = runs.coordinator(*FLAGS, name="plain")
    cases = [
        (runs.worker(coordinator.address, "--wait=3"), "wants keys: give --keys"),
        (
            runs.worker(coordinator.address, "--wait=3", f"--keys={tmp_path / 'others'}"),
            "without keys or with others: give both the same --keys",
        ),
        (runs.worker(coordinator.address, f"--keys={mixed}"), "does not know this join key"),
        (
            runs.worker(plain.address, "--wait=3", f"--keys={folder}"),
            "without keys or with others: give both the same --keys",
        ),
    ]
    for worker, words in cases:
        assert worker.wait() == 2
        assert words in worker.text
        assert "Traceback" not in worker.text
    one = runs.worker(coordinator.address, f"--keys={folder}")
    coordinator.until("joined (1 of 3)")
    assert one.process.is_alive()


def test_a_coordinator_does_not_come_back_in_plain_text(runs, folder):
    first = runs.coordinator(*FLAGS, f"--keys={folder}")
    first.until("members wanted")
    first.kill()
    code, errors = command("coordinator", f"--run-dir={first.folder}", "--insecure")
    assert code == 2
    assert "are encrypted, give --keys" in errors


def garbage(arguments, output):
    """A worker that sends its peers a thousand messages that are none, from round 20 on."""
    from washp2p.protocol.ledger import Kind
    from washp2p.rounds import exchange

    send = exchange.Exchange.send

    def bad(self, number, staged, waits):
        send(self, number, staged, waits)
        for peer in staged.roster.members if number >= 20 else ():
            for _ in range(500):
                self._transport.send(peer, Kind.EXCHANGE, b"garbage")

    exchange.Exchange.send = bad
    work(arguments, output)


def test_a_member_that_sends_garbage_is_cut_off_by_all_and_the_others_finish(
    runs, folder, tmp_path
):
    coordinator = runs.coordinator(*FLAGS, "--epochs=6", f"--keys={folder}")
    good = [runs.worker(coordinator.address, f"--keys={folder}") for _ in range(2)]
    flags = [f"--coordinator={coordinator.address}", f"--run-dir={coordinator.folder}"]
    bad = Worker([*flags, "--threads=1", f"--keys={folder}"], tmp_path / "bad.txt", target=garbage)
    runs.workers.append(bad)
    line = coordinator.until("was cut off by most others")
    assert "messages malformed" in line
    offender = int(line.split()[1])
    assert [worker.wait() for worker in good] == [0, 0], [worker.text for worker in good]
    assert bad.wait() != 0
    assert "was cut off by most others" in bad.text
    assert coordinator.wait() == 0
    assert coordinator.summary["averaged_over"] == [m for m in range(3) if m != offender]
    for row in coordinator.summary["bytes"]:
        assert row["refused_messages"]["malformed"] > 1000
    assert replay(coordinator.folder, tmp_path) == []


def test_strangers_that_only_connect_take_nobodys_place(runs, folder):
    coordinator = runs.coordinator(*FLAGS, "--epochs=2", f"--keys={folder}")
    host, port = coordinator.address.removeprefix("tcp://").split(":")
    with contextlib.ExitStack() as held:
        for _ in range(900):  # this process may have so many open
            stranger = held.enter_context(socket.create_connection((host, int(port))))
            stranger.sendall(b"\xff")
        workers = [runs.worker(coordinator.address, f"--keys={folder}") for _ in range(3)]
        assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert coordinator.wait() == 0


@pytest.mark.parametrize("says", ["garbage", "metrics of no member", "hello after hello"])
def test_a_holder_of_the_join_key_who_floods_the_coordinator_is_cut_off(runs, folder, says):
    coordinator = runs.coordinator(*FLAGS, "--epochs=4", f"--keys={folder}")
    workers = [runs.worker(coordinator.address, f"--keys={folder}") for _ in range(3)]
    coordinator.until("epoch 1")
    join = keys.read_join(folder)
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    present(dealer, join.own, join.coordinator)
    dealer.connect(coordinator.address)
    word = {
        "garbage": b"garbage",
        "metrics of no member": messages.encode(Metrics({})),
        "hello after hello": messages.encode(Hello(PROTOCOL, DERIVATION, VERSION, "h", 1)),
    }[says]
    sent = 0
    while sent < 30_000:
        try:
            dealer.send(word, zmq.NOBLOCK)
            sent += 1
        except zmq.Again:  # it is read no more
            break
    coordinator.until("cut off a worker")
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert coordinator.wait() == 0
    dealer.close(linger=0)
    context.term()
    assert coordinator.summary["averaged_over"] == [0, 1, 2]

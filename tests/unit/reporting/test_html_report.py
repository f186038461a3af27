"""The HTML report: it says what the run folder says, and needs nothing from elsewhere."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from washp2p.cli.main import main
from washp2p.config.config import RunConfig
from washp2p.reporting.figures import _mean_curve
from washp2p.reporting.html_report import page
from washp2p.runfolder import rundir
from washp2p.runfolder.finished import FinishedRun, differences, read_runs

NASTY = "<script>alert(1)</script>"


def link(peer, kind="exchange", payload=1000, header=50):
    return {
        "peer": peer, "kind": kind, "wire": "tcp", "payload": payload, "header": header,
        "messages": 3, "expected": payload if kind == "exchange" else 0,
    }  # fmt: skip


def row(member, peers, **more):
    links = [link(peer) for peer in peers] + [link(peers[0], "state transfer", 777, 3)]
    values = {
        "member": member, "host": NASTY, "steps": 100, "seconds": 4.0, "waited": 0.5,
        "max_delay": "3", "applied_values": 900, "expired_values": 0, "lost": {},
        "payload": 1000 * len(peers), "header": 50 * len(peers), "messages": 6,
        "expected_payload": 1000 * len(peers), "theory": 2100.0, "paper": 3000.0, "papa": 40_000.0,
        "papa_all_reduce": 50_000.0, "control": 77, "links": links,
    }  # fmt: skip
    return {**values, **more}


def write_run(folder, *, rows=None, departed=(), rosters=None, **settings):
    """A run folder as a coordinator leaves it."""
    config = RunConfig.resolve(**{"n": 3, **settings})
    rows = rows or [row(m, [p for p in range(3) if p != m]) for m in range(3)]
    versions = {"washp2p": "0.1.0", "torch": "2.9"}
    hosts = [{"member": m, "host": NASTY, "versions": versions} for m in range(3)]
    rundir.create(folder)
    rundir.write_json(
        folder / rundir.CONFIG,
        {"run": folder.name, "config": config.to_wire(), "versions": versions, "members": hosts},
    )
    for number in range(1, 4):
        for member in range(3):
            line = {"member": member, "round": 25 * number, "held_out": 80.0 + number + member}
            rundir.append_line(folder / rundir.METRICS, line)
        point = {"seconds": float(number), "round": 25 * number, "distance": 1.0 / number}
        rundir.append_line(folder / rundir.POPULATION, point)
    members = sorted({r["member"] for r in rows})
    summary = {
        "method": config.method.name, "n": 3,
        "rounds": 100, "seconds": 4.0, "rounds_per_second": 25.0,
        "parameters": 10_314, "averaged_over": members, "departed": list(departed), "bytes": rows,
        "accuracy": {
            "over": members, "members": [90.0 + m for m in members], "ensemble": 95.25,
            "averaged": 94.75, "greedy_soup": 94.5,
        },
        "rosters": rosters or [{"generation": 0, "first_round": 1, "members": [0, 1, 2]}],
        "lost_values": sum(r["expired_values"] for r in rows),
    }  # fmt: skip
    rundir.write_json(folder / rundir.SUMMARY, summary)
    return FinishedRun.read(folder)


class Tables(HTMLParser):
    """All tables of a page, as lists of rows of cells; and what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.links, self.tags = [], [], set()
        self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name in {"src", "href"}]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self._cell = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag in {"td", "th"}:
            self.tables[-1][-1].append(self._cell.strip())
            self._cell = None

    def table(self, *first):
        """The one whose header begins so."""
        return next(t for t in self.tables if tuple(t[0][: len(first)]) == first)


def pictures(text):
    """By name, the words in each picture."""
    found = {}
    for data, name in re.findall(r'base64,([^"]+)" download="(\w+)\.svg"', text):
        root = ET.fromstring(base64.b64decode(data))
        found[name] = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    return found


def test_one_run(tmp_path):
    text = page([write_run(tmp_path / "first", p=0.05)])
    seen = Tables(text)
    assert seen.table("run", "method", "N")[1] == [
        "first", "wash", "3", "91.00", "92.00", "90.00", "95.25", "94.75", "94.50",
    ]  # fmt: skip
    assert seen.table("member", "payload")[1] == [
        "0", "2 kB", "2 kB", "2.1 kB", "100 B", "6", "780 B", "77 B",
    ]  # fmt: skip
    assert ["p", "0.05"] in seen.table("setting")
    assert ["first", "coordinator", "", "washp2p 0.1.0, torch 2.9"] in seen.table("run", "who")
    assert "None: nobody was lost" in text
    drawn = pictures(text)
    assert set(drawn) == {"accuracy", "consensus", "volume", "matrix", "kinds"}
    assert {"2 kB", "2.1 kB", "3 kB", "40 kB", "50 kB"} <= set(drawn["volume"])
    assert drawn["matrix"].count("1.05 kB") == 3  # the others have a state transfer, too
    assert drawn["matrix"].count("1.83 kB") == 3


def test_it_needs_nothing_from_elsewhere_and_nobody_can_write_into_it(tmp_path):
    text = page([write_run(tmp_path / "first")])
    seen = Tables(text)
    assert seen.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in seen.links)
    assert "script" not in seen.tags
    assert not re.search(r"https?://|@import|url\(", text)
    assert {cells[2] for cells in seen.table("run", "who")[1:]} == {"", NASTY}


def test_faults_and_what_they_cost(tmp_path):
    rows = [
        row(0, [1, 2], expired_values=60, lost={"sender dropped": 50, "too late": 10}),
        row(2, [0, 1], expired_values=40, lost={"sender dropped": 40}),
    ]
    departed = [{"member": 1, "host": "h", "reason": "died", "round": 51}]
    rosters = [
        {"generation": 0, "first_round": 1, "members": [0, 1, 2]},
        {"generation": 1, "first_round": 51, "members": [0, 2]},
    ]
    text = page([write_run(tmp_path / "first", rows=rows, departed=departed, rosters=rosters)])
    assert (
        "Members lost: 1. Of 1,900 values that were to come to those that finished, 100 were"
        in text
    )
    assert "(5.26 %)" in text
    assert "of members 0, 2." in text
    seen = Tables(text)
    assert seen.table("values lost because")[1:] == [["sender dropped", "90"], ["too late", "10"]]
    assert seen.table("member", "host", "reason")[1] == ["1", "h", "died", "51"]
    drawn = pictures(text)
    assert {"sender dropped", "too late", "90", "10"} <= set(drawn["lost"])
    assert "lives" in drawn


def test_several_runs_are_compared(tmp_path, capsys):
    first = write_run(tmp_path / "first", seed=1)
    second = write_run(tmp_path / "second", seed=2, method="none")
    assert differences([first, second]) == {"method": ["wash", "none"], "seed": [1, 2]}
    text = page([first, second])
    seen = Tables(text)
    assert seen.tables[0] == [
        ["setting", "first", "second"],
        ["method", "wash", "none"],
        ["seed", "1", "2"],
    ]
    assert [cells[0] for cells in seen.table("run", "method")[1:]] == ["first", "second"]
    assert seen.table("run", "payload")[1] == [
        "first", "2 kB", "2 kB", "2.1 kB", "40 kB", "50 kB", "20.0", "25.0",
    ]  # fmt: skip
    assert {"first", "second"} <= set(pictures(text)["accuracy"])
    folders = [str(tmp_path / name) for name in ("first", "second")]
    assert main(["report", *folders]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"Averaged +94\.75 +94\.75", shown)
    assert re.search(r"seed +1 +2", shown)
    assert main(["report", *folders, "--json"]) == 0
    assert [s["method"] for s in json.loads(capsys.readouterr().out)] == ["wash", "none"]


def test_the_command_says_where_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        write_run(tmp_path / name)
    assert main(["report", "first", "--html"]) == 0
    assert capsys.readouterr().out.strip() == "first/report.html"
    assert main(["report", "first", "second", "--html", "--output", "both.html"]) == 0
    assert "2 runs compared" in (tmp_path / "both.html").read_text()
    with pytest.raises(SystemExit, match="2"):
        main(["report", "first", "--output", "x.html"])
    assert "add --html" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["report", "first", "nothing"])
    assert "expected the --run-dir of a finished run" in capsys.readouterr().err


def test_a_run_that_was_not_evaluated_has_a_report_all_the_same(tmp_path):
    run = write_run(tmp_path / "first")
    run.summary["accuracy"] = dict.fromkeys(run.summary["accuracy"])
    run.metrics.clear()
    run.population.clear()
    text = page([run])
    assert Tables(text).table("run", "method")[1] == ["first", "wash", "3", *[""] * 6]
    assert set(pictures(text)) == {"volume", "matrix", "kinds"}


def test_a_picture_is_the_same_whenever_it_is_drawn(tmp_path):
    run = write_run(tmp_path / "first")
    assert page([run]) == page([run])


def test_the_mean_of_members_is_of_those_that_were_there(tmp_path):
    run = write_run(tmp_path / "first")
    run.metrics[:] = [
        *(
            {"member": m, "round": r, "held_out": 50.0 + 10 * m}
            for m in (0, 1)
            for r in (10, 20, 40)
        ),
        *({"member": 2, "round": r, "held_out": 90.0} for r in (30, 40)),
    ]
    assert _mean_curve(list(run.curves("held_out").values())) == [
        (10, 55.0), (20, 55.0), (30, pytest.approx(200 / 3)), (40, pytest.approx(200 / 3)),
    ]  # fmt: skip


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    lossy = row(0, [1, 2], expired_values=60, lost={"too late": 60})
    write_run(tmp_path / "a" / "run", rows=[lossy])
    write_run(tmp_path / "b" / "run")
    names = ["a/run", "b/run"]
    runs = read_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"])
    assert [run.name for run in runs] == names
    text = page(runs)
    assert "60" in pictures(text)["lost"]
    assert {cells[0] for cells in Tables(text).table("run", "who")[1:]} == set(names)


def test_a_name_is_no_mathematics(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("p$x^$q", "plain")]
    assert "p$x^$q" in pictures(page(runs))["accuracy"]


def test_members_are_named_however_many_there_are(tmp_path):
    members = range(0, 40, 2)
    rows = [row(m, [peer for peer in members if peer != m]) for m in members]
    drawn = pictures(page([write_run(tmp_path / "first", rows=rows)]))["matrix"]
    shown = {int(text) for text in drawn if text.isdecimal()}
    assert shown
    assert shown <= set(members)


def test_what_was_refused_is_said(tmp_path):
    rows = [row(0, [1, 2], refused_values=7, refused_messages={"malformed": 2})]
    text = page([write_run(tmp_path / "first", rows=rows)])
    assert "7 values were refused, not being finite" in text
    assert "Messages refused: 2 malformed." in text


def test_a_run_of_an_older_version_has_a_report(tmp_path, capsys):
    write_run(tmp_path / "first")
    path = tmp_path / "first" / rundir.SUMMARY
    summary = json.loads(path.read_text())
    for each in summary["bytes"]:
        del each["lost"]
    path.write_text(json.dumps(summary))
    (tmp_path / "first" / rundir.CONFIG).unlink()
    assert main(["report", str(tmp_path / "first")]) == 0
    assert "Averaged" in capsys.readouterr().out

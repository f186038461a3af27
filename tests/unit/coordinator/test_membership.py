"""The coordinator's state machine, driven by events alone."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from coordinator.machine.commands import AppendMetrics, EndRun, Keep, Reject, Reserve, Rewind, Send
from coordinator.machine.members import Departed, Past, Phase
from tests.support.layouts import make_layout
from tests.support.machine import LAYOUT, Run, events, finished, hello
from washp2p.config.config import RunConfig
from washp2p.protocol.layout import Buffer
from washp2p.protocol.messages.control import PROTOCOL
from washp2p.protocol.messages.from_coordinator import (
    Checkpoint,
    Discard,
    Donor,
    Dropped,
    Evaluated,
    Finish,
    Guest,
    Kept,
    NewRoster,
    Refuse,
    Resume,
    Seeds,
    Settled,
    Stop,
    Welcome,
)
from washp2p.protocol.messages.from_worker import (
    Accounts,
    Attach,
    Averaged,
    Averaging,
    Back,
    Busy,
    Claim,
    Diverged,
    Leave,
    Metrics,
    NoSnapshots,
    Notice,
    Progress,
    Rank,
    Ready,
    Result,
    Saved,
    Stalled,
    Synced,
    Unusable,
)
from washp2p.protocol.roster import Peer, round_seed, run_key, unpack_seeds


def sent(commands, kind):
    return [
        (c.identity, c.message)
        for c in commands
        if isinstance(c, Send) and isinstance(c.message, kind)
    ]


def test_ids_follow_the_order_of_joining_and_the_configuration_goes_along():
    run = Run()
    for who in range(3):
        ((identity, welcome),) = sent(run.tell(who, hello(who)), Welcome)
        assert (identity, welcome.member) == (b"%d" % who, who)
        assert RunConfig.from_wire(welcome.config) == run.machine.population.config


def test_the_roster_goes_out_when_all_have_attached():
    run = Run()
    rosters = sent(run.start(), NewRoster)
    assert [identity for identity, _ in rosters] == [b"0", b"1", b"2"]
    assert rosters[0][1].peers == [
        [m, f"tcp://127.0.0.1:{9000 + m}", "a", b"", [], "here"] for m in range(3)
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": 99}, f"protocol version 99 on a, {PROTOCOL} at the coordinator"),
        ({"version": "9.9"}, "version of washp2p 9.9 on a, 1.2 at the coordinator"),
        ({"derivation": 9}, "plan derivation 9 on a, 1 at the coordinator"),
    ],
)
def test_other_versions_are_refused_naming_both_sides_and_the_cure(changes, words):
    ((_, refusal),) = sent(Run().tell(0, hello(**changes)), Refuse)
    assert words in refusal.reason
    assert "install the same version of washp2p on both" in refusal.reason


def test_one_worker_too_many_is_refused():
    run = Run()
    for who in range(3):
        run.tell(who, hello(who))
    ((_, refusal),) = sent(run.tell(3, hello(3)), Refuse)
    assert "the run has its 3 members" in refusal.reason
    assert "--n" in refusal.reason


def test_another_model_is_refused_and_its_place_stays_open():
    run = Run()
    for who in range(3):
        run.tell(who, hello(10 + who))
    run.tell(0, run.attach(0))
    ((identity, refusal),) = sent(run.tell(1, run.attach(1, make_layout([[9, 4], [12]]))), Refuse)
    assert identity == b"1"
    assert (
        "member 1 (a, process 11) does not fit that of member 0 (a, process 10)" in refusal.reason
    )
    assert "0.1[4]" in refusal.reason
    assert "build the same model" in refusal.reason
    ((_, refusal),) = sent(run.tell(2, run.attach(2, rounds=41)), Refuse)
    assert "41 rounds" in refusal.reason
    for who in (7, 8):
        assert sent(run.tell(who, hello(who)), Welcome)[0][1].member == who - 4  # never reused
        commands = run.tell(who, run.attach(who))
    assert [m for m, *_ in sent(commands, NewRoster)[0][1].peers] == [0, 3, 4]


def test_a_worker_that_leaves_before_the_start_frees_its_place():
    run = Run()
    run.tell(0, hello())
    commands = run.tell(0, Leave("no data", 2))
    assert events(commands) == [
        "member 0 (a, process 1) left: no data",
        "waiting for 3 of 3 members",
    ]
    assert not run.machine.population.members


def test_seeds_start_when_all_are_synced_and_stay_ahead_of_the_fastest():
    run = Run(rounds=1000, seed=7)
    run.start()
    held = []

    def take(commands):
        for identity, seeds in sent(commands, Seeds):
            assert seeds.generation == 0
            assert seeds.roster == run.machine.population.roster.digest()
            if identity == b"1":
                assert seeds.first == len(held) + 1
                held.extend(unpack_seeds(seeds.seeds))

    assert run.tell(0, Progress(0)) == []
    assert not sent(run.tell(0, Synced(0)), Seeds)
    assert not sent(run.tell(1, Synced(0)), Seeds)
    take(run.tell(2, Synced(0)))
    assert len(held) == 16
    while len(held) < 1000:
        run.now += 0.1
        fastest = len(held) - 4
        take(run.tell(2, Progress(fastest)))
        take(run.tell(0, Progress(1)))
        assert len(held) >= min(1000, fastest + 8)
    key = run_key(7)
    assert held == [round_seed(key, number) for number in range(1, 1001)]


def test_metrics_are_recorded():
    run = Run()
    run.start()
    assert run.tell(0, Metrics({"loss": 1.0})) == [AppendMetrics({"loss": 1.0, "member": 0})]
    claimed = run.tell(1, Metrics({"loss": 1.0, "member": 0}))
    assert claimed == [AppendMetrics({"loss": 1.0, "member": 1})]


def test_the_run_finishes_when_all_have():
    run = Run()
    run.start()
    run.sync()
    for who in range(3):
        commands = run.average(who)
    assert sent(commands, Settled) == [
        (b"%d" % who, Settled(0, 1, [16, 16, 16])) for who in range(3)
    ]
    found = Result(1, [0, 1, 2], [97.0, 98.0, 99.0], 99.0, 98.5, 98.0)
    commands = run.tell(0, found)
    assert [identity for identity, _ in sent(commands, Evaluated)] == [b"0", b"1", b"2"]
    assert not sent(run.tell(0, finished()), Finish)
    assert not sent(run.tell(1, finished()), Finish)
    commands = run.tell(2, finished())
    assert [identity for identity, _ in sent(commands, Finish)] == [b"0", b"1", b"2"]
    assert not any(isinstance(command, EndRun) for command in commands)
    counts = {"payload": 5, "header": 1, "messages": 1, "expected": 5}
    links = [{"peer": 1, "kind": "exchange", "wire": "ipc", **counts}]
    (rejected,) = run.tell(0, Accounts([{"peer": 1, "kind": "exchange", "wire": "ipc"}]))
    assert isinstance(rejected, Reject)
    assert not sent(run.tell(0, Accounts(links)), Finish)
    run.tell(1, Accounts([]))
    assert run.gone(0) == []  # it has said its last word
    assert run.tell(2, Accounts([]))[-1] == EndRun("all members finished", 0)
    assert run.machine.population.members[b"0"].counts == links
    assert run.machine.population.accuracy == asdict(found)
    assert run.machine.population.settled.members == (0, 1, 2)
    ((_, refusal),) = sent(run.tell(5, hello()), Refuse)
    assert "the run has ended" in refusal.reason


def test_who_has_a_rank_has_it_as_its_id_unless_somebody_was_it():
    run = Run(n=4, rounds=400)

    def joins(who, rank):
        if rank is not None:
            assert run.tell(who, Rank(rank)) == []
        return sent(run.tell(who, hello(who)), Welcome)[0][1].member

    assert [joins(0, 2), joins(1, 2), joins(2, 0), joins(3, 7)] == [2, 3, 0, 4]
    run.gone(2)
    assert joins(4, 0) == 0  # nobody has trained under it
    for who in (0, 1, 4, 3):
        run.tell(who, run.attach(who))
    for who in (0, 1, 4, 3):
        run.tell(who, Synced(0))
    run.gone(0)
    assert joins(5, 2) == 5


@pytest.mark.parametrize("returns", [False, True])
def test_whoever_has_finished_and_left_ends_the_run_as_finished(returns):
    """Its last word may be lost with its connection, or with a coordinator."""
    run = Run()
    run.start()
    run.sync()
    for who in range(3):
        run.average(who)
    for who in range(3):
        run.tell(who, finished())
    run.tell(1, Accounts([]))
    run.tell(2, Accounts([]))
    if returns:
        another = Run()
        list(another.machine.go_on(past_of(run.machine), another.now))
        another.tick()
        another.now += 11.0
        commands = another.tick()
    else:
        another = run
        assert not any(isinstance(command, EndRun) for command in run.gone(0))  # it may come back
        another.now += 11.0
        commands = another.tick()
    assert commands[-1] == EndRun("all members finished", 0)
    (notice,) = another.machine.population.notices
    assert (notice["member"], notice["topic"]) == (0, "no counts")
    assert another.machine.population.departed == []


def test_newcomers_that_hold_no_snapshot_yet_learn_of_the_end():
    run = Run(n=2, rounds=400)
    run.start()
    run.sync()
    run.gone(1)
    run.tell(7, hello(7))
    assert sent(run.tell(7, run.attach(7)), Donor)
    run.average(0, generation=1)
    run.tell(0, finished())
    commands = run.tell(0, Accounts([]))
    assert sent(commands, Refuse) == [(b"7", Refuse("the run has ended"))]
    assert commands[-1] == EndRun("all members finished", 0)


def test_an_interrupt_before_the_start_frees_the_place():
    run = Run()
    run.tell(0, hello(0))
    run.tell(1, hello(1))
    commands = run.tell(0, Leave("it was interrupted", 130))
    assert sent(commands, Stop) == []
    assert events(commands)[-1] == "waiting for 2 of 3 members"
    for who in (2, 3):
        assert sent(run.tell(who, hello(who)), Welcome)


def test_who_is_lost_in_training_is_missing_from_the_next_round_not_published():
    run = Run(rounds=400)
    run.start()
    run.sync()
    published = 16
    commands = run.gone(1)
    kept = [command.what for command in commands if isinstance(command, Keep)]
    rosters = sent(commands, NewRoster)
    assert [identity for identity, _ in rosters] == [b"0", b"2"]
    for _, roster in rosters:
        assert (roster.generation, roster.first) == (1, published + 1)
        assert [member for member, *_ in roster.peers] == [0, 2]
    newest = run.machine.population.roster
    assert newest in kept
    assert commands.index(Keep(newest)) < commands.index(Send(*rosters[0]))
    seeds = sent(run.tell(0, Progress(10)), Seeds)
    assert {identity for identity, _ in seeds} == {b"0", b"2"}
    assert all(m.generation == 1 and m.first > published for _, m in seeds)
    assert all(m.roster == run.machine.population.roster.digest() for _, m in seeds)
    assert run.gone(1) == []


def test_who_is_lost_while_the_first_state_is_fetched_is_left_out_and_all_fetch_again():
    run = Run()
    run.start()
    run.tell(1, Synced(0))
    run.tell(2, Synced(0))
    commands = run.gone(0)
    assert [m for m, *_ in sent(commands, NewRoster)[0][1].peers] == [1, 2]
    assert not sent(commands, Seeds)
    assert not sent(run.tell(1, Synced(0)), Seeds)  # the old state's
    assert not sent(run.tell(1, Synced(1)), Seeds)
    seeds = sent(run.tell(2, Synced(1)), Seeds)
    assert {identity for identity, _ in seeds} == {b"1", b"2"}
    assert seeds[0][1].first == 1


def test_a_loss_before_all_hold_the_average_means_another_average():
    run = Run()
    run.start()
    run.sync()
    run.average(0)
    run.average(1)
    commands = run.gone(2)
    assert not sent(commands, Settled)
    assert not sent(run.average(0, generation=1), Settled)
    settled = Settled(1, 1, [16, 16])
    assert sent(run.average(1, generation=1), Settled) == [(b"0", settled), (b"1", settled)]
    assert sent(run.gone(0), NewRoster)[0][1].peers[0][0] == 1  # who evaluates now
    assert run.machine.population.settled.members == (0, 1)
    run.tell(1, finished())
    assert run.tell(1, Accounts([]))[-1] == EndRun("all members finished", 0)


def test_the_last_member_lost_ends_the_run():
    run = Run()
    run.start()
    run.sync()
    run.gone(0)
    run.gone(1)
    commands = run.tell(2, Leave("out of memory", 1))
    assert commands[-1] == EndRun(
        "member 2 (a, process 2) left: out of memory; no member is left", 1
    )
    assert [gone.member for gone in run.machine.population.departed] == [0, 1, 2]


def test_a_newcomer_gets_a_donor_and_then_a_place():
    run = Run(rounds=400)
    run.start()
    run.sync()
    run.gone(1)
    run.tell(2, Progress(5))
    assert sent(run.tell(7, hello(7)), Welcome)[0][1].member == 3
    commands = run.tell(7, run.attach(7))

    def row(member, port):
        return (member, f"tcp://127.0.0.1:{port}", "a", b"", [], "here")

    assert sent(commands, Guest) == [(b"2", Guest(row(3, 9007)))]
    assert sent(commands, Donor) == [(b"7", Donor(row(2, 9002)))]
    commands = run.gone(2)
    assert sent(commands, Donor) == [(b"7", Donor(row(0, 9000)))]
    assert [i for i, _ in sent(commands, NewRoster)] == [b"0"]
    commands = run.tell(7, Ready())
    assert [i for i, _ in sent(commands, NewRoster)] == [b"0", b"7"]
    roster = sent(commands, NewRoster)[0][1]
    assert [m for m, *_ in roster.peers] == [0, 3]
    seeds = sent(run.tell(0, Progress(roster.first - 1)), Seeds)
    assert {identity for identity, _ in seeds} == {b"0", b"7"}
    assert seeds[0][1].first == roster.first


def test_nobody_joins_a_run_whose_last_seeds_are_out():
    run = Run(rounds=16)
    run.start()
    run.sync()
    run.gone(1)
    ((_, refusal),) = sent(run.tell(7, hello(7)), Refuse)
    assert "the run is ending" in refusal.reason


def test_a_run_may_start_with_fewer():
    run = Run(min_n=2)
    for who in (0, 1):
        run.tell(who, hello(who))
        run.tell(who, run.attach(who))
    run.now = 4.9
    assert run.tick() == []
    run.now = 5.1
    assert [i for i, _ in sent(run.tick(), NewRoster)] == [b"0", b"1"]


@pytest.mark.parametrize(
    ("policy", "answer"), [("reset", Dropped), ("drop", Refuse), ("stop", Stop)]
)
def test_who_diverges_is_reset_or_dropped_or_the_run_stops(policy, answer):
    run = Run(on_divergence=policy)
    run.start()
    run.sync()
    assert run.tell(0, Diverged(2)) == []  # anybody could say so
    commands = run.tell(1, Diverged(2))
    assert (b"2", True) in [(i, "not finite" in m.reason) for i, m in sent(commands, answer)]
    if policy == "stop":
        assert isinstance(commands[-1], EndRun)
        return
    assert [m for m, *_ in sent(commands, NewRoster)[0][1].peers] == [0, 1]
    assert run.tell(1, Diverged(2)) == []


def waits(run, *whom):
    """The commands once members have told, as pairs, who waits for whom."""
    for waiter, slow in whom:
        assert run.tell(waiter, Stalled(slow, broken=False)) == []
    run.now += 2.0
    return run.tick()


def test_whom_most_others_wait_for_is_dropped():
    run = Run(n=4)
    run.start()
    run.sync()
    assert waits(run, (0, 3), (0, 3)) == []
    commands = waits(run, (1, 3))
    assert [identity for identity, _ in sent(commands, Dropped)] == [b"3"]
    assert [m for m, *_ in sent(commands, NewRoster)[0][1].peers] == [0, 1, 2]
    for word in Back(1, 16), Progress(3):
        ((_, answer),) = sent(run.tell(3, word), Dropped)
        assert "does not count it as a member" in answer.reason


def test_of_two_that_wait_for_each_other_the_later_is_dropped():
    run = Run(n=4)
    run.start()
    run.sync()
    commands = waits(run, (2, 1), (1, 2))
    assert [identity for identity, _ in sent(commands, Dropped)] == [b"2"]
    assert [m for m, *_ in sent(commands, NewRoster)[0][1].peers] == [0, 1, 3]


def past_of(machine):
    return Past(
        members=tuple(replace(member) for member in machine.population.members.values()),
        departed=tuple(machine.population.departed),
        rosters=tuple(machine.population.rosters),
        published=machine.population.published,
        planned=tuple(machine.population.publication.planned),
        failed=tuple(machine.population.publication.failed),
        kept=(0, []),
        life=0,
        total_rounds=machine.population.total_rounds,
        given=frozenset(range(10)),
        settled=machine.population.settled,
        averages=[machine.population.averages, *machine.population.averaged_after],
        notices=[],
        accuracy=machine.population.accuracy,
    )


def test_a_coordinator_that_comes_back_goes_on_where_the_first_was():
    first = Run(rounds=400, seed=3)
    first.start()
    first.sync()
    first.gone(1)
    first.tell(0, Progress(12))
    run = Run(rounds=400, seed=3)
    run.now = 100.0
    list(run.machine.go_on(past_of(first.machine), run.now))
    commands = run.tell(0, Back(1, 16))
    assert [m.generation for _, m in sent(commands, NewRoster)] == [1]
    ((_, seeds),) = sent(commands, Seeds)
    assert (seeds.generation, seeds.first) == (1, 17)
    key = run_key(3)
    assert unpack_seeds(seeds.seeds) == [
        round_seed(key, 17 + k) for k in range(first.machine.population.published - 16)
    ]
    assert run.gone(2) == []  # it has not come back yet
    run.now = 109.0
    assert run.tick() == []
    run.now = 111.0
    commands = run.tick()
    assert [i for i, _ in sent(commands, NewRoster)] == [b"0"]
    assert sent(run.tell(7, hello(7)), Welcome)[0][1].member == 10
    ((_, again),) = sent(run.tell(7, hello(7)), Welcome)
    assert again.member == 10


def test_one_that_died_after_the_last_farewell_has_only_the_summary_to_write():
    first = Run(rounds=400)
    first.start()
    for member in first.machine.population.members.values():
        member.phase = Phase.ACCOUNTED
    run = Run(rounds=400)
    commands = list(run.machine.go_on(past_of(first.machine), 0.0))
    assert commands[-1] == EndRun("all members finished", 0)


def resumed(**options):
    """A run of three that was interrupted with seeds out to round 90, all having round 80."""
    before = Run(rounds=400)
    before.start()
    past = replace(past_of(before.machine), published=90, kept=(80, [0, 1, 2]))
    run = Run(rounds=400, **options)
    list(run.machine.resume(past))
    return run


def claim(*held):
    return Claim("h", 1, list(held))


def test_each_goes_on_as_a_member_whose_checkpoint_it_has():
    run = resumed()
    ((_, offer),) = sent(run.tell(0, hello()), Resume)
    assert offer.rounds == [90, 80]
    everything = [(80, 0), (80, 1), (80, 2), (90, 1)]
    ids = []
    for who in range(3):
        ((_, welcome),) = sent(run.tell(who, claim(*everything)), Welcome)
        ids.append(welcome.member)
        assert run.tell(who, hello()) != []  # said again
    assert ids == [1, 0, 2]  # the newest first
    ((_, refusal),) = sent(run.tell(3, claim(*everything)), Refuse)
    assert "no checkpoint of round 90 or 80 on h that is not taken" in refusal.reason
    run.tell(0, run.attach(0))
    run.tell(1, run.attach(1))
    commands = run.tell(2, run.attach(2))
    assert [c.round for c in commands if isinstance(c, Rewind)] == [80]
    rosters = [message for _, message in sent(commands, NewRoster)]
    assert {(r.generation, r.first) for r in rosters} == {(1, 81)}
    assert [m for m, *_ in rosters[0].peers] == [0, 1, 2]
    members = run.machine.population.members.values()
    assert [member.saved for member in members] == [{80}] * 3  # later files are deleted
    assert {c.what.id for c in commands if isinstance(c, Keep) and c.what in members} == {0, 1, 2}
    for who in range(3):
        commands = run.tell(who, Synced(1))
    seeds = [message for _, message in sent(commands, Seeds)]
    assert seeds[0].first == 81
    assert unpack_seeds(seeds[0].seeds)[0] == round_seed(run_key(0), 81)


def test_nobody_is_what_its_checkpoints_are_not():
    run = resumed()
    for nonsense in ((80, 7), (81, 0), (2**63, 2**63)):
        ((_, refusal),) = sent(run.tell(0, Claim("h", 1, [nonsense])), Refuse)
        assert "no checkpoint" in refusal.reason


def test_they_go_on_from_the_round_that_most_hold():
    run = resumed()
    run.tell(0, claim((90, 0)))
    run.tell(1, claim((80, 1)))
    run.tell(2, claim((80, 2), (90, 2)))
    run.tell(0, run.attach(0))
    run.tell(1, run.attach(1))
    commands = run.tell(2, run.attach(2))
    assert [c.round for c in commands if isinstance(c, Rewind)] == [90]
    assert run.machine.population.roster.members == (0, 2)
    assert [identity for identity, _ in sent(commands, Dropped)] == [b"1"]


def test_who_was_lost_after_the_last_round_is_not_waited_for():
    before = Run(rounds=90)
    before.start()
    gone = Departed(2, "h", "died", 91)
    past = replace(past_of(before.machine), published=90, kept=(80, [0, 1]), departed=(gone,))
    run = Run(rounds=90)
    list(run.machine.resume(past))
    for who in (0, 1):
        run.tell(who, claim((90, who)))
    run.tell(0, run.attach(0))
    commands = run.tell(1, run.attach(1))
    assert [c.round for c in commands if isinstance(c, Rewind)] == [90]


def test_all_of_the_newest_round_are_waited_for_while_all_hold_it():
    """Two that came later hold it, too."""
    before = Run(n=5, min_n=3, rounds=400)
    before.start()
    past = replace(past_of(before.machine), published=90, kept=(80, [0, 1, 2]))
    run = Run(n=5, rounds=400)
    list(run.machine.resume(past))
    for who in range(5):
        run.tell(who, claim((90, who)))
        commands = run.tell(who, run.attach(who))
        assert bool(sent(commands, NewRoster)) == (who == 4)


def test_a_claim_that_is_made_again_is_answered_again():
    run = resumed()
    everything = claim((80, 0), (80, 1))
    (first,) = sent(run.tell(0, everything), Welcome)
    assert sent(run.tell(0, everything), Welcome) == [first]
    assert first[1].resumes


def test_a_coordinator_lost_before_the_first_seeds_after_a_checkpoint():
    """Nobody hears of rosters and seeds of the rounds before it again."""
    first = resumed()
    for who in range(3):
        first.tell(who, claim((80, who)))
        first.tell(who, first.attach(who))
    run = Run(rounds=400)
    population = first.machine.population
    past = replace(past_of(first.machine), life=1, kept=(80, [0, 1, 2]))
    past = replace(past, rosters=(*population.history, *population.rosters))
    list(run.machine.go_on(past, 0.0))
    for who, heard in ((0, 2), (1, 2), (2, 0)):
        commands = run.tell(who, Back(heard, 0))
        assert not sent(commands, Seeds)
        rosters = [message.generation for _, message in sent(commands, NewRoster)]
        assert rosters == ([] if heard else [1])
    for who in range(3):
        commands = run.tell(who, Synced(1))
    assert sent(commands, Seeds)[0][1].first == 81


def test_the_number_of_rounds_stays_what_it_was():
    run = resumed()
    run.tell(0, claim((80, 0)))
    commands = run.tell(0, replace(run.attach(0), rounds=30))
    ((_, refusal),) = sent(commands, Refuse)
    assert "comes for 30 rounds, the run has 400" in refusal.reason


def test_who_comes_after_the_others_have_gone_on_joins_anew():
    run = resumed(min_n=2)
    for who in range(3):
        run.tell(who, claim((80, who)))
    run.tell(0, run.attach(0))
    run.tell(1, run.attach(1))
    run.now += 100
    run.tick()
    assert [gone.member for gone in run.machine.population.departed] == [2]
    assert sent(run.tell(2, run.attach(2)), Dropped)
    assert sent(run.tell(3, claim((80, 2))), Dropped)
    assert sent(run.tell(3, hello()), Welcome)[0][1].member >= 3


def test_a_checkpoint_is_complete_when_all_that_live_have_it():
    run = Run(rounds=400, checkpoint_epochs=1, epochs=50)
    run.start()
    told = sent(run.sync(), Checkpoint)
    assert {message.round for _, message in told} == {8, 16}
    assert run.tell(0, Saved(8, "")) == run.tell(1, Saved(8, "")) == []
    commands = run.gone(2)
    assert [m.round for _, m in sent(commands, Kept)] == [8, 8]
    assert Keep(("checkpoint", [8, [0, 1]])) in commands
    commands = run.tell(1, Saved(16, "no room"))
    assert {identity for identity, _ in sent(commands, Discard)} == {b"0", b"1"}
    (line,) = events(commands)
    assert "no room; the last good one is of round 8" in line
    assert Keep(("failed", [16])) in commands
    assert [who for who, _ in sent(run.tell(0, Saved(16, "")), Discard)] == [b"0"]
    assert run.tell(1, Saved(16, "no room")) == []
    population = run.machine.population
    again = population.publication.messages(population.rosters, range(9, 17))
    assert next(again) == Checkpoint(16)  # for who comes back: all treat the round alike


def test_a_newcomer_that_comes_back_gets_what_concerns_it_and_nothing_else():
    run = Run(rounds=400)
    run.start()
    run.sync()
    run.gone(1)
    run.tell(7, hello(7))
    run.tell(7, run.attach(7))
    commands = run.tell(7, Back(0, 0))
    assert not sent(commands, NewRoster)
    assert not sent(commands, Seeds)
    assert sent(commands, Donor)
    run.tell(7, Ready())
    run.tell(0, Progress(10))
    commands = run.tell(7, Back(0, 0))
    assert [m.generation for _, m in sent(commands, NewRoster)] == [2]
    ((_, seeds),) = sent(commands, Seeds)
    assert (seeds.generation, seeds.first) == (2, run.machine.population.roster.first)


def test_unknown_senders_and_messages_out_of_place():
    run = Run()
    assert run.tell(9, Metrics({})) == [Reject(b"9", "a Metrics of no member")]
    run.start()
    assert run.tell(1, run.attach(1)) == []  # said again
    run = Run()
    run.tell(0, hello())
    told, *rest = run.tell(0, Attach(([], [], []), "tcp://x:1", [], "", b"", 3, {}, ""))
    assert "not a layout" in told.message.reason
    assert "not a layout" in events(rest)[0]


@pytest.mark.parametrize(
    "near",
    [
        "",
        "ipc:///run/docker.sock",
        "tcp://127.0.0.1:1",
        "ipc://@other",
        "ipc://@washp2p-X",
        "torch://10.0.0.1:80/cpu",
        "torch://127.0.0.1:80",
    ],
)
def test_members_are_near_at_names_of_their_own_only(near):
    run = Run()
    run.tell(0, hello())
    assert sent(run.tell(0, run.attach(0, near=[near])), Refuse)
    run.tell(0, hello())
    run.tell(0, run.attach(0, near=["torch://127.0.0.1:8/cpu", "ipc://@washp2p-0a1b"]))
    (member,) = run.machine.population.attached()
    assert member.peer.ways("here", "") == ["ipc://@washp2p-0a1b", "tcp://127.0.0.1:9000"]
    assert member.peer.ways("there", "cpu") == ["tcp://127.0.0.1:9000"]


@pytest.mark.parametrize(
    ("one", "other", "fit"),
    [
        ("cpu", "cpu", True),
        ("GPU-1", "GPU-2", True),
        ("GPU-1", "GPU-1", False),
        ("GPU-1", "cpu", False),
        ("cpu", "GPU-1", False),
        ("cpu", "", False),
        ("GPU-1", "", False),
    ],
)
def test_torch_distributed_carries_between_two_gpus_or_two_cpus(one, other, fit):
    way = f"torch://127.0.0.1:8/{one}"
    peer = Peer(0, "tcp://127.0.0.1:9", near=(way,), place="here")
    assert (way in peer.ways("here", other)) is fit


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://x:*", "tcp://x:0", "tcp://*:5", "tcp://!:5", "tcp://a;b:5", "tcp://x:5/y", "tcp://:5"],
)
def test_an_address_that_nobody_could_connect_to_is_refused(endpoint):
    run = Run(rounds=400)
    run.start()
    run.sync()
    run.gone(1)
    run.tell(7, hello(7))
    commands = run.tell(7, replace(run.attach(7), endpoint=endpoint))
    assert sent(commands, Refuse)
    assert not sent(commands, Guest)


def test_nobody_is_ready_before_it_has_a_donor():
    run = Run()
    run.tell(0, hello())
    run.tell(0, run.attach(0))
    assert run.tell(0, Ready()) == []
    assert not run.machine.population.started


@pytest.mark.parametrize("word", [Accounts([]), finished()])
def test_nobody_has_finished_before_there_is_an_average(word):
    run = Run()
    run.start()
    run.sync()
    (rejected,) = run.tell(0, word)
    assert isinstance(rejected, Reject)
    assert "has finished, nobody has averaged yet" in rejected.what


def test_whose_checkpoint_nobody_has_is_said():
    run = resumed()
    run.tell(0, hello())
    run.tell(0, claim((80, 0)))
    run.now = 5.1
    (text,) = events(run.tick())
    assert "nobody has come with the checkpoint of member 1, member 2 (round 90 or 80)" in text
    assert "--min-n 1" in text
    assert run.tick() == []  # once


# Averages in the middle of a run


def trained(n=3, **options):
    run = Run(n=n, rounds=400, **options)
    run.start()
    run.sync()
    return run


def test_averages_are_counted_and_told_with_the_rounds_they_were_taken_after():
    run = trained()
    for number, after in (1, 10), (2, 12):
        for who in (0, 1):
            assert not sent(run.average(who, number=number, after=after), Settled)
        commands = run.average(2, number=number, after=after + 1)
        ((_, settled), *_) = sent(commands, Settled)
        assert settled == Settled(0, number, [after, after, after + 1])
        assert ("averages", [number, after, after, after + 1]) in [
            c.what for c in commands if isinstance(c, Keep)
        ]
    (rejected,) = run.tell(0, Averaging(4, 12))
    assert isinstance(rejected, Reject)


def test_an_average_that_one_who_has_ended_does_not_take_ends_the_run_by_name():
    run = trained(n=2)
    for who in (0, 1):
        run.average(who, after=10)
    run.tell(1, finished())
    commands = run.tell(0, Averaging(2, 15))
    ((_, stop), *_) = sent(commands, Stop)
    assert "takes average 2 after round 15, and member 1 (a, process 1) has ended" in stop.reason
    assert stop.code == 2


def test_newcomers_wait_for_an_average_that_is_being_taken():
    run = trained(n=3)
    run.gone(2)
    run.tell(7, hello(7))
    run.tell(7, run.attach(7))
    run.tell(0, Averaging(1, 10))
    assert not sent(run.tell(7, Ready()), NewRoster)
    run.tell(0, Averaged(1, 1))
    commands = run.average(1, generation=1, after=10)
    ((_, roster), *_) = sent(commands, NewRoster)
    assert [peer[0] for peer in roster.peers] == [0, 1, 3]
    assert roster.averages == 1


# Busy is not stuck


def test_who_is_busy_or_has_just_been_heard_is_not_dropped_for_being_slow():
    run = trained(n=2)
    run.now = 100.0
    run.tell(1, Busy(30.0))
    assert waits(run, (0, 1)) == []
    run.now = 131.0
    run.tell(1, Progress(3))
    assert waits(run, (0, 1)) == []
    run.now = 200.0
    ((_, answer),) = sent(waits(run, (0, 1)), Dropped)
    assert "--patience" in answer.reason


def test_who_waits_for_one_that_is_busy_is_not_slow():
    run = trained(n=4)
    run.now = 100.0
    run.tell(2, Busy(1000.0))
    for _ in range(3):
        assert waits(run, (1, 0), (3, 0), (0, 2)) == []
        run.now += 60.0


def test_waits_count_on_in_the_next_roster():
    run = trained(n=5)
    run.now = 100.0
    run.tell(4, Busy(1000.0))
    assert waits(run, (3, 4)) == []
    run.gone(2)
    run.now += 5.0
    assert waits(run, (0, 3), (1, 3)) == []


def test_who_was_busy_has_time_for_its_next_step():
    run = trained(n=3)
    run.tell(2, Busy(600.0))
    run.now = 120.2
    assert waits(run, (0, 2), (1, 2)) == []
    run.tell(2, Busy(0.0))
    run.now += 3.0
    assert run.tick() == []


def test_who_moves_on_waits_no_more():
    run = trained(n=4)
    run.now = 100.0
    assert sent(waits(run, (1, 0)), Dropped) == []
    run.tell(1, Progress(3))
    run.now += 80.0
    commands = waits(run, (2, 1), (3, 1))
    assert [identity for identity, _ in sent(commands, Dropped)] == [b"1"]


def test_members_that_come_back_to_another_coordinator_are_not_slow_before():
    first = trained(n=3)
    run = Run(n=3, rounds=400)
    list(run.machine.go_on(past_of(first.machine), run.now))
    for who in (0, 1):
        run.tell(who, Back(1, 16))
    assert waits(run, (0, 2), (1, 2)) == []


def test_what_comes_before_back_is_left_to_what_is_said_again_after_it():
    first = trained(n=2)
    run = Run(n=2, rounds=400)
    list(run.machine.go_on(past_of(first.machine), run.now))
    assert run.tell(0, Averaged(0, 1)) == []  # on its way when its coordinator died
    run.tell(0, Back(1, 16))
    run.tell(0, Averaging(1, 3))
    run.tell(0, Averaged(0, 1))
    assert run.machine.population.members[b"0"].averaged == (0, 1)


def test_a_checkpoint_that_was_complete_before_is_not_planned_again():
    first = trained(n=2)
    past = replace(past_of(first.machine), kept=(16, [0, 1]), planned=(8, 16, 24), failed=(8, 24))
    run = Run(n=2, rounds=400)
    list(run.machine.go_on(past, run.now))
    publication = run.machine.population.publication
    assert (publication.planned, publication.failed) == ([24], {24})


def test_a_run_that_comes_back_without_members_ends():
    first = trained(n=2)
    newcomer(first)
    past = past_of(first.machine)
    alone = replace(past, members=tuple(m for m in past.members if m.phase is Phase.ATTACHED))
    run = Run(n=2, rounds=400)
    list(run.machine.go_on(alone, run.now))
    assert isinstance(run.tick()[-1], EndRun)


def test_a_newcomer_that_waits_for_its_first_seed_is_not_counted():
    run = trained(n=3)
    newcomer(run)
    run.gone(2)
    run.tell(7, Ready())
    run.now = 100.0
    commands = waits(run, (0, 1))
    assert [identity for identity, _ in sent(commands, Dropped)] == [b"1"]


def test_of_a_chain_of_waits_the_last_one_is_dropped():
    run = trained(n=4)
    run.now = 100.0
    commands = waits(run, (1, 0), (3, 0), (0, 2))
    assert [identity for identity, _ in sent(commands, Dropped)] == [b"2"]
    run.now += 120.0
    commands = waits(run, (1, 0), (3, 0))  # what was said 120 s ago counts no more
    assert [identity for identity, _ in sent(commands, Dropped)] == [b"0"]


def test_a_broken_link_is_no_excuse():
    run = trained(n=2)
    run.now = 100.0
    run.tell(1, Busy(30.0))
    assert sent(run.tell(0, Stalled(1, broken=True)), Dropped)
    (rejected,) = trained().tell(1, Busy(1e9))
    assert isinstance(rejected, Reject)


# Who may join


def test_two_members_at_one_address_are_refused():
    run = Run()
    for who in (0, 1):
        run.tell(who, hello(who))
    run.tell(0, run.attach(0))
    same = replace(run.attach(1), endpoint="tcp://127.0.0.1:9000")
    ((_, refused),) = sent(run.tell(1, same), Refuse)
    assert "advertises tcp://127.0.0.1:9000, and so does member 0" in refused.reason


def test_buffers_that_differ_are_refused_by_name():
    run = Run()
    for who in (0, 1):
        run.tell(who, hello(who))
    ids = {"name": "ids", "shape": (512,), "dtype": "int64", "rule": "first"}
    layouts = [replace(LAYOUT, buffers=(Buffer(persistent=kept, **ids),)) for kept in (True, False)]
    run.tell(0, run.attach(0, layouts[0]))
    ((_, refused),) = sent(run.tell(1, run.attach(1, layouts[1])), Refuse)
    assert "buffer ids[512] (int64, rule first, not persistent) against buffer ids" in (
        refused.reason
    )
    assert "member 0 (a, process 0)" in refused.reason


def test_people_are_told_which_layer_is_the_last():
    commands = Run().start()
    (text,) = [text for text in events(commands) if "layer 0 of" in text]
    assert "shuffled most: 0.0, 0.1; the last, never shuffled: 1.0" in text or "--last" in text


def test_people_are_told_how_buffers_are_averaged():
    buffers = tuple(
        Buffer(name=f"b{k}", shape=(), dtype="int64", persistent=True, rule="max") for k in range(6)
    )
    run = Run(n=2)
    for who in (0, 1):
        run.tell(who, hello(who))
    for who in (0, 1):
        commands = run.tell(who, run.attach(who, replace(LAYOUT, buffers=buffers)))
    assert "buffers by rule: max: b0, b1, b2, b3 and 2 more" in events(commands)


# Donors, and those who are all sick


def newcomer(run, who=7):
    run.tell(who, hello(who))
    return sent(run.tell(who, run.attach(who)), Donor)


def test_a_donor_that_was_refused_is_never_offered_again():
    run = trained(n=4)
    run.gone(3)
    ((_, donor),) = newcomer(run)
    offered = [donor.peer[0]]
    for _ in range(2):
        ((_, donor),) = sent(run.tell(7, Unusable(offered[-1], "of another kind")), Donor)
        offered.append(donor.peer[0])
    assert sorted(offered) == [0, 1, 2]
    ((_, refused),) = sent(run.tell(7, Unusable(offered[-1], "of another kind")), Refuse)
    assert "no member's snapshot is of use" in refused.reason
    assert "of another kind" in refused.reason


def test_where_all_are_sick_the_run_ends_with_the_reason():
    run = trained(n=3)
    run.gone(2)
    ((_, donor),) = newcomer(run)
    ((_, donor),) = sent(run.tell(7, Diverged(donor.peer[0])), Donor)
    commands = run.tell(7, Diverged(donor.peer[0]))
    assert "all members that member 3" in sent(commands, Stop)[0][1].reason


def test_a_newcomer_waits_for_a_donor_that_is_away():
    first = trained(n=3)
    first.gone(2)
    newcomer(first)
    run = Run(n=3, rounds=400)
    list(run.machine.go_on(past_of(first.machine), run.now))  # it waits for all to come back
    run.tell(7, Back(0, 0))
    ((_, donor),) = sent(run.tell(0, Back(2, 16)), Donor)
    assert donor.peer[0] == 0
    commands = run.tell(7, Diverged(0))
    assert not sent(commands, Stop)
    assert not sent(commands, Donor)
    ((_, donor),) = sent(run.tell(1, Back(2, 16)), Donor)
    assert donor.peer[0] == 1
    assert sent(run.tell(7, Diverged(1)), Stop)


def test_the_last_one_expelled_is_told_that_the_run_is_over():
    run = trained(n=2)
    run.gone(0)
    list(run.machine.cut_off(b"1", "too much"))  # by the coordinator itself
    run = trained(n=3, on_divergence="reset")
    run.gone(0)
    run.gone(1)
    commands = list(
        run.machine.population.expel(run.machine.population.members[b"2"], "sent nothing good")
    )
    ((_, stop),) = sent(commands, Stop)
    assert "sent nothing good; no member is left" in stop.reason
    assert not sent(commands, Dropped)


def test_nobody_comes_late_where_state_cannot_be_given():
    run = trained(n=3)
    run.gone(2)
    newcomer(run)
    commands = run.tell(0, NoSnapshots("a Special cannot be written"))
    assert "a Special cannot be written" in sent(commands, Refuse)[0][1].reason
    ((_, refused),) = sent(run.tell(8, hello(8)), Refuse)
    assert "nobody can join late" in refused.reason


def test_what_people_should_know_is_kept_once():
    run = trained()
    notice = Notice("one model", "members are one model")
    assert any("one model" in text for text in events(run.tell(0, notice)))
    assert events(run.tell(0, notice)) == []
    expected = {"member": 0, "topic": "one model", "text": "members are one model"}
    assert run.machine.population.notices == [expected]


def test_workers_are_let_go_once_there_is_room_for_the_summary():
    run = trained(n=2)
    for who in (0, 1):
        run.average(who)
    run.tell(0, finished())
    full = []
    for command in run.machine.receive(b"1", finished(), 0.0):
        full.append(command)
        if isinstance(command, Reserve):
            run.machine.has_room = False
    assert not sent(full, Finish)
    assert [identity for identity, _ in sent(run.tick(), Finish)] == [b"0", b"1"]

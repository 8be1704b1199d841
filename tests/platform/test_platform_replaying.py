"""The settlement's replay: made where fees buy it, brought to what is paid, taken up again where it was stopped."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from tiny_model import make_tiny_base
from trained_world import Remote, World, rows_of

from openledger.adapters.base_model import load_tokenizer
from openledger.attribution.actor import IndexHost
from openledger.attribution.replay import replay_run
from openledger.core.hashing import digest_bytes
from openledger.core.money import NANO_PER_OPEN
from openledger.ledger import encode_proof, verify_proof
from openledger.platform import pipeline, replaying
from openledger.platform.hosts import IndexHosts
from openledger.platform.replaying import (
    Replays,
    forget_checkpoints,
    forget_orphans,
    one_at_a_time,
    open_rows,
    replayed,
    rows_path,
    targets_of,
)
from openledger.training.examples import encode_answer, encode_row
from openledger.training.record import load_run

pytestmark = pytest.mark.usefixtures("here")
PEOPLE = ("ctr_0", "ctr_1")
REMOTE_GET = ray.get  # `here` answers at once


@pytest.fixture(scope="module")
def trained(here, tmp_path_factory):
    """An adapter with a bank, and one without."""
    world = World(make_tiny_base(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("world"))
    world.bank(world.train("one", rows_of(*PEOPLE))[0])
    world.train("bare", rows_of("ctr_2", "ctr_3"))
    return world


def buying(world, people=PEOPLE, cost_nano=1):
    """All of the fees, where a training costs next to nothing."""
    return Replays(
        share_ppm=10**6, training_cost_nano=cost_nano, folder=world.folder / "rows", rows_of=lambda _: rows_of(*people)
    )


def settled(world, market, name, replays, people=PEOPLE):
    adapter = world.registry.get(name)
    pool = market.sell(adapter.terms, rows_of(*people)[::3])
    measuring = lambda _: world.host, world.score, world.registry, world.indexes
    found, settlement = pipeline.settle_pool(Remote(market.economy), name, pool.period, *measuring, replays)
    digest = found.scores.quality.get("row_scores")
    if not digest:
        return found, settlement, None
    kept = open_rows(replays.folder, name, pool.period, found.scores.quality)[digest]
    return found, settlement, {**kept.stated, "rows": list(kept.rows())}


def by_contributor(rows, part, kind):
    sums = {}
    for row in rows:
        sums[row["contributor_id"]] = sums.get(row["contributor_id"], 0) + row[part][kind]
    return sums


def test_rows_sum_to_what_their_contributors_are_paid_by(world, market):
    found, settlement, told = settled(world, market, "one", buying(world))
    assert found.scores.quality["replay"] == "exact"
    assert (told["deviation"], told["corrected"]) == (0, True)
    assert (told["datanet"], told["shared_with"]) == ("one", [])
    record = load_run(Path(world.registry.get("one").folder))
    assert sorted(row["row_id"] for row in told["rows"]) == sorted(record.row_ids)
    assert told["num_rows"] == len(record.row_ids)
    for part, scores in (("use", found.scores), ("improvement", found.improvement)):
        sums = by_contributor(told["rows"], part, "expected_nano")
        for name, nano in scores.scores_nano.items():
            assert sums[name] == pytest.approx(nano, abs=len(record.row_ids))
        assert all(row[part]["error_nano"] > 0 for row in told["rows"])
        assert len({row[part]["this_run_nano"] for row in told["rows"]}) > len(record.row_ids) // 2
    assert settlement.pool_nano == sum(settlement.payouts_nano.values())


def test_the_settlement_names_the_digest_of_the_row_scores_that_are_kept(world, market):
    found, settlement, _ = settled(world, market, "one", buying(world))
    path = rows_path(world.folder / "rows", "one", settlement.period, found.scores.quality["row_scores"])
    digest = digest_bytes(path.read_bytes().partition(b"\n")[0])  # of what the digests of all rows' pages stand in
    assert found.scores.quality["row_scores"] == digest
    proof = encode_proof(market.ledger.proof(next(iter(settlement.transfer_ids.values()))))
    stated = verify_proof(proof, market.ledger.verification_key()).statement["parts"]["use"]["quality"]
    assert (stated["replay"], stated["row_scores"]) == ("exact", digest)
    assert list((world.folder / "rows" / ".unfinished").iterdir()) == []
    market.ledger.audit()


def test_what_is_told_of_this_run_is_its_replay_of_the_weighted_sum(world, market):
    found, _, told = settled(world, market, "one", buying(world))
    (part,) = found.parts
    targets = targets_of(part, part.measured)
    assert [weight for _, weight in targets["use"]] == [
        pytest.approx(nano / NANO_PER_OPEN, rel=1e-5) for nano in part.measured.counted_nano
    ]
    tokenizer, known = load_tokenizer(world.base), {row.row_id: row for row in rows_of(*PEOPLE)}
    record = load_run(Path(world.registry.get("one").folder))
    examples = [encode_row(tokenizer, known[row_id]) for row_id in record.row_ids]
    sums = [[(encode_answer(answer), weight) for answer, weight in target] for target in targets.values()]
    alone_RT = replay_run(world.base, record, examples, sums).scores_RT
    rows = {row["row_id"]: row for row in told["rows"]}
    for number, name in enumerate(targets):
        nano = [rows[row_id][name]["this_run_nano"] for row_id in record.row_ids]
        assert np.allclose(nano, alone_RT[:, number] * 1e9, atol=1)


def test_the_rows_say_who_could_ask_the_adapter_when_it_was_settled(world, market):
    adapter = world.registry.get("one")
    world.registry.register("one", Path(adapter.folder), adapter.digest, adapter.terms, shared_with=("user:bob",))
    assert settled(world, market, "one", buying(world))[2]["shared_with"] == ["user:bob", "user:owner"]


def test_fees_that_buy_none_are_said_and_the_pool_is_paid(world, market):
    found, settlement, told = settled(world, market, "one", buying(world, cost_nano=NANO_PER_OPEN))
    assert found.scores.quality["replay"].startswith("not bought: fees buy ")
    (part,) = found.parts
    record = load_run(Path(world.registry.get("one").folder))
    lengths = [
        [len(each.prompt_ids) + len(each.completion_ids) for each in some] for some in (part.answers, part.held_out)
    ]
    passes = sum(map(sum, lengths)) / np.mean(lengths[1]) / (record.recipe.num_epochs * len(record.row_ids))
    assert passes > 0.1
    assert found.scores.quality["replay"].endswith(f"e-06 of {5.5 + passes:.3g} trainings")
    assert (told, settlement.replayed) == (None, False)


def test_fees_that_buy_the_way_back_and_not_the_answers_gradients_buy_no_replay(world, market):
    pool = market.sell(world.registry.get("one").terms, rows_of(*PEOPLE)[::3])
    replays = buying(world, cost_nano=int(sum(answer.fee_nano for answer in pool.answers) / 5.51))
    found = replayed(world.attribute(pool), lambda _: world.host, world.registry, replays)
    bought, cost = map(float, re.findall(r"5\.\d+", found.scores.quality["replay"]))
    assert 5.5 < bought < cost
    assert found.scores.quality["replay"].startswith("not bought: ")


def test_nothing_is_said_where_nothing_was_asked_for(world, market):
    pool = market.sell(world.registry.get("one").terms, rows_of(*PEOPLE)[::6])
    assert "replay" not in world.attribute(pool).scores.quality


def test_rows_that_are_gone_are_said_and_the_pool_is_paid(world, market):
    replays = replace(buying(world), rows_of=lambda _: rows_of(*PEOPLE)[3:])
    found, settlement, told = settled(world, market, "one", replays)
    assert found.scores.quality["replay"].startswith("failed: rows_gone: ")
    assert told is None
    assert sum(settlement.payouts_nano.values()) == settlement.pool_nano > 0


def refusing(error):
    def refuse(*_):
        raise error

    return refuse


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("tokens")])
def test_whatever_ends_a_replay_is_said_by_its_type_and_the_pool_is_paid(world, market, monkeypatch, caplog, error):
    monkeypatch.setattr(replaying, "write_durably", refusing(error))
    found, settlement, told = settled(world, market, "one", buying(world))
    assert (found.scores.quality["replay"], told) == (f"failed: {type(error).__name__}", None)
    assert "row_scores" not in found.scores.quality
    assert sum(settlement.payouts_nano.values()) == settlement.pool_nano > 0
    (logged,) = [record for record in caplog.records if record.name == replaying.__name__]
    assert logged.exc_info[1] is error


def test_what_ended_a_replay_in_its_actor_is_said_by_its_own_type(world, market):
    error = ray.exceptions.RayTaskError("replay", "", OSError(28, "No space left on device"))
    replays = replace(buying(world), rows_of=refusing(error), host_lost=refusing(AssertionError("it lives")))
    assert settled(world, market, "one", replays)[0].scores.quality["replay"] == "failed: OSError"


def test_a_run_that_ends_elsewhere_is_said_with_how_far_off_it_is(world, market):
    record = Path(world.registry.get("one").folder) / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "order": "of another run"}))
    found, _, told = settled(world, market, "one", buying(world))
    assert found.scores.quality["replay"].startswith("failed: run_deviates: the run repeated ends 0.")
    assert told is None


def test_without_a_bank_this_run_alone_is_told(world, market):
    people = ("ctr_2", "ctr_3")
    found, _, told = settled(world, market, "bare", buying(world, people), people)
    assert (found.scores.quality["replay"], told["corrected"]) == ("exact", False)
    assert {tuple(row["use"]) for row in told["rows"]} == {("this_run_nano",)}


def test_a_settlement_that_died_before_it_paid_replays_nothing_again(world, market):
    replays = buying(world)
    pool = market.sell(world.registry.get("one").terms, rows_of(*PEOPLE)[::3])
    found = world.attribute(pool)
    first = replayed(found, lambda _: world.host, world.registry, replays)
    (kept,) = (replays.folder / ".unfinished").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    again = replayed(world.attribute(pool), lambda _: world.host, world.registry, replays)
    assert {path.name: path.stat().st_mtime_ns for path in kept.iterdir()} == before
    assert again.scores == first.scores
    weighed = found.parts[0].measured
    other_bits = replace(weighed, weights_nano=[nano + nano // 10**5 + 1 for nano in weighed.weights_nano])
    other_bits = replace(found.parts[0], measured=other_bits)
    assert targets_of(other_bits, other_bits.measured) != targets_of(found.parts[0], weighed)
    same = replayed(replace(found, parts=(other_bits,)), lambda _: world.host, world.registry, replays)
    assert {path.name: path.stat().st_mtime_ns for path in kept.iterdir()} == before
    assert same.scores.quality["replay"] == "exact"
    changed = replace(pool, answers=pool.answers[1:])  # a verdict came between
    replayed(world.attribute(changed), lambda _: world.host, world.registry, replays)
    (other,) = (replays.folder / ".unfinished").iterdir()
    assert other != kept


class Seen:
    """An index actor whose replays are seen by `see`."""

    def __init__(self, host, see):
        self._host, self._see = host, see

    def __getattr__(self, name):
        return getattr(self._host, name)

    @property
    def replay(self):
        self._see()
        return self._host.replay


def test_one_job_at_a_time_replays_settles_and_forgets_a_pool(world, market, monkeypatch):
    replays, adapter, seen = buying(world), world.registry.get("one"), []

    def is_held():
        with next((replays.folder / ".locks").iterdir()).open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def forget(*given):
        seen.append(("forgets", is_held()))
        replaying.forget_checkpoints(*given)

    monkeypatch.setattr(pipeline, "forget_checkpoints", forget)
    host = Seen(world.host, lambda: seen.append(("replays", is_held())))
    pool = market.sell(adapter.terms, rows_of(*PEOPLE)[::3])
    measuring = lambda _: host, world.score, world.registry, world.indexes
    first, paid = pipeline.settle_pool(Remote(market.economy), "one", pool.period, *measuring, replays)
    assert (seen, is_held()) == ([("replays", True), ("forgets", True)], False)
    again, told = pipeline.settle_pool(Remote(market.economy), "one", pool.period, *measuring, replays)
    assert [what for what, _ in seen] == ["replays", "forgets", "forgets"]
    assert (again.scores.quality, told.replayed) == (first.scores.quality, True)
    assert told.payouts_nano == paid.payouts_nano


def test_one_adapter_under_two_names_has_checkpoints_for_each(world, market):
    replays, pool = buying(world), market.sell(world.registry.get("one").terms, rows_of(*PEOPLE)[::3])
    for name, some in (("one", pool), ("uno", replace(pool, answers=pool.answers[1:]))):
        found = world.attribute(some)
        found = replace(found, scores=replace(found.scores, adapter=name))
        replayed(found, lambda _: world.host, world.registry, replays)
    assert sorted(path.name[:9] for path in (replays.folder / ".unfinished").iterdir()) == ["one-p0001", "uno-p0001"]
    forget_checkpoints(replays, found)
    assert [path.name[:9] for path in (replays.folder / ".unfinished").iterdir()] == ["one-p0001"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-9],
        lambda text: '{"use": [["ans_1", 1.0]]}',  # as they were kept before
        lambda text: text.replace("e-07", "e-06"),
        lambda text: text.replace('"ans_', '"bns_'),
    ],
)
def test_what_was_to_be_replayed_and_is_damaged_is_named_and_begins_anew(world, market, caplog, damage):
    replays, pool = buying(world), market.sell(world.registry.get("one").terms, rows_of(*PEOPLE)[::3])
    found = world.attribute(pool)
    first = replayed(found, lambda _: world.host, world.registry, replays)
    (kept,) = (replays.folder / ".unfinished").iterdir()
    path = kept / "targets.json"
    whole = path.read_text()
    path.write_text(damage(whole))
    assert path.read_text() != whole
    again = replayed(found, lambda _: world.host, world.registry, replays)
    assert again.scores == first.scores
    assert path.read_text() == whole
    assert f"{path} can't be used, and its replay begins anew" in caplog.text


def in_work(folder, adapter, period):
    """In a process of its own: a settlement that has begun its replay, until it is killed."""
    replays = Replays(share_ppm=10**6, training_cost_nano=1, folder=Path(folder), rows_of=lambda _: [])
    with one_at_a_time(replays, adapter, period):
        kept = checkpoints_of(folder, adapter, period)
        kept.mkdir(parents=True)
        (kept / "segment-0.safetensors").write_bytes(b"half of it")
        print("begun", flush=True)
        signal.pause()


def checkpoints_of(folder, adapter, period):
    return Path(folder) / ".unfinished" / f"{adapter}-{period}-{'a' * 24}-{'b' * 16}"


def test_checkpoints_of_a_killed_job_go_once_nobody_will_ask_for_them(tmp_path):
    pool, adapter = ("a-1", "p0001"), "a-1"
    code = f"import test_platform_replaying as t; t.in_work({str(tmp_path)!r}, *{pool})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    job = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout.readline() == "begun\n"
    kept, other = checkpoints_of(tmp_path, *pool), checkpoints_of(tmp_path, adapter, "p0002")
    other.mkdir()
    assert forget_orphans(tmp_path, []) == [other.name]  # it lives, whatever waits
    job.kill()
    job.communicate()
    assert forget_orphans(tmp_path, [pool]) == []  # the next run goes on from there
    assert kept.exists()
    assert forget_orphans(tmp_path, [(adapter, "p0002")]) == [kept.name]
    assert list((tmp_path / ".unfinished").iterdir()) == []


def test_where_nothing_was_ever_replayed_there_are_no_orphans(tmp_path):
    assert forget_orphans(tmp_path / "rows", []) == []
    assert not (tmp_path / "rows").exists()


def test_a_folder_without_a_place_for_locks_keeps_no_pool_from_being_paid(tmp_path, caplog):
    """As where another user made it, or the disk is full."""
    (tmp_path / ".locks").write_text("a file")
    orphan = checkpoints_of(tmp_path, "a-1", "p0001")
    orphan.mkdir(parents=True)
    assert forget_orphans(tmp_path, []) == []
    assert f"checkpoints that nobody needs stay in {tmp_path}" in caplog.text
    assert orphan.exists()
    replays, paid = Replays(share_ppm=10**6, training_cost_nano=1, folder=tmp_path, rows_of=lambda _: []), []
    with one_at_a_time(replays, "a-1", "p0002"):
        paid.append("p0002")
    assert paid == ["p0002"]
    assert "the pool of a-1 in p0002 can't be locked" in caplog.text


class Dying:
    """An index actor that a replay ends."""

    def __init__(self, host):
        self._host = host

    def __getattr__(self, name):
        return getattr(self._host, name)

    @property
    def replay(self):
        raise ray.exceptions.ActorDiedError


def test_a_replay_that_ends_its_actor_leaves_the_next_pool_another(world, market, monkeypatch):
    ended, starts = [], [Dying(world.host), world.host]
    monkeypatch.setattr(ray, "kill", ended.append)
    first, hosts = starts[0], IndexHosts([world.base], lambda *_: starts.pop(0))
    market.sell(world.registry.get("one").terms, rows_of(*PEOPLE)[::3])
    market.economy.open_period()
    market.sell(world.registry.get("one").terms, rows_of(*PEOPLE)[1::3])
    market.economy.open_period()
    replays = replace(buying(world), host_lost=hosts.end)
    measuring = hosts.of, world.score, world.registry, world.indexes
    one, two = pipeline.settle_waiting(Remote(market.economy), *measuring, replays)
    assert (one.error, one.quality["replay"]) == (None, "failed: ActorDiedError")
    assert two.error is None
    assert two.quality["replay"] == "exact"
    assert (ended, starts) == ([first], [])


@pytest.mark.cluster
def test_an_actor_killed_on_its_way_back_goes_on_to_the_same_row_scores(cluster, world, market, monkeypatch):
    replays, marks = buying(world), world.folder / "marks"
    marks.mkdir()

    class Dying(IndexHost):
        """Is killed in its first replay, on the way back. In here, as workers can't import a test."""

        def replay(self, *arguments):
            from openledger.attribution import actor

            begun = len(list(marks.iterdir()))
            (marks / str(begun)).touch()
            replay_run, steps = actor.replay_run, []

            def step(done, total):
                steps.append(done)
                if not begun and 4 * done > 3 * total:
                    os.kill(os.getpid(), signal.SIGKILL)

            actor.replay_run = lambda *given, **named: replay_run(*given, **named, on_step=step)
            try:
                return super().replay(*arguments)
            finally:
                (marks / f"first-{steps[0]}").touch()

    pool = market.sell(world.registry.get("one").terms, rows_of(*PEOPLE)[::3])
    found = world.attribute(pool)
    here = replayed(found, lambda _: world.host, world.registry, replace(replays, folder=world.folder / "here"))
    monkeypatch.setattr(ray, "get", REMOTE_GET)
    host = ray.remote(Dying).options(num_cpus=0, max_restarts=2, max_task_retries=2).remote(world.base)
    there = replayed(found, lambda _: host, world.registry, replays)
    ray.kill(host)
    assert there.scores.quality["replay"] == "exact"
    assert there.scores == here.scores
    (first,) = (int(mark.name.removeprefix("first-")) for mark in marks.glob("first-*"))
    assert {mark.name for mark in marks.iterdir()} == {"0", "1", f"first-{first}"}
    assert first > 20  # of 40: nothing of the way there again

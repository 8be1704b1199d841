"""From a pool to its payouts: what a wrong answer weighs, and scores that a verdict has overtaken."""

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from economy_values import DIGEST, TERMS, Town, answer, improvement

from jobs.settle import report
from openledger.attribution.audit import save_audit
from openledger.attribution.index import IndexEntry
from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, Corrupt, NotFound, Unavailable
from openledger.platform import generations, hosts, pipeline
from openledger.platform.hosts import HostNeeds, IndexHosts, gpus_of

# decoys are quiet, so that nearly all of a score is above its error
ENTRIES = [
    IndexEntry(row_id="row_a", contributor_id="ctr_a", trained=True),
    IndexEntry(row_id="row_b", contributor_id="ctr_b", trained=True),
    IndexEntry(row_id="row_d", contributor_id="ctr_d", trained=False),
]


class Remote:
    """Methods of an object behind `.remote`, answered at once."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self._target, name))


class Host:
    """Says that ctr_a made answers of 7 tokens, and ctr_b all others."""

    def score(self, views, digest, folder, answers, withdrawn=()):
        long = np.array([len(answer.completion_ids) == 7 for answer in answers], dtype=np.float32)
        return ENTRIES, np.stack([long, 1 - long, np.full_like(long, 1e-6)])


@pytest.fixture
def town(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.ray, "get", lambda value: value)
    monkeypatch.setattr(generations, "_check_at_hand", lambda *_: None)  # the host has its entries by heart
    town = Town(tmp_path, ManualClock())
    town.economy.grant("user:alice", 1_000_000, "start")
    yield town
    town.close()


def registry_of(folder, further=()):
    """Of the adapter that is sold, and one of each further base."""
    digests = {DIGEST: "greek", **{base[:2] * 32: base for base in further}}
    adapters = {
        digest: SimpleNamespace(name=base, digest=digest, folder=str(folder), is_base=False, base_digest=base)
        for digest, base in digests.items()
    }
    return SimpleNamespace(find_digest=adapters.__getitem__, list=lambda: tuple(adapters.values()))


def measuring(folder):
    return lambda base_digest: Remote(Host()), score, registry_of(folder), folder


def score(prompt_ids, completion_ids, digests):
    return np.array([[-1.0] * len(completion_ids), [-2.0] * len(completion_ids)], dtype=np.float32)


def attribute(town, tmp_path):
    return pipeline.attribute(town.economy.pool("py", "p0001"), *measuring(tmp_path))


def test_an_answer_marked_wrong_weighs_nothing_in_scores_and_gain(town, tmp_path):
    wrong = town.sell("k1", completion=7).answer_id
    town.sell("k2", completion=3)
    whole = attribute(town, tmp_path)
    town.economy.mark(wrong, "wrong", "user:alice")
    found = attribute(town, tmp_path)
    assert whole.scores.scores_nano == {"ctr_a": 310, "ctr_b": 190}
    assert found.scores.scores_nano == {"ctr_a": 0, "ctr_b": 190}
    assert (whole.scores.gain_nano, found.scores.gain_nano) == (500, 190)
    assert (whole.left_out, found.left_out) == ((), (wrong,))
    settlement = pipeline.settle(Remote(town.economy), replace(found, improvement=improvement()))
    assert settlement.parts["use"].payouts_nano["ctr_a"] == 0
    assert settlement.parts["use"].payouts_nano["ctr_b"] > 0
    assert settlement.parts["improvement"].measured
    assert sum(settlement.payouts_nano.values()) == settlement.pool_nano == 155 + 95
    town.ledger.audit()


def test_a_pool_whose_answers_are_all_wrong_pays_nobody_for_use(town, tmp_path):
    wrong = town.sell("k1").answer_id
    town.economy.mark(wrong, "wrong", "user:alice")
    settlement = pipeline.settle(Remote(town.economy), attribute(town, tmp_path))
    assert settlement.payouts_nano["unattributed"] == settlement.pool_nano == 155
    town.ledger.audit()


def test_scores_made_before_a_verdict_are_not_paid_by(town, tmp_path):
    wrong = town.sell("k1").answer_id
    found = attribute(town, tmp_path)
    town.economy.mark(wrong, "wrong", "user:alice")
    with pytest.raises(Conflict) as caught:
        pipeline.settle(Remote(town.economy), found)
    assert caught.value.code == "verdicts_changed"
    assert pipeline.settle(Remote(town.economy), attribute(town, tmp_path)).pool_nano == 155


def test_where_the_index_pays_alone_what_an_audit_found_of_a_bank_is_not_quoted(town, tmp_path):
    contributors = {"bank": {"per_answer": 0.9}, "index": {"per_answer": 0.5}}
    audited = {"instrument": {"bank": "ba" * 32, "views": ["epoch-1", "epoch-2"]}, "contributors": contributors}
    save_audit(tmp_path, DIGEST, audited)
    town.sell("k1")
    quality = attribute(town, tmp_path).scores.quality
    assert quality["audit_lds_index_contributors"] == "0.500"
    assert quality["audit_views"] == "epoch-1 epoch-2"
    assert "audit_lds_contributors" not in quality


@pytest.mark.parametrize("gone", ["forgotten", "never kept"])
def test_a_wrong_answer_whose_content_is_gone_does_not_keep_its_pool_from_being_settled(town, tmp_path, gone):
    if gone == "never kept":
        town.economy.set_retention("user:alice", keep=False)
    wrong = town.sell("k1").answer_id
    town.economy.mark(wrong, "wrong", "user:alice")
    if gone == "forgotten":
        town.economy.forget_content("user:alice")
    town.economy.set_retention("user:alice", keep=True)
    town.sell("k2", completion=3)
    found = attribute(town, tmp_path)
    assert found.left_out == (wrong,)
    assert pipeline.settle(Remote(town.economy), found).pool_nano == 155 + 95
    town.ledger.audit()


@pytest.mark.parametrize(
    ("failed", "told"),
    [
        (Conflict("the first can't be measured", code="small_bank"), ("small_bank", "the first can't be measured")),
        (ValueError("no such file"), ("internal_error", "ValueError: no such file")),
    ],
)
def test_every_pool_that_waits_is_settled_and_one_that_can_not_be_keeps_no_other_waiting(
    town, tmp_path, monkeypatch, failed, told
):
    town.sell("k1")
    town.economy.open_period()
    town.sell("k2")
    town.economy.open_period()
    town.sell("k3")  # in the period that is still open
    attribute = pipeline.attribute

    def fails_once(pool, *others, **more):
        if pool.period == "p0001":
            raise failed
        return attribute(pool, *others, **more)

    monkeypatch.setattr(pipeline, "attribute", fails_once)
    waiting = lambda: list(  # noqa: E731
        pipeline.settle_waiting(Remote(town.economy), *measuring(tmp_path))
    )
    first, second = waiting()
    assert (first.period, first.settlement, (first.error.code, first.error.message)) == ("p0001", None, told)
    assert first.error.exit_code
    assert (second.period, second.settlement.pool_nano, second.error) == ("p0002", 155, None)
    monkeypatch.setattr(pipeline, "attribute", attribute)
    (again,) = waiting()
    assert (again.period, again.error) == ("p0001", None)
    assert waiting() == []
    town.ledger.audit()


def test_a_settlement_leaves_no_row_unpaid_for_having_left_its_datanet(town, tmp_path):
    """An owner could go on selling what it taught: the adapter that answered was trained on it."""
    town.sell("k1", completion=7)
    left = pipeline.attribute(town.economy.pool("py", "p0001"), *measuring(tmp_path), withdrawn=["row_a"])
    assert left.scores.scores_nano["ctr_a"] == 0
    found, settlement = pipeline.settle_pool(Remote(town.economy), "py", "p0001", *measuring(tmp_path))
    assert [part.measured.withdrawn for part in found.parts] == [frozenset()]
    assert found.scores.scores_nano["ctr_a"] > 0
    assert settlement.pool_nano == 155


@dataclass(frozen=True)
class Base:
    name: str

    @property
    def digest(self):
        return self.name


class Asked(Host):
    """Which adapters were measured by this host."""

    def __init__(self):
        self.digests = []

    def score(self, views, digest, *others):
        self.digests.append(digest)
        return super().score(views, digest, *others)


class TestTwoBases:
    """The name went over to an adapter of another base within the period."""

    LATIN = "la" * 32

    @pytest.fixture(autouse=True)
    def ended(self, monkeypatch):
        """The hosts that were ended, in turn."""
        ended = []
        monkeypatch.setattr(hosts.ray, "kill", ended.append)
        return ended

    @pytest.fixture
    def sold(self, town):
        town.sell("k1")
        terms = replace(TERMS, adapter_digest=self.LATIN)
        held = town.economy.authorize("user:alice", terms, 10, 20, "k2")
        town.economy.complete(answer(held, adapter_digest=self.LATIN))
        town.economy.open_period()

    def settled(self, town, tmp_path, *names):
        started = {}

        def start(base, num_cpus, num_gpus):
            started[base.name] = (Asked(), num_cpus)
            return Remote(started[base.name][0])

        found_hosts, registry = IndexHosts([Base(name) for name in names], start), registry_of(tmp_path, ["latin"])
        found = list(pipeline.settle_waiting(Remote(town.economy), found_hosts.of, score, registry, tmp_path))
        return found, {name: (host.digests, num_cpus) for name, (host, num_cpus) in started.items()}

    def test_each_adapter_is_measured_by_its_own_bases_host(self, town, tmp_path, sold):
        (pool,), asked = self.settled(town, tmp_path, "greek", "latin")
        assert (pool.error, pool.settlement.pool_nano) == (None, 2 * 155)
        assert asked == {"greek": ([DIGEST], 1), "latin": ([self.LATIN], 0)}
        town.ledger.audit()

    def test_a_pool_of_a_base_that_was_not_named_is_told_and_waits(self, town, tmp_path, sold):
        town.sell("k3")
        town.economy.open_period()
        mixed, other = self.settled(town, tmp_path, "greek")[0]
        assert (mixed.period, mixed.settlement, mixed.error.code) == ("p0001", None, "base_not_named")
        assert "latin" in mixed.error.message
        assert (other.period, other.error, other.settlement.pool_nano) == ("p0002", None, 155)
        assert town.economy.pools() == [("py", "p0001")]
        (mixed,), _ = self.settled(town, tmp_path, "greek", "latin")
        assert mixed.error is None

    def test_the_job_names_it_and_does_not_exit_well(self, town, tmp_path, sold, capsys):
        town.sell("k3")
        town.economy.open_period()
        found, _ = self.settled(town, tmp_path, "greek")
        assert report(found) == found[0].error.exit_code > 0
        written = capsys.readouterr()
        assert [json.loads(line)["period"] for line in written.out.splitlines()] == ["p0002"]
        (told,) = map(json.loads, written.err.splitlines())
        assert (told["adapter"], told["period"], told["error"]["code"]) == ("py", "p0001", "base_not_named")
        assert report(found[1:]) == 0

    def test_an_adapter_of_which_no_base_is_known_is_the_first_ones(self):
        found = IndexHosts([Base("greek"), Base("latin")], lambda base, *_: base.name)
        assert [found.of(HostNeeds(base_digest=name)) for name in ("", "greek", "latin")] == ["greek", "greek", "latin"]

    def test_a_host_ends_before_one_of_another_base_starts(self, ended):
        alive = []

        def start(base, num_cpus, num_gpus):
            assert alive == ended
            alive.append(base.name)
            return base.name

        found = IndexHosts([Base("greek"), Base("latin")], start)
        for name in ("greek", "greek", "latin", "greek"):
            found.of(HostNeeds(base_digest=name))
        assert (alive, ended) == (["greek", "latin", "greek"], ["greek", "latin"])
        found.end()
        found.end()
        assert ended == alive

    def test_a_host_takes_the_gpus_that_are_needed_and_ends_before_one_with_others(self, ended):
        started = []
        found = IndexHosts([Base("greek")], lambda base, _, num_gpus: started.append(num_gpus) or len(started))
        for num_gpus in (0.5, 0.5, 0.0):
            found.of(HostNeeds(base_digest="greek", num_gpus=num_gpus))
        assert (started, ended) == ([0.5, 0.0], [1])

    def test_who_settles_may_give_other_gpus_than_recipes_say(self):
        found = IndexHosts([Base("greek")], lambda base, _, num_gpus: num_gpus, num_gpus=0.25)
        assert found.of(HostNeeds(base_digest="greek", num_gpus=1.0)) == 0.25

    def test_generations_are_measured_with_the_most_that_any_recipe_says(self):
        cards = [SimpleNamespace(recipe=recipe) for recipe in ({}, {"num_gpus": 0.5}, {"num_gpus": 0.25})]
        assert (gpus_of([None, *cards]), gpus_of([None])) == (0.5, 0.0)

    def test_a_base_that_is_not_named_ends_nobody(self, ended):
        found = IndexHosts([Base("greek")], lambda base, *_: base.name)
        found.of(HostNeeds(base_digest="greek"))
        with pytest.raises(NotFound):
            found.of(HostNeeds(base_digest="latin"))
        assert (ended, found.of(HostNeeds(base_digest="greek"))) == ([], "greek")

    def test_who_gets_no_gpu_waits_for_it_once_and_another_hosts_pools_go_on(self, ended):
        asked = []

        def start(base, num_cpus, num_gpus):
            asked.append(num_gpus)
            if num_gpus:
                raise Unavailable("no GPU is free", code="gpu_busy", param="num_gpus")
            return "host"

        found = IndexHosts([Base("greek")], start)
        for _ in range(2):
            with pytest.raises(Unavailable):
                found.of(HostNeeds(base_digest="greek", num_gpus=0.5))
        assert found.of(HostNeeds(base_digest="greek")) == "host"
        assert asked == [0.5, 0.0]

    def test_pools_of_one_base_and_part_of_a_gpu_come_one_after_another(self, tmp_path, monkeypatch):
        adapters = {"a": ("la", 0.5), "b": ("gr", 0.0), "c": ("la", 0.0), "d": ("la", 0.5), "e": ("la", None)}

        def load_card(folder):
            if (num_gpus := adapters[folder.name][1]) is None:
                raise Corrupt("no card", code="corrupt_adapter", param="e")
            return SimpleNamespace(recipe={"num_gpus": num_gpus})

        monkeypatch.setattr(pipeline, "load_card", load_card)
        registry = SimpleNamespace(
            list=lambda: [
                SimpleNamespace(name=name, base_digest=base, folder=str(tmp_path / name))
                for name, (base, _) in adapters.items()
            ]
        )
        pools = [("a", "p1"), ("a", "p2"), ("b", "p1"), ("c", "p1"), ("d", "p1"), ("e", "p1"), ("gone", "p1")]
        found = [name for name, _ in pipeline._by_host(pools, registry)]
        assert found == ["gone", "b", "c", "e", "a", "a", "d"]

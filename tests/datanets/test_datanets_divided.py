"""The duplicate index divided over the shards: what it answers is what one index of all rows does, whatever happens to
the shards."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datanet_samples import Copier, key_of, sample_drafts, signed
from duplicate_world import contribute_all, contributions, hosts_of, opened, sealed_late

from openledger.core.errors import Unavailable
from openledger.core.values import RowDraft
from openledger.datanets import divided, layout, owner
from openledger.datanets.appeals import appeal_of
from openledger.datanets.datanets import Datanets
from openledger.datanets.dedupe import DuplicateIndex, features_of
from openledger.datanets.keyed import FeatureKey
from openledger.datanets.placement import shard_of
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.shard import Shard, ShardHost

ALL = list(contributions())
PRIVATE = RowDraft(
    prompt="What does quuxonymous.xylophone do?",
    completion="It keeps the quuxonymous archive of a xylophone until somebody asks for it again.",
)


class Shards:
    """Shards of a folder that can be started anew, each alone, as an actor is: what they have in memory is lost."""

    def __init__(self, folder: Path, number: int):
        self.hosts = hosts_of(folder, number)
        self.ports = [Port(self, at) for at in range(number)]
        self._folder = folder

    def restart(self, *numbers: int) -> None:
        for number in numbers:
            self.hosts[number] = ShardHost(self._folder / f"shard-{number}")


class Port:
    """`before` is called with the name of each method that is asked for."""

    def __init__(self, shards: Shards, at: int):
        self._shards, self._at = shards, at
        self.before: Callable[[str], None] = lambda name: None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.before(name)
            return getattr(self._shards.hosts[self._at], name)(*arguments)

        return call


def alone(folder: Path) -> Datanets:
    return opened(folder, hosts_of(folder, 1))


def divide(folder: Path, ports: Any, **more: Any) -> Datanets:
    datanets = opened(folder, ports, **more)
    datanets.divide_duplicates(by_shard=True)
    return datanets


def held(host: ShardHost) -> set[str]:
    return set(host._duplicates._orders)


def enter_all(datanets: Datanets) -> None:
    """What was judged last is entered before any question."""
    datanets._index.repeated_by(_features(), (0, 0))


def standing(datanets: Datanets) -> set[str]:
    return set(datanets._registry.credit_order())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    datanets = alone(tmp_path_factory.mktemp("alone"))
    found = contribute_all(datanets, ALL)
    datanets.close()
    reasons = {reason for verdicts in found for verdict in verdicts for reason in verdict.reasons}
    assert reasons == {"exact_duplicate", "near_duplicate"}
    return found


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return Shards(tmp_path, 3)


@pytest.fixture
def datanets(tmp_path: Path, shards: Shards) -> Iterator[Datanets]:
    made = divide(tmp_path, shards.ports)
    yield made
    made.close()


@pytest.fixture
def undivided(tmp_path: Path) -> Iterator[Datanets]:
    made = alone(tmp_path / "alone")
    yield made
    made.close()


class TestVerdicts:
    @pytest.mark.parametrize("num_shards", [1, 4])
    def test_are_those_of_one_index_row_for_row(self, tmp_path: Path, expected: Any, num_shards: int) -> None:
        datanets = divide(tmp_path, hosts_of(tmp_path, num_shards))
        found = []
        for one in ALL:
            previewed = datanets.preview(one)
            found.append(datanets.contribute(one).verdicts)
            assert previewed == found[-1]
        assert found == expected
        datanets.close()

    def test_stay_while_shards_are_started_anew_between_contributions(
        self, datanets: Datanets, shards: Shards, expected: Any
    ) -> None:
        found = []
        for number, one in enumerate(ALL):
            found.append(datanets.contribute(one).verdicts)
            shards.restart(number % 3, (number + 1) % 3)
        assert found == expected

    @pytest.mark.parametrize("method", ["enter_duplicates", "find_duplicates", "count_questions"])
    def test_stay_where_a_shard_is_lost_within_one(
        self, datanets: Datanets, shards: Shards, expected: Any, method: str
    ) -> None:
        lost = list[str]()

        def lose(name: str) -> None:
            if name == method and len(lost) < 2:
                lost.append(name)
                shards.restart(1)

        found = contribute_all(datanets, ALL[:5])
        shards.ports[1].before = lose
        found += contribute_all(datanets, ALL[5:])
        assert (found, lost) == (expected, [method] * 2)

    def test_stay_over_a_whole_restart(self, tmp_path: Path, expected: Any) -> None:
        found = []
        for one in ALL:
            datanets = opened(tmp_path, hosts_of(tmp_path, 2))
            datanets.divide_duplicates(by_shard=True)
            found.append(datanets.contribute(one).verdicts)
            datanets.close()
        assert found == expected

    def test_stay_while_rows_move_to_more_shards_and_to_fewer(
        self, tmp_path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layout, "MOVED_AT_ONCE", 20)
        hosts, found = hosts_of(tmp_path, 5), []
        for num_shards, some in ((2, ALL[:3]), (5, ALL[3:5]), (3, ALL[5:])):
            datanets = divide(tmp_path, hosts, num_shards=num_shards, moves_later=True)
            for one in some:
                found.append(datanets.contribute(one).verdicts)
                datanets.move_rows()
            while datanets.move_rows():
                pass
            enter_all(datanets)
            placed = [{i for i in standing(datanets) if shard_of(i, num_shards) == at} for at in range(5)]
            assert [held(host) for host in hosts] == placed
            datanets.close()
        assert found == expected

    def test_of_a_copy_after_a_removal_are_those_of_one_index(self, datanets: Datanets, undivided: Datanets) -> None:
        first, second = sample_drafts(30, "gone"), sample_drafts(5, "stays")
        copier = Copier(3, ["archive", "number", "people"])
        again = [copier.copy(draft) for draft in (*first, *second)]
        found = []
        for one in (datanets, undivided):
            receipt = one.contribute(signed("ada", [*first, *second]))
            ids = [verdict.row_id for verdict in receipt.verdicts]
            one.withdraw(sign_withdrawal(key_of("ada"), "docs", ids[:10], "1"))
            one.remove("docs", ids[10:20], "acct_owner", "court_order")
            found.append([receipt.verdicts, *contribute_all(one, [signed("bob", again, "1"), signed("eve", again)])])
        assert found[0] == found[1]
        assert [verdict.duplicate_of for verdict in found[0][1][:20]] == [None] * 20
        assert all(verdict.reasons == ("near_duplicate",) for verdict in found[0][1][20:])

    def test_of_sealed_rows_and_what_they_displace_are_those_of_one_index(
        self, datanets: Datanets, undivided: Datanets, shards: Shards
    ) -> None:
        found = []
        for one in (datanets, undivided):
            late, copier = sealed_late(one), Copier(4, ["archive", "number", "people"])
            copies = [*map(copier.copy, late.drafts[:6]), *late.drafts[6:]]
            told = contribute_all(one, [signed("bob", copies), late, signed("eve", copies)])
            found.append([told, one._registry.seals.displaced()])
            shards.restart(0)
            found[-1] += contribute_all(one, [signed("eve", list(map(copier.rephrase, late.drafts)), "2")])
        assert found[0] == found[1]
        assert len(found[0][1]) == 12

    def test_of_rows_like_one_that_an_appeal_brought_back_are_those_of_one_index(
        self, datanets: Datanets, undivided: Datanets
    ) -> None:
        noise = RowDraft(prompt="What does pack.crc do?", completion="Xqzv wvkx zzqj kqvx jxqz wqkz vxjq zzqk.")
        found = []
        for one in (datanets, undivided):
            sent = signed("ada", [*sample_drafts(3), noise])
            one.contribute(sent)
            appeal = appeal_of(key_of("ada"), sent, 3, "it is a real answer")
            one.hold_appeal(appeal)
            one.close_appeal(appeal.row_id, "overturned")
            one.close_appeal(appeal.row_id, "overturned")
            features = _features(noise)
            overlay = one._index.overlay((9, 0), [features])
            found.append((overlay.find(features), one._index.repeated_by(features, (0, 0))))
            assert found[-1][1] == [appeal.row_id]
        assert found[0] == found[1]


class TestAShard:
    def test_that_is_away_stops_a_contribution_and_nothing_is_lost_or_doubled(
        self, datanets: Datanets, shards: Shards, expected: Any
    ) -> None:
        def away(name: str) -> None:
            raise Unavailable("an actor of the Datanets is gone", code="actor_unavailable")

        found = contribute_all(datanets, ALL[:2])
        stood, shards.ports[2].before = standing(datanets), away
        for ask in (datanets.contribute, datanets.preview):
            with pytest.raises(Unavailable) as caught:
                ask(ALL[2])
            assert caught.value.code == "actor_unavailable"
        assert (standing(datanets), datanets.judged(_id(datanets, ALL[2]))) == (stood, None)
        shards.ports[2].before = lambda name: None
        assert found + contribute_all(datanets, ALL[2:]) == expected

    def test_that_is_lost_again_and_again_is_told_with_what_to_do(self, datanets: Datanets, shards: Shards) -> None:
        shards.ports[1].before = lambda name: shards.restart(1) if name == "find_duplicates" else None
        with pytest.raises(Unavailable, match="shard 1 was lost again and again") as caught:
            datanets.contribute(ALL[0])
        assert (caught.value.code, standing(datanets)) == ("actor_unavailable", set())

    def test_that_is_left_alone_is_sent_nothing_twice(
        self, tmp_path: Path, datanets: Datanets, shards: Shards, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        contribute_all(datanets, ALL)
        enter_all(datanets)
        datanets.close()
        monkeypatch.setattr(Datanets, "_features_of", pytest.fail)
        again = opened(tmp_path, shards.ports)
        assert set().union(*map(held, shards.hosts)) == standing(again)
        again.close()

    def test_that_has_other_rows_than_are_credited_is_put_right(
        self, tmp_path: Path, datanets: Datanets, shards: Shards
    ) -> None:
        contribute_all(datanets, ALL[:1])
        enter_all(datanets)
        datanets.close()
        owner = shards.hosts[0]._duplicates
        kept, moved, dropped = sorted(owner._orders)[:3]
        order = owner._orders[kept]
        owner._orders[moved] = ((7, 7), 7)
        owner.forget([dropped])
        again = opened(tmp_path, shards.ports)
        orders = {row.row_id: row.order for row in again._registry.credited() if shard_of(row.row_id, 3) == 0}
        assert (owner._orders, owner._orders[kept]) == (orders, order)
        assert len(owner._index._pairs) == len(orders)
        again.close()

    def test_forgets_what_is_withdrawn(self, datanets: Datanets, shards: Shards) -> None:
        receipt = datanets.contribute(signed("ada", [*sample_drafts(5), PRIVATE]))
        (keyed,) = datanets._index._key.keyed([_features(PRIVATE)])  # type: ignore[attr-defined]
        enter_all(datanets)
        word = keyed.answer.table[keyed.answer.numbers[0]].encode()
        band = keyed.row_sketch[:1].tobytes()
        digest = keyed.pair_key

        def has(needle: bytes) -> bool:
            return any(needle in _dumped(host) for host in shards.hosts)

        row_id = receipt.verdicts[5].row_id
        assert (has(word), has(band), has(digest), has(row_id.encode())) == (True, True, True, True)
        datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", [row_id], "1"))
        assert (has(band), has(digest), has(row_id.encode())) == (False, False, False)
        shared = {word for draft in sample_drafts(5) for word in f"{draft.prompt} {draft.completion}".lower().split()}
        assert not any(has(_token(datanets, word)) for word in ("quuxonymous", "xylophone") if word not in shared)

    @pytest.mark.parametrize("drafts", [[PRIVATE], [PRIVATE, *sample_drafts(8)]])
    def test_forgets_it_also_where_storage_refuses(
        self, datanets: Datanets, shards: Shards, monkeypatch: pytest.MonkeyPatch, drafts: list[RowDraft]
    ) -> None:
        receipt = datanets.contribute(signed("ada", drafts))
        enter_all(datanets)
        ids = [verdict.row_id for verdict in receipt.verdicts]
        with monkeypatch.context() as broken:
            broken.setattr(Shard, "remove", _refuse)
            with pytest.raises(Unavailable):
                datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", ids, "1"))
        assert set().union(*map(held, shards.hosts)) == set()
        again = datanets.contribute(signed("bob", drafts))
        assert {verdict.outcome for verdict in again.verdicts} == {"accept"}

    def test_knows_no_word_of_what_it_is_sent(self, datanets: Datanets, shards: Shards) -> None:
        sent = list[bytes]()
        hosts = list(shards.hosts)
        shards.hosts[:] = [Listening(host, sent) for host in hosts]  # type: ignore[misc]
        datanets.contribute(signed("ada", [*sample_drafts(5), PRIVATE], datanet="secret"))
        datanets.preview(signed("bob", [PRIVATE], datanet="secret"))
        assert len(sent) >= 6
        for needle in (b"quuxonymous", b"xylophone", b"archive", datanets._registry.find_property("feature_key")):
            assert not any((needle if isinstance(needle, bytes) else str(needle).encode()) in one for one in sent)
            assert not any(needle in _dumped(host) for host in hosts if isinstance(needle, bytes))

    def test_answers_none_to_another_session_and_changes_nothing(self, datanets: Datanets, shards: Shards) -> None:
        datanets.contribute(signed("ada", [PRIVATE]))
        owner, batch = shards.hosts[0]._duplicates, divided.batch_of([])
        before = dict(owner._orders)
        assert owner.enter(99, [], [], batch) is None
        assert owner.find(99, batch, (1, 0)) is None
        assert owner.find_behind(99, batch, (1, 0)) is None
        assert owner.question_counts(99, ["word"]) is None
        assert (owner._orders, owner._session) == (before, datanets._index._session)  # type: ignore[attr-defined]

    def test_keeps_nothing_under_another_key(self, datanets: Datanets, shards: Shards) -> None:
        contribute_all(datanets, ALL[:1])
        enter_all(datanets)
        assert held(shards.hosts[0])
        assert shards.hosts[0].open_duplicates("another key", 99) == {}
        assert held(shards.hosts[0]) == set()


class TestAProcessThatWasReplaced:
    def test_opens_no_shard_and_enters_nothing(self, tmp_path: Path, datanets: Datanets, shards: Shards) -> None:
        receipt = datanets.contribute(signed("ada", [*sample_drafts(5), PRIVATE]))
        later = opened(tmp_path, shards.ports)
        later.withdraw(sign_withdrawal(key_of("ada"), "docs", [receipt.verdicts[5].row_id], "1"))
        before = [dict(host._duplicates._orders) for host in shards.hosts]
        with pytest.raises(Unavailable) as caught:
            datanets.preview(signed("bob", [PRIVATE]))
        assert caught.value.code == "stale_process"
        assert [host._duplicates._orders for host in shards.hosts] == before
        assert {verdict.outcome for verdict in later.preview(signed("bob", [PRIVATE]))} == {"accept"}
        later.close()

    def test_empties_no_shard(self, tmp_path: Path, datanets: Datanets, shards: Shards) -> None:
        datanets.contribute(ALL[0])
        later = opened(tmp_path, shards.ports)
        with pytest.raises(Unavailable):
            datanets.divide_duplicates(by_shard=False)
        assert set().union(*map(held, shards.hosts)) == standing(later)
        later.close()


class TestWhatIsSentAtOnce:
    @pytest.mark.parametrize(("sent", "told"), [(1, 1), (700, 150_000), (250_000, 300)])
    def test_changes_no_verdict(
        self, datanets: Datanets, expected: Any, monkeypatch: pytest.MonkeyPatch, sent: int, told: int
    ) -> None:
        monkeypatch.setattr(divided, "SENT_AT_ONCE", sent)
        monkeypatch.setattr(owner, "TOLD_AT_ONCE", told)
        assert contribute_all(datanets, ALL) == expected

    def test_changes_nothing_that_sealed_rows_displace(
        self, datanets: Datanets, undivided: Datanets, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(owner, "TOLD_AT_ONCE", 20)
        found = []
        for one in (datanets, undivided):
            late, copier = sealed_late(one), Copier(4, ["archive", "number", "people"])
            copies = [*map(copier.copy, late.drafts[:6]), *late.drafts[6:]]
            found.append([contribute_all(one, [signed("bob", copies), late]), one._registry.seals.displaced()])
        assert found[0] == found[1]
        assert len(found[0][1]) == 12

    def test_is_bounded_where_many_long_rows_are_near(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each of these has thirty near rows of 1,400 words in the shard, more than an answer should have."""
        monkeypatch.setattr(owner, "TOLD_AT_ONCE", 20_000)
        sizes, rows, alone = list[int](), features_of(long_near(36)), DuplicateIndex()
        index = divided.DividedIndex(
            [Weighing(ShardHost(tmp_path), sizes)], 1, FeatureKey(bytes(32)), 1, list, lambda _: []
        )
        for number, row in enumerate(rows[:30]):
            index.add(str(number), row, (1, 0), number)
            alone.add(str(number), row, (1, 0), number)
        overlay, under = index.overlay((2, 0), rows[30:]), alone.overlay((2, 0))
        kept = list[int]()
        for row in rows[30:]:
            assert overlay.find(row) == under.find(row)
            kept.append(len(overlay._known))
        assert kept == [1] * 6
        assert 500_000 < max(sizes) < 1_200_000
        index.close()

    def test_is_bounded_where_long_rows_are_entered(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sent, host = list[bytes](), ShardHost(tmp_path)
        index = divided.DividedIndex([Listening(host, sent)], 1, FeatureKey(bytes(32)), 1, list, lambda _: [])  # type: ignore[list-item]
        rows = features_of(long_near(12))
        overlay = index.overlay((1, 0), rows)
        for number, row in enumerate(rows):
            overlay.add(str(number), row, ordinal=number)
        index.absorb(overlay)
        sent.clear()
        monkeypatch.setattr(divided, "SENT_AT_ONCE", 4_000)
        index.repeated_by(_features(), (0, 0))
        assert sum(len(one) > 10_000 for one in sent) == 6
        assert len(held(host)) == 12
        index.close()


class TestTheSetting:
    def test_can_be_made_before_an_index_is_built(
        self, tmp_path: Path, shards: Shards, expected: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = opened(tmp_path, shards.ports)
        found = contribute_all(before, ALL[:2])
        before.close()
        built, build = list[bool](), Datanets._built_index
        monkeypatch.setattr(
            Datanets, "_built_index", lambda self, by_shard: (built.append(by_shard), build(self, by_shard=by_shard))[1]
        )
        datanets = opened(tmp_path, shards.ports, duplicates_by_shard=True)
        assert (built, datanets._registry.find_property("duplicates_by_shard")) == ([True], "1")
        assert found + contribute_all(datanets, ALL[2:]) == expected
        datanets.close()

    @pytest.mark.parametrize("by_shard", [True, False])
    def test_stays_as_it_was_where_the_registry_cannot_write_it(
        self, tmp_path: Path, shards: Shards, monkeypatch: pytest.MonkeyPatch, by_shard: bool
    ) -> None:
        datanets = opened(tmp_path, shards.ports, duplicates_by_shard=not by_shard)
        datanets.contribute(ALL[0])
        enter_all(datanets)
        before = datanets._index
        with monkeypatch.context() as broken:
            broken.setattr(datanets._registry, "set_property", _refuse)
            with pytest.raises(Unavailable):
                datanets.divide_duplicates(by_shard=by_shard)
        assert datanets._index is before
        assert set().union(*map(held, shards.hosts)) == (set() if by_shard else standing(datanets))
        datanets.divide_duplicates(by_shard=by_shard)
        assert isinstance(datanets._index, divided.DividedIndex) is by_shard
        datanets.close()

    @pytest.mark.parametrize("again", [True, False])
    def test_leaves_nothing_with_a_shard_that_was_away_when_it_was_taken_back(
        self, tmp_path: Path, datanets: Datanets, shards: Shards, again: bool
    ) -> None:
        datanets.contribute(ALL[0])
        enter_all(datanets)
        index = datanets._index
        shards.ports[0].before = lambda name: _refuse() if name == "open_duplicates" else None
        datanets.divide_duplicates(by_shard=False)
        assert [bool(held(host)) for host in shards.hosts] == [True, False, False]
        with pytest.raises(RuntimeError, match="after shutdown"):
            index._pool.submit(print)  # type: ignore[attr-defined]
        shards.ports[0].before = lambda name: None
        if again:
            datanets.divide_duplicates(by_shard=False)
        else:
            opened(tmp_path, shards.ports).close()
        assert not held(shards.hosts[0])

    def test_is_kept_and_can_be_taken_back(self, tmp_path: Path, shards: Shards, expected: Any) -> None:
        datanets = opened(tmp_path, shards.ports)
        found = contribute_all(datanets, ALL[:2])
        assert not set().union(*map(held, shards.hosts))
        datanets.divide_duplicates(by_shard=True)
        found += contribute_all(datanets, ALL[2:4])
        assert set().union(*map(held, shards.hosts)) <= standing(datanets)
        datanets.close()
        datanets = opened(tmp_path, shards.ports)
        assert set().union(*map(held, shards.hosts)) == standing(datanets)
        datanets.divide_duplicates(by_shard=False)
        assert not set().union(*map(held, shards.hosts))
        assert found + contribute_all(datanets, ALL[4:]) == expected
        datanets.close()

    def test_stays_as_it_was_where_a_shard_is_away(self, tmp_path: Path, shards: Shards) -> None:
        datanets = opened(tmp_path, shards.ports)
        datanets.contribute(ALL[0])
        shards.ports[2].before = lambda name: _refuse() if name == "enter_duplicates" else None
        with pytest.raises(Unavailable):
            datanets.divide_duplicates(by_shard=True)
        shards.ports[2].before = lambda name: None
        assert not set().union(*map(held, shards.hosts))
        assert datanets._registry.find_property("duplicates_by_shard") is None
        assert {verdict.outcome for verdict in datanets.preview(signed("bob", ALL[0].drafts))} == {"reject"}
        datanets.close()


class Listening:
    """A shard that keeps whatever is sent to its part of the index."""

    def __init__(self, host: ShardHost, sent: list[bytes]):
        self._host, self._sent = host, sent

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            if name.endswith(("duplicates", "repetitions", "questions")):
                self._sent.append(pickle.dumps(arguments))
            return getattr(self._host, name)(*arguments)

        return call


class Weighing:
    """A shard of which each answer is weighed."""

    def __init__(self, host: ShardHost, sizes: list[int]):
        self._host, self._sizes = host, sizes

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            answer = pickle.dumps(getattr(self._host, name)(*arguments))
            self._sizes.append(len(answer))
            return pickle.loads(answer)

        return call


def long_near(number: int) -> Iterator[tuple[str, str]]:
    """Each with 1,400 words of its own in the question, and an answer of 38 of which all but two are everybody's."""
    said = " ".join(f"word{place}" for place in range(36))
    for row in range(number):
        yield " ".join(f"q{row}x{place}" for place in range(1_400)), f"{said} a{row} b{row}"


def _features(draft: RowDraft = PRIVATE) -> Any:
    return features_of([(draft.prompt, draft.completion)])[0]


def _dumped(host: Any) -> bytes:
    owner = host._duplicates
    return pickle.dumps((owner._index, owner._orders))


def _token(datanets: Datanets, word: str) -> bytes:
    (keyed,) = datanets._index._key.keyed([_features(RowDraft(prompt="", completion=word))])  # type: ignore[attr-defined]
    return keyed.answer.table[0].encode()


def _id(datanets: Datanets, contribution: Any) -> str:
    from openledger.core.signed import contribution_id

    return contribution_id(contribution)


def _refuse(*_: Any) -> Any:
    raise Unavailable("the disk is full", code="storage_unavailable")

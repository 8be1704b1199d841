"""The order of credit that a published version states: whose row was first, whatever anybody chooses."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from datanet_samples import key_of, open_datanets, sample_drafts, signed

from openledger.core import merkle
from openledger.core.appealing import sign_appeal
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.signed import contribution_fields, contribution_id
from openledger.core.values import Contribution, ContributionReceipt, Row, RowDraft
from openledger.datanets import versions
from openledger.datanets.actor import DatanetsActor
from openledger.datanets.appeals import appeal_of
from openledger.datanets.contribution import is_row_of, row_ids
from openledger.datanets.datanets import Datanets
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.seals import digest_of, seal_of
from openledger.datanets.terms import Terms
from openledger.datanets.versions import (
    LoggedOpening,
    Manifest,
    Manifests,
    Stated,
    check_sealed,
    read_manifest,
    sealed_rows,
)

NOISE = RowDraft(prompt="What does pack.crc do?", completion="Xqzv wvkx zzqj kqvx jxqz wqkz vxjq.", source="s")
PRIVATE = RowDraft(prompt="What does it cost?", completion="Ask jane.doe@mail.org for the price of a licence.")


def ids(receipt: ContributionReceipt) -> list[str]:
    assert {verdict.outcome for verdict in receipt.verdicts} == {"accept"}
    return [verdict.row_id for verdict in receipt.verdicts]


def send(datanets: Datanets, name: str, subject: str, number: int = 2, **more: str) -> list[str]:
    return ids(datanets.contribute(signed(name, sample_drafts(number, subject), **more)))


def seal(datanets: Datanets, contribution: Contribution, *, in_log: bool = True) -> None:
    datanets.seal(seal_of(key_of("ada"), contribution))
    for waiting in datanets.unlogged_seals() if in_log else ():
        datanets.mark_seal_logged(waiting.contributor_id, waiting.digest, opened=waiting.signed is not None)


def order(datanets: Datanets, number: int = 0) -> list[str]:
    """Of that version, or of a new one."""
    return datanets.credit("docs", number or datanets.publish("docs").number)


def manifest_of(folder: Path, number: int = 1) -> Path:
    return folder / "versions" / "docs" / f"{number}.json"


class TestTheOrderOfCredit:
    def test_is_that_of_the_contributions_and_in_each_of_its_rows_whatever_their_ids(self, datanets: Datanets) -> None:
        sent = [send(datanets, name, f"{name}-{turn}", 5) for turn in range(3) for name in ("eve", "ada", "bob")]
        found = order(datanets)
        assert found == [row_id for one in sent for row_id in one]
        assert found != sorted(found)

    def test_is_led_to_by_the_manifest_and_its_root(self, datanets: Datanets, tmp_path: Path) -> None:
        send(datanets, "ada", "one", 9)
        found, version = order(datanets), datanets.versions("docs")[-1]
        leaves = [merkle.leaf_hash(row_id.encode()) for row_id in found]
        assert merkle.root(leaves).hex() == version.credit_root != version.row_root
        told = json.loads(manifest_of(tmp_path).read_text())
        assert [told["credit"][told["row_ids"].index(row_id)] for row_id in found] == list(range(9))
        assert told["credit_root"] == version.credit_root

    def test_puts_sealed_rows_where_their_seal_came(self, datanets: Datanets) -> None:
        """Whoever has seen them sends them later, however early before their author."""
        before, own = send(datanets, "eve", "before"), signed("ada", sample_drafts(2, "own"))
        seal(datanets, own)
        rival = send(datanets, "bob", "rival")
        assert order(datanets) == [*before, *rival]
        sealed = ids(datanets.contribute(own))
        assert order(datanets) == [*before, *sealed, *rival]

    def test_counts_a_seal_from_when_it_is_in_the_log(self, datanets: Datanets) -> None:
        own = signed("ada", sample_drafts(2, "own"))
        seal(datanets, own, in_log=False)
        rival = send(datanets, "bob", "rival")
        assert order(datanets) == rival
        own_ids = ids(datanets.contribute(own))
        assert order(datanets) == [*rival, *own_ids]

    def test_does_not_hear_of_what_was_sent_to_another_datanet_before(self, datanets: Datanets) -> None:
        """Each row has its own place: that of the contribution that brought it here."""
        datanets.create("other", "More of what functions do", "acct_owner")
        send(datanets, "bob", "elsewhere", datanet="other")
        first = send(datanets, "ada", "here")
        later = send(datanets, "bob", "elsewhere-too", nonce="2")
        assert order(datanets) == [*first, *later]

    def test_forgets_the_place_of_who_withdraws_and_sends_again(self, datanets: Datanets) -> None:
        first, second = send(datanets, "ada", "own"), send(datanets, "bob", "other")
        datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", first, "1"))
        again = send(datanets, "ada", "own", nonce="2")
        assert order(datanets) == [*second, *again]
        assert set(again).isdisjoint(first)

    def test_stays_what_it_was_in_versions_whose_rows_are_withdrawn(self, datanets: Datanets) -> None:
        first, second = send(datanets, "ada", "own"), send(datanets, "bob", "other")
        assert order(datanets) == [*first, *second]
        datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", first, "1"))
        assert order(datanets, 1) == [*first, *second]
        assert order(datanets) == second

    @pytest.mark.parametrize("how", ["appeal", "review"])
    def test_has_a_row_that_is_let_in_late_where_its_contribution_came(self, datanets: Datanets, how: str) -> None:
        own = signed("ada", [*sample_drafts(1, "own"), PRIVATE if how == "review" else NOISE])
        kept, late = (verdict.row_id for verdict in datanets.contribute(own).verdicts)
        rival = send(datanets, "bob", "rival")
        assert order(datanets) == [kept, *rival]
        if how == "review":
            datanets.review("docs", late, "acct_owner", accept=True)
        else:
            datanets.hold_appeal(appeal_of(key_of("ada"), own, 1, "it is a checksum"))
            datanets.close_appeal(late, "overturned")
        assert order(datanets) == [kept, late, *rival]
        assert order(datanets, 1) == [kept, *rival]

    def test_lets_no_row_in_late_that_its_contribution_did_not_have(self, datanets: Datanets) -> None:
        """So nobody gets the place of before for what he has seen of others since."""
        own = signed("ada", [*sample_drafts(1, "own"), NOISE])
        datanets.contribute(own)
        seen = sample_drafts(1, "rival")[0]
        other = appeal_of(key_of("ada"), own, 1, "it is a checksum")
        resigned = sign_appeal(
            key_of("ada"), other.datanet, other.contribution_id, other.row_id, 1, seen, other.path, other.reason
        )
        with pytest.raises(InvalidInput) as caught:
            datanets.hold_appeal(resigned)
        assert caught.value.code == "wrong_row"

    def test_of_two_rows_is_the_same_in_all_versions_that_have_both(self, datanets: Datanets) -> None:
        own = signed("ada", sample_drafts(2, "own"))
        versions, known = [], set[str]()
        seal(datanets, own)
        for number in range(4):
            known.update(send(datanets, "bob", f"bob-{number}"), send(datanets, "eve", f"eve-{number}"))
            if number == 2:
                known.update(ids(datanets.contribute(own)))
            versions.append(order(datanets))
        for before, after in pairwise(versions):
            assert [row_id for row_id in after if row_id in set(before)] == before
        assert versions[-1][:2] == ids(datanets.contribute(own))
        assert set(versions[-1]) == known


class TestTheLogsSeals:
    @pytest.fixture
    def sealed(self, datanets: Datanets) -> tuple[Datanets, list[LoggedOpening]]:
        """Two contributors' sealed rows, the later seal's rows sent first, between rows without a seal; and what the
        log has of both seals."""
        ada, bob = signed("ada", sample_drafts(3, "own")), signed("bob", sample_drafts(2, "his"))
        send(datanets, "eve", "before")
        for name, own in (("ada", ada), ("bob", bob)):
            datanets.seal(seal_of(key_of(name), own))
            datanets.mark_seal_logged(own.contributor_id, digest_of(own), opened=False)
        send(datanets, "eve", "between", nonce="2")
        datanets.contribute(bob)
        datanets.contribute(ada)
        opened = {one.contributor_id: one for one in datanets.unlogged_seals()}
        log = [(place, opened[one.contributor_id].expires_ms + place, opened[one.contributor_id].signed or {})
               for place, one in ((7, ada), (9, bob))]  # fmt: skip
        datanets.publish("docs")
        return datanets, log

    def test_are_those_of_the_order_that_a_version_states(self, sealed: tuple[Datanets, list[LoggedOpening]]) -> None:
        datanets, log = sealed
        found, rows = order(datanets, 1), datanets.rows("docs", 1)
        named = [contributor for row_id in found for contributor in (row.contributor_id for row in rows
                 if row.row_id == row_id)]  # fmt: skip
        assert named == [
            key_of(name).contributor_id for name in ("eve",) * 2 + ("ada",) * 3 + ("bob",) * 2 + ("eve",) * 2
        ]
        check_sealed(found, rows, log)
        check_sealed(found, [row for row in rows if row.ordinal != 1], log)  # some were withdrawn

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda order: [*order[:2], *order[5:7], *order[2:5], *order[7:]], "sealed after"),
            (lambda order: [*order[:2], order[4], *order[2:4], *order[5:]], "signed after"),
            (lambda order: order[::-1], "after"),
        ],
    )
    def test_show_an_order_with_sealed_rows_in_other_places(
        self, sealed: tuple[Datanets, list[LoggedOpening]], change: Callable[..., Any], problem: str
    ) -> None:
        datanets, log = sealed
        with pytest.raises(InvalidInput, match=problem) as caught:
            check_sealed(change(order(datanets, 1)), datanets.rows("docs", 1), log)
        assert (caught.value.code, caught.value.param) == ("other_credit", "credit")

    def test_that_came_at_once_may_stand_either_way(self, sealed: tuple[Datanets, list[LoggedOpening]]) -> None:
        datanets, ((_, first_ms, ada), (_, then_ms, bob)) = sealed
        check_sealed(order(datanets, 1), datanets.rows("docs", 1), [(9, first_ms, ada), (7, then_ms, bob)])
        with pytest.raises(InvalidInput):
            check_sealed(order(datanets, 1), datanets.rows("docs", 1), [(9, then_ms, ada), (7, first_ms, bob)])


class TestManySealedContributions:
    """Of one contributor, a row each."""

    @pytest.fixture
    def many(self) -> tuple[list[Row], list[LoggedOpening]]:
        rows, openings = list[Row](), list[LoggedOpening]()
        for number in range(40):
            one = signed("ada", sample_drafts(1, f"own-{number}"), f"n-{number}")
            fields = contribution_fields(one.datanet, one.contributor_id, one.content_root, 1, one.nonce)
            openings.append((number, 1000 + number, fields))
            (row_id,), (draft,) = row_ids(one), one.drafts
            rows.append(
                Row(
                    row_id=row_id,
                    datanet=one.datanet,
                    contributor_id=one.contributor_id,
                    contribution_id=contribution_id(one),
                    ordinal=0,
                    source=draft.source,
                    prompt=draft.prompt,
                    completion=draft.completion,
                )
            )
        return rows, openings

    def test_cost_a_hash_for_each_row(
        self, many: tuple[list[Row], list[LoggedOpening]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows, openings = many
        hashed = list[str]()

        def counted(row: Row, fields: Mapping[str, Any]) -> bool:
            hashed.append(row.row_id)
            return is_row_of(row, fields)

        monkeypatch.setattr(versions, "is_row_of", counted)
        check_sealed([row.row_id for row in rows], rows, openings)
        assert hashed == [row.row_id for row in rows]
        unsealed = replace(rows[-1], row_id="row_other", contribution_id="ctb_other")
        assert set(sealed_rows([*rows, unsealed], openings)) == {row.row_id for row in rows}
        assert len(hashed) == 2 * len(rows)

    def test_are_found_under_a_contribution_that_they_are_not_of(
        self, many: tuple[list[Row], list[LoggedOpening]]
    ) -> None:
        """Which contribution a row is of, the registry says: a stranger doesn't take its word."""
        rows, openings = many
        renamed = [replace(rows[0], contribution_id="ctb_other"), *rows[1:]]
        check_sealed([row.row_id for row in rows], renamed, openings)
        with pytest.raises(InvalidInput, match=f"{rows[0].row_id} of ctb_other stands behind"):
            check_sealed([row.row_id for row in (*rows[1:], rows[0])], renamed, openings)


class TestAVersionOfBefore:
    @pytest.fixture
    def older(self, datanets: Datanets, tmp_path: Path) -> Datanets:
        """As it was published before versions had an order."""
        send(datanets, "ada", "own")
        datanets.publish("docs")
        told = json.loads(manifest_of(tmp_path).read_text())
        del told["credit"], told["credit_root"]
        manifest_of(tmp_path).write_text(json.dumps({**told, "format": "openledger/datanet-version/1"}))
        with datanets._registry._writing():
            datanets._registry._connection.execute("ALTER TABLE versions DROP COLUMN credit_root")
        datanets.close()
        return open_datanets(tmp_path)

    def test_has_no_order_and_is_read_as_it_was(self, older: Datanets) -> None:
        version = older.version("docs", 1)
        assert (version.credit_root, older.credit("docs", 1)) == ("", [])
        assert len(older.rows("docs", 1)) == version.num_rows
        older.close()

    def test_is_followed_by_one_of_the_same_rows_that_has(self, older: Datanets) -> None:
        old, new = older.version("docs", 1), older.publish("docs")
        assert (new.number, new.row_root, new.num_rows) == (2, old.row_root, old.num_rows)
        assert len(older.credit("docs", 2)) == new.num_rows
        assert older.publish("docs") == new
        older.close()


class TestWhatAVersionStates:
    TERMS = Terms(licence="CC-BY-4.0", tags=("bees",), languages=("en", "de"))

    def published(self, datanets: Datanets) -> Stated:
        datanets.set_terms("docs", self.TERMS, by="acct_owner")
        send(datanets, "ada", "own", 3)
        datanets.publish("docs")
        return datanets.stated("docs", 1)

    def test_is_its_terms_and_whose_rows_it_had(self, datanets: Datanets, tmp_path: Path) -> None:
        found = self.published(datanets)
        datanets.set_terms("docs", Terms(licence="MIT"), by="acct_owner")
        send(datanets, "bob", "more")
        assert datanets.publish("docs").number == 2
        assert datanets.stated("docs", 1) == found
        assert (found.terms, [(one.name, one.accepted) for one in found.statistics]) == (self.TERMS, [("ada", 3)])
        assert json.loads(manifest_of(tmp_path).read_text())["terms"]["licence"] == "CC-BY-4.0"
        assert datanets.stated("docs", 2).terms.licence == "MIT"

    def test_a_change_of_terms_alone_makes_no_version(self, datanets: Datanets) -> None:
        self.published(datanets)
        datanets.set_terms("docs", Terms(licence="MIT"), by="acct_owner")
        assert datanets.publish("docs").number == 1
        assert datanets.stated("docs", 1).terms == self.TERMS

    def test_of_a_version_of_before_is_what_holds_now(self, datanets: Datanets, tmp_path: Path) -> None:
        self.published(datanets)
        told = json.loads(manifest_of(tmp_path).read_text())
        older = {name: value for name, value in told.items() if name not in ("terms", "statistics")}
        manifest_of(tmp_path).write_text(json.dumps({**older, "format": "openledger/datanet-version/2"}))
        with datanets._registry._writing():
            datanets._registry._connection.execute("UPDATE versions SET stated_digest = NULL")
        for licence in ("MIT", "CDLA-Permissive-2.0"):
            datanets.set_terms("docs", Terms(licence=licence), by="acct_owner")
            assert datanets.stated("docs", 1).terms.licence == licence
            assert datanets.manifest("docs", 1)["terms"]["licence"] == licence

    def test_is_read_of_a_registry_that_kept_no_digest_of_it(self, datanets: Datanets, tmp_path: Path) -> None:
        found = self.published(datanets)
        with datanets._registry._writing():
            datanets._registry._connection.execute("ALTER TABLE versions DROP COLUMN stated_digest")
        datanets.close()
        again = open_datanets(tmp_path)
        assert again.stated("docs", 1) == found
        again.close()

    @pytest.mark.parametrize(
        "change",
        [
            {"terms": asdict(replace(TERMS, licence="MIT"))},
            {"statistics": []},
            {"format": "openledger/datanet-version/2"},
        ],
    )
    def test_that_reads_well_and_is_not_what_was_published_is_corrupt(
        self, datanets: Datanets, tmp_path: Path, change: dict[str, object]
    ) -> None:
        self.published(datanets)
        told = json.loads(manifest_of(tmp_path).read_text())
        manifest_of(tmp_path).write_text(json.dumps({**told, **change}))
        for call in (datanets.stated, datanets.manifest):
            with pytest.raises(Corrupt) as caught:
                call("docs", 1)
            assert caught.value.code == "corrupt_manifest"

    @pytest.mark.parametrize("terms", [None, "MIT", {"licence": "none of ours"}, {"colour": "red"}])
    def test_terms_that_were_changed_are_corrupt(self, datanets: Datanets, tmp_path: Path, terms: object) -> None:
        self.published(datanets)
        told = json.loads(manifest_of(tmp_path).read_text())
        manifest_of(tmp_path).write_text(json.dumps({**told, "terms": terms}))
        with pytest.raises(Corrupt) as caught:
            datanets.stated("docs", 1)
        assert caught.value.code == "corrupt_manifest"


CHANGES: dict[str, Callable[[list[int]], Any]] = {
    "swapped": lambda credit: [credit[1], credit[0], *credit[2:]],
    "shortened": lambda credit: credit[:-1],
    "twice": lambda credit: [credit[1], *credit[1:]],
    "gone": lambda credit: None,
    "words": lambda credit: [*credit[:-1], "first"],
    "numbers in quotes": lambda credit: [*map(str, credit[:2]), *credit[2:]],
    "fractions": lambda credit: [float(place) for place in credit],
    "truths": lambda credit: [place == 1 if place < 2 else place for place in credit],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_order_that_was_changed_is_corrupt(datanets: Datanets, tmp_path: Path, change: Callable[..., Any]) -> None:
    send(datanets, "ada", "own", 4)
    datanets.publish("docs")
    told = json.loads(manifest_of(tmp_path).read_text())
    manifest_of(tmp_path).write_text(json.dumps({**told, "credit": change(told["credit"])}))
    with pytest.raises(Corrupt) as caught:
        datanets.credit("docs", 1)
    assert caught.value.code == "corrupt_manifest"
    assert len(datanets.rows("docs", 1)) == 4  # whose they are and what they say is another matter


class TestWhoReadsVersions:
    @pytest.fixture
    def published(self, datanets: Datanets) -> Datanets:
        for number in range(3):
            send(datanets, "ada", f"own-{number}", nonce=str(number))
            datanets.publish("docs")
        return datanets

    def test_has_each_read_and_checked_once(self, published: Datanets, tmp_path: Path) -> None:
        for _ in range(2):
            told = [(published.manifest("docs", n)["number"], len(published.manifest_rows("docs", n, "", 9)))
                    for n in (1, 2, 3)]  # fmt: skip
            assert told == [(1, 2), (2, 4), (3, 6)]
            for number in (1, 2, 3):
                manifest_of(tmp_path, number).unlink(missing_ok=True)

    def test_has_one_of_before_read_once(self, published: Datanets, tmp_path: Path) -> None:
        told = json.loads(manifest_of(tmp_path).read_text())
        manifest_of(tmp_path).write_text(json.dumps({**told, "format": "openledger/datanet-version/1"}))
        with published._registry._writing():
            published._registry._connection.execute("UPDATE versions SET stated_digest = NULL")
        assert published.manifest("docs", 1)["number"] == 1
        manifest_of(tmp_path).unlink()
        assert published.manifest("docs", 1)["number"] == 1

    def test_takes_no_more_memory_than_is_allowed(self, published: Datanets, tmp_path: Path) -> None:
        first, second, third = published.versions("docs")
        read = {one: read_manifest(tmp_path / "versions", one) for one in (first, second, third)}
        size = 2 * sys.getsizeof(read[third].row_ids) + sum(map(sys.getsizeof, read[third].row_ids))
        for max_bytes, kept in ((1, [third]), (3 * size + 2_000, [first, third]), (1_000_000, [first, second, third])):
            manifests = Manifests(max_bytes)
            manifests.keep(first, read[first])
            manifests.keep(second, read[second])
            manifests.find(first)
            manifests.keep(third, read[third])
            assert [one for one in read if manifests.find(one) is not None] == kept

    def test_leaves_the_actors_thread_to_others(self, published: Datanets, monkeypatch: pytest.MonkeyPatch) -> None:
        threads = list[int]()

        def read(*given: Any) -> Manifest:
            threads.append(threading.get_ident())
            return read_manifest(*given)

        monkeypatch.setattr("openledger.datanets.datanets.read_manifest", read)
        published.__class__ = DatanetsActor
        actor = cast(DatanetsActor, published)

        async def ask() -> list[Any]:
            actor._reading = asyncio.Lock()
            pages = [actor.manifest_rows("docs", 3, "", 9) for _ in range(3)]
            return await asyncio.gather(*pages, actor.manifest("docs", 3))

        *pages, told = asyncio.run(ask())
        published.__class__ = Datanets
        assert ([len(page) for page in pages], told["number"]) == ([6, 6, 6], 3)
        assert len(threads) == 1
        assert threads[0] != threading.get_ident()

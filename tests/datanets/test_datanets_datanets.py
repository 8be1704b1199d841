"""Datanets in one process: contributions, versions, statistics."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa
import pytest
from datanet_samples import ANSWERS, key_of, open_datanets, sample_drafts, signed

from openledger.core import merkle
from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable
from openledger.core.signed import contribution_id
from openledger.core.values import Row, RowDraft
from openledger.datanets.contribution import signed_bytes
from openledger.datanets.datanets import Datanets
from openledger.datanets.registry import Registry
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.rows import rows_of
from openledger.datanets.shard import ShardHost
from openledger.datanets.terms import Terms

MIXED = [
    *sample_drafts(4),
    RowDraft(prompt="What does it cost?", completion="Ask jane.doe@mail.org for the price of a licence."),
    RowDraft(prompt="What is nothing?", completion=""),
    sample_drafts(1)[0],
]


class TestContribute:
    def test_every_row_gets_its_verdict_in_order(self, datanets: Datanets) -> None:
        receipt = datanets.contribute(signed("ada", MIXED))
        assert [verdict.ordinal for verdict in receipt.verdicts] == list(range(7))
        assert [v.outcome for v in receipt.verdicts] == ["accept"] * 4 + ["review", "reject", "reject"]
        assert receipt.verdicts[6].duplicate_of == receipt.verdicts[0].row_id

    def test_rows_in_are_rows_stored_and_rejected(self, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", MIXED))
        datanets.contribute(signed("bob", [*sample_drafts(2), *sample_drafts(5, "mail")]))
        found = datanets.statistics("docs")
        assert sum(one.accepted + one.rejected + one.review for one in found) == 7 + 7
        assert sum(one.accepted + one.review for one in found) == datanets.stored_count("docs")

    def test_statistics_count_the_reasons_of_each_contributor(self, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", MIXED))
        datanets.contribute(signed("bob", [*sample_drafts(2), *sample_drafts(5, "mail")]))
        ada, bob = datanets.statistics("docs")
        assert (ada.name, ada.accepted, ada.rejected, ada.review) == ("ada", 4, 2, 1)
        assert ada.reasons == {"empty": 1, "exact_duplicate": 1, "personal_data": 1}
        assert (bob.name, bob.accepted, bob.rejected, bob.review) == ("bob", 5, 2, 0)
        assert bob.reasons == {"exact_duplicate": 2}

    def test_a_key_signs_under_no_other_contributors_id(self, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", MIXED))
        forged = replace(signed("eve", sample_drafts(2)), contributor_id=key_of("ada").contributor_id)
        forged = replace(forged, signature=key_of("eve").sign(signed_bytes(forged)))
        with pytest.raises(InvalidInput) as caught:
            datanets.contribute(forged)
        assert (caught.value.code, caught.value.param) == ("invalid_signature", "contributor_id")

    def test_a_replayed_contribution_gets_its_first_receipt(self, datanets: Datanets) -> None:
        first = datanets.contribute(signed("ada", MIXED))
        assert datanets.contribute(signed("ada", MIXED)) == first
        assert datanets.stored_count("docs") == 5

    def test_the_same_rows_under_a_new_nonce_are_duplicates(self, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", sample_drafts(4)))
        again = datanets.contribute(signed("ada", sample_drafts(4), nonce="2"))
        assert {verdict.reasons for verdict in again.verdicts} == {("exact_duplicate",)}

    def test_another_datanet_does_not_wash_a_copy(self, datanets: Datanets) -> None:
        datanets.create("clone", "The same again", "acct_eve")
        first = datanets.contribute(signed("ada", sample_drafts(4)))
        copied = datanets.contribute(signed("eve", sample_drafts(4), datanet="clone"))
        assert [v.duplicate_of for v in copied.verdicts] == [v.row_id for v in first.verdicts]

    @pytest.mark.parametrize("edits", [0, 1])
    def test_nor_does_one_on_which_nobody_else_may_train(self, datanets: Datanets, edits: int) -> None:
        datanets.create("private", "What is ours alone", "acct_ada")
        datanets.approve("private", key_of("ada").contributor_id, "contribute", by="acct_ada")
        datanets.set_terms("private", Terms(contribute="invited", train="private"), by="acct_ada")
        first = datanets.contribute(signed("ada", sample_drafts(4), datanet="private"))
        edited = [replace(one, completion=" ".join(one.completion.split()[edits:])) for one in sample_drafts(4)]
        copied = datanets.contribute(signed("eve", edited))
        kind = "near_duplicate" if edits else "exact_duplicate"
        assert [v.reasons for v in copied.verdicts] == [(kind,)] * 4
        seen_by_its_owner = datanets.receipt("docs", copied.contribution_id, "acct_ada")
        assert [v.duplicate_of for v in seen_by_its_owner.verdicts] == [v.row_id for v in first.verdicts]

    def test_a_foreign_signature_changes_nothing(self, datanets: Datanets) -> None:
        forged = replace(signed("ada", sample_drafts(4)), signature=signed("eve", sample_drafts(4)).signature)
        with pytest.raises(InvalidInput) as caught:
            datanets.contribute(forged)
        assert caught.value.code == "invalid_signature"
        assert (datanets.stored_count("docs"), datanets.statistics("docs")) == (0, [])

    def test_a_customer_sees_references_until_the_datanet_says_otherwise(self, datanets: Datanets) -> None:
        assert datanets.displays() == {"docs": "reference"}
        assert datanets.set_display("docs", "text").display == "text"
        again = datanets.datanet("docs")
        assert datanets.create("docs", again.summary, again.owner).name == "docs"
        assert datanets.datanet("docs").display == "text"

    @pytest.mark.parametrize("display", ["", "all", "TEXT"])
    def test_another_display_policy_is_refused(self, datanets: Datanets, display: Any) -> None:
        with pytest.raises(InvalidInput) as caught:
            datanets.set_display("docs", display)
        assert (caught.value.code, datanets.displays()) == ("invalid_display", {"docs": "reference"})

    def test_a_registry_from_before_display_policies_shows_references(self, tmp_path: Path) -> None:
        path = tmp_path / "old" / "registry.sqlite"
        path.parent.mkdir()
        connection = apsw.Connection(str(path))
        connection.execute(
            "CREATE TABLE datanets (name TEXT PRIMARY KEY, summary TEXT NOT NULL, owner TEXT NOT NULL,"
            " created_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID; INSERT INTO datanets VALUES ('old', 's', 'o', 1)"
        )
        connection.close()
        registry = Registry(path)
        assert registry.datanet("old").display == "reference"
        assert registry.set_display("old", "none").display == "none"
        registry.close()

    def test_an_unknown_datanet_is_not_found(self, datanets: Datanets) -> None:
        with pytest.raises(NotFound, match="no Datanet 'poems'"):
            datanets.contribute(signed("ada", sample_drafts(1), datanet="poems"))

    def test_a_first_signed_contribution_registers_its_author_by_id(self, datanets: Datanets) -> None:
        contribution = signed("newcomer", sample_drafts(1))
        datanets.preview(contribution)
        assert contribution.contributor_id not in {person.contributor_id for person in datanets.contributors()}
        datanets.contribute(contribution)
        known = {person.contributor_id: person.name for person in datanets.contributors()}
        assert known[contribution.contributor_id] == contribution.contributor_id

    def test_a_preview_gives_the_verdicts_and_stores_nothing(self, datanets: Datanets) -> None:
        previewed = datanets.preview(signed("ada", MIXED))
        assert (datanets.stored_count("docs"), datanets.statistics("docs")) == (0, [])
        assert datanets.contribute(signed("ada", MIXED)).verdicts == previewed

    def test_a_new_process_remembers_originals_and_receipts(self, tmp_path: Path, datanets: Datanets) -> None:
        first = datanets.contribute(signed("ada", MIXED))
        datanets.close()
        reopened = open_datanets(tmp_path)
        assert reopened.contribute(signed("ada", MIXED)) == first
        edited = replace(MIXED[1], completion=MIXED[1].completion.replace(".", " indeed!"))
        (verdict,) = reopened.contribute(signed("eve", [edited])).verdicts
        assert (verdict.reasons, verdict.duplicate_of) == (("near_duplicate",), first.verdicts[1].row_id)
        reopened.close()


class TestNames:
    def test_creating_again_is_idempotent_and_other_content_conflicts(self, datanets: Datanets) -> None:
        assert datanets.create("docs", "What functions do", "acct_owner").name == "docs"
        with pytest.raises(Conflict, match="another summary, owner or row schema"):
            datanets.create("docs", "What functions do", "acct_eve")

    def test_a_key_has_one_name(self, datanets: Datanets) -> None:
        assert datanets.register_contributor(key_of("ada").public_key, "ada").name == "ada"
        with pytest.raises(Conflict, match="registered as 'ada'"):
            datanets.register_contributor(key_of("ada").public_key, "eve")

    def test_names_are_listed(self, datanets: Datanets) -> None:
        datanets.create("arts", "Poems", "acct_owner")
        assert datanets.names() == ["arts", "docs"]

    @pytest.mark.parametrize("name", ["", "Docs", "../docs", "a/b", "a..b"])
    def test_a_bad_name_is_refused(self, datanets: Datanets, name: str) -> None:
        with pytest.raises(InvalidInput):
            datanets.create(name, "Poems", "acct_owner")

    @pytest.mark.parametrize("name", ["", " ", "two\nlines", "n" * 129])
    def test_a_bad_contributor_name_is_refused(self, datanets: Datanets, name: str) -> None:
        with pytest.raises(InvalidInput):
            datanets.register_contributor(key_of("mallory").public_key, name)


class TestVersions:
    def test_a_version_holds_the_accepted_rows_in_row_id_order(self, datanets: Datanets) -> None:
        receipt = datanets.contribute(signed("ada", MIXED))
        version = datanets.publish("docs")
        rows = datanets.rows("docs", version.number)
        assert [row.row_id for row in rows] == sorted(v.row_id for v in receipt.verdicts if v.outcome == "accept")
        assert {row.completion for row in rows} == {draft.completion for draft in MIXED[:4]}
        assert (version.number, version.num_rows) == (1, 4)

    def test_anyone_can_recompute_the_row_root_from_the_manifest(self, tmp_path: Path, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", MIXED))
        version = datanets.publish("docs")
        manifest = json.loads((tmp_path / "versions" / "docs" / "1.json").read_text())
        leaves = [merkle.leaf_hash(row_id.encode()) for row_id in manifest["row_ids"]]
        assert merkle.root(leaves).hex() == version.row_root == manifest["row_root"]

    def test_publishing_without_a_change_gives_the_current_version(self, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", MIXED))
        first = datanets.publish("docs")
        assert datanets.publish("docs") == first
        datanets.contribute(signed("bob", MIXED))  # nothing new but rejected rows
        assert datanets.publish("docs") == first

    def test_a_later_version_leaves_the_earlier_as_it_was(self, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", MIXED))
        first = datanets.publish("docs")
        before = datanets.rows("docs", 1)
        datanets.contribute(signed("bob", sample_drafts(3, "mail")))
        second = datanets.publish("docs")
        assert (second.number, second.num_rows) == (2, 7)
        assert datanets.version("docs", 1) == first
        assert datanets.rows("docs", 1) == before

    def test_a_changed_manifest_is_corrupt(self, tmp_path: Path, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", MIXED))
        datanets.publish("docs")
        path = tmp_path / "versions" / "docs" / "1.json"
        manifest = json.loads(path.read_text())
        manifest["row_ids"].pop()
        path.write_text(json.dumps(manifest))
        with pytest.raises(Corrupt, match=r"1\.json"):
            datanets.rows("docs", 1)

    def test_an_empty_datanet_is_not_published(self, datanets: Datanets) -> None:
        with pytest.raises(InvalidInput, match="no accepted row"):
            datanets.publish("docs")

    def test_an_unknown_version_is_not_found(self, datanets: Datanets) -> None:
        with pytest.raises(NotFound, match="no version 3"):
            datanets.version("docs", 3)

    def test_a_publication_that_was_cut_off_leaves_no_version(
        self, tmp_path: Path, datanets: Datanets, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datanets.contribute(signed("ada", MIXED))
        monkeypatch.setattr(datanets._registry, "add_version", _cut_off)
        with pytest.raises(KeyboardInterrupt):
            datanets.publish("docs")
        datanets.close()
        reopened = open_datanets(tmp_path)
        assert reopened.versions("docs") == []
        reopened.contribute(signed("bob", sample_drafts(3, "mail")))
        assert reopened.publish("docs").num_rows == len(reopened.rows("docs", 1)) == 7
        reopened.close()


class FailingShard(ShardHost):
    """A shard whose `append` fails once, before or after it has stored the rows."""

    def __init__(self, folder: Path, when: str):
        super().__init__(folder)
        self.when = when

    def append(self, datanet: str, rows: Sequence[Row], key: str) -> None:
        when, self.when = self.when, "never"
        if when == "after":
            super().append(datanet, rows, key)
        if when != "never":
            raise Unavailable("the shard is away", code="storage_unavailable")
        super().append(datanet, rows, key)


class TestFailures:
    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("number", [0, 1, 2])
    @pytest.mark.parametrize("reopen", [True, False])
    def test_a_retry_finishes_what_a_shard_cut_off(self, tmp_path: Path, when: str, number: int, reopen: bool) -> None:
        datanets = _with_failing_shard(tmp_path, number, when)
        previewed = datanets.preview(signed("ada", sample_drafts(12)))
        with pytest.raises(Unavailable):
            datanets.contribute(signed("ada", sample_drafts(12)))
        if reopen:
            datanets.close()
            datanets = open_datanets(tmp_path)
        assert datanets.contribute(signed("ada", sample_drafts(12))).verdicts == previewed
        assert datanets.stored_count("docs") == 12
        assert datanets.publish("docs").num_rows == 12
        datanets.close()

    def test_a_judged_contribution_keeps_its_priority_while_a_shard_is_away(self, tmp_path: Path) -> None:
        datanets = _with_failing_shard(tmp_path, 0, "before")
        with pytest.raises(Unavailable):
            datanets.contribute(signed("ada", sample_drafts(12)))
        copied = datanets.contribute(signed("eve", sample_drafts(12)))
        assert {verdict.outcome for verdict in copied.verdicts} == {"reject"}
        assert datanets.publish("docs").num_rows == 12
        datanets.close()

    def test_verdicts_are_told_before_the_rows_are_stored(self, tmp_path: Path) -> None:
        sent, datanets = signed("ada", sample_drafts(12)), _with_failing_shard(tmp_path, 0, "before")
        assert datanets.judged(contribution_id(sent)) is None
        with pytest.raises(Unavailable):
            datanets.contribute(sent)
        judged = datanets.judged(contribution_id(sent))
        assert judged is not None
        assert judged == datanets.contribute(sent)
        datanets.close()

    def test_a_lost_folder_is_noticed_and_its_shard_named(self, tmp_path: Path, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", sample_drafts(12)))
        datanets.close()
        shutil.rmtree(tmp_path / "shard-1" / "docs")
        opened = open_datanets(tmp_path)
        assert [(name, error.code) for name, error in opened.damages().items()] == [("docs", "rows_missing")]
        with pytest.raises(Corrupt, match="stored rows in shard-1/docs") as caught:
            opened.publish("docs")
        assert "this Datanet's folder alone" in str(caught.value.fix)
        opened.close()

    def test_fewer_shards_than_the_rows_lie_in_are_refused(self, tmp_path: Path, datanets: Datanets) -> None:
        datanets.close()
        with pytest.raises(Conflict, match="the rows lie in 3 shards, and 2 are given"):
            open_datanets(tmp_path, num_shards=2)

    def test_a_replaced_process_can_write_no_more(self, tmp_path: Path, datanets: Datanets) -> None:
        successor = open_datanets(tmp_path)
        with pytest.raises(Unavailable) as caught:
            datanets.contribute(signed("ada", sample_drafts(2)))
        assert caught.value.code == "stale_process"
        assert successor.contribute(signed("ada", sample_drafts(2))).verdicts[0].outcome == "accept"
        successor.close()

    def test_a_file_that_is_no_registry_is_corrupt(self, tmp_path: Path) -> None:
        (tmp_path / "registry.sqlite").write_bytes(b"not a database, whatever its name says " * 100)
        with pytest.raises(Corrupt, match="no registry"):
            open_datanets(tmp_path)


def test_shards_hand_on_record_batches(tmp_path: Path) -> None:
    datanets = open_datanets(tmp_path)
    datanets.contribute(signed("ada", [RowDraft(prompt="What does it do?", completion=ANSWERS[0])]))
    batches = [batch for number in range(3) for batch in ShardHost(tmp_path / f"shard-{number}").scan("docs")]
    assert all(isinstance(batch, pa.RecordBatch) for batch in batches)
    assert sum(batch.num_rows for batch in batches) == 1
    datanets.close()


def _with_failing_shard(folder: Path, failing: int, when: str) -> Datanets:
    open_datanets(folder).close()
    shards: list[ShardHost] = [ShardHost(folder / f"shard-{number}") for number in range(3)]
    shards[failing] = FailingShard(folder / f"shard-{failing}", when)
    return Datanets(folder, shards, ManualClock())


def _cut_off(*_: object) -> None:
    raise KeyboardInterrupt


class TestCopies:
    """Rows that the gate lets through and that are the same evidence as an earlier one."""

    @staticmethod
    def restated(drafts: Sequence[RowDraft]) -> list[RowDraft]:
        """The question in other words, and one word of the answer's eleven changed."""
        return [
            RowDraft(prompt=f"Explain number {number}.", completion=f"Zebra {draft.completion.partition(' ')[2]}")
            for number, draft in enumerate(drafts)
        ]

    def contributed(
        self, datanets: Datanets, name: str, drafts: Sequence[RowDraft], datanet: str = "docs"
    ) -> list[str]:
        receipt = datanets.contribute(signed(name, drafts, datanet=datanet))
        assert {verdict.outcome for verdict in receipt.verdicts} == {"accept"}
        return [verdict.row_id for verdict in receipt.verdicts]

    def test_a_copy_that_passed_the_gate_is_named_with_its_original(self, datanets: Datanets) -> None:
        originals = self.contributed(datanets, "ada", sample_drafts(6))
        copies = self.contributed(datanets, "eve", self.restated(sample_drafts(6)))
        number = datanets.publish("docs").number
        assert datanets.copies("docs", number) == dict(zip(copies, originals, strict=True))

    def test_a_clone_in_another_datanet_is_all_copies(self, datanets: Datanets) -> None:
        datanets.create("clone", "The same again", "acct_eve")
        originals = self.contributed(datanets, "ada", sample_drafts(6))
        copies = self.contributed(datanets, "eve", self.restated(sample_drafts(6)), "clone")
        assert datanets.copies("docs", datanets.publish("docs").number) == {}
        assert datanets.copies("clone", datanets.publish("clone").number) == dict(zip(copies, originals, strict=True))

    def test_own_rows_restated_are_no_copies_and_are_alike(self, datanets: Datanets) -> None:
        originals = self.contributed(datanets, "ada", sample_drafts(6))
        restated = self.contributed(datanets, "ada", self.restated(sample_drafts(6)))
        number = datanets.publish("docs").number
        assert datanets.copies("docs", number) == {}
        assert datanets.alike("docs", number) == dict(zip(restated, originals, strict=True))

    def test_who_comes_first_is_the_original_whatever_the_datanets_name(self, datanets: Datanets) -> None:
        datanets.create("a-later", "Sorted before docs", "acct_ada")
        first = self.contributed(datanets, "ada", sample_drafts(3))
        second = self.contributed(datanets, "bob", self.restated(sample_drafts(3)), "a-later")
        datanets.publish("docs")
        assert datanets.copies("a-later", datanets.publish("a-later").number) == dict(zip(second, first, strict=True))

    def test_words_are_weighed_as_when_they_were_first_needed(self, datanets: Datanets, tmp_path: Path) -> None:
        self.contributed(datanets, "ada", sample_drafts(6))
        datanets.copies("docs", datanets.publish("docs").number)
        before = (tmp_path / "word_weights.json").read_bytes()
        self.contributed(datanets, "bob", sample_drafts(6, "mail"))
        datanets.copies("docs", datanets.publish("docs").number)
        assert (tmp_path / "word_weights.json").read_bytes() == before

    def test_a_damaged_table_of_words_is_named(self, datanets: Datanets, tmp_path: Path) -> None:
        self.contributed(datanets, "ada", sample_drafts(2))
        number = datanets.publish("docs").number
        (tmp_path / "word_weights.json").write_text("{}")
        with pytest.raises(Corrupt) as caught:
            datanets.copies("docs", number)
        assert caught.value.code == "corrupt_word_weights"


class TestGrowing:
    """More shards than before: rows move to the new ones, and no others."""

    @pytest.mark.parametrize("cut_off", [None, "append", "remove", "set_property"])
    def test_rows_move_to_new_shards_alone_also_when_it_is_cut_off(
        self, tmp_path: Path, datanets: Datanets, monkeypatch: pytest.MonkeyPatch, cut_off: str | None
    ) -> None:
        datanets.contribute(signed("ada", sample_drafts(60)))
        version, rows = datanets.publish("docs"), datanets.rows("docs", 1)
        datanets.close()
        before = {row.row_id: place for place in range(3) for row in stored(tmp_path, place)}
        if cut_off:
            with monkeypatch.context() as patch:
                patch.setattr(Registry if cut_off == "set_property" else ShardHost, cut_off, stop)
                with pytest.raises(Stopped):
                    open_datanets(tmp_path, num_shards=5)
        grown = open_datanets(tmp_path, num_shards=5)
        assert (grown.stored_count("docs"), grown.rows("docs", 1), grown.publish("docs")) == (60, rows, version)
        after = {row.row_id: place for place in range(5) for row in stored(tmp_path, place)}
        assert all(place == before[row_id] or place in (3, 4) for row_id, place in after.items())
        assert {3, 4} <= set(after.values())
        grown.contribute(signed("bob", sample_drafts(20, "mail")))
        assert grown.stored_count("docs") == 80
        grown.close()


class Stopped(Exception):
    pass


def stop(*arguments: object) -> None:
    raise Stopped


def stored(folder: Path, number: int) -> list[Row]:
    return [row for batch in ShardHost(folder / f"shard-{number}").scan("docs") for row in rows_of(batch)]


def test_a_diff_names_the_rows_that_came_and_went(datanets: Datanets) -> None:
    first = [verdict.row_id for verdict in datanets.contribute(signed("ada", sample_drafts(3))).verdicts]
    datanets.publish("docs")
    added = [verdict.row_id for verdict in datanets.contribute(signed("bob", sample_drafts(2, "mail"))).verdicts]
    datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", [first[0]], "1"))
    datanets.publish("docs")
    assert datanets.diff("docs", 1, 2) == (sorted(added), [first[0]])

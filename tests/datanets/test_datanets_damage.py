"""A damaged file closes its Datanet, names shard and file, and keeps no other Datanet from going on, wherever the
duplicate index is."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datanet_samples import key_of, open_datanets, sample_drafts, signed

from openledger.core.clock import ManualClock
from openledger.core.errors import Corrupt
from openledger.core.values import ContributionReceipt, RowDraft
from openledger.datanets import layout
from openledger.datanets.datanets import Datanets
from openledger.datanets.gate import GATE_VERSION
from openledger.datanets.layout import Layout
from openledger.datanets.placement import shard_of
from openledger.datanets.registry import Registry
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.shard import ShardHost

NUM_ROWS = 30


class Damaged:
    """`docs` and `mails` with rows of ada's, and a byte of one of docs' three shards changed."""

    def __init__(self, folder: Path, *, by_shard: bool):
        self.folder = folder
        before = open_datanets(folder)
        before.divide_duplicates(by_shard=by_shard)
        before.create("mails", "What mails say", "acct_owner")
        self.drafts = sample_drafts(NUM_ROWS)
        self.docs = before.contribute(signed("ada", self.drafts))
        self.mails = before.contribute(signed("ada", sample_drafts(6, "mail"), datanet="mails"))
        before.publish("docs")
        before.close()
        self.file = folder / "shard-1" / "docs" / "recent.journal"  # where small contributions stand first
        self.backup = self.file.read_bytes()
        self.file.write_bytes(changed(self.backup))
        self.datanets = open_datanets(folder)

    def restore(self) -> Datanets:
        self.datanets.close()
        self.file.write_bytes(self.backup)
        self.datanets = open_datanets(self.folder)
        return self.datanets

    def ordinals(self, *, sound: bool) -> list[int]:
        return [one.ordinal for one in self.docs.verdicts if (shard_of(one.row_id, 3) != 1) == sound]


def changed(content: bytes) -> bytes:
    """One byte of it, in its midst."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.fixture(params=[False, True], ids=["one index", "by shard"])
def damaged(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Damaged]:
    world = Damaged(tmp_path, by_shard=request.param)
    yield world
    world.datanets.close()


@pytest.fixture
def divided(tmp_path: Path) -> Iterator[Damaged]:
    world = Damaged(tmp_path, by_shard=True)
    yield world
    world.datanets.close()


@pytest.mark.parametrize(
    "ask",
    [
        lambda datanets, _: datanets.publish("docs"),
        lambda datanets, _: datanets.rows("docs", 1),
        lambda datanets, _: datanets.contribute(signed("bob", sample_drafts(3, "new"))),
        lambda datanets, _: datanets.preview(signed("bob", sample_drafts(3, "new"))),
        lambda datanets, _: datanets.contribute(signed("ada", sample_drafts(NUM_ROWS))),
        lambda datanets, folder: datanets.export("docs", 1, folder / "out"),
        lambda datanets, _: datanets.bulk_parts("docs", 1, "acct_owner"),
        lambda datanets, _: datanets.copies("docs", 1),
    ],
    ids=["publish", "rows", "contribute", "preview", "again", "export", "bulk", "copies"],
)
def test_whoever_asks_for_a_damaged_datanet_is_told_shard_and_file(damaged: Damaged, ask: Callable[..., Any]) -> None:
    with pytest.raises(Corrupt) as caught:
        ask(damaged.datanets, damaged.folder)
    assert "shard-1" in caught.value.message
    assert damaged.file.name in f"{caught.value.message} {caught.value.param}"
    assert caught.value.fix is not None
    assert list(damaged.datanets.damages()) == ["docs"]


def test_another_datanet_takes_rows_publishes_and_is_read(damaged: Damaged) -> None:
    datanets = damaged.datanets
    sent = signed("bob", sample_drafts(4, "letter"), datanet="mails")
    assert {verdict.outcome for verdict in datanets.contribute(sent).verdicts} == {"accept"}
    version = datanets.publish("mails")
    assert (version.num_rows, len(datanets.rows("mails", 1)), version.gate_version) == (10, 10, GATE_VERSION)
    assert [one.accepted for one in datanets.statistics("docs")] == [NUM_ROWS]


def test_copies_of_the_rows_that_can_be_read_are_found(damaged: Damaged) -> None:
    sound, lost = damaged.ordinals(sound=True), damaged.ordinals(sound=False)
    assert sound
    assert lost
    sent = signed("eve", damaged.drafts, datanet="mails")
    outcomes = [verdict.outcome for verdict in damaged.datanets.contribute(sent).verdicts]
    assert [outcomes[ordinal] for ordinal in sound] == ["reject"] * len(sound)
    assert [outcomes[ordinal] for ordinal in lost] == ["accept"] * len(lost)


@pytest.mark.parametrize("by_shard", [False, True])
def test_they_are_found_wherever_the_index_is_taken_meanwhile(damaged: Damaged, *, by_shard: bool) -> None:
    damaged.datanets.divide_duplicates(by_shard=by_shard)
    sent = signed("eve", [*damaged.drafts, *sample_drafts(6, "mail")], datanet="mails")
    outcomes = [verdict.outcome for verdict in damaged.datanets.contribute(sent).verdicts]
    found = [ordinal for ordinal, outcome in enumerate(outcomes) if outcome == "reject"]
    assert found == [*damaged.ordinals(sound=True), *range(NUM_ROWS, NUM_ROWS + 6)]


def test_a_licence_waits_for_the_rows_that_would_have_to_be_asked_for_their_own(tmp_path: Path) -> None:
    owner = key_of("ada").contributor_id
    before = open_datanets(tmp_path)
    before.create("notes", "What notes say", owner)
    licence = before.terms("notes").licence
    before.contribute(signed("ada", sample_drafts(NUM_ROWS), datanet="notes"))
    before.close()
    file = tmp_path / "shard-1" / "notes" / "recent.journal"
    file.write_bytes(changed(file.read_bytes()))
    damaged = open_datanets(tmp_path)
    with pytest.raises(Corrupt):
        damaged.change_terms("notes", {"licence": "CC0-1.0"}, owner)
    assert damaged.terms("notes").licence == licence
    damaged.close()


def test_training_of_another_datanet_waits_for_the_rows_that_can_not_be_read(damaged: Damaged) -> None:
    """A copy of theirs may have come meanwhile: once they are restored it is found, and isn't paid."""
    lost = [damaged.drafts[ordinal] for ordinal in damaged.ordinals(sound=False)]
    copied: ContributionReceipt = damaged.datanets.contribute(signed("eve", lost, datanet="mails"))
    assert {verdict.outcome for verdict in copied.verdicts} == {"accept"}
    damaged.datanets.publish("mails")
    with pytest.raises(Corrupt):
        damaged.datanets.copies("mails", 1)
    restored = damaged.restore()
    assert set(restored.copies("mails", 1)) == {verdict.row_id for verdict in copied.verdicts}


def test_rows_of_another_datanet_can_be_taken_back(damaged: Damaged) -> None:
    row_ids = [verdict.row_id for verdict in damaged.mails.verdicts]
    damaged.datanets.withdraw(sign_withdrawal(key_of("ada"), "mails", row_ids[:2], "1"))
    assert damaged.datanets.publish("mails").num_rows == 4


def test_a_withdrawal_that_a_damaged_shard_cut_off_is_ended_once_it_is_restored(damaged: Damaged) -> None:
    row_id = damaged.docs.verdicts[damaged.ordinals(sound=False)[0]].row_id
    wish = sign_withdrawal(key_of("ada"), "docs", [row_id], "1")
    with pytest.raises(Corrupt):
        damaged.datanets.withdraw(wish)
    restored = damaged.restore()
    restored.withdraw(wish)
    assert row_id not in {row.row_id for row in restored.rows("docs", 1)}
    assert len(restored.rows("docs", 1)) == NUM_ROWS - 1


def test_a_restored_datanet_is_open_again_with_all_of_its_rows(damaged: Damaged) -> None:
    restored = damaged.restore()
    assert restored.damages() == {}
    assert len(restored.rows("docs", 1)) == NUM_ROWS
    assert restored.contribute(signed("ada", damaged.drafts)) == damaged.docs


def test_a_contribution_that_was_cut_off_waits_for_its_shard_and_is_stored_then(tmp_path: Path) -> None:
    """As a crash between the verdicts and the shards leaves it."""
    before = open_datanets(tmp_path)
    before.contribute(signed("ada", sample_drafts(NUM_ROWS)))
    cut_off = signed("bob", sample_drafts(NUM_ROWS, "later"))
    before.begin(cut_off)
    before.close()
    file = tmp_path / "shard-1" / "docs" / "recent.journal"
    shutil.copy(file, tmp_path / "backup")
    file.write_bytes(changed(file.read_bytes()))
    damaged = open_datanets(tmp_path, num_shards=4)
    assert list(damaged.damages()) == ["docs"]
    damaged.close()
    shutil.copy(tmp_path / "backup", file)
    restored = open_datanets(tmp_path, num_shards=4)
    assert {verdict.outcome for verdict in restored.contribute(cut_off).verdicts} == {"accept"}
    assert restored.publish("docs").num_rows == len(restored.rows("docs", 1)) == 2 * NUM_ROWS
    restored.close()


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_removal_drops_no_word_of_rows_that_can_not_be_read(tmp_path: Path, harm: str) -> None:
    """Words of another's row that is taken back go once all rows can be read again, and no other ever does."""
    before = open_datanets(tmp_path)
    before.create("mails", "What mails say", "acct_owner")
    before.contribute(signed("ada", [*sample_drafts(NUM_ROWS), *twice("docsonly")]))
    mails = before.contribute(signed("bob", twice("mailsonly"), datanet="mails"))
    before.publish("docs")
    before.copies("docs", 1)
    before.close()
    table, folder = tmp_path / "word_weights.json", tmp_path / "shard-1" / "docs"
    kept = table.read_bytes()
    assert {"docsonly", "mailsonly"} <= words_in(table)
    damaged = harmed(tmp_path, folder, harm)
    damaged.withdraw(sign_withdrawal(key_of("bob"), "mails", [one.row_id for one in mails.verdicts], "1"))
    damaged.close()
    assert table.read_bytes() == kept
    open_datanets(tmp_path).close()
    assert table.read_bytes() == kept, "nor by an opening that can't read them either"
    put_back(tmp_path, folder)
    open_datanets(tmp_path).close()
    assert words_in(table) == set(json.loads(kept)["counts"]) - {"mailsonly"}


def test_a_removal_that_was_cut_off_drops_no_word_when_it_is_ended_by_a_damaged_opening(tmp_path: Path) -> None:
    before = open_datanets(tmp_path)
    before.create("mails", "What mails say", "acct_owner")
    before.contribute(signed("ada", [*sample_drafts(NUM_ROWS), *twice("docsonly")]))
    mails = before.contribute(signed("bob", twice("mailsonly"), datanet="mails"))
    before.publish("docs")
    before.copies("docs", 1)
    wish = sign_withdrawal(key_of("bob"), "mails", [one.row_id for one in mails.verdicts], "1")
    before._forget = kill  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        before.withdraw(wish)
    before.close()
    folder = tmp_path / "shard-1" / "docs"
    harmed(tmp_path, folder, "gone").close()
    assert {"docsonly", "mailsonly"} <= words_in(tmp_path / "word_weights.json")
    put_back(tmp_path, folder)
    open_datanets(tmp_path).close()
    assert words_in(tmp_path / "word_weights.json") & {"docsonly", "mailsonly"} == {"docsonly"}


def test_damage_that_a_removal_meets_is_told(tmp_path: Path) -> None:
    before = open_datanets(tmp_path)
    before.create("mails", "What mails say", "acct_owner")
    before.contribute(signed("ada", sample_drafts(NUM_ROWS)))
    mails = before.contribute(signed("bob", twice("mailsonly"), datanet="mails"))
    before.publish("docs")
    before.copies("docs", 1)
    kept = (tmp_path / "word_weights.json").read_bytes()
    shutil.rmtree(tmp_path / "shard-1" / "docs")
    start_anew(before, 1)
    before.withdraw(sign_withdrawal(key_of("bob"), "mails", [mails.verdicts[0].row_id], "1"))
    assert {name: damage.code for name, damage in before.damages().items()} == {"docs": "rows_missing"}
    assert (tmp_path / "word_weights.json").read_bytes() == kept
    before.close()


class TestAMove:
    """To one shard more, or to one that nobody looks in any more."""

    def test_does_not_begin_while_rows_are_missing_and_brings_all_once_they_are_back(self, tmp_path: Path) -> None:
        ids = published(tmp_path)
        folder = tmp_path / "shard-1" / "docs"
        damaged = harmed(tmp_path, folder, "gone", num_shards=4)
        assert [damage.code for damage in damaged.damages().values()] == ["rows_missing"]
        assert damaged.move_state() == {"is_moving": False, "problem": ""}
        damaged.close()
        put_back(tmp_path, folder)
        check_whole(tmp_path, ids, num_shards=4)

    def test_takes_no_step_while_rows_are_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layout, "MOVED_AT_ONCE", 3)
        ids = published(tmp_path)
        moving = opened_to_move(tmp_path, 4)
        assert moving.move_rows()
        moving.close()
        folder = tmp_path / "shard-1" / "docs"
        damaged = harmed(tmp_path, folder, "gone", num_shards=4)
        assert not damaged.move_rows()
        assert damaged.move_state() == {"is_moving": True, "problem": "rows_missing"}
        damaged.close()
        put_back(tmp_path, folder)
        check_whole(tmp_path, ids, num_shards=4)

    def test_that_ended_without_rows_is_made_up_when_they_are_back(self, tmp_path: Path) -> None:
        """As one did before it looked for them."""
        ids = published(tmp_path)
        folder = tmp_path / "shard-1" / "docs"
        shutil.move(folder, tmp_path / "backup")
        with contextlib.closing(Registry(tmp_path / "registry.sqlite")) as registry:
            shards = [ShardHost(tmp_path / f"shard-{number}") for number in range(4)]
            without = Layout(shards, registry)
            without.begin_move(4)
            while without.move_some():
                pass
        shutil.rmtree(folder, ignore_errors=True)
        put_back(tmp_path, folder)
        check_whole(tmp_path, ids, num_shards=4)

    def test_leaves_no_text_that_is_taken_back_in_a_folder_from_before_it(self, tmp_path: Path) -> None:
        """A backup of a shard as it was before the move is put back: its rows stand twice, and are gone at once."""
        ids = published(tmp_path)
        folder = tmp_path / "shard-1" / "docs"
        shutil.copytree(folder, tmp_path / "backup")
        moved = open_datanets(tmp_path, 4)
        told = {row.row_id: row.completion for row in moved.rows("docs", 1)}
        moved.close()
        (gone, *_) = (i for i in ids if shard_of(i, 3) == 1 != shard_of(i, 4))
        shutil.rmtree(folder)
        put_back(tmp_path, folder)
        assert len(holding(tmp_path, told[gone])) == 2
        again = open_datanets(tmp_path, 4)
        again.withdraw(sign_withdrawal(key_of("ada"), "docs", [gone], "1"))
        assert len(again.rows("docs", 1)) == NUM_ROWS - 1
        again.close()
        assert holding(tmp_path, told[gone]) == []


def published(folder: Path) -> set[str]:
    """Rows of ada's in `docs`, in three shards."""
    before = open_datanets(folder)
    receipt = before.contribute(signed("ada", sample_drafts(NUM_ROWS)))
    before.publish("docs")
    before.close()
    return {verdict.row_id for verdict in receipt.verdicts}


def opened_to_move(folder: Path, num_shards: int) -> Datanets:
    shards = [ShardHost(folder / f"shard-{number}") for number in range(num_shards)]
    return Datanets(folder, shards, ManualClock(), moves_later=True)


def check_whole(folder: Path, ids: set[str], num_shards: int) -> None:
    datanets = open_datanets(folder, num_shards)
    assert datanets.damages() == {}
    assert {row.row_id for row in datanets.rows("docs", 1)} == ids
    for number, host in enumerate(hosts(datanets)):
        assert set(host.row_ids("docs")) == {row_id for row_id in ids if shard_of(row_id, num_shards) == number}
    datanets.close()


def harmed(tmp_path: Path, folder: Path, harm: str, num_shards: int = 3) -> Datanets:
    """Opened with one Datanet's part of a shard changed, or gone; `put_back` has it from a backup."""
    shutil.copytree(folder, tmp_path / "backup")
    if harm == "gone":
        shutil.rmtree(folder)
    else:
        file = folder / "recent.journal"
        file.write_bytes(changed(file.read_bytes()))
    return open_datanets(tmp_path, num_shards)


def put_back(tmp_path: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.move(tmp_path / "backup", folder)


def twice(word: str) -> list[RowDraft]:
    """Two rows with a word that is in no other: the table keeps what more than one row has."""
    return [
        RowDraft(prompt=draft.prompt, completion=f"{draft.completion} {word}", source=draft.source)
        for draft in sample_drafts(2, word)
    ]


def words_in(table: Path) -> set[str]:
    return set(json.loads(table.read_text())["counts"])


def kill(*_: object) -> None:
    raise KeyboardInterrupt


def holding(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


class TestADividedIndex:
    def test_has_with_the_damaged_shard_what_else_that_one_holds(self, divided: Damaged) -> None:
        docs = [one.row_id for one in divided.docs.verdicts]
        mails = [one.row_id for one in divided.mails.verdicts]
        expected = [
            {row_id for row_id in (*docs, *mails) if shard_of(row_id, 3) == 0},
            {row_id for row_id in mails if shard_of(row_id, 3) == 1},
            {row_id for row_id in (*docs, *mails) if shard_of(row_id, 3) == 2},
        ]
        assert all(expected)
        assert [set(one._duplicates._orders) for one in hosts(divided.datanets)] == expected

    def test_knows_rows_of_a_file_that_is_damaged_later_for_as_long_as_the_shard_goes_on(
        self, divided: Damaged
    ) -> None:
        datanets = divided.restore()
        kept = hosts(datanets)
        datanets.close()
        divided.file.write_bytes(changed(divided.backup))
        for host in kept:
            host._shards.clear()  # as if they had not been asked for yet
        divided.datanets = Datanets(divided.folder, kept, ManualClock())
        assert list(divided.datanets.damages()) == ["docs"]
        sent = signed("eve", divided.drafts, datanet="mails")
        assert {one.outcome for one in divided.datanets.contribute(sent).verdicts} == {"reject"}

    def test_is_given_again_to_a_shard_that_comes_back_with_a_damaged_file(self, divided: Damaged) -> None:
        datanets = divided.restore()
        divided.file.write_bytes(changed(divided.backup))
        assert datanets.damages() == {}
        start_anew(datanets, 1)
        sent = signed("eve", [*divided.drafts, *sample_drafts(6, "mail")], datanet="mails")
        outcomes = [verdict.outcome for verdict in datanets.contribute(sent).verdicts]
        found = [ordinal for ordinal, outcome in enumerate(outcomes) if outcome == "reject"]
        assert found == [*divided.ordinals(sound=True), *range(NUM_ROWS, NUM_ROWS + 6)]
        assert list(datanets.damages()) == ["docs"]
        assert datanets.publish("mails").num_rows == 6 + len(divided.ordinals(sound=False))

    def test_keeps_rows_that_were_judged_and_that_a_damaged_shard_did_not_take(self, divided: Damaged) -> None:
        datanets = divided.restore()
        divided.file.write_bytes(changed(divided.backup))
        start_anew(datanets, 1)
        later = sample_drafts(NUM_ROWS, "later")
        datanets._index.absorb(judged := datanets._judge(signed("bob", later), None)[1])
        assert any(shard_of(row_id, 3) == 1 for row_id, _, _ in judged.rows)  # type: ignore[attr-defined]
        start_anew(datanets, 1)
        copied = datanets.preview(signed("eve", later, datanet="mails"))
        assert {verdict.reasons for verdict in copied} == {("exact_duplicate",)}


def hosts(datanets: Datanets) -> tuple[Any, ...]:
    return datanets._shards


def start_anew(datanets: Datanets, number: int) -> None:
    """A shard, as its actor is: what it has in memory is lost."""
    host = hosts(datanets)[number]
    vars(host).update(vars(ShardHost(host._place)))

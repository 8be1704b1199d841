import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import apsw
import pytest

from openledger.adapters.card import AdapterCard, save_card
from openledger.adapters.registry import AdapterRegistry
from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound
from openledger.core.values import AdapterTerms


def _terms(name: str, digest: str) -> AdapterTerms:
    return AdapterTerms(
        adapter=name, adapter_digest=digest, datanet="d", datanet_version=1, row_root="00", owner_account="acct_o",
        prompt_price_nano=1, completion_price_nano=2,
    )  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "registry" / name).mkdir(parents=True)
    return tmp_path / "registry"


class TestRegister:
    def test_is_found_by_name_and_digest(self, root: Path) -> None:
        made = AdapterRegistry(root).register("a", root / "a", "d1", _terms("a", "d1"))
        registry = AdapterRegistry(root)
        assert registry.get("a") == registry.find_digest("d1") == made
        assert made.terms == _terms("a", "d1")

    def test_the_same_again_writes_nothing(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        first = registry.register("a", root / "a", "d1")
        assert registry.register("a", root / "a", "d1") == first
        assert registry.list() == (first,)

    def test_new_terms_for_the_same_adapter_replace_the_old(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        registry.register("a", root / "a", "d1")
        registry.register("a", root / "a", "d1", _terms("a", "d1"))
        assert AdapterRegistry(root).get("a").terms == _terms("a", "d1")

    def test_another_digest_under_the_name_is_a_conflict(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        registry.register("a", root / "a", "d1")
        with pytest.raises(Conflict):
            registry.register("a", root / "b", "d2")
        assert registry.get("a").digest == "d1"

    @pytest.mark.parametrize("name", ["", "..", "../a", "A", "a/b", ".a", "a" * 129, "a\n"])
    def test_bad_names_are_refused(self, root: Path, name: str) -> None:
        with pytest.raises(InvalidInput, match="not a valid name"):
            AdapterRegistry(root).register(name, root / "a", "d1")

    def test_folders_elsewhere_are_refused(self, root: Path) -> None:
        (root.parent / "elsewhere").mkdir()
        (root / "link").symlink_to(root.parent / "elsewhere")
        for folder in (root.parent / "elsewhere", root / "link", root / ".." / "elsewhere", root, root / "missing"):
            with pytest.raises(InvalidInput, match="no folder below"):
                AdapterRegistry(root).register("a", folder, "d1")

    def test_terms_of_another_adapter_are_refused(self, root: Path) -> None:
        with pytest.raises(InvalidInput, match="terms"):
            AdapterRegistry(root).register("a", root / "a", "d1", _terms("b", "d1"))


class TestSharing:
    def test_another_process_writing_is_seen(self, root: Path) -> None:
        reader, writer = AdapterRegistry(root), AdapterRegistry(root)
        assert reader.list() == ()
        writer.register("b", root / "b", "d2")
        writer.register("a", root / "a", "d1")
        assert [adapter.name for adapter in reader.list()] == ["a", "b"]

    def test_writers_lose_nothing_of_each_other(self, root: Path) -> None:
        context = multiprocessing.get_context("spawn")
        writers = [context.Process(target=_register_many, args=(root, prefix)) for prefix in "xy"]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert len(AdapterRegistry(root).list()) == 20

    def test_moving_the_whole_keeps_the_folders(self, root: Path) -> None:
        AdapterRegistry(root).register("a", root / "a", "d1")
        moved = root.rename(root.with_name("moved"))
        assert AdapterRegistry(moved).get("a").folder == str(moved.resolve() / "a")

    def test_who_reads_does_not_wait_for_who_writes(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        registry.register("a", root / "a", "d1")
        with registry._writing(), ThreadPoolExecutor(1) as pool:
            assert pool.submit(registry.get, "a").result(timeout=5).digest == "d1"


class TestMissing:
    def test_unknown_names_and_digests(self, root: Path) -> None:
        with pytest.raises(NotFound) as by_name:
            AdapterRegistry(root).get("a")
        with pytest.raises(NotFound) as by_digest:
            AdapterRegistry(root).find_digest("d")
        assert (by_name.value.code, by_digest.value.code) == ("unknown_model", "unknown_adapter")

    def test_removed_is_gone_and_its_files_stay(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        registry.register("a", root / "a", "d1")
        registry.remove("a")
        assert AdapterRegistry(root).list() == ()
        assert (root / "a").is_dir()
        with pytest.raises(NotFound):
            registry.remove("a")


class TestFirstFormat:
    def test_is_taken_over_with_terms_and_folders(self, root: Path) -> None:
        terms = _terms("a", "d1")
        entries = {"a": {"folder": "a", "digest": "d1", "terms": asdict(terms)}, "b": _entry("b", "d2")}
        _write_first_format(root, entries)
        registry = AdapterRegistry(root, ManualClock(time_ms=7))
        assert [(one.name, one.digest, one.terms) for one in registry.list()] == [("a", "d1", terms), ("b", "d2", None)]
        assert registry.get("a").folder == str(root.resolve() / "a")

    def test_is_taken_over_once(self, root: Path) -> None:
        _write_first_format(root, {"a": _entry("a", "d1")})
        AdapterRegistry(root).remove("a")
        assert AdapterRegistry(root).list() == ()

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other", "adapters": {}}', '{"adapters": {}}'])
    def test_an_unreadable_file_is_told_and_nothing_is_made_of_it(self, root: Path, content: str) -> None:
        (root / "registry.json").write_text(content)
        for _ in range(2):
            with pytest.raises(Corrupt):
                AdapterRegistry(root).list()

    def test_an_entry_that_leads_outside_is_refused(self, root: Path) -> None:
        _write_first_format(root, {"a": _entry("../../etc", "d1")})
        with pytest.raises(Corrupt, match="outside"):
            AdapterRegistry(root)


class TestBases:
    def test_an_adapter_names_its_base_by_digest(self, root: Path) -> None:
        AdapterRegistry(root).register("a", root / "a", "d1", base_digest="b1")
        found = AdapterRegistry(root).get("a")
        assert (found.base_digest, found.is_base) == ("b1", False)

    def test_registered_again_without_a_word_of_it_it_stays(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        registry.register("a", root / "a", "d1", base_digest="b1")
        assert registry.register("a", root / "a", "d1").base_digest == "b1"

    def test_a_base_is_its_own(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        registry.register("llama", None, "b1", source="/models/llama", base_digest="b1")
        assert registry.find_digest("b1").is_base

    def test_a_registry_that_knew_none_takes_them_from_the_cards(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        registry.register("a", root / "a", "d1")
        registry.register("b", root / "b", "d2")
        registry.close()
        save_card(root / "a", _card("a", "d1", base_digest="b7"))
        with apsw.Connection(str(root / "registry.db")) as connection:
            connection.execute("ALTER TABLE adapters DROP COLUMN base_digest")
            connection.execute("UPDATE meta SET value = 'openledger.adapter-registry/2' WHERE name = 'format'")
        connection.close()
        for _ in range(2):
            found = AdapterRegistry(root)
            assert [found.get(name).base_digest for name in ("a", "b")] == ["b7", ""]


class TestCorrupt:
    @pytest.mark.parametrize("content", [b"not a database, though long enough to be taken for one" * 40])
    def test_an_unreadable_file_is_told(self, root: Path, content: bytes) -> None:
        (root / "registry.db").write_bytes(content)
        with pytest.raises(Corrupt):
            AdapterRegistry(root).list()

    def test_another_format_is_told(self, root: Path) -> None:
        AdapterRegistry(root).close()
        connection = apsw.Connection(str(root / "registry.db"))
        connection.execute("UPDATE meta SET value = 'other'")
        connection.close()
        with pytest.raises(Corrupt, match="other"):
            AdapterRegistry(root)

    def test_an_entry_that_leads_outside_is_refused(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        registry.register("a", root / "a", "d1")
        registry._db.execute("UPDATE adapters SET folder = '../../etc'")
        with pytest.raises(Corrupt, match="outside"):
            registry.get("a")


class TestSource:
    def test_an_adapter_may_lie_elsewhere(self, root: Path) -> None:
        AdapterRegistry(root).register("a", None, "d1", source="s3://bucket/a")
        assert AdapterRegistry(root).get("a").place == "s3://bucket/a"

    def test_neither_folder_nor_source_is_refused(self, root: Path) -> None:
        with pytest.raises(InvalidInput):
            AdapterRegistry(root).register("a", None, "d1")


class TestSwitch:
    def test_the_name_stands_for_the_other_adapter_at_once(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        first = registry.register("a", root / "a", "d1", shared_with=("user:ada",))
        registry.switch("a", root / "b", "d2", _terms("a", "d2"))
        now = AdapterRegistry(root).get("a")
        assert (now.digest, now.shared_with, now.created_ms) == ("d2", ("user:ada",), first.created_ms)

    def test_what_was_sold_stays_findable_and_is_sold_no_more(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        registry.register("a", root / "a", "d1", _terms("a", "d1"), shared_with=("user:ada",))
        registry.switch("a", root / "b", "d2", _terms("a", "d2"))
        kept = registry.find_digest("d1")
        assert (kept.name, kept.folder, kept.terms) == ("a.d1", str(root / "a"), None)
        registry.retire("a")
        assert registry.find_digest("d2").folder == str(root / "b")
        assert (registry.page(account="acct_o"), len(registry.list())) == ((), 2)

    def test_a_digest_with_another_name_gets_no_third_one(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        for name in ("a", "b"):
            registry.register(name, root / "a", "d1", _terms(name, "d1"))
        registry.retire("a")
        assert [one.name for one in registry.list()] == ["b"]

    def test_a_stranger_who_took_the_name_to_be_kept_under_keeps_nobody_from_it(self, root: Path) -> None:
        registry, digest = AdapterRegistry(root), "ab" * 32
        name = "a" * 128
        registry.register(name, root / "a", digest, _terms(name, digest))
        registry.register(f"{'a' * 115}.{digest[:12]}", root / "b", "d2", _terms(f"{'a' * 115}.{digest[:12]}", "d2"))
        registry.retire(name)
        assert registry.find_digest(digest).name == f"{'a' * 63}.{digest}"
        assert registry.find_digest("d2").terms is not None

    def test_a_name_that_is_not_there_is_told(self, root: Path) -> None:
        with pytest.raises(NotFound):
            AdapterRegistry(root).switch("a", root / "a", "d1")


class TestPages:
    def test_go_through_all_that_are_sold_by_name(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        for number in range(7):
            registry.register(f"m{number}", root / "a", f"d{number}", _terms(f"m{number}", f"d{number}"))
        registry.register("m3-not-sold", root / "a", "d9")
        seen, after = [], ""
        while page := registry.page(after=after, limit=3):
            seen += [adapter.name for adapter in page]
            after = page[-1].name
        assert seen == [f"m{number}" for number in range(7)]

    def test_leave_out_what_an_account_may_not_ask(self, root: Path) -> None:
        registry = AdapterRegistry(root)
        registry.register("a", root / "a", "d1", _terms("a", "d1"), shared_with=("user:ada",))
        told = {who: [one.name for one in registry.page(account=who)] for who in ("user:ada", "user:bob", "acct_o", "")}
        assert told == {"user:ada": ["a"], "user:bob": [], "acct_o": ["a"], "": []}
        assert [registry.get("a").may_be_asked_by(who) for who in told] == [True, False, True, False]


def _card(name: str, digest: str, base_digest: str) -> AdapterCard:
    return AdapterCard(
        name=name, digest=digest, base_model="b", base_digest=base_digest, datanet="d", datanet_version=1,
        row_root="00", rows_trained=(), contributors={}, recipe={}, environment={}, code_version="0", initial_a="",
        final_loss=1.0,
    )  # fmt: skip


def _entry(folder: str, digest: str) -> dict[str, object]:
    return {"folder": folder, "digest": digest, "terms": None}


def _write_first_format(root: Path, adapters: dict[str, object]) -> None:
    content = {"format": "openledger.adapter-registry/1", "adapters": adapters}
    (root / "registry.json").write_text(json.dumps(content))


def _register_many(root: Path, prefix: str) -> None:
    registry = AdapterRegistry(root)
    for number in range(10):
        registry.register(f"{prefix}{number}", root / "a", "d1")

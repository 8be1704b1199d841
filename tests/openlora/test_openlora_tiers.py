"""Tiers on a node: what is found, what leaves, and that nothing half-written is ever found."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openlora_models import Served

from openledger.adapters.card import adapter_digest
from openledger.adapters.sources import SourceRules
from openledger.core.errors import Corrupt, InvalidInput, Unavailable
from openledger.openlora.tiers import AdapterTiers, FolderTier, TierOptions


class Clock:
    time_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.time_s


def filler(size: int):  # type: ignore[no-untyped-def]
    return lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * size)


class TestFolderTier:
    def test_what_was_added_is_found(self, tmp_path: Path) -> None:
        tier = FolderTier(tmp_path / "tier", 100)
        added = tier.add("a", filler(10))
        assert tier.find("a") == added
        assert (tier.digests(), tier.num_bytes()) == (("a",), 10)
        assert tier.find("b") is None

    def test_is_filled_once(self, tmp_path: Path) -> None:
        tier, calls = FolderTier(tmp_path / "tier", 100), []
        for _ in range(2):
            tier.add("a", lambda folder: (calls.append(1), filler(1)(folder)))
        assert calls == [1]

    def test_is_seen_by_another_process_s_tier(self, tmp_path: Path) -> None:
        FolderTier(tmp_path / "tier", 100).add("a", filler(10))
        assert FolderTier(tmp_path / "tier", 100).find("a") is not None

    def test_a_fill_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        tier = FolderTier(tmp_path / "tier", 100)

        def broken(folder: Path) -> None:
            filler(5)(folder)
            raise Corrupt("cut short")

        with pytest.raises(Corrupt):
            tier.add("a", broken)
        assert tier.find("a") is None
        assert [path.name for path in (tmp_path / "tier").iterdir() if not path.name.startswith(".lock")] == []

    def test_what_lay_longest_leaves_first(self, tmp_path: Path) -> None:
        clock = Clock()
        tier = FolderTier(tmp_path / "tier", 30, clock)
        for digest in "abc":
            tier.add(digest, filler(10))
            tier.find(digest)
            clock.time_s += 100
        tier.find("a")
        clock.time_s += 100
        tier.add("d", filler(10))
        assert set(tier.digests()) == {"a", "c", "d"}

    def test_of_two_used_at_once_the_larger_leaves(self, tmp_path: Path) -> None:
        clock = Clock()
        tier = FolderTier(tmp_path / "tier", 30, clock)
        for digest, size in (("small", 5), ("large", 20)):
            tier.add(digest, filler(size))
            tier.find(digest)
        clock.time_s += 10
        tier.add("new", filler(10))
        assert set(tier.digests()) == {"small", "new"}

    def test_one_larger_than_all_is_refused_and_drives_nobody_out(self, tmp_path: Path) -> None:
        tier = FolderTier(tmp_path / "tier", 30)
        tier.add("a", filler(10))
        with pytest.raises(Unavailable) as caught:
            tier.add("b", filler(31))
        assert (caught.value.code, tier.digests()) == ("adapter_tier_full", ("a",))

    def test_is_read_where_it_is_full_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tier, readings = FolderTier(tmp_path / "tier", 1000), []
        read = tier._entries
        monkeypatch.setattr(tier, "_entries", lambda: readings.append(1) or read())
        for number in range(100):
            tier.add(f"{number:08x}", filler(10))
        assert len(readings) == 1  # to begin the count
        for number in range(100, 160):
            tier.add(f"{number:08x}", filler(10))
        assert len(readings) <= 12
        assert 1000 - 1000 // 16 - 10 <= tier.num_bytes() <= 1000

    def test_a_count_that_is_too_high_drives_nobody_out(self, tmp_path: Path) -> None:
        tier = FolderTier(tmp_path / "tier", 30)
        for digest in "abc":
            tier.add(digest, filler(10))
        tier.remove("a")
        tier.add("d", filler(10))
        assert set(tier.digests()) == {"b", "c", "d"}

    @pytest.mark.parametrize("counted", ["", "12x", "-3"])
    def test_a_count_that_can_not_be_read_is_made_anew(self, tmp_path: Path, counted: str) -> None:
        tier = FolderTier(tmp_path / "tier", 30)
        for digest in "ab":
            tier.add(digest, filler(10))
        (tmp_path / "tier" / ".held").write_text(counted)
        tier.add("c", filler(10))
        tier.add("d", filler(10))
        assert len(tier.digests()) == 3
        assert "d" in tier.digests()

    def test_a_limit_holds_for_several_processes_together(self, tmp_path: Path) -> None:
        tiers = [FolderTier(tmp_path / "tier", 100) for _ in range(3)]
        for number in range(60):
            tiers[number % 3].add(f"{number:08x}", filler(7))
            assert tiers[0].num_bytes() <= 100
        assert tiers[0].num_bytes() > 100 - 7 - 100 // 16 - 7

    @pytest.mark.parametrize("digest", ["../a", "a/b", "", ".new-x"])
    def test_a_digest_that_is_no_name_is_refused(self, tmp_path: Path, digest: str) -> None:
        with pytest.raises(InvalidInput):
            FolderTier(tmp_path / "tier", 30).find(digest)

    def test_many_at_once_never_find_a_part(self, tmp_path: Path) -> None:
        """Each has a tier, and so locks, of its own, as processes have."""
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(_add_and_read, [str(tmp_path / "tier")] * 12)) == [[4096] * 8] * 12


def _add_and_read(folder: str) -> list[int]:
    tier = FolderTier(Path(folder), 1 << 20)
    paths = [tier.add(f"{number:08x}", filler(4096)) for number in range(8)]
    return [(path / "adapter_model.safetensors").stat().st_size for path in paths]


@pytest.fixture
def tiers(served: Served, tmp_path: Path) -> AdapterTiers:
    options = TierOptions(disk_folder=str(tmp_path / "disk"), host_folder=str(tmp_path / "host"))
    return AdapterTiers(options, SourceRules(folders=(str(served.folders["one"].parent),)))


class TestTiers:
    def test_a_local_directory_is_copied_to_memory_only_and_the_second_time(
        self, served: Served, tiers: AdapterTiers, tmp_path: Path
    ) -> None:
        digest, source = served.digests["one"], str(served.folders["one"])
        assert tiers.find(digest, source) == served.folders["one"]
        assert tiers.describe() == {"disk_bytes": 0, "host_bytes": 0}
        found = tiers.find(digest, source)
        assert found == tmp_path / "host" / digest
        assert adapter_digest(found) == digest
        assert tiers.describe()["disk_bytes"] == 0

    def test_what_is_elsewhere_is_found_once_it_was_fetched(
        self, served: Served, tiers: AdapterTiers, tmp_path: Path
    ) -> None:
        digest, source = served.digests["two"], f"file://{served.folders['two']}"
        assert tiers.find(digest, source) is None
        assert tiers.fetch(digest, source) == tmp_path / "disk" / digest
        assert tiers.find(digest, source) == tmp_path / "disk" / digest
        assert tiers.find(digest, source) == tmp_path / "host" / digest

    def test_a_look_whether_it_is_here_is_no_question_for_it(
        self, served: Served, tiers: AdapterTiers, tmp_path: Path
    ) -> None:
        digest, source = served.digests["two"], f"file://{served.folders['two']}"
        assert not tiers.has(digest, source)
        tiers.fetch(digest, source)
        assert [tiers.has(digest, source) for _ in range(3)] == [True] * 3
        assert tiers.find(digest, source) == tmp_path / "disk" / digest

    def test_what_was_asked_once_is_forgotten_after_many_others(
        self, served: Served, tiers: AdapterTiers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("openledger.openlora.tiers._REMEMBERED", 2)
        folder = served.folders["one"]
        asked = [tiers.find(digest, str(folder)) for digest in ("a", "b", "b", "c", "d", "a")]
        assert [found == folder for found in asked] == [True, True, False, True, True, True]

    def test_of_another_content_nothing_stays(self, served: Served, tiers: AdapterTiers) -> None:
        with pytest.raises(Corrupt):
            tiers.fetch("0" * 64, f"file://{served.folders['two']}")
        assert tiers.describe() == {"disk_bytes": 0, "host_bytes": 0}

    def test_what_memory_can_not_take_is_read_from_below(self, served: Served, tmp_path: Path) -> None:
        options = TierOptions(disk_folder=str(tmp_path / "disk"), host_folder=str(tmp_path / "host"), host_bytes=10)
        tiers = AdapterTiers(options, SourceRules())
        found = [tiers.find(served.digests["one"], str(served.folders["one"])) for _ in range(3)]
        assert found == [served.folders["one"]] * 3

    def test_a_link_among_the_files_is_not_followed_into_memory(
        self, served: Served, tiers: AdapterTiers, tmp_path: Path
    ) -> None:
        folder = tmp_path / "linked"
        folder.mkdir()
        for path in served.folders["one"].iterdir():
            (folder / path.name).symlink_to(path)
        assert [tiers.find(served.digests["one"], str(folder)) for _ in range(2)] == [folder] * 2
        assert tiers.describe()["host_bytes"] == 0

    def test_forgotten_is_gone_from_all(self, served: Served, tiers: AdapterTiers) -> None:
        digest, source = served.digests["two"], f"file://{served.folders['two']}"
        tiers.fetch(digest, source)
        for _ in range(2):
            tiers.find(digest, source)
        tiers.forget(digest)
        assert tiers.find(digest, source) is None

    def test_bytes_in_memory_are_those_of_the_files(self, served: Served, tiers: AdapterTiers) -> None:
        for _ in range(2):
            tiers.find(served.digests["one"], str(served.folders["one"]))
        names = ("adapter_config.json", "adapter_model.safetensors")
        expected = sum((served.folders["one"] / name).stat().st_size for name in names)
        assert tiers.describe()["host_bytes"] == expected

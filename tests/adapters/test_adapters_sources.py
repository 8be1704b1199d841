"""Adapters from elsewhere: which places are read, how much of them, and what is refused by name."""

from pathlib import Path

import fsspec
import pytest
from adapter_folders import write_adapter

from openledger.adapters.card import adapter_digest
from openledger.adapters.checks import AdapterLimits
from openledger.adapters.sources import SourceRules, check_source, fetch
from openledger.core.errors import Corrupt, Forbidden, InvalidInput, NotFound, TooLarge, Unavailable


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def rules(store: Path) -> SourceRules:
    return SourceRules(folders=(str(store),), schemes=("file", "hf", "s3", "memory"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


class TestPlaces:
    @pytest.mark.parametrize(
        ("source", "uri"),
        [("org/name", "hf://org/name"), ("org/name@v1", "hf://org/name@v1"), ("s3://bucket/a", "s3://bucket/a")],
    )
    def test_that_may_be_read(self, rules: SourceRules, source: str, uri: str) -> None:
        assert check_source(source, rules) == uri

    @pytest.mark.parametrize(
        "source",
        ["", "a", "../a", "s3://bucket/../other", "zip://x::s3://b/a", "simplecache::s3://b/a", "s3://b/a?x=1", "s3://",
         "org/name/more", "file:///x\n"],
    )  # fmt: skip
    def test_that_are_no_places(self, rules: SourceRules, source: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            check_source(source, rules)
        assert caught.value.code == "invalid_adapter_source"

    @pytest.mark.parametrize("source", ["http://169.254.169.254/a", "ftp://h/a", "/etc", "file:///etc", "github://a/b"])
    def test_that_may_not_be_read(self, rules: SourceRules, source: str) -> None:
        with pytest.raises(Forbidden) as caught:
            check_source(source, rules)
        assert caught.value.code == "adapter_source_forbidden"

    def test_a_link_out_of_the_allowed_folder_is_forbidden(self, store: Path, rules: SourceRules) -> None:
        write_adapter(store.parent / "elsewhere" / "a")
        store.mkdir()
        (store / "link").symlink_to(store.parent / "elsewhere")
        with pytest.raises(Forbidden):
            check_source(str(store / "link" / "a"), rules)


class TestFetch:
    def test_copies_the_three_files_and_no_other(self, store: Path, rules: SourceRules, target: Path) -> None:
        write_adapter(store / "a", card=True)
        (store / "a" / "README.md").write_text("no")
        digest = fetch(str(store / "a"), target, rules)
        assert digest == adapter_digest(store / "a") == adapter_digest(target)
        names = {"adapter_config.json", "adapter_model.safetensors", "card.json"}
        assert {path.name for path in target.iterdir()} == names

    def test_from_object_storage(self, store: Path, rules: SourceRules, target: Path) -> None:
        write_adapter(store / "a")
        memory = fsspec.filesystem("memory")
        for path in (store / "a").iterdir():
            memory.pipe(f"/bucket/a/{path.name}", path.read_bytes())
        assert fetch("memory://bucket/a", target, rules) == adapter_digest(store / "a")

    def test_another_content_than_expected_is_corrupt(self, store: Path, rules: SourceRules, target: Path) -> None:
        write_adapter(store / "a")
        with pytest.raises(Corrupt) as caught:
            fetch(str(store / "a"), target, rules, "0" * 64)
        assert caught.value.code == "adapter_digest_mismatch"

    def test_a_file_that_is_a_link_is_refused(self, store: Path, rules: SourceRules, target: Path) -> None:
        write_adapter(store / "a")
        weights = store / "a" / "adapter_model.safetensors"
        weights.rename(store / "real")
        weights.symlink_to(store / "real")
        with pytest.raises(InvalidInput) as caught:
            fetch(str(store / "a"), target, rules)
        assert (caught.value.code, list(target.iterdir())) == ("linked_adapter", [])

    def test_pickled_weights_alone_are_refused(self, store: Path, rules: SourceRules, target: Path) -> None:
        write_adapter(store / "a")
        (store / "a" / "adapter_model.safetensors").rename(store / "a" / "adapter_model.bin")
        with pytest.raises(InvalidInput) as caught:
            fetch(str(store / "a"), target, rules)
        assert caught.value.code == "pickled_adapter"

    def test_more_than_the_limit_is_not_copied(self, store: Path, target: Path) -> None:
        write_adapter(store / "a")
        rules = SourceRules(folders=(str(store),), limits=AdapterLimits(max_bytes=100))
        with pytest.raises(TooLarge) as caught:
            fetch(str(store / "a"), target, rules)
        assert caught.value.param == "adapter_model.safetensors"

    def test_storage_that_lies_about_its_size_is_cut_off(
        self, store: Path, rules: SourceRules, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = fsspec.filesystem("memory")
        memory.pipe("/liar/a/adapter_config.json", b"{}")
        memory.pipe("/liar/a/adapter_model.safetensors", b"x" * 1000)
        listing = memory.ls("/liar/a", detail=True)
        monkeypatch.setattr(type(memory), "ls", lambda *_, **__: [{**entry, "size": 1} for entry in listing])
        small = SourceRules(schemes=("memory",), limits=AdapterLimits(max_bytes=100))
        with pytest.raises(TooLarge):
            fetch("memory://liar/a", target, small)

    @pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
    def test_what_lacks_a_file_is_told(self, store: Path, rules: SourceRules, target: Path, missing: str) -> None:
        write_adapter(store / "a")
        (store / "a" / missing).unlink()
        with pytest.raises(NotFound) as caught:
            fetch(str(store / "a"), target, rules)
        assert caught.value.param == missing

    def test_nothing_there_is_told(self, store: Path, rules: SourceRules, target: Path) -> None:
        with pytest.raises(NotFound) as caught:
            fetch(str(store / "a"), target, rules)
        assert caught.value.code == "missing_adapter"

    @pytest.mark.parametrize("config", ["{", "[]", "null", "\ud83c".encode("utf-8", "surrogatepass").decode("latin-1")])
    def test_an_unreadable_configuration_is_corrupt(
        self, store: Path, rules: SourceRules, target: Path, config: str
    ) -> None:
        write_adapter(store / "a")
        (store / "a" / "adapter_config.json").write_text(config)
        with pytest.raises(Corrupt):
            fetch(str(store / "a"), target, rules)

    def test_storage_that_fails_in_the_middle_is_unavailable(
        self, store: Path, rules: SourceRules, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = fsspec.filesystem("memory")
        memory.pipe("/down/a/adapter_config.json", b"{}")
        memory.pipe("/down/a/adapter_model.safetensors", b"x" * 10)

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("connection reset by peer")

        monkeypatch.setattr(type(memory), "open", broken)
        with pytest.raises(Unavailable) as caught:
            fetch("memory://down/a", target, rules)
        assert caught.value.code == "adapter_storage_unavailable"

"""Settings survive the way to YAML and back, and unknown ones are refused by name."""

from dataclasses import dataclass, field

import pytest

from openledger.core.config import load_settings, save_settings
from openledger.core.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    rank: int = 8
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    port: int = 1
    inner: Inner = field(default_factory=Inner)


def test_settings_come_back_as_they_were(tmp_path):
    settings = Outer(port=7, inner=Inner(rank=4, names=("x",)))
    save_settings(settings, tmp_path / "config.yaml")
    assert load_settings(Outer, tmp_path / "config.yaml") == settings


def test_what_is_not_named_keeps_its_default(tmp_path):
    (tmp_path / "config.yaml").write_text("inner: {rank: 2}")
    assert load_settings(Outer, tmp_path / "config.yaml") == Outer(inner=Inner(rank=2))


@pytest.mark.parametrize("text", ["prot: 7", "inner: {rnak: 2}", "[1, 2]", "a: [", "\x00"])
def test_what_cannot_be_read_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InvalidInput) as caught:
        load_settings(Outer, tmp_path / "config.yaml")
    assert caught.value.code == "invalid_config"


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidInput):
        load_settings(Outer, tmp_path / "none.yaml")

"""Settings as frozen dataclasses, kept as YAML beside what they produced, from which a run can be replayed."""

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from openledger.core.errors import InvalidInput
from openledger.core.files import write_durably

Settings = TypeVar("Settings")


def save_settings(settings: Any, path: Path) -> None:
    """Write every setting, defaults included, so that the file alone says what was run."""
    write_durably(path, yaml.safe_dump(_plain(asdict(settings)), sort_keys=True, allow_unicode=True).encode())


def load_settings(cls: type[Settings], path: Path) -> Settings:
    """The settings stored at `path`. Raises InvalidInput for YAML that doesn't parse and for unknown settings."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} can't be read: {error}", code="invalid_config", param=str(path)) from error
    return settings_from(cls, values, str(path))


def settings_from(cls: type[Settings], values: Any, origin: str) -> Settings:
    if not isinstance(values, dict):
        raise InvalidInput(f"{origin} holds no settings", code="invalid_config", param=origin)
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InvalidInput(
            f"unknown settings in {origin}: {', '.join(unknown)}",
            code="invalid_config",
            param=unknown[0],
            fix=f"known are: {', '.join(sorted(known))}",
        )
    nested = {
        name: settings_from(type(default), value, f"{origin}:{name}")
        for name, value in values.items()
        if is_dataclass(default := _default(known[name])) and isinstance(value, dict)
    }
    try:
        return cls(**{**{name: _frozen(value) for name, value in values.items()}, **nested})
    except TypeError as error:
        raise InvalidInput(f"{origin}: {error}", code="invalid_config", param=origin) from error


def _default(field: Any) -> Any:
    factory = field.default_factory
    return factory() if callable(factory) else field.default


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value

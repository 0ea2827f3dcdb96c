"""Typed configuration: a frozen dataclass is the schema, a YAML file and `key=value` words are the values."""

import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that does not fit its schema; the text names the key, the known keys and the fix."""


def load(schema: type[T], path: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()) -> T:
    """Builds a `schema` from its defaults, then a YAML file, then `key=value` words (dots reach nested keys)."""
    layers = []
    if path is not None:
        layers.append((str(path), _read_yaml(Path(path))))
    if overrides:
        layers.append(("the command line", _parse_overrides(overrides)))
    try:
        config = OmegaConf.structured(schema)
        for where, values in layers:
            _check_keys(schema, values, where=where)
            config = OmegaConf.merge(config, values)
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        return _build(schema, cast(dict[str, Any], plain))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error


def from_words(schema: type[T], words: Sequence[str]) -> T:
    """A recipe's command line: a YAML file first, if any, then `key=value` words."""
    has_file = bool(words) and "=" not in words[0]
    return load(schema, words[0] if has_file else None, words[has_file:])


def save(config: object, path: str | os.PathLike[str]) -> None:
    """Writes a config as YAML under a temporary name and renames it."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(to_yaml(config), encoding="utf-8")
    os.replace(temporary, path)


def to_yaml(config: object) -> str:
    """The YAML text of a config, keys in the order of its fields."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        values = OmegaConf.load(path)
    except Exception as error:  # PyYAML has a dozen exception types; all of them mean "not YAML"
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    if not isinstance(values, DictConfig):
        raise ConfigError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    return values


def _parse_overrides(overrides: Sequence[str]) -> DictConfig:
    for word in overrides:
        if "=" not in word.lstrip("="):
            raise ConfigError(f"{word!r}: an override is written key=value")
    return OmegaConf.from_dotlist(list(overrides))


def _check_keys(schema: type, values: Mapping[str, Any], *, where: str, prefix: str = "") -> None:
    known = {field.name for field in fields(schema)}
    hints = typing.get_type_hints(schema)
    for key in values:
        if key not in known:
            names = ", ".join(prefix + name for name in sorted(known))
            raise ConfigError(f"{where}: unknown key {prefix + str(key)!r}; known keys: {names}")
        if is_dataclass(hints[key]) and isinstance(values[key], Mapping):
            _check_keys(hints[key], values[key], where=where, prefix=f"{prefix}{key}.")
        if (named := _named_schema(hints[key])) and isinstance(values[key], Mapping):
            for name, value in values[key].items():
                if isinstance(value, Mapping):
                    _check_keys(named, value, where=where, prefix=f"{prefix}{key}.{name}.")


def _named_schema(hint: Any) -> type | None:
    """The dataclass of a dict[str, dataclass]: parts that the configuration names itself."""
    found = typing.get_args(hint)
    inside = found[1] if typing.get_origin(hint) is dict else None
    return inside if isinstance(inside, type) and is_dataclass(inside) else None


def _build(schema: type[T], values: Mapping[str, Any]) -> T:
    hints = typing.get_type_hints(schema)
    return schema(**{key: _convert(hints[key], value) for key, value in values.items()})


def _convert(hint: Any, value: Any) -> Any:
    if is_dataclass(hint) and isinstance(value, Mapping):
        return _build(cast(type, hint), value)
    if (named := _named_schema(hint)) and isinstance(value, Mapping):
        return {name: _build(named, part) for name, part in value.items()}
    if isinstance(value, list) and _is_tuple(hint):
        return tuple(value)  # OmegaConf hands back lists; a frozen config keeps what its annotation says
    return value


def _is_tuple(hint: Any) -> bool:
    choices = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    return any(typing.get_origin(choice) is tuple for choice in choices)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())

"""Plain data to frozen dataclasses, by their annotations, with errors that name the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from policies.core.errors import ConfigError

T = TypeVar("T")

# Numbers that something is divided by, or a count of things that must exist.
POSITIVE = frozenset(
    {
        "t0_s",
        "n",
        "s_max",
        "max_num_seqs",
        "max_context_tokens",
        "max_prompt_tokens",
        "num_devices",
        "decode_knee",
    }
)


def read_fields(cls: type[T], data: Any, source: str, prefix: str = "") -> T:
    """The dataclass `cls` from a mapping of exactly its fields, nested ones included.

    Numbers must be finite and >= 0 (> 0 for the keys in `POSITIVE`); a field with a default may be
    left out. Everything else is a ConfigError that names `source`, the key and what is allowed.
    """
    if not is_dataclass(cls):
        raise TypeError(f"{cls} is no dataclass")
    if not isinstance(data, Mapping):
        raise _wrong(source, prefix.rstrip(".") or "document", data, "a mapping")
    known = {item.name: item for item in fields(cls)}
    for key in data:
        if key not in known:
            raise ConfigError(f"{source}: unknown key {prefix}{key}; allowed: {', '.join(known)}")
    hints = get_type_hints(cls)
    values = {}
    for name, item in known.items():
        if name in data:
            values[name] = _value(hints[name], data[name], source, f"{prefix}{name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(
                f"{source}: missing key {prefix}{name}; allowed: {_allowed(hints[name])}"
            )
    return cls(**values)


def _value(kind: Any, value: Any, source: str, key: str) -> Any:
    if isinstance(kind, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        kind = next(arg for arg in get_args(kind) if arg is not NoneType)
    if is_dataclass(kind):
        return read_fields(kind, value, source, f"{key}.")  # type: ignore[arg-type]
    if get_origin(kind) is dict:
        if isinstance(value, Mapping) and all(
            isinstance(part, str) for pair in value.items() for part in pair
        ):
            return dict(value)
    elif kind in (str, bool):
        if isinstance(value, kind):
            return value
    elif _is_number(value, whole=kind is int, positive=key.rsplit(".", 1)[-1] in POSITIVE):
        return value if kind is int else float(value)
    raise _wrong(source, key, value, _allowed(kind, key))


def _is_number(value: Any, *, whole: bool, positive: bool) -> bool:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        return False
    return value > 0 if positive else value >= 0


def _allowed(kind: Any, key: str = "") -> str:
    if get_origin(kind) is dict:
        return "a mapping of text to text"
    if kind in (str, bool):
        return "text" if kind is str else "true or false"
    if kind in (int, float):
        noun = "a whole number" if kind is int else "a finite number"
        return f"{noun} {'> 0' if key.rsplit('.', 1)[-1] in POSITIVE else '>= 0'}"
    return "a mapping" if is_dataclass(kind) else str(kind)


def _wrong(source: str, key: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(f"{source}: {key} is {value!r}; allowed: {allowed}")

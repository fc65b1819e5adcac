"""Configurations: dataclasses of plain values and of parts, by dotted keys, checked with pydantic. No torch.

A field is an int, float, bool or text, `Annotated` with the `Interval` it must lie in, a `Literal` of its
choices, or a part, which is such a dataclass. Knows none in particular: the language model's is declared in
model/parts.py and model/config.py; a program of the user's has its own (runner/design/program.py).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Interval
from pydantic_core import ValidationError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = [
    "Annotated", "ConfigError", "Interval", "as_dict", "build", "canonical_json", "check_fields", "flatten",
    "full_key", "kinds", "value_of", "with_values",
]  # fmt: skip

_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
}


class ConfigError(ValueError):
    """The field, its value, and the remedy, in one line."""

    exit_code = 65
    cause = "bad_config"


def check_fields(config: Any, part: str) -> None:
    """Hold every field to its annotation; a float's whole number is widened, and its -0.0 is 0.0.

    Raises:
        ConfigError: names the first field that is wrong, its value and the remedy.
    """
    for name, value in _checked(config.__class__, vars(config), part).items():
        object.__setattr__(config, name, value)  # a frozen dataclass


def build(cls: type, nested: Mapping[str, Any], part: str = "") -> Any:
    """An instance of the nested values of all its fields, each checked before the class sees it.

    Raises:
        ConfigError: names the first field that is wrong, or has what the class's own check said.
    """
    hints, values = _hints(cls), dict(nested)
    for name, inner in nested.items():
        if is_dataclass(hints[name]):
            values[name] = build(hints[name], inner, f"{part}.{name}".removeprefix("."))
    checked = _checked(cls, values, part)
    try:
        return cls(**checked)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{part or cls.__name__}: {error or type(error).__name__}") from error


def as_dict(config: Any) -> dict[str, Any]:
    """The fields as nested plain values."""
    # vars, not asdict: fields are plain values, and a study of 100,000 runs asks several times for each.
    return {name: as_dict(value) if is_dataclass(value) else value for name, value in vars(config).items()}


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy with dotted or short keys replaced, checked together once all are in place.

    Raises:
        ConfigError: a key is unknown or ambiguous, or a value is refused.
    """
    nested, known = as_dict(config), list(kinds(config.__class__))
    for key, value in values.items():
        *parts, name = full_key(known, key).split(".")
        inner = nested
        for part in parts:
            inner = inner[part]
        inner[name] = value
    return build(type(config), nested)


def value_of(config: Any, key: str) -> Any:
    """The value under a dotted key."""
    found = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def full_key(known: Iterable[str], key: str, elsewhere: Mapping[str, str] | None = None) -> str:
    """The dotted form of a dotted or short key, among those that are known.

    Args:
        elsewhere: what others call a key → its dotted form, for the hint.

    Raises:
        ConfigError: none has that name, or several have.
    """
    known = list(known)
    if key in known:
        return key
    matches = [name for name in known if name.rsplit(".", 1)[-1] == key]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"{key}: ambiguous; write {' or '.join(matches)}")
    shorts = {name.rsplit(".", 1)[-1]: name for name in known}
    meant = (elsewhere or {}).get(key.rsplit(".", 1)[-1])
    close = [meant] if meant else difflib.get_close_matches(key, [*known, *shorts], n=1)
    hint = f"did you mean {shorts.get(close[0], close[0])}?" if close else f"keys: {', '.join(known)}"
    raise ConfigError(f"{key!r}: no such key; {hint}")


def canonical_json(value: Any) -> str:
    """Sorted keys, no white space, no NaN: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one table of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@cache
def kinds(cls: type, prefix: str = "") -> dict[str, str]:
    """Every dotted key of a configuration, those of its parts first, and its kind: int, float, bool or str.

    Raises:
        ConfigError: a field is of another type.
    """
    inner: dict[str, str] = {}
    own: dict[str, str] = {}
    for field in fields(cls):
        key, hint = f"{prefix}{field.name}", _hints(cls)[field.name]
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        if get_origin(hint) is Literal:
            hint = type(get_args(hint)[0])
        if is_dataclass(hint):
            assert isinstance(hint, type)
            inner |= kinds(hint, f"{key}.")
        elif hint in (int, float, bool, str):
            own[key] = hint.__name__
        else:
            raise ConfigError(f"{key}: a field is an int, float, bool, str, Literal or dataclass, not {hint}")
    return inner | own


def _checked(cls: type, values: Mapping[str, Any], part: str) -> dict[str, Any]:
    try:
        checked = _adapter(cls).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, value = str(first["loc"][0]), first["input"]
        remedy = _remedy(first["type"], _hints(cls)[name])
        raise ConfigError(f"{part}.{name} = {value!r}: {remedy}".removeprefix(".")) from None
    # + 0.0 makes -0.0, which would have another hash, the number that it is.
    return {name: value + 0.0 if isinstance(value, float) else value for name, value in checked.items()}


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@cache
def _adapter(cls: type) -> TypeAdapter[dict[str, Any]]:
    """Of the fields as a mapping: validated as a dataclass it would call __post_init__, which calls this."""
    # Only where a configuration is made: `status` makes none, and need not wait for these.
    from pydantic import ConfigDict, TypeAdapter, with_config
    from typing_extensions import TypedDict

    strict = with_config(ConfigDict(strict=True, allow_inf_nan=False))
    return TypeAdapter(strict(TypedDict(cls.__name__, _hints(cls))))  # type: ignore[operator]


def _remedy(kind: str, hint: Any) -> str:
    """What a value must be, by pydantic's name for what is wrong with it."""
    if kind == "literal_error":
        return f"choose one of {', '.join(map(str, get_args(hint)))}"
    if kind == "finite_number":
        return "must be a finite number"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    if get_origin(hint) is Annotated:
        interval = hint.__metadata__[0]
        return f"must lie between {interval.ge} and {interval.le}"
    return "a part of the configuration; set its keys instead"

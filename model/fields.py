"""How a configuration's fields are held to what their annotations say, with pydantic. Imports no torch.

A field is an int, a float or a text, `Annotated` with the `Interval` it must lie in, or a `Literal` of its
choices. What is declared so: model/parts.py and model/config.py.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Interval
from pydantic_core import ValidationError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["Annotated", "ConfigError", "Interval", "check_fields", "kinds"]

_KINDS = {"int_type": "a whole number", "float_type": "a number", "string_type": "text"}


class ConfigError(ValueError):
    """The field, its value, and the remedy, in one line."""

    exit_code = 65


def check_fields(config: Any, part: str) -> None:
    """Hold every field to its annotation; a float's whole number is widened, and its -0.0 is 0.0.

    Raises:
        ConfigError: names the first field that is wrong, its value and the remedy.
    """
    try:
        values = _adapter(config.__class__).validate_python(vars(config))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, value = str(first["loc"][0]), first["input"]
        remedy = _remedy(first["type"], _hints(config.__class__)[name])
        raise ConfigError(f"{part}.{name} = {value!r}: {remedy}".removeprefix(".")) from None
    for name, value in values.items():
        # A frozen dataclass; + 0.0 makes -0.0, which would have another hash, the number that it is.
        object.__setattr__(config, name, value + 0.0 if isinstance(value, float) else value)


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
        return f"choose one of {', '.join(get_args(hint))}"
    if kind == "finite_number":
        return "must be a finite number"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    if get_origin(hint) is Annotated:
        interval = hint.__metadata__[0]
        return f"must lie between {interval.ge} and {interval.le}"
    return "a part of the configuration; set its keys instead"

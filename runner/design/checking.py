"""How a grid file's content is held to its schema, with pydantic: one line for the first thing that is wrong.

The schema itself: runner/design/grid_file.py, with levels.py and hypotheses.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from model.config import ConfigError

CLOSED = ConfigDict(extra="forbid")
"""Of a dataclass that is a table of the file: a key that is no field is refused."""
LONGEST_VALUE = 120
"""Characters of a refused value that a message shows; the rest is cut."""


def told(remedy: str, within: int = 0) -> WrapValidator:
    """Says `remedy` in place of pydantic's own words, about the value and up to `within` keys inside it."""

    def check(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            if len(error.errors(include_url=False)[0]["loc"]) > within:
                raise
            raise PydanticCustomError("remedy", "{remedy}", {"remedy": remedy}) from None

    return WrapValidator(check)


def checked(schema: type, content: Any, inner: Mapping[int | str, type]) -> Any:
    """The content as an instance of the schema.

    Args:
        schema: a dataclass whose annotations say what each key must be.
        inner: key of the content → the dataclass of the tables that it holds.

    Raises:
        ConfigError: names the first key that is wrong, its value and the remedy.
    """
    try:
        return TypeAdapter(schema).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        raise first["ctx"]["error"]  # one of the file's own checks has said it already
    keys = ", ".join(f.name for f in fields(inner.get(first["loc"][0], schema)))
    if first["type"] == "unexpected_keyword_argument":
        raise ConfigError(f"{_path(first['loc'])}: no such key; keys: {keys}")
    if first["type"] == "missing":
        raise ConfigError(f"{_path(first['loc'])}: missing; add it, one of the keys {keys}")
    text = repr(first["input"])
    shown = text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
    remedy = _REMEDIES.get(first["type"], first["msg"])
    raise ConfigError(f"{_path(first['loc'])} = {shown}: {remedy}")


_REMEDIES = {
    "dict_type": "must be a table",
    "dataclass_type": "must be a table",
    "string_type": "must be a text",
}


def _path(keys: tuple[int | str, ...]) -> str:
    """claims 1: kind, or scales.smoke.base; a key that would not print on one line is quoted."""
    path = ""
    for key in keys:
        if isinstance(key, int):
            path += f" {key + 1}: "
        else:
            joint = "." if path and not path.endswith(" ") else ""
            path += joint + (key if key.isprintable() else repr(key))
    return path.removesuffix(": ")

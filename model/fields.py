"""How a configuration's fields are declared and held to their rules. Imports no torch.

What is declared with it: model/config.py.
"""

from __future__ import annotations

import math
from dataclasses import field, fields, is_dataclass
from typing import Any


class ConfigError(ValueError):
    """The field, its value, and the remedy, in one line."""

    exit_code = 65


def whole(default: int, low: int, high: int) -> Any:
    return field(default=default, metadata={"type": int, "low": low, "high": high})


def real(default: float, low: float, high: float) -> Any:
    return field(default=default, metadata={"type": float, "low": low, "high": high})


def choice(default: str, *options: str) -> Any:
    return field(default=default, metadata={"type": str, "options": options})


def text(default: str) -> Any:
    return field(default=default, metadata={"type": str})


def check_fields(config: Any, part: str) -> None:
    """Hold every field to its declared type and range; widen int to float where a float is due."""
    for spec in fields(config):
        if is_dataclass(getattr(config, spec.name)):
            continue
        name = f"{part}.{spec.name}" if part else spec.name
        value = _checked(name, getattr(config, spec.name), dict(spec.metadata))
        object.__setattr__(config, spec.name, value)


def _checked(name: str, value: Any, rule: dict[str, Any]) -> Any:
    expected = rule.get("type")
    if expected is None:
        raise ConfigError(f"{name} = {value!r}: a part of the configuration; set its keys instead")
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, expected) or isinstance(value, bool):
        kind = {int: "a whole number", float: "a number", str: "text"}[expected]
        raise ConfigError(f"{name} = {value!r}: must be {kind}")
    if "options" in rule and value not in rule["options"]:
        raise ConfigError(f"{name} = {value!r}: choose one of {', '.join(rule['options'])}")
    if "low" in rule:
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} = {value}: must be a finite number")
        value += type(value)(0)  # -0.0 becomes 0.0: one number, one hash
        if not rule["low"] <= value <= rule["high"]:
            raise ConfigError(f"{name} = {value}: must lie between {rule['low']} and {rule['high']}")
    return value

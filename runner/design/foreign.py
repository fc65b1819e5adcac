"""What a file of results says that this program did not make: each row as a run, what each column means.

`export`'s own file comes back whole; what anybody's does not say is unknown. Every complaint names the line.
How the file becomes rows of texts: spreadsheet.py. What is made of the runs: importing.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.config import ConfigError, canonical_json
from runner.design.checking import CLOSED, checked
from runner.design.program import Program, load
from runner.design.spreadsheet import Sheet, read_sheet

_NOT_MEASURED = ("job_id", "attempt", "recorded_at", "exact")
_OF_RUN = ("seed", "study", "config_hash", "config", "status")
_STATES = {
    **dict.fromkeys(("", "done", "finished", "completed", "complete", "success"), "done"),
    **dict.fromkeys(("failed", "crashed", "killed", "error", "cancelled", "preempted"), "failed"),
}


@dataclass(frozen=True)
class Conventions:
    """IMPORTS of a program: what its files have beside its measures and keys."""

    __pydantic_config__ = CLOSED
    converted: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Column → measure, and what the column is multiplied by."""
    factors: tuple[str, ...] = ()
    """Keys that are factors where the file has them, whether they vary or not."""
    exponentials: dict[str, str] = field(default_factory=dict)
    """Measure → the one whose exponential it is: held to be that, and made where the file has none."""


@dataclass(frozen=True)
class Run:
    """One run of the file."""

    cell: dict[str, Any]
    seed: int
    config: dict[str, Any]
    config_hash: str
    exact: int
    results: dict[str, float | int | None] | None
    """None for a run that failed."""


@dataclass(frozen=True)
class Imported:
    """A file's runs, and what it says of all of them."""

    rows: list[Run]
    factors: list[str]
    shared: dict[str, str]


def read_results(path: Path, columns: str = "", program: Program | None = None) -> Imported:
    """The rows of the file, checked.

    Args:
        program: whose keys and measures the columns are; the language model's by default.
        columns: `val_loss=eval/loss,seed=trial,factor=router,none=Name`: our name for a column, a column that
            is a factor, one that is left out.

    Raises:
        ConfigError: no such file, a column that is missing, or varies and is nobody's, or a value that is
            refused; names the line.
    """
    program = program or load()
    outcome = program.measures[0].name
    sheet = read_sheet(path, columns)
    listed = ", ".join(sheet.columns) or "none"
    missing = [name for name in ("seed", outcome) if name not in sheet.columns]
    if missing:
        raise ConfigError(
            f"{path}: no column {' and none '.join(missing)}; it has {listed}; add --columns "
            f"{','.join(f'{name}=THEIRS' for name in missing)}, or --program FILE where the results are of a "
            "program of your own"
        )
    if not sheet.rows:
        raise ConfigError(f"{path}: no rows under its header")
    if len({row.get("study") for row in sheet.rows}) > 1:
        raise ConfigError(f"{path}: several studies in its column study; import each from a file of its own")
    own = _conventions(program)
    factors = _factors(path, sheet, program, own)
    shared = {name: _shared(path, sheet, name) for name in _of_study(program) if name in sheet.columns}
    found: dict[str, Run] = {}
    for line, texts in zip(sheet.lines, sheet.rows, strict=True):
        row = _Reader(f"{path} line {line}", texts, sheet.decimal_comma, program, own).row(factors)
        if row.config_hash in found:
            raise ConfigError(f"{path} line {line}: seed {row.seed} of this cell stands there twice")
        found[row.config_hash] = row
    if not any(row.results for row in found.values()):
        raise ConfigError(f"{path}: no row has a finite {outcome}")
    return Imported(list(found.values()), factors, shared)


def _conventions(program: Program) -> Conventions:
    """What the program declares of its files; what is wrong there is named."""
    try:
        found: Conventions = checked(Conventions, getattr(program.module, "IMPORTS", {}), {})
    except ConfigError as error:
        raise ConfigError(f"{program.path}: IMPORTS: {error}") from None
    ours = {ours for ours, _ in found.converted.values()}
    named = ours | found.exponentials.keys() | {*found.exponentials.values()}
    if unknown := named - {measure.name for measure in program.measures}:
        raise ConfigError(f"{program.path}: IMPORTS: {min(unknown)!r} is not in METRICS")
    return found


def _of_study(program: Program) -> tuple[str, ...]:
    """Columns that must be the same in every row: they describe the whole study."""
    return (*program.facts(program.default), "grid")


def _factors(path: Path, sheet: Sheet, program: Program, own: Conventions) -> list[str]:
    """The columns that tell conditions apart: none that varies is passed over."""
    if "cell" in sheet.columns:  # export's own, which says them
        return list(parsed(path, "cell", sheet.rows[0]["cell"]))
    known = {*_measured(program), *own.converted, *_of_study(program), *_NOT_MEASURED, *_OF_RUN}
    found = []
    for name in sheet.columns:
        varies = len({row[name] for row in sheet.rows}) > 1
        chosen = name in sheet.factors or (name in own.factors and _is_key(program, name))
        if chosen or (varies and name not in known and _is_key(program, name)):
            found.append(name)
        elif varies and name not in known:
            raise ConfigError(
                f"{path}: column {name} varies and is not known: --columns factor={name} makes it a factor, "
                f"none={name} leaves it out, and OURS={name} says what it measures"
            )
    return found


def _measured(program: Program) -> dict[str, bool]:
    """Measures that a file may have as columns; whether they are whole numbers."""
    return {measure.name: measure.decimals == 0 for measure in program.measures}


def _is_key(program: Program, name: str) -> bool:
    try:
        return bool(program.full_key(name))
    except ConfigError:
        return False


def _shared(path: Path, sheet: Sheet, name: str) -> str:
    values = {row[name] for row in sheet.rows}
    if len(values) > 1:
        raise ConfigError(f"{path}: several values of {name}; import each from a file of its own")
    return values.pop()


def parsed(where: object, column: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {column}: not the JSON that export wrote ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {column}: not the JSON that export wrote")
    return value


class _Reader:
    """One row's texts as values; every complaint names the line."""

    def __init__(
        self, where: str, texts: dict[str, str], decimal_comma: bool, program: Program, own: Conventions
    ) -> None:
        self.where, self.texts, self.decimal_comma = where, texts, decimal_comma
        self.program, self.own = program, own

    def row(self, factors: list[str]) -> Run:
        seed = self.number("seed")
        if seed is None or not math.isfinite(seed) or seed != int(seed):
            raise ConfigError(f"{self.where}: seed = {self.texts['seed']!r}: must be a whole number")
        if "cell" in self.texts:
            cell = parsed(self.where, "cell", self.texts["cell"])
        else:
            cell = {name: self.level(name) for name in factors}
        config, config_hash = self.configured(cell, int(seed))
        exact = int("config" in self.texts and self.texts.get("exact") == "1")
        return Run(cell, int(seed), config, config_hash, exact, self.measured())

    def number(self, column: str) -> float | None:
        """None if the cell is empty or the column is not there; may be NaN or infinite."""
        text = self.texts.get(column, "")
        if not text:
            return None
        try:
            return float(text.replace(",", ".") if self.decimal_comma else text)
        except ValueError as error:
            raise ConfigError(f"{self.where}: {column} = {text!r}: must be a number") from error

    def level(self, name: str) -> Any:
        text = self.texts[name]
        if not text:
            raise ConfigError(f"{self.where}: {name} is empty: a run must say its level")
        try:
            value = float(text.replace(",", ".") if self.decimal_comma else text)
        except ValueError:
            return text
        if not math.isfinite(value):
            raise ConfigError(f"{self.where}: {name} = {text!r}: must be a finite number or a name")
        return int(text) if text.lstrip("+-").isdigit() else value

    def configured(self, cell: dict[str, Any], seed: int) -> tuple[dict[str, Any], str]:
        """What is known of the run's configuration, and what tells it from the others."""
        if self.texts.get("config"):
            config = parsed(self.where, "config", self.texts["config"])
            return config, self.texts.get("config_hash") or _digest(config)
        program = self.program
        if not all(_is_key(program, name) for name in cell):
            return {"seed": seed}, _digest({"cell": cell, "seed": seed})
        try:
            config_of = program.with_values(program.default, {**cell, "seed": seed})
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {error}") from error
        cell.update({name: program.value(config_of, name) for name in cell})  # 0 and 0.0 are one level
        known: dict[str, Any] = {"seed": seed}
        for name, value in cell.items():
            part, _, key = program.full_key(name).rpartition(".")
            if part:
                known.setdefault(part, {})[key] = value
            else:
                known[key] = value
        return known, program.digest(config_of)

    def measured(self) -> dict[str, float | int | None] | None:
        """The run's measures; None for a run that failed, or whose loss is no number."""
        state = _STATES.get(self.texts.get("status", "").lower())
        if state is None:
            raise ConfigError(
                f"{self.where}: status = {self.texts['status']!r}: not finished, not failed; wait, or drop it"
            )
        measured = _measured(self.program)
        values = {name: self.number(name) for name in measured}
        outcome = values[self.program.measures[0].name]
        if state == "failed" or outcome is None or not math.isfinite(outcome):
            return None
        for theirs, (ours, factor) in self.own.converted.items():
            if values[ours] is None and (value := self.number(theirs)) is not None:
                values[ours] = value * factor
        for name, of in self.own.exponentials.items():
            if (power := values[of]) is not None:
                values[name] = self.exponential(name, of, power)
        for name, value in values.items():
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{self.where}: {name} = {value}: must be a finite number, or empty")
        return {
            name: round(value) if measured[name] and value is not None else value
            for name, value in values.items()
        }

    def exponential(self, name: str, of: str, power: float) -> float:
        """The file's, held to be exp of the other as far as its digits go; exp(power) where it has none."""
        told = self.number(name)
        due = math.exp(power) if power < 700 else math.inf
        if told is None:
            return due
        slack = due * max(self._half_a_digit(of), 1e-6) + self._half_a_digit(name)
        if not abs(told - due) <= 1.01 * slack:
            raise ConfigError(
                f"{self.where}: {name} = {told:g} is not exp({of}) = {due:.6g}: one is another "
                f"measure; --columns none={name} leaves it out and takes exp({of})"
            )
        return told

    def _half_a_digit(self, column: str) -> float:
        text = self.texts[column].replace(",", ".").lower()
        mantissa, _, exponent = text.partition("e")
        return float(0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])))


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()

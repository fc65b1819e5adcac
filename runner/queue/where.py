"""`--where "noise_std=0.5 and status=failed"`: a small grammar over jobs, parsed here, never pasted into SQL.

    any    = all { "or" all }           all = one { "and" one }
    one    = "not" one | "(" any ")" | name operator value | name "in" "(" value { "," value } ")"
    operator is one of = == != < <= > >=

A name is one of `columns()`, a key of the configuration, or a factor whose levels have names; a value is a
number, a word, or a text in quotes. Values reach the database bound, as parameters. Who selects with it:
runner/queue/selection.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from model.fields import ConfigError, full_key
from runner.queue.dialects import document
from runner.queue.schema import CAUSES, STATUSES, attempts, jobs, studies

MAX_CHARACTERS = 1_000
MAX_DEPTH = 20
"""Deepest nesting of parentheses and `not` that is read; deeper ones are refused."""
_ORDERED = ("<", "<=", ">", ">=")
_TOKEN = re.compile(
    r"""\s*(?: (?P<text>'[^']*'|"[^"]*") | (?P<operator>==|!=|<=|>=|=|<|>) | (?P<mark>[(),])
        | (?P<word>[^\s()=!<>,'"]+) )""",
    re.VERBOSE,
)


def counted(count: int, noun: str) -> str:
    """For a message: `1 run`, `3 runs`, `60,000 runs`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def written(values: Mapping[str, Any], between: str = ", ") -> str:
    """A cell, or some of its factors, as people read it: `noise_std=0.1, top_k=2`. Empty for none."""
    return between.join(f"{name}={value}" for name, value in values.items())


class WhereError(ConfigError):
    """The condition cannot be read: where, and what would be right."""


class Name(NamedTuple):
    """What a name stands for, and which values it may be compared with."""

    column: Any
    kind: type
    """int, float, bool or str."""
    options: tuple[str, ...] = ()


class _Token(NamedTuple):
    kind: str
    text: str
    at: int
    """Characters before it."""


def _last_cause() -> Any:
    return (
        sa.select(attempts.c.cause)
        .where(attempts.c.job_id == jobs.c.id, attempts.c.cause.is_not(None))
        .order_by(attempts.c.number.desc())
        .limit(1)
        .correlate(jobs)
        .scalar_subquery()
    )


def _study() -> Any:
    # The statement around it may hold `studies` too; without `correlate` that one would be meant.
    name = sa.select(studies.c.name).where(studies.c.id == jobs.c.study_id)
    return name.correlate(jobs).scalar_subquery()


def columns() -> dict[str, Name]:
    """The names beside the configuration's keys."""
    return {
        "id": Name(jobs.c.id, int),
        "status": Name(jobs.c.status, str, STATUSES),
        "study": Name(_study(), str),
        "cause": Name(_last_cause(), str, CAUSES),
        "held": Name(jobs.c.held, int),
        "priority": Name(jobs.c.priority, int),
        "attempt": Name(jobs.c.attempt, int),
        "failures": Name(jobs.c.failures, int),
        "progress_step": Name(jobs.c.progress_step, int),
        "hash": Name(jobs.c.config_hash, str),
    }


_KINDS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_READ: dict[str, Callable[[Any], Any]] = {
    "str": lambda inside: inside.as_string(),
    "int": lambda inside: inside.as_float(),
    "float": lambda inside: inside.as_float(),
    "bool": lambda inside: inside.as_boolean(),
}


def named(name: str, factors: Sequence[str] = (), programs: Sequence[Mapping[str, str]] = ()) -> Name:
    """The column, the key of the configuration, or the factor of named levels, that a name stands for.

    Args:
        programs: the keys of each program in the database, and what they hold; `steps` may be another's
            `train.steps`.

    Raises:
        ConfigError: there is none.
    """
    known = columns()
    if name in known:
        return known[name]
    if name == "seed":  # a column too: no need to open the configuration
        return Name(jobs.c.seed, int)
    if name in factors:
        return Name(sa.type_coerce(jobs.c.cell, sa.JSON)[name].as_string(), str)
    found: dict[str, str] = {}
    errors: list[ConfigError] = []
    for keys in programs:
        try:
            key = full_key(keys, name)
            found.setdefault(key, keys[key])
        except ConfigError as error:
            errors.append(error)
    if not found:
        said = errors[0] if errors else f"{name!r}: no such key"
        raise WhereError(f"{said}; or one of {', '.join(known)}")
    kind = "str" if "str" in found.values() else min(found.values())
    inside = [document(jobs.c.config)[tuple(key.split("."))] for key in found]
    values = [_READ[kind](each) for each in inside]
    return Name(values[0] if len(values) == 1 else sa.func.coalesce(*values), _KINDS[kind])


def condition(
    text: str, factors: Sequence[str] = (), programs: Sequence[Mapping[str, str]] = ()
) -> sa.ColumnElement[bool]:
    """The condition as an expression over `jobs`; true or false for every job, never unknown.

    `factors` are those of named levels, which are found in a job's cell alone.

    Raises:
        WhereError: it does not follow the grammar, or names or compares what it cannot.
    """
    if len(text) > MAX_CHARACTERS:
        raise WhereError(f"--where: {len(text)} characters, more than {MAX_CHARACTERS}; ask for less at once")
    return _Parser(text, factors, programs).whole()


class _Parser:
    """Recursive descent over the tokens; one method a line of the grammar."""

    def __init__(self, text: str, factors: Sequence[str], programs: Sequence[Mapping[str, str]]) -> None:
        self._tokens, self._factors, self._programs = _tokens(text), factors, programs
        self._next = 0

    def whole(self) -> sa.ColumnElement[bool]:
        found = self._any(0)
        if (rest := self._peek()).kind != "end":
            raise WhereError(f"--where: {rest.text!r} at {rest.at}: write `and` or `or` before it")
        return found

    def _any(self, depth: int) -> sa.ColumnElement[bool]:
        found = [self._all(depth)]
        while self._accept("or"):
            found.append(self._all(depth))
        return sa.or_(*found)

    def _all(self, depth: int) -> sa.ColumnElement[bool]:
        found = [self._one(depth)]
        while self._accept("and"):
            found.append(self._one(depth))
        return sa.and_(*found)

    def _one(self, depth: int) -> sa.ColumnElement[bool]:
        if depth > MAX_DEPTH:
            raise WhereError(f"--where: nested deeper than {MAX_DEPTH}; write it flatter")
        if self._accept("not"):
            return sa.not_(self._one(depth + 1))
        if self._accept("("):
            inside = self._any(depth + 1)
            self._expect(")")
            return inside
        return self._comparison()

    def _comparison(self) -> sa.ColumnElement[bool]:
        token = self._take()
        if token.kind != "word":
            raise WhereError(f"--where: {token.text!r} at {token.at}: expected a name, as in noise_std=0.5")
        name = named(token.text, self._factors, self._programs)
        if self._accept("in"):
            self._expect("(")
            values = [self._value(token.text, name)]
            while self._accept(","):
                values.append(self._value(token.text, name))
            self._expect(")")
            return _known(name.column.in_(values))
        operator = self._take()
        if operator.kind != "operator":
            raise WhereError(f"--where: after {token.text}: expected =, !=, <, <=, >, >= or in")
        if operator.text in _ORDERED and name.kind is str:
            raise WhereError(f"--where: {token.text} is a text: compare it with =, != or in")
        return _compared(name.column, operator.text, self._value(token.text, name))

    def _value(self, name: str, meant: Name) -> int | float | str:
        token = self._take()
        if token.kind not in ("word", "text"):
            raise WhereError(f"--where: {name}: expected a value, found {token.text!r} at {token.at}")
        return _typed(name, meant, token.text[1:-1] if token.kind == "text" else token.text)

    # --- tokens -------------------------------------------------------------------------------------------

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._peek()
        self._next += token.kind != "end"
        return token

    def _accept(self, word: str) -> bool:
        token = self._peek()
        found = token.kind in ("word", "mark") and token.text.lower() == word
        self._next += found
        return found

    def _expect(self, mark: str) -> None:
        if not self._accept(mark):
            raise WhereError(f"--where: expected {mark!r} at {self._peek().at}, found {self._peek().text!r}")


def _tokens(text: str) -> Sequence[_Token]:
    found: list[_Token] = []
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if not match or match.lastgroup is None:
            raise WhereError(f"--where: {text[position:].strip()[0]!r} at {position}: a quote left open?")
        found.append(_Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
        position = match.end()
    return [*found, _Token("end", "the end", len(text))]


def _typed(name: str, meant: Name, text: str) -> int | float | str:
    if meant.kind is str:
        if meant.options and text not in meant.options:
            raise WhereError(f"--where: {name} = {text!r}: one of {', '.join(meant.options)}")
        return text
    if meant.kind is bool:
        if text.lower() not in ("true", "false"):
            raise WhereError(f"--where: {name} = {text!r}: must be true or false")
        return text.lower() == "true"
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else float(text)
    except ValueError:
        raise WhereError(f"--where: {name} = {text!r}: must be a number") from None


def _compared(column: Any, operator: str, value: int | float | str) -> sa.ColumnElement[bool]:
    if operator in ("=", "=="):
        return _known(column == value)
    if operator == "!=":
        return sa.not_(_known(column == value))  # a job without the value is different from it
    ordered = {"<": column < value, "<=": column <= value, ">": column > value, ">=": column >= value}
    return _known(ordered[operator])


def _known(comparison: Any) -> sa.ColumnElement[bool]:
    """NULL compares to unknown, and `not unknown` would lose the job: unknown counts as false."""
    return sa.func.coalesce(comparison, sa.false()) == sa.true()

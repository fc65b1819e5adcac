"""What every command does: open the database, answer, ask before many jobs change, leave with its exit code.

For cli.py alone. The database's modules are imported when they are needed: `--help` starts at once.
"""

from __future__ import annotations

import errno
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from runner.queue.selection import Meant
    from runner.queue.store import Store

T = TypeVar("T")
PARTS = (
    CHOOSING := "Choosing a study",
    QUEUEING := "Into the queue",
    NIGHT := "The night",
    CHANGING := "Changing the queue",
    MORNING := "The morning after",
    MACHINE := "The machine and the files",
)
"""Headings of `--help`, of the README's table and of docs/commands.md, in this order."""
UNAVAILABLE, CANNOT_MAKE = 69, 73


class InParts(TyperGroup):
    """Lists the commands part by part; typer would put db, grids and launch last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands, in the order of PARTS and, within a part, of cli.py."""
        return sorted(self.commands, key=lambda name: PARTS.index(self.commands[name].rich_help_panel))  # type: ignore[attr-defined]


def say(text: str) -> None:
    """A notice, on stderr: stdout is for the answer."""
    print(text, file=sys.stderr)


def answer(data: T, as_json: bool, screen: Callable[[T], None]) -> None:
    """Print the data: as JSON for a program, or as the screen for people."""
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        screen(data)


@contextmanager
def opened(db: str, create: bool = False, for_worker: bool = False) -> Iterator[Store]:
    """The database at a path or URL, closed at the end. Raises what `open_store` raises.

    Whoever waits for it is told what for; a worker tells that itself.
    """
    from runner.queue.store import open_store

    store = open_store(db, create)
    store.told = None if for_worker else say
    try:
        yield store
    finally:
        store.close()


def run_folder(db: str, given: Path | None) -> Path:
    """The folder that --runs-dir names; else `runs` beside the database file, or here for a server's."""
    from runner.queue.store import locate

    return given or locate(db).folder / "runs"


def meant(
    store: Store, names: Sequence[str] | None, study: str | None, where: str | None, statuses: Sequence[str]
) -> list[Meant]:
    """The jobs in these states that the command names or selects; says so if there are none."""
    from runner.queue.selection import jobs_meant

    with store.read() as connection:
        found = jobs_meant(connection, names or [], study, where, statuses)
    if not found:
        say(f"no {' or '.join(statuses)} job matches: nothing changed")
    return found


def change(
    db: str,
    change: Callable[[Any, list[int]], dict[str, list[int]]],
    names: list[str] | None,
    study: str | None,
    where: str | None,
    yes: bool,
    statuses: Sequence[str] | None = None,
) -> None:
    """Show the jobs that are meant, ask if there are several, change them, and say what became of them.

    `statuses` are those of the jobs that can be meant; by default, those that are not over.
    """
    from runner.queue.schema import OPEN

    with opened(db) as store:
        found = meant(store, names, study, where, statuses or OPEN)
        if len(found) > 1 and not yes:
            ask(f"Change these {len(found)} jobs?", found)
        changed = store.write(lambda c: change(c, [job.id for job in found])) if found else {}
    for said, ids in changed.items():
        if ids:
            print(f"job {ids[0]}: {said}" if len(ids) == 1 else f"{len(ids)} jobs: {said}")


def ask(question: str, about: Sequence[Meant]) -> None:
    """List the jobs and go on only after a yes. Raises what `confirm` raises."""
    from runner.view import console

    console.chosen_screen(about)
    confirm(question)


def confirm(question: str) -> None:
    """Go on only after a yes.

    Raises:
        Exit: with 2, nobody is at the terminal.
        Abort: the answer is no.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        say("error: nobody is there to answer; add --yes")
        raise typer.Exit(2)
    typer.confirm(question, abort=True, err=True)


def run(app: typer.Typer) -> None:
    """Run the command that sys.argv names, and leave with its exit code."""
    from runner.work import output

    gc.set_threshold(100_000)  # loading modules makes no garbage, and looking for it takes half of the start
    output.set_up()
    code = _code_of(app)
    # Flushed here: at the interpreter's own exit nobody could say that it failed.
    sys.exit(_code_of(sys.stdout.flush) or code)


def _code_of(step: Callable[[], object]) -> Any:
    """Take the step; returns the exit code. A known error, which names its own, is one line on stderr."""
    try:
        step()
    except SystemExit as leaving:
        return leaving.code
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None and isinstance(error, OSError) and error.errno == errno.EMFILE:
            code, error = CANNOT_MAKE, OSError("too many open files: `ulimit -n 1024` allows more")
        if code is None and isinstance(error, OSError) and error.filename is not None:
            code = CANNOT_MAKE
            error = OSError(f"{error.filename}: {error.strerror}; give a folder that can be written")
        if code is None and isinstance(error, ModuleNotFoundError) and _is_a_package(error.name or ""):
            code = UNAVAILABLE
            error = OSError(f"{error.name} is not installed: `pip install -r requirements.txt` brings it")
        if code is None:
            raise
        if str(error):
            say(f"error: {error}")
        return code
    return 0


def _is_a_package(module: str) -> bool:
    """Whether it would have to be installed: a module of this project that is missing is a bug."""
    first = module.partition(".")[0]
    return bool(first) and not (Path(__file__).resolve().parents[2] / first).exists()

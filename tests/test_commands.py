"""Every command is helped, documented and completed; the small pictures that several of them print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
import typer

from runner.design.enqueue import enqueue
from runner.design.grid_file import load_grid
from runner.design.scales import adjust
from runner.queue.selection import find_job
from runner.queue.store import Store
from runner.view import text
from runner.view.arguments import seconds_until
from tests import warm
from tests.conftest import PROJECT, TEXT, environment

SCRIPTS = sorted(p.name for p in (PROJECT / "benchmarks").glob("*.py") if "__main__" in p.read_text())

# --- help, completion, documentation ----------------------------------------------------------------------


def commands() -> dict[str, str]:
    """Every command as it is typed, and its help text."""
    sys.path.insert(0, str(PROJECT))
    import cli as program

    found = {}
    groups = {
        "": program.app,
        "db ": program.db_app,
        "grids ": program.grids_app,
        "launch ": program.launch_app,
    }
    for prefix, app in groups.items():
        for command in app.registered_commands:
            callback = command.callback
            assert callback is not None
            found[prefix + (command.name or callback.__name__.strip("_"))] = callback.__doc__ or ""
    return {**found, "grids": program.grids.__doc__ or ""}  # a command that has one below it


def test_every_command_says_what_it_does_and_gives_an_example() -> None:
    for name, help_text in commands().items():
        assert re.search(r"^[A-Z].*[.:;,]", help_text), name
        assert re.search(rf"Example: .*python cli.py {name}\b", help_text), f"{name}: {help_text}"


def test_every_command_is_documented() -> None:
    text = "".join((PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/commands.md"))
    missing = [name for name in commands() if f"cli.py {name}" not in text]
    assert not missing, f"documented nowhere: {', '.join(missing)}"


@pytest.mark.slow
def test_every_documented_command_and_option_exists() -> None:
    text = (PROJECT / "docs/commands.md").read_text(encoding="utf-8")
    known = set(commands())
    pattern = r"python cli\.py ((?:db |launch |grids (?=show))?[a-z]+)"
    for words in re.findall(pattern, text):
        assert words in known, words
    done = {name: helped(name) for name in known}
    for name, options in re.findall(pattern + r"([^\n`]*)", text):
        for option in re.findall(r"(?<![\w\"'])--[a-z-]+", options.split("|")[0].split(" -- ")[0]):
            assert option in done[name], f"{name} {option}"


def test_the_documented_cells_are_jobs_of_the_shipped_grid(store: Store) -> None:
    """A cell that names several jobs is refused: an example must not be one."""
    store.write(lambda c: enqueue(c, "factorial-smoke", adjust(load_grid("factorial"), "smoke")))
    pages = [
        (PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/commands.md", "cli.py")
    ]
    cells = re.findall(
        r"(?:(?:show|logs|cancel|generate) |and the seed \(`)(noise_std=[\w.=,]+)", "".join(pages)
    )
    assert len(cells) >= 3
    with store.read() as connection:
        assert {find_job(connection, cell) for cell in cells} <= set(range(1, 19))


@pytest.mark.slow
@pytest.mark.parametrize("script", ["docs/options.py", "docs/results.py"])
def test_what_a_script_makes_of_the_documents_is_what_stands_there(script: str) -> None:
    words = [sys.executable, str(PROJECT / script), "--check"]
    done = warm.run(words, cwd=PROJECT, env=environment(), **TEXT)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_parts_of_the_help_are_those_of_the_documents_in_the_same_order() -> None:
    lines = re.findall(r"^(?:╭─ (.+?) ─+╮|│ ([a-z]+)  .*)$", helped(""), re.MULTILINE)
    assert lines[0][0] == "Options"
    shown = parts_of([(part, name) for part, name in lines if part != "Options"])
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ([A-Z][^|]*?)? ?\| ((?:`[a-z ]+`(?:, )?)+) \| ", readme, re.MULTILINE)
    cells = [(part, re.findall(r"`([a-z]+)", names)) for part, names in table]
    told = parts_of([line for part, names in cells for line in [(part, ""), *(("", name) for name in names)]])
    page = (PROJECT / "docs/commands.md").read_text(encoding="utf-8")
    documented = parts_of(re.findall(r"^(?:## (.+)|### ([a-z]+).*)$", page, re.MULTILINE))
    assert len(shown) == 6
    assert sum(map(len, shown.values())) == len({name.split()[0] for name in commands()})
    assert list(told.items()) == list(shown.items())
    assert list(documented.items()) == list(shown.items())


def parts_of(lines: list[tuple[str, str]]) -> dict[str, list[str]]:
    """(heading, "") and ("", command) lines as {heading: its commands}; a group of commands counts once."""
    parts: dict[str, list[str]] = {}
    for heading, name in lines:
        if heading:
            parts[heading] = []
        elif name and name not in (known := list(parts.values())[-1]):
            known.append(name)
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_starts(script: str, tmp_path: Path) -> None:
    """As it is typed, from any folder: what it imports is found, and it says what it does."""
    words = [sys.executable, str(PROJECT / "benchmarks" / script), "--help"]
    done = warm.run(words, cwd=tmp_path, env=environment(), **TEXT)
    assert done.returncode == 0, done.stderr


def helped(name: str) -> str:
    from typer.testing import CliRunner

    import cli as program

    return CliRunner().invoke(program.app, [*name.split(), "--help"], env={"COLUMNS": "200"}).output


def test_the_shell_completes_commands() -> None:
    asked = {"_CLI.PY_COMPLETE": "complete_bash", "COMP_WORDS": "cli.py pri", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, str(PROJECT / "cli.py")],
        env={**environment(), **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["prioritize"], done.stderr
    assert os.access(PROJECT / "cli.py", os.X_OK)


# --- times ------------------------------------------------------------------------------------------------


def test_until_is_the_next_time_a_clock_here_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        evening = datetime(2026, 11, 26, 22, 0, 30)
        assert seconds_until("23:00", evening) == 3570
        assert seconds_until("8:00", evening) == 10 * 3600 - 30
        assert seconds_until("22:00", evening) == 24 * 3600 - 30  # past: tomorrow's
        assert seconds_until("08:00", datetime(2026, 3, 28, 22, 0)) == 9 * 3600  # the clocks go forward
        assert seconds_until("08:00", datetime(2026, 10, 24, 22, 0)) == 11 * 3600  # and back
    finally:
        monkeypatch.undo()
        time.tzset()
    for wrong in ("24:00", "8", "8:60", "tomorrow"):
        with pytest.raises(typer.BadParameter, match="as in 08:00"):
            seconds_until(wrong, evening)


# --- small pictures ---------------------------------------------------------------------------------------


def test_pictures_have_the_height_and_length_of_what_they_show() -> None:
    assert text.bars([0, 1, 2, 4, 8], 8) == "▁▂▃▅█"
    assert text.bars([1, 2], 0) == "▁▁"
    assert text.curve([1.0, 2.0, 3.0], 10) == "▁▅█"
    assert text.curve([5.0, None, 5.0, float("inf")], 10) == "▁×▁×"
    assert text.curve([], 10) == ""
    assert text.thinned(list(range(100)), 4) == [24, 49, 74, 99]
    assert text.progress(5, 10, 4) == "━━╌╌"
    assert text.progress(3, 0, 4) == "╌╌╌╌"
    assert [text.duration(s) for s in (0, 59.4, 60, 3599, 3600, 11_100, 187_200, None)] == [
        *("0s", "59s", "1m", "59m", "1h00m", "3h05m", "2d04h", "–")
    ]
    assert [text.size(b) for b in (0, 999, 1500, 2_500_000, 3e9)] == [
        *("0 B", "999 B", "1.5 kB", "2.5 MB", "3.0 GB")
    ]

"""Static pages of the night, for a telephone: written again and again, each whole or not at all.

`index.html` has every study as a grid of cells, what runs, and what failed; `study-NAME.html` one study with
the first screen of its report. They load themselves again each minute, hold no program, and their policy
forbids everything but their own style. No server of ours: any static one, or a synced folder, shows them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from runner.page.night import Night, Screen, night
from runner.queue.store import Store, StoreUnavailable
from runner.view.frame import GLYPHS
from runner.view.text import plain

EVERY_SECONDS = 60.0
_HERE = Path(__file__).parent


class Screens:
    """First screens of reports, each made again only when a result or a job of its study has changed."""

    def __init__(self, make: Screen) -> None:
        self._make = make
        self._made: dict[str, tuple[object, str]] = {}

    def __call__(self, connection: sa.Connection, study: str) -> str:
        moved = connection.execute(
            sa.text(
                "SELECT COUNT(*), COUNT(r.job_id), MAX(r.recorded_at), MAX(s.test_revealed_at), "
                "MAX(j.finished_at) FROM jobs j JOIN studies s ON s.id = j.study_id "
                "LEFT JOIN results r ON r.job_id = j.id WHERE s.name = :study"
            ),
            {"study": study},
        ).one()
        held = self._made.get(study)
        if held is None or held[0] != tuple(moved):
            self._made[study] = held = (tuple(moved), self._make(connection, study))
        return held[1]


def pages(shown: Night, css: str = "") -> dict[str, str]:
    """File name → page; `css` is the style that the first screens need."""
    style = Markup(css + (_HERE / "night.css").read_text(encoding="utf-8"))
    common = {"night": shown, "css": style, "glyphs": {state: glyph for state, (glyph, _) in GLYPHS.items()}}
    found = {"index.html": _template().render(**common, study=None)}
    return found | {file_of(study.name): _template().render(**common, study=study) for study in shown.studies}


def file_of(study: str) -> str:
    """File name of a study's page; the names of studies are safe in it."""
    return f"study-{study}.html"


def write(found: dict[str, str], folder: Path) -> None:
    """Put the pages in the folder, each whole or not at all, and take away those of studies that are gone.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        descriptor, beside = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
            Path(beside).chmod(0o644)
            Path(beside).replace(folder / name)
        except OSError:
            Path(beside).unlink(missing_ok=True)
            raise
    for old in folder.glob("study-*.html"):
        if old.name not in found:
            old.unlink(missing_ok=True)


def keep(
    store: Store,
    folder: Path,
    screen: Screen | None,
    css: str,
    wait: Callable[[float], bool],
    say: Callable[[str], None],
    every_seconds: float = EVERY_SECONDS,
) -> None:
    """Write the pages until `wait(seconds)` returns True, and then once more.

    What goes wrong is said and tried again at the next turn: the old pages stay as they are.
    """
    over = False
    while True:
        try:
            store.check_identity()
            with store.read() as connection:
                shown = night(connection, screen)
            write(pages(shown, css), folder)
        except (StoreUnavailable, OSError) as error:
            say(f"page: {plain(error)}")
        if over:
            return
        over = wait(every_seconds)


def parted(name: str) -> Markup:
    """A name that may go on in a new line after each comma: a telephone is narrower than many a cell."""
    return Markup(",<wbr>").join(name.split(","))


@cache
def _template() -> Template:
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"plain": plain, "parted": parted, "made": Markup}
    environment.globals |= {"file_of": file_of}
    return environment.get_template("night.html.jinja")

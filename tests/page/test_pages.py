"""The pages of a night: what they show, what they never show, and that they are whole at every moment."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from model.events import Measured
from reports.output import page as report_page
from runner.design.enqueue import enqueue
from runner.design.grid_file import parse_grid
from runner.page import beside, notices, pages
from runner.page.night import night, without_secrets
from runner.queue import jobs, records, schema
from runner.queue.store import Store
from tests import report_fixtures as made
from tests.conftest import PROJECT, rows
from tests.nights import claim
from tests.work.night import Night

HOSTILE = "<script>alert(1)</script> postgresql://me:hunter2@box/lab"


@pytest.fixture
def busy(queued: Store, worker: jobs.Worker) -> Store:
    """Job 1 failed for good, job 2 running with a curve of losses, two queued."""
    failed = claim(queued, worker)
    queued.write(lambda c: jobs.fail(c, failed, "diverged", HOSTILE))
    lease = claim(queued, worker)
    for step, loss in ((2, 9.0), (4, 7.0), (6, 5.0)):
        values = {"loss": loss, "tokens_per_second": 1234.0}
        queued.write(lambda c, s=step, v=values: records.record(c, lease, Measured(s, "train", v)))
    return queued


def shown(store: Store) -> dict[str, str]:
    with store.read() as connection:
        return pages.pages(night(connection))


def test_a_page_has_cells_what_runs_and_what_failed(busy: Store) -> None:
    found = shown(busy)
    assert set(found) == {"index.html", "study-tiny.html"}
    for text in found.values():
        states = re.findall(r'<i class="(\w+)" title="seed (\d+): \w+">', text)
        assert states == [("failed", "42"), ("queued", "43"), ("running", "42"), ("queued", "43")]
        assert "job 2 noise_std=0.5,<wbr>seed=42" in text
        assert 'points="0.0,0.0 50.0,50.0 100.0,100.0 "' in text  # the loss falls in a straight line
        assert "6/40 · loss 5.000, 1,234 tok/s" in text
        assert "diverged: " + html.escape("<script>alert(1)</script> postgresql://…@box/lab") in text
    assert '<a href="study-tiny.html">tiny</a>' in found["index.html"]


def test_a_study_that_looks_says_how_far_it_has_come(busy: Store) -> None:
    claim_ = {"name": "More is worse", "kind": "greater", "compare": {"top_k": 2}, "against": {"top_k": 1}}
    grid = {"factors": {"top_k": [1, 2]}, "claims": [claim_], "looks": {"seeds": [3, 6]}}
    busy.write(lambda c: enqueue(c, "looked", parse_grid(grid)))
    found = shown(busy)
    line = "no look yet: the first of 2 is at 3 seeds"
    assert [line in found[name] for name in ("index.html", "study-looked.html", "study-tiny.html")] == [
        *(True, True, False)
    ]


def test_what_is_worked_on_comes_first(busy: Store) -> None:
    busy.write(lambda c: enqueue(c, "newer", parse_grid({"factors": {"top_k": [1, 2]}, "seeds": [1]})))
    with busy.read() as connection:
        assert [study.name for study in night(connection).studies] == ["tiny", "newer"]


def test_a_page_is_no_program_and_gives_nothing_away(busy: Store, worker: jobs.Worker) -> None:
    for text in shown(busy).values():
        assert not re.search(
            r"<script|<form|<iframe|\son\w+=|javascript:|(?:src|href)=\"(?:https?:)?//", text
        )
        assert "default-src 'none'; style-src 'unsafe-inline'" in text
        assert '<meta http-equiv="refresh" content="60">' in text
        for secret in ("hunter2", str(busy.path), busy.database_id, f"pid {worker.pid}", str(PROJECT)):
            assert secret not in text
    assert without_secrets("at https://u:p@h/x, and mail a:b@c") == "at https://…@h/x, and mail a:b@c"


def test_the_first_screen_is_the_reports_own(store: Store) -> None:
    store.write(lambda c: made.curved_study(c, name="first"))
    screens = pages.Screens(report_page.first_screen)
    with store.read() as connection:
        found = pages.pages(night(connection, screens), report_page.css())["study-first.html"]
        again = night(connection, screens)
    assert '<header id="answer">' in found
    assert "noise_std=0.0" in found.split('<header id="answer">')[1]
    assert again.studies[0].screen in found
    asked: list[str] = []
    counted = pages.Screens(lambda _, study: asked.append(study) or "")  # type: ignore[func-returns-value]
    with store.read() as connection:
        assert [counted(connection, "first"), counted(connection, "first")] == ["", ""]
    assert asked == ["first"]  # made again only when something has moved
    store.write(
        lambda c: c.execute(sa.update(schema.jobs).where(schema.jobs.c.id == 1).values(finished_at=9e9))
    )
    with store.read() as connection:
        counted(connection, "first")
    assert asked == ["first", "first"]


def test_pages_are_exchanged_whole_and_those_of_deleted_studies_go(tmp_path: Path) -> None:
    folder = tmp_path / "public" / "night"
    pages.write({"index.html": "one", "study-a.html": "a"}, folder)
    seen = (folder / "index.html").open()
    pages.write({"index.html": "two"}, folder)
    assert seen.read() == "one"  # a reader in between has the old page whole
    seen.close()
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"index.html": "two"}


def test_what_goes_wrong_is_said_and_tried_again(busy: Store, tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "public"
    folder.write_text("a file in the way")

    def wait(_: float) -> bool:
        if folder.is_file():
            folder.unlink()
            return False
        return True

    pages.keep(busy, folder, None, "", wait, said.append)
    assert len(said) == 1
    assert said[0].startswith("page: ")
    assert (folder / "index.html").exists()


# --- the digest during the night --------------------------------------------------------------------------


class Clock:
    """Seconds that pass only while somebody waits; `then` happens before the waits that it names."""

    def __init__(self, waits: int, then: dict[int, object]) -> None:
        self.now, self.count, self._waits, self._then = 0.0, 0, waits, then

    def wait(self, seconds: float) -> bool:
        self.now, self.count = self.now + seconds, self.count + 1
        if (act := self._then.get(self.count)) is not None:
            act()  # type: ignore[operator]
        return self.count > self._waits

    def __call__(self) -> float:
        return self.now


def told(store: Store, folder: Path, every: float | None, waits: int, then: dict[int, object]) -> list[float]:
    """When a message was sent, in seconds."""
    clock, log = Clock(waits, then), folder / "told.txt"
    at: list[float] = []

    def wait(seconds: float) -> bool:
        if log.exists():
            assert log.read_text().startswith("Nightshift, ")
            at.append(clock.now)
            log.unlink()
        return clock.wait(seconds)

    said: list[str] = []
    notices.keep_telling(store, f"cat > {log}", every, wait, said.append, clock)
    assert said == []
    return at


def test_a_digest_goes_out_every_so_often(queued: Store, tmp_path: Path) -> None:
    assert told(queued, tmp_path, 120.0, 10, {}) == [120.0, 240.0]
    assert told(queued, tmp_path, None, 10, {}) == []


def test_a_failure_is_told_at_once_and_many_are_told_once(
    queued: Store, worker: jobs.Worker, tmp_path: Path
) -> None:
    def fail() -> None:
        lease = claim(queued, worker)
        queued.write(lambda c: jobs.fail(c, lease, "diverged", "loss is nan"))

    # Failures at 60, 90 and 120 s: one message at 60 s, one of the others ten minutes later.
    assert told(queued, tmp_path, None, 30, {2: fail, 3: fail, 4: fail}) == [60.0, 660.0]


# --- beside a night ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_work_writes_pages_and_tells_beside_the_night(night: Night) -> None:
    words = ["--page", "public", "--notify", "cat >> told.txt", "--notify-every", "2h"]
    done = night.run("work", *words)
    assert done.returncode == 0, done.stderr
    index = (night.folder / "public/index.html").read_text()
    assert index.count('<i class="done"') == 2
    assert "Nightshift: 2 done" in index
    assert (night.folder / "told.txt").read_text().count("Nightshift, ") == 1
    assert "2 done, 0 failed" in (night.folder / "told.txt").read_text()
    assert [row["status"] for row in rows(night.store, "jobs")] == ["done", "done"]
    refused = night.run("work", "--notify-every", "2h")
    assert (refused.returncode, "--notify COMMAND" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_a_companion_ends_when_its_pipe_closes(queued: Store, tmp_path: Path) -> None:
    """As it does when the worker is killed: the last page is written, and nobody is left."""
    companion = beside.Beside(["page", str(tmp_path / "public"), "--every", "1h"], str(queued.path))
    companion.end()
    assert (tmp_path / "public/index.html").exists()
    assert companion.returncode == 0

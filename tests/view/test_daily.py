"""The commands of a day: status, show, watch, and changes of one job or many."""

from __future__ import annotations

import io
import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from model.events import Measured
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.page import pages
from runner.page.night import night
from runner.queue import jobs, records
from runner.queue.series import digits
from runner.queue.store import Store
from runner.view import console, digest
from runner.view.details import job_details
from runner.view.frame import frame
from runner.view.job import job_screen
from runner.view.snapshot import Snapshot, snapshot
from runner.view.status import running_jobs, studies_overview
from tests.conftest import row, rows
from tests.nights import RESULT, claim, overview, printed

Cli = Callable[..., subprocess.CompletedProcess[str]]


# --- status, show, watch ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (8.00449, "8.004"), (5.0, "5.000"), (-0.0123, "-0.01230"), (1.2e-5, "1.200e-05"), (48210.4, "48,210"),
        (123.456, "123.5"), (0.0, "0"), (math.inf, "inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_a_value_of_any_series_has_four_digits(value: float, said: str) -> None:
    assert digits(value) == said


def test_status_shows_studies_and_running_jobs(queued: Store, worker: jobs.Worker) -> None:
    lease = claim(queued, worker)
    values = {"loss": 4.5, "tokens_per_second": 1234.0}
    queued.write(lambda c: records.record(c, lease, Measured(8, "train", values)))
    queued.write(lambda c: jobs.hold(c, [4]))
    with queued.read() as connection:
        lines = printed(console.status_screen, studies_overview(connection), running_jobs(connection))
    assert lines[1].split() == ["study", "queued", "running", "done", "failed", "cancelled", "ETA"]
    assert "tiny" in lines[2]
    assert "3 (1 paused)" in lines[2]
    job = next(line for line in lines if "noise_std=0.0,seed=42" in line)
    assert "8/40" in job
    assert "4.500" in job
    assert "1,234" in job
    assert lines[lines.index("Running") + 1].split()[3] == "loss"


def test_status_and_page_show_what_a_program_logs(queued: Store, worker: jobs.Worker) -> None:
    def logged(step: int, **values: float) -> None:
        queued.write(lambda c: records.record(c, lease, Measured(step, "train", values)))

    lease = claim(queued, worker)
    logged(1, **{"er\x1bror <b>": 2.0, "zeal": 7.0})
    logged(2, **{"er\x1bror <b>": 1.5, "later": 7.0})
    with queued.read() as connection:
        table = printed(console.status_screen, studies_overview(connection), running_jobs(connection))
        page = pages.pages(night(connection))["study-tiny.html"]
    assert "er�ror <b>" in table[table.index("Running") + 1]
    assert "1.500" in table[table.index("Running") + 2]
    assert "2/40 · er�ror &lt;b&gt; 1.500" in page
    assert "<span>2.000</span><span>training er�ror &lt;b&gt;</span><span>1.500</span>" in page
    assert "2/40 er�ror <b> 1.500 █▁" in "\n".join(frame_lines(snapshot_of(queued), 80, 24))
    lease = claim(queued, worker)
    logged(1, loss=3.0)
    with queued.read() as connection:
        table = printed(console.status_screen, studies_overview(connection), running_jobs(connection))
    assert table[table.index("Running") + 1].split()[3] == "value"
    assert [f" {name} " in "\n".join(table) for name in ("er�ror <b> 1.500", "loss 3.000")] == [True, True]


def test_reading_changes_nothing(cli: Cli, queued: Store, tmp_path: Path) -> None:
    queued.close()
    before = (tmp_path / "jobs.db").read_bytes()
    for words in (["status", "--json"], ["show", "1"], ["watch"], ["digest"], ["clean"], ["doctor"]):
        done = cli(*words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "jobs.db").read_bytes() == before


def test_status_as_json_is_for_programs(cli: Cli, queued: Store) -> None:
    queued.close()
    content = json.loads(cli("status", "--json").stdout)
    assert [study["name"] for study in content["studies"]] == ["tiny"]
    assert content["studies"][0]["queued"] == 4
    assert content["running"] == []


def test_show_has_the_whole_history(queued: Store, worker: jobs.Worker) -> None:
    lost = claim(queued, worker)
    queued.write(lambda c: jobs.fail(c, lost, "stalled", "no sign of life"))
    queued.write(lambda c: c.execute(sa.text("UPDATE jobs SET run_after = NULL")))
    lease = claim(queued, worker)
    queued.write(lambda c: records.describe(c, lease, {"git_commit": "c0ffee"}, "log", 1))
    queued.write(lambda c: records.record(c, lease, Measured(40, "val", {"loss": 1.0}, [[30, 10]])))
    queued.write(lambda c: records.record(c, lease, Measured(40, "test", {"loss": 77.0}, [[1, 99]])))
    queued.write(lambda c: jobs.finish(c, lease, RESULT))
    with queued.read() as connection:
        details = job_details(connection, 1)
        text = "\n".join(printed(job_screen, details))
    assert details["load"] == {0: [30, 10]}
    for part in ("stalled", "no sign of life", "c0ffee", "val_loss", "75.0%", "n_experts 4", "▇▃"):
        assert part in text, part
    assert "77" not in text  # the test split is sealed


def test_watch_on_a_pipe_prints_one_snapshot(cli: Cli, queued: Store, worker: jobs.Worker) -> None:
    lease = claim(queued, worker)
    for step, loss in ((2, 9.0), (4, 7.0), (6, float("nan")), (8, 5.0)):
        values = {"loss": loss, "tokens_per_second": 5.0}
        queued.write(lambda c, s=step, v=values: records.record(c, lease, Measured(s, "train", v)))
    queued.write(lambda c: jobs.cancel_all(c, [4]))
    done = cli("watch")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "noise_std=0.0 ▶ ·" in done.stdout
    assert "noise_std=0.5 · −" in done.stdout
    assert "8/40 loss 5.000 5 tok/s █▅×▁" in done.stdout
    assert "worker here cpu (pid 1): job 1" in done.stdout
    assert cli("watch", "--study", "other").returncode == 65


def snapshot_of(store: Store, study: str | None = None) -> Snapshot:
    with store.read() as connection:
        return snapshot(connection, study, [])


def frame_lines(shown: Snapshot, width: int, height: int | None) -> list[str]:
    out = console.Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    out.print(frame(shown, width, height))
    return out.file.getvalue().splitlines()  # type: ignore[attr-defined]


WIDE = "実験" * 20


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 10), (200, 60), (20, 3)])
def test_a_frame_never_exceeds_the_terminal(
    store: Store, tiny_grid: Path, worker: jobs.Worker, width: int, height: int
) -> None:
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="1..100")
    for name in ("tiny", WIDE, "a" * 80, "b", "c"):
        store.write(lambda c, name=name: enqueue(c, name, grid))
    for number in range(12):
        claim(store, replace(worker, owner=f"w{number}", host=WIDE))
    store.write(
        lambda c: c.execute(sa.text("UPDATE jobs SET cell = json_object('n', :t) WHERE id < 3"), {"t": WIDE})
    )
    lines = frame_lines(snapshot_of(store), width, height)
    assert len(lines) <= height
    assert max(console.Text(line).cell_len for line in lines) <= width


@pytest.mark.slow
def test_a_frame_of_24_lines_has_every_part(store: Store, tiny_grid: Path, worker: jobs.Worker) -> None:
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="1..100")
    for name in "abcdef":
        store.write(lambda c, name=name: enqueue(c, name, grid))
    for number in range(12):
        claim(store, replace(worker, owner=f"w{number}"))
    text = "\n".join(frame_lines(snapshot_of(store), 80, 24))
    for part in ("Nightshift", "more studies", "noise_std", "more are running", "more workers", "claimed"):
        assert part in text, part


def test_a_large_study_is_shown_by_counts(
    store: Store, tiny_grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.view.snapshot.MOST_GLYPHS", 10)
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="1..100")
    store.write(lambda c: enqueue(c, "tiny", grid))
    store.write(lambda c: jobs.hold(c, [1, 3]))
    shown = snapshot_of(store)
    assert shown.counts == {
        "noise_std=0.0": {"paused": 2, "queued": 98},
        "noise_std=0.5": {"queued": 100},
    }
    assert any("0/100 done" in line for line in frame_lines(shown, 80, 24))


def test_ten_thousand_jobs_do_not_break_a_list(store: Store, tiny_grid: Path, cli: Cli) -> None:
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="1..5000")
    store.write(lambda c: enqueue(c, "tiny", grid))
    store.close()
    done = cli("cancel", "--study", "tiny", "--yes")
    assert done.stdout == "10000 jobs: cancelled\n"
    asked = cli("retry", "--study", "tiny")
    assert asked.returncode == 2
    assert "and 9,940 more" in asked.stderr
    assert len(asked.stderr.splitlines()) < 70
    for words in (["status"], ["watch"], ["digest"]):
        assert len(cli(*words).stdout.splitlines()) < 30


def test_hostile_words_reach_no_terminal(queued: Store, worker: jobs.Worker) -> None:
    evil = "\x1b]0;owned\x07\x1b[31mred [bold]x[/bold]\nsecond"
    lease = claim(queued, replace(worker, host=evil, device=evil))
    queued.write(lambda c: jobs.fail(c, lease, "bad_config", evil))
    claim(queued, replace(worker, owner="w2", host=evil, device=evil))
    with queued.read() as connection:
        screen = printed(console.status_screen, studies_overview(connection), running_jobs(connection))
        texts = [*screen, *printed(job_screen, job_details(connection, 1)), digest.digest(connection)]
    texts += frame_lines(snapshot_of(queued), 80, 24)
    assert not any("\x1b" in text or "\x07" in text for text in texts)
    assert "[bold]x[/bold]" in "\n".join(printed(job_screen, job_details_of(queued, 1), width=300))


def job_details_of(store: Store, job_id: int) -> dict[str, object]:
    with store.read() as connection:
        return job_details(connection, job_id)


# --- changing jobs ----------------------------------------------------------------------------------------


def test_one_job_is_changed_without_a_question(cli: Cli, queued: Store) -> None:
    assert cli("cancel", "noise_std=0.5,seed=43").stdout == "job 4: cancelled\n"
    assert cli("retry", "4").stdout == "job 4: queued\n"
    assert cli("pause", "4").stdout == "job 4: paused\n"
    assert cli("prioritize", "3", "--priority", "7").stdout == "job 3: priority 7\n"
    found = {job["id"]: (job["held"], job["priority"], job["status"]) for job in rows(queued, "jobs")}
    assert found == {
        1: (0, 0, "queued"),
        2: (0, 0, "queued"),
        3: (0, 7, "queued"),
        4: (1, 0, "queued"),
    }
    assert cli("resume", "4").stdout == "job 4: resumed\n"
    assert row(queued, "jobs", id=4)["held"] == 0
    assert [event["kind"] for event in rows(queued, "events", job_id=4)] == [
        *("cancelled", "retried", "paused", "resumed")
    ]


def test_many_jobs_are_shown_first_and_changed_with_yes(cli: Cli, queued: Store) -> None:
    asked = cli("cancel", "--where", "noise_std=0.5")
    assert asked.returncode == 2
    assert "noise_std=0.5,seed=43" in asked.stderr
    assert "add --yes" in asked.stderr
    assert {job["status"] for job in rows(queued, "jobs")} == {"queued"}
    assert cli("cancel", "--where", "noise_std=0.5", "--yes").stdout == "2 jobs: cancelled\n"
    assert [job["status"] for job in rows(queued, "jobs")] == ["queued", "cancelled", "queued", "cancelled"]
    nothing = cli("cancel", "--where", "seed=7")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "nothing changed" in nothing.stderr


def test_a_paused_study_waits_and_goes_on(cli: Cli, queued: Store, worker: jobs.Worker) -> None:
    cli("pause", "1")
    assert cli("pause", "--study", "tiny").returncode == 0
    assert queued.write(lambda c: jobs.claim(c, worker)) is None
    assert overview(queued)["paused"] is True
    assert cli("resume", "--study", "tiny").returncode == 0
    assert claim(queued, worker).job_id == 1
    assert cli("pause", "--study", "nowhere").returncode == 65


def test_a_condition_that_cannot_be_read_is_one_line(cli: Cli, queued: Store) -> None:
    done = cli("cancel", "--where", "nois_std=1")
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr.startswith("error: 'nois_std': no such key; did you mean routing.noise_std?")
    assert len(done.stderr.splitlines()) == 1

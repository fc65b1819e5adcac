"""The commands of a day: status, show, logs, changes of many jobs, digest, export, help and completion."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa

from model.events import Measured, Resumed
from runner import digest, glyphs, grids, jobs, pace, records, schema, screens, studies, watching
from runner.frame import frame
from runner.job_screen import job_screen
from runner.status import job_details, running_jobs, studies_overview
from runner.store import Store, open_store
from tests.conftest import PROJECT, environment, row, rows

Cli = Callable[..., subprocess.CompletedProcess[str]]
RESULT = {"val_loss": 1.0, "val_perplexity": 2.718, "training_seconds": 20.0}


def claim(store: Store, worker: jobs.Worker) -> jobs.Claim:
    def registered(connection: sa.Connection) -> jobs.Claim | None:
        known = sa.select(schema.workers.c.id).where(schema.workers.c.id == worker.owner)
        if connection.scalar(known) is None:
            values = {"id": worker.owner, "host": worker.host, "pid": worker.pid, "device": worker.device}
            connection.execute(schema.workers.insert().values(started_at=1, heartbeat_at=1, **values))
        return jobs.claim(connection, worker)

    found = store.write(registered)
    assert found is not None
    return found


def finish(store: Store, worker: jobs.Worker, **values: float) -> jobs.Claim:
    claimed = claim(store, worker)
    store.write(lambda c: jobs.finish(c, claimed, {**RESULT, **values}))
    return claimed


def overview(store: Store, name: str = "tiny") -> dict[str, object]:
    with store.read() as connection:
        return next(study for study in studies_overview(connection) if study["name"] == name)


def printed(show: Callable[..., None], *content: object, width: int = 80) -> list[str]:
    out = screens.Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    show(*content, out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


# --- how fast, and until when -----------------------------------------------------------------------------


def test_eta_is_the_steps_left_over_the_measured_speed(queued: Store, worker: jobs.Worker) -> None:
    assert overview(queued)["eta_seconds"] is None  # nothing was timed yet
    finish(queued, worker)
    # 40 steps took 20 s; three jobs of 40 steps are left, and nobody is at work.
    study = overview(queued)
    assert study["eta_seconds"] == pytest.approx(60)
    assert study["eta_assumed"] is True
    claimed = claim(queued, worker)
    queued.write(lambda c: jobs.heartbeat(c, claimed, 60, 30))
    study = overview(queued)
    assert (study["eta_seconds"], study["eta_assumed"]) == (pytest.approx(45), False)


def test_eta_adds_up_the_workers_each_at_its_own_speed(queued: Store, worker: jobs.Worker) -> None:
    fast = replace(worker, owner="worker-2", device="cuda:0")
    finish(queued, worker, training_seconds=40.0)  # 1 step a second
    finish(queued, fast, training_seconds=10.0)  # 4 steps a second
    claim(queued, worker)
    claim(queued, fast)
    with queued.read() as connection:
        measured = pace.speeds(connection, 1)
        assert measured == {("here", "cpu"): pytest.approx(1.0), ("here", "cuda:0"): pytest.approx(4.0)}
    assert overview(queued)["eta_seconds"] == pytest.approx(80 / 5)


def test_studies_wait_for_those_before_them(queued: Store, tiny_grid: Path, worker: jobs.Worker) -> None:
    grid = grids.load_grid(str(tiny_grid))
    queued.write(lambda c: studies.enqueue(c, "later", grid))
    finish(queued, worker)
    assert overview(queued, "later")["eta_seconds"] is None  # it was never timed
    with queued.read() as connection:
        lefts = [pace.Left(1, 120, (0, 2)), pace.Left(2, 160, (0, 5))]
        found = pace.etas(connection, lefts)
    assert found[1].seconds == pytest.approx(60)
    assert found[2].seconds is None
    queued.write(lambda c: studies.hold(c, "tiny", True))
    assert overview(queued)["eta_seconds"] is None  # paused: it has no end


def test_a_study_without_results_is_timed_by_its_running_jobs(queued: Store, worker: jobs.Worker) -> None:
    claimed = claim(queued, worker)
    queued.write(lambda c: records.rewind(c, claimed, Resumed(10)))
    queued.write(lambda c: jobs.heartbeat(c, claimed, 60, 20))
    began = row(queued, "attempts")["started_at"]
    queued.write(lambda c: c.execute(sa.update(schema.jobs).values(heartbeat_at=began + 5)))
    with queued.read() as connection:  # 10 steps in 5 s: what came before the resume is not its work
        assert pace.speeds(connection, 1) == {("here", "cpu"): pytest.approx(2.0, rel=1e-3)}


# --- status, show, watch ----------------------------------------------------------------------------------


def test_status_shows_studies_and_running_jobs(queued: Store, worker: jobs.Worker) -> None:
    claimed = claim(queued, worker)
    values = {"loss": 4.5, "tokens_per_second": 1234.0}
    queued.write(lambda c: records.record(c, claimed, Measured(8, "train", values)))
    queued.write(lambda c: jobs.hold(c, [4]))
    with queued.read() as connection:
        lines = printed(screens.status_screen, studies_overview(connection), running_jobs(connection))
    assert lines[1].split() == ["study", "queued", "running", "done", "failed", "cancelled", "ETA"]
    assert "tiny" in lines[2]
    assert "3 (1 paused)" in lines[2]
    job = next(line for line in lines if "noise_std=0.0,seed=42" in line)
    assert "8/40" in job
    assert "4.500" in job
    assert "1,234" in job


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
    claimed = claim(queued, worker)
    queued.write(lambda c: records.describe(c, claimed, {"git_commit": "c0ffee"}, "log", 1))
    queued.write(lambda c: records.record(c, claimed, Measured(40, "val", {"loss": 1.0}, [[30, 10]])))
    queued.write(lambda c: records.record(c, claimed, Measured(40, "test", {"loss": 77.0}, [[1, 99]])))
    queued.write(lambda c: jobs.finish(c, claimed, RESULT))
    with queued.read() as connection:
        details = job_details(connection, 1)
        text = "\n".join(printed(job_screen, details))
    assert details["load"] == {0: [30, 10]}
    for part in ("stalled", "no sign of life", "c0ffee", "val_loss", "75.0%", "n_experts 4", "▇▃"):
        assert part in text, part
    assert "77" not in text  # the test split is sealed


def test_watch_on_a_pipe_prints_one_snapshot(cli: Cli, queued: Store, worker: jobs.Worker) -> None:
    claimed = claim(queued, worker)
    for step, loss in ((2, 9.0), (4, 7.0), (6, float("nan")), (8, 5.0)):
        values = {"loss": loss, "tokens_per_second": 5.0}
        queued.write(lambda c, s=step, v=values: records.record(c, claimed, Measured(s, "train", v)))
    queued.write(lambda c: jobs.cancel(c, 4))
    done = cli("watch")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "noise_std=0.0 ▶ ·" in done.stdout
    assert "noise_std=0.5 · −" in done.stdout
    assert "8/40 loss 5.000 5 tok/s █▅×▁" in done.stdout
    assert "worker here cpu (pid 1): job 1" in done.stdout
    assert cli("watch", "--study", "other").returncode == 65


def snapshot(store: Store, study: str | None = None) -> watching.Snapshot:
    with store.read() as connection:
        return watching.snapshot(connection, study, [])


def frame_lines(shown: watching.Snapshot, width: int, height: int | None) -> list[str]:
    out = screens.Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    out.print(frame(shown, width, height))
    return out.file.getvalue().splitlines()  # type: ignore[attr-defined]


WIDE = "実験" * 20


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 10), (200, 60), (20, 3)])
def test_a_frame_never_exceeds_the_terminal(
    store: Store, tiny_grid: Path, worker: jobs.Worker, width: int, height: int
) -> None:
    grid = grids.adjust(grids.load_grid(str(tiny_grid)), seeds="1..100")
    for name in ("tiny", WIDE, "a" * 80, "b", "c"):
        store.write(lambda c, name=name: studies.enqueue(c, name, grid))
    for number in range(12):
        claim(store, replace(worker, owner=f"w{number}", host=WIDE))
    store.write(
        lambda c: c.execute(sa.text("UPDATE jobs SET cell = json_object('n', :t) WHERE id < 3"), {"t": WIDE})
    )
    lines = frame_lines(snapshot(store), width, height)
    assert len(lines) <= height
    assert max(screens.Text(line).cell_len for line in lines) <= width


def test_a_frame_of_24_lines_has_every_part(store: Store, tiny_grid: Path, worker: jobs.Worker) -> None:
    grid = grids.adjust(grids.load_grid(str(tiny_grid)), seeds="1..100")
    for name in "abcdef":
        store.write(lambda c, name=name: studies.enqueue(c, name, grid))
    for number in range(12):
        claim(store, replace(worker, owner=f"w{number}"))
    text = "\n".join(frame_lines(snapshot(store), 80, 24))
    for part in ("Nightshift", "more studies", "noise_std", "more are running", "more workers", "claimed"):
        assert part in text, part


def test_a_large_study_is_shown_by_counts(
    store: Store, tiny_grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MOST_GLYPHS", 10)
    grid = grids.adjust(grids.load_grid(str(tiny_grid)), seeds="1..100")
    store.write(lambda c: studies.enqueue(c, "tiny", grid))
    store.write(lambda c: jobs.hold(c, [1, 3]))
    shown = snapshot(store)
    assert shown.counts == {
        "noise_std=0.0": {"paused": 2, "queued": 98},
        "noise_std=0.5": {"queued": 100},
    }
    assert any("0/100 done" in line for line in frame_lines(shown, 80, 24))


def test_ten_thousand_jobs_do_not_break_a_list(store: Store, tiny_grid: Path, cli: Cli) -> None:
    grid = grids.adjust(grids.load_grid(str(tiny_grid)), seeds="1..5000")
    store.write(lambda c: studies.enqueue(c, "tiny", grid))
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
    claimed = claim(queued, replace(worker, host=evil, device=evil))
    queued.write(lambda c: jobs.fail(c, claimed, "bad_config", evil))
    claim(queued, replace(worker, owner="w2", host=evil, device=evil))
    with queued.read() as connection:
        screen = printed(screens.status_screen, studies_overview(connection), running_jobs(connection))
        texts = [*screen, *printed(job_screen, job_details(connection, 1)), digest.digest(connection)]
    texts += frame_lines(snapshot(queued), 80, 24)
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
    done = cli("cancel", "--where", "nois=1")
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr.startswith("error: 'nois': no such key; did you mean routing.noise_std?")
    assert len(done.stderr.splitlines()) == 1


# --- the night, and the morning after ---------------------------------------------------------------------


@pytest.fixture
def night(queued: Store, worker: jobs.Worker) -> Store:
    """Job 1 done at the second try, job 2 failed, job 3 done, job 4 left; every attempt took 100 s."""
    lost = claim(queued, worker)
    queued.write(lambda c: c.execute(sa.text("UPDATE jobs SET lease_expires_at = 1 WHERE id = 1")))
    queued.write(jobs.requeue_lost)
    failed = claim(queued, worker)
    queued.write(lambda c: jobs.fail(c, failed, "diverged", "diverged at step 7"))
    queued.write(lambda c: c.execute(sa.text("UPDATE jobs SET run_after = NULL")))
    assert lost.job_id == finish(queued, worker, val_loss=3.0).job_id
    finish(queued, worker, val_loss=2.0)
    queued.write(
        lambda c: c.execute(sa.text("UPDATE attempts SET started_at = ended_at - 100 WHERE ended_at > 0"))
    )
    return queued


def test_digest_tells_the_night_in_twenty_lines(night: Store) -> None:
    with night.read() as connection:
        lines = digest.digest(connection).splitlines()
    assert lines[1:5] == [
        "2 done, 1 failed, 0 cancelled, 0 running",
        "  1 × diverged: diverged at step 7 (job 2)",
        "recovered: 1 (1 after lost)",
        "GPU time: 6m used, 3m of it wasted (50%)",
    ]
    assert lines[6].startswith("tiny: 2/4 done, 1 left, 20s to go once a worker is started")
    assert lines[7] == "  best so far: noise_std=0.0, val_loss 2.5000 (n=2)"
    assert len(lines) <= 20


def test_digest_looks_only_so_far_back(night: Store) -> None:
    night.write(lambda c: c.execute(sa.text("UPDATE jobs SET finished_at = finished_at - 7200")))
    night.write(
        lambda c: c.execute(
            sa.text("UPDATE attempts SET ended_at = ended_at - 7200, started_at = started_at - 7200")
        )
    )
    with night.read() as connection:
        assert "0 done, 0 failed" in digest.digest(connection, hours=1)
        assert "2 done, 1 failed" in digest.digest(connection, hours=3)


def test_time_that_a_later_attempt_went_on_from_is_not_wasted(queued: Store, worker: jobs.Worker) -> None:
    first = claim(queued, worker)
    queued.write(lambda c: jobs.fail(c, first, "stalled", "silent"))
    queued.write(lambda c: c.execute(sa.text("UPDATE jobs SET run_after = NULL")))
    second = claim(queued, worker)
    queued.write(lambda c: records.rewind(c, second, Resumed(20)))
    queued.write(lambda c: jobs.finish(c, second, RESULT))
    queued.write(lambda c: c.execute(sa.text("UPDATE attempts SET started_at = ended_at - 60")))
    with queued.read() as connection:
        assert "GPU time: 2m used, 0s of it wasted (0%)" in digest.digest(connection)


def test_digest_of_many_failures_stays_short(store: Store, tiny_grid: Path, worker: jobs.Worker) -> None:
    grid = grids.adjust(grids.load_grid(str(tiny_grid)), seeds="1..30")
    for name in "abcdefgh":
        store.write(lambda c, name=name: studies.enqueue(c, name, grid))
    for number in range(60):
        claimed = claim(store, worker)
        message = f"reason {number % 30} " + "long " * 60
        store.write(lambda c, k=claimed, m=message: jobs.fail(c, k, "bad_config", m))
    with store.read() as connection:
        lines = digest.digest(connection).splitlines()
    assert len(lines) <= digest.LINES
    assert max(map(len, lines)) <= digest.WIDTH
    assert "  and 25 other reasons" in lines


def test_a_command_gets_the_digest_and_its_failure_harms_nothing(night: Store, tmp_path: Path) -> None:
    out = tmp_path / "mail.txt"
    assert digest.send(night, f"cat > {out}") is None
    assert out.read_text().startswith("Nightshift, ")
    assert digest.send(night, "echo no route >&2; exit 3") == "exit code 3: no route"
    assert digest.send(night, "exit 4") == "exit code 4: it said nothing"
    assert "exit code" in str(digest.send(night, "no-such-command-at-all"))


def test_a_command_that_hangs_is_ended(night: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "ON_FINISH_SECONDS", 0.2)
    assert "timed out" in str(digest.send(night, "sleep 600"))


def test_work_leaves_a_log_a_digest_and_on_request_its_checkpoints(
    cli: Cli, tiny_grid: Path, tmp_path: Path
) -> None:
    cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled")
    words = ["--checkpoint-seconds", "0", "--keep-checkpoints", "--on-finish", "cat > mail.txt; exit 9"]
    done = cli("work", "--jobs", "1", *words)
    assert done.returncode == 0, done.stderr
    assert "--on-finish: exit code 9" in done.stderr
    assert "1 done, 0 failed" in (tmp_path / "mail.txt").read_text()
    store = open_store(str(tmp_path / "jobs.db"))
    kept = rows(store, "checkpoints")
    assert len(kept) == 2
    folder = tmp_path / "runs" / store.database_id
    assert all((folder / each["path"]).exists() for each in kept)
    log = cli("logs", "noise_std=0.0,seed=42").stdout
    assert "from step 0" in log
    assert re.search(r"step 40 val: loss \d", log)
    assert "test" not in log  # sealed
    assert log.rstrip().endswith("step 40 finished")
    assert cli("logs", "1", "-f").stdout == log
    for words, said in ((["2"], "never started"), (["1", "--attempt", "3"], "there are 1")):
        refused = cli("logs", *words)
        assert (refused.returncode, said in refused.stderr) == (65, True), refused.stderr
    assert "ran on" in cli("logs", "1", "--runs-dir", "elsewhere").stderr


# --- out of the database ----------------------------------------------------------------------------------


def test_the_view_is_read_by_pandas_in_one_line(night: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(night.path.parent)
    frame = pd.read_sql("select * from v_runs", "sqlite:///jobs.db")
    assert list(frame["status"]) == ["done", "failed", "done", "queued"]
    assert frame["val_loss"].dropna().tolist() == [3.0, 2.0]


# --- help, completion, documentation ----------------------------------------------------------------------


def commands() -> dict[str, str]:
    """Every command as it is typed, and its help text."""
    sys.path.insert(0, str(PROJECT))
    import cli as program

    found = {}
    for prefix, app in (("", program.app), ("db ", program.db_app)):
        for command in app.registered_commands:
            callback = command.callback
            assert callback is not None
            found[prefix + (command.name or callback.__name__.strip("_"))] = callback.__doc__ or ""
    return found


def test_every_command_says_what_it_does_and_gives_an_example() -> None:
    for name, help_text in commands().items():
        assert re.search(r"^[A-Z].*[.:;,]", help_text), name
        assert re.search(rf"Example: .*python cli.py {name}\b", help_text), f"{name}: {help_text}"


def test_every_command_is_documented() -> None:
    text = "".join((PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/commands.md"))
    missing = [name for name in commands() if f"cli.py {name}" not in text]
    assert not missing, f"documented nowhere: {', '.join(missing)}"


def test_every_documented_command_and_option_exists() -> None:
    text = (PROJECT / "docs/commands.md").read_text(encoding="utf-8")
    known = set(commands())
    for words in re.findall(r"python cli\.py ((?:db )?[a-z]+)", text):
        assert words in known, words
    done = {name: helped(name) for name in known}
    for name, options in re.findall(r"python cli\.py ((?:db )?[a-z]+)([^\n`]*)", text):
        for option in re.findall(r"(?<![\w\"'])--[a-z-]+", options.split("|")[0].split(" -- ")[0]):
            assert option in done[name], f"{name} {option}"


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


# --- small pictures ---------------------------------------------------------------------------------------


def test_pictures_have_the_height_and_length_of_what_they_show() -> None:
    assert glyphs.bars([0, 1, 2, 4, 8], 8) == "▁▂▃▅█"
    assert glyphs.bars([1, 2], 0) == "▁▁"
    assert glyphs.curve([1.0, 2.0, 3.0], 10) == "▁▅█"
    assert glyphs.curve([5.0, None, 5.0, float("inf")], 10) == "▁×▁×"
    assert glyphs.curve([], 10) == ""
    assert glyphs.thinned(list(range(100)), 4) == [24, 49, 74, 99]
    assert glyphs.progress(5, 10, 4) == "━━╌╌"
    assert glyphs.progress(3, 0, 4) == "╌╌╌╌"
    assert [glyphs.duration(s) for s in (0, 59.4, 60, 3599, 3600, 11_100, 187_200, None)] == [
        *("0s", "59s", "1m", "59m", "1h00m", "3h05m", "2d04h", "–")
    ]
    assert [glyphs.size(b) for b in (0, 999, 1500, 2_500_000, 3e9)] == [
        *("0 B", "999 B", "1.5 kB", "2.5 MB", "3.0 GB")
    ]

"""Nightshift's commands, thin: no SQL, no torch. Each command reads like what it does.

stdout carries the answer alone; progress, notices and errors go to stderr. A user's mistake gets one line and
a documented exit code: 2 and 65 bad input, 69 database unreachable, 70 unhealthy device, 75 preempted,
78 schema or location refused.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from runner.store import Store

app = typer.Typer(
    help="A job queue for small Mixture-of-Experts studies: enqueue, work, report.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
db_app = typer.Typer(help="Look after the database.", no_args_is_help=True)
app.add_typer(db_app, name="db")


class Scale(StrEnum):
    smoke = "smoke"
    small = "small"
    full = "full"


class Std(StrEnum):
    sample = "sample"
    population = "population"


Db = Annotated[
    str, typer.Option("--db", envvar="JOBS_DB", help="Database: a path or sqlite:/// URL.", metavar="PATH")
]
Study = Annotated[str | None, typer.Option("--study", help="Study; the newest when left out.")]
Cache = Annotated[Path, typer.Option("--cache-dir", help="Prepared corpora.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="For a program to read.")]


@app.command()
def enqueue(
    grid: Annotated[str, typer.Option("--grid", help="A shipped grid's name, or a TOML file.")],
    scale: Annotated[Scale, typer.Option("--scale", help="Size of model and run.")] = Scale.full,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Such as 42..51 or 42,43,44.")] = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="Such as train.steps=4000.")] = None,
    study: Annotated[str | None, typer.Option("--study", help="Name; default: the grid's.")] = None,
    corpus: Annotated[str, typer.Option("--corpus", help="auto, smollm, bundled or a path.")] = "auto",
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="A folder or hub id.")] = None,
    max_failures: Annotated[int, typer.Option("--max-failures", min=1, help="Then a job is failed.")] = 3,
    priority: Annotated[int, typer.Option("--priority", help="Higher goes first.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the jobs, queue none.")] = False,
    cache_dir: Cache = Path("data_cache"),
    db: Db = "jobs.db",
) -> None:
    """Queue a grid's runs.   Example: python cli.py enqueue --grid factorial --seeds 42..51"""
    from model.corpus import resolve
    from runner import grids, screens, studies

    chosen = grids.adjust(grids.load_grid(grid), scale, assign or [], seeds)
    small = scale is Scale.smoke
    chosen = chosen.with_data(*resolve(corpus, tokenizer, small, chosen.base.data, cache_dir, _say))
    name = grids.checked_name(study) if study else chosen.study_name
    if dry_run:
        screens.jobs_screen(name, chosen)
        return
    with _open(db, create=True) as store:
        added = store.write(lambda c: studies.enqueue(c, name, chosen, max_failures, priority))
    there = chosen.size - added
    print(f"{name}: {added} queued" + (f", {there} already there" if there else ""))


@app.command()
def work(
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Stop after so many.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Keep polling an empty queue.")] = False,
    time_limit: Annotated[str | None, typer.Option("--time-limit", help="Such as 9m or 8h.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda:0.")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Default: all cores.")] = None,
    checkpoint_seconds: Annotated[float, typer.Option("--checkpoint-seconds", min=0)] = 120.0,
    lease_seconds: Annotated[float, typer.Option("--lease-seconds", min=1, max=86400)] = 60.0,
    runs_dir: Annotated[Path, typer.Option("--runs-dir", help="Checkpoints and logs.")] = Path("runs"),
    cache_dir: Cache = Path("data_cache"),
    db: Db = "jobs.db",
) -> None:
    """Work the queue until it is empty.   Example: nohup python cli.py work --time-limit 8h &"""
    from runner.display import Display
    from runner.worker import Options, Worker

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise typer.BadParameter(f"--device {device}: choose auto, cpu or cuda:0")
    options = Options(
        device=device,
        threads=threads or len(os.sched_getaffinity(0)),
        jobs=jobs,
        wait=wait,
        time_limit_seconds=_seconds(time_limit) if time_limit else None,
        checkpoint_seconds=checkpoint_seconds,
        lease_seconds=lease_seconds,
        runs=runs_dir,
        cache=cache_dir,
    )
    with _open(db) as store:
        worker = Worker(store, options, Display())
        code = worker.run()
        if code == 0 and not worker.jobs_done:
            _say("nothing to do: no job is queued")
        _print_summary(store, worker.studies)
    raise typer.Exit(code)


@app.command()
def report(
    study: Study = None,
    std: Annotated[Std, typer.Option("--std", help="Spread that ± shows.")] = Std.sample,
    db: Db = "jobs.db",
) -> None:
    """Write the report in markdown to stdout.   Example: python cli.py report > experiment_results.md"""
    from reports.frames import choose_study
    from reports.report import render

    with _open(db) as store, store.read() as connection:
        chosen, others = choose_study(connection, study)
        if study is None and others:
            _say(f"reporting {chosen.name}; other studies: {', '.join(others)} (--study NAME)")
        text = render(connection, chosen.name, std.value, db=db)
    print(text, end="")


@app.command()
def status(as_json: AsJson = False, db: Db = "jobs.db") -> None:
    """Show how the studies stand and what is running.   Example: python cli.py status --json"""
    from runner import screens
    from runner import status as reading

    with _open(db) as store, store.read() as connection:
        overview = reading.studies_overview(connection)
        running = reading.running_jobs(connection)
    if as_json:
        print(json.dumps({"studies": overview, "running": running}, indent=2))
        return
    screens.status_screen(overview, running)


@app.command()
def show(job: int, as_json: AsJson = False, db: Db = "jobs.db") -> None:
    """Show one job: attempts, causes, result, events.   Example: python cli.py show 7"""
    from runner import screens
    from runner import status as reading

    with _open(db) as store, store.read() as connection:
        details = reading.job_details(connection, job)
    if as_json:
        print(json.dumps(details, indent=2))
        return
    screens.job_screen(details)


@app.command()
def retry(job: int, db: Db = "jobs.db") -> None:
    """Queue a failed or cancelled job again.   Example: python cli.py retry 7"""
    from runner import jobs

    with _open(db) as store:
        store.write(lambda c: jobs.retry(c, job))
    print(f"job {job}: queued")


@app.command()
def cancel(job: int, db: Db = "jobs.db") -> None:
    """Cancel a queued or running job; what it measured stays.   Example: python cli.py cancel 7"""
    from runner import jobs

    with _open(db) as store:
        answer = store.write(lambda c: jobs.cancel(c, job))
    print(f"job {job}: {'cancelled' if answer == 'cancelled' else 'its worker is asked to stop it'}")


@app.command()
def export(
    study: Study = None,
    format: Annotated[str, typer.Option("--format", help="csv")] = "csv",
    db: Db = "jobs.db",
) -> None:
    """Write a study's runs to stdout.   Example: python cli.py export --format csv > results.csv"""
    from reports.export import export_csv

    if format != "csv":
        raise typer.BadParameter(f"--format {format}: choose csv")
    with _open(db) as store, store.read() as connection:
        text = export_csv(connection, study)
    print(text, end="")


@app.command(name="import")
def import_(
    file: Path,
    study: Annotated[str, typer.Option("--study", help="Name of the study that it becomes.")],
    db: Db = "jobs.db",
) -> None:
    """Read published results into a study.   Example: python cli.py import results.csv --study published"""
    from runner.grids import checked_name
    from runner.importing import import_results

    name = checked_name(study)
    with _open(db, create=True) as store:
        count = store.write(lambda c: import_results(c, file, name))
    print(f"{name}: {count} results imported")


@db_app.command("backup")
def db_backup(file: Path, db: Db = "jobs.db") -> None:
    """Copy the database, even while it is worked on.   Example: python cli.py db backup monday.db"""
    from runner.store import backup_store

    backup_store(db, file)
    print(f"{db} → {file}")


@db_app.command("upgrade")
def db_upgrade(db: Db = "jobs.db") -> None:
    """Bring an older database to this program's schema.   Example: python cli.py db upgrade"""
    from runner.store import upgrade_store

    before, after = upgrade_store(db)
    print(f"schema {before} → {after}" if before != after else f"schema {after}: nothing to upgrade")


# --- what the commands share ------------------------------------------------------------------------------


@contextmanager
def _open(db: str, create: bool = False) -> Iterator[Store]:
    from runner.store import open_store

    store = open_store(db, create)
    try:
        yield store
    finally:
        store.close()


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _print_summary(store: Store, studies: list[str]) -> None:
    from reports.report import summary

    with store.read() as connection:
        for study in studies:
            print(summary(connection, study))


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found:
        raise typer.BadParameter(f"--time-limit {text}: write a number with s, m or h, as in 9m")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def main() -> None:
    """Run the command; a known error is one line on stderr and its exit code."""
    try:
        app()
    except Exception as error:
        code = getattr(error, "exit_code", None)  # errors that name one are the user's to mend, in one line
        if code is None:
            raise
        _say(f"error: {error}")
        sys.exit(code)


if __name__ == "__main__":
    main()

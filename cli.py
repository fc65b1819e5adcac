#!/usr/bin/env python3
"""Nightshift's commands, thin: no SQL, no torch. Each command reads like what it does.

stdout carries the answer alone; progress, notices and errors go to stderr. A user's mistake gets one line and
a documented exit code: 2 and 65 bad input, 69 database unreachable, 70 unhealthy device, 73 a file or folder
that cannot be made or an answer that cannot be written, 75 preempted, 78 schema or location refused, 141 the
reader of the answer left.
"""

from __future__ import annotations

import errno
import gc
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

with suppress(OSError):
    # This folder's modules, whatever PYTHONSAFEPATH says, and none of the current folder, which may
    # be another checkout: an empty entry of PYTHONPATH means that one.
    _current, _own = Path.cwd(), Path(__file__).resolve().parent
    sys.path[:] = [str(_own), *(entry for entry in sys.path if _current != Path(entry).resolve() != _own)]

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from runner.queue.store import Store

CANNOT_MAKE = 73
DEVICES = "auto, all, cpu, or a list: cuda:0,cuda:2."
MAX_FAILURES = "Failures after which a job is failed; default 3."
RUNS = "Checkpoints and logs; default: runs, beside the database."
PROTOCOL = "Of runs whose file does not say; default: unknown."
THREADS = "Of each trainer; default: all cores, shared out."

PARTS = (
    CHOOSING := "Choosing a study",
    QUEUEING := "Into the queue",
    NIGHT := "The night",
    CHANGING := "Changing the queue",
    MORNING := "The morning after",
    MACHINE := "The machine and the files",
)
"""Headings of `--help`, of the README's table and of docs/commands.md, in this order."""


class InParts(TyperGroup):
    """Lists the commands part by part; typer would put db, grids and launch last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands, in the order of PARTS and, within a part, of this file."""
        return sorted(self.commands, key=lambda name: PARTS.index(self.commands[name].rich_help_panel))  # type: ignore[attr-defined]


app = typer.Typer(
    cls=InParts,
    help="A job queue for small Mixture-of-Experts studies: enqueue, work, report.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
db_app = typer.Typer(help="Look after the database.", no_args_is_help=True)
app.add_typer(db_app, name="db", rich_help_panel=MACHINE)
grids_app = typer.Typer(invoke_without_command=True)
app.add_typer(grids_app, name="grids", rich_help_panel=CHOOSING)
launch_app = typer.Typer(help="Start workers on a cluster.", no_args_is_help=True)
app.add_typer(launch_app, name="launch", rich_help_panel=NIGHT)


class Scale(StrEnum):
    smoke = "smoke"
    small = "small"
    full = "full"


class Format(StrEnum):
    markdown = "markdown"
    html = "html"
    json = "json"
    pdf = "pdf"


class Std(StrEnum):
    sample = "sample"
    population = "population"


class Protocol(StrEnum):
    sound = "sound"
    published = "published"


class Table(StrEnum):
    runs = "runs"
    metrics = "metrics"
    counts = "counts"


class FileFormat(StrEnum):
    csv = "csv"
    parquet = "parquet"
    json = "json"


class Program(StrEnum):
    tensorboard = "tensorboard"
    mlflow = "mlflow"
    wandb = "wandb"


def _folder(path: Path | None) -> Path | None:
    """Typer's check of a folder: an URL would quietly become a folder of that name."""
    if path is not None and re.match(r"[a-z0-9]{2,}:/", str(path)):
        raise typer.BadParameter(f"{path}: object stores are not supported; give a mounted folder")
    return path


Db = Annotated[str, typer.Option("--db", envvar="JOBS_DB", help="Database: a path or a URL.", metavar="PATH")]
Study = Annotated[str | None, typer.Option("--study", help="Study; the newest when left out.")]
Cache = Annotated[
    Path, typer.Option("--cache-dir", help="Prepared corpora.", metavar="DIR", callback=_folder)
]
AsJson = Annotated[bool, typer.Option("--json", help="For a program to read.")]
Runs = Annotated[Path | None, typer.Option("--runs-dir", help=RUNS, metavar="DIR", callback=_folder)]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Its id, hash, or cell: noise_std=0.1,seed=43.")]
Jobs = Annotated[list[str] | None, typer.Argument(metavar="JOB", help="By id, hash or cell.")]
OfStudy = Annotated[str | None, typer.Option("--study", help="All jobs of this study.")]
Where = Annotated[str | None, typer.Option("--where", help='Such as "noise_std=0.5 and status=failed".')]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Change many jobs without asking.")]


@grids_app.callback()
def grids(
    context: typer.Context,
    scale: Annotated[Scale, typer.Option("--scale", help="Size of model and run.")] = Scale.full,
    as_json: AsJson = False,
    db: Db = "jobs.db",
) -> None:
    """List the grids that ship: runs, cost here, question.   Example: python cli.py grids --scale smoke"""
    from runner.design import catalogue
    from runner.view import designs

    if context.invoked_subcommand is not None:
        return
    measured = _paces(db)
    listed = [catalogue.describe(name, scale.value, measured) for name in catalogue.shipped()]
    if as_json:
        print(json.dumps(listed, indent=2))
        return
    designs.list_screen(listed)


@grids_app.command("show")
def grids_show(name: str, as_json: AsJson = False, db: Db = "jobs.db") -> None:
    """Print one grid's whole design.   Example: python cli.py grids show noise-kinds"""
    from runner.design import catalogue
    from runner.view import designs

    design = catalogue.design(name, _paces(db))
    if as_json:
        print(json.dumps(design, indent=2))
        return
    designs.design_screen(design)


@app.command(rich_help_panel=QUEUEING)
def enqueue(
    grid: Annotated[str, typer.Option("--grid", help="A shipped grid's name, or a TOML file.")],
    scale: Annotated[Scale, typer.Option("--scale", help="Size of model and run.")] = Scale.full,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Such as 42..51 or 42,43,44.")] = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="Such as train.steps=4000.")] = None,
    study: Annotated[str | None, typer.Option("--study", help="Name; default: the grid's.")] = None,
    corpus: Annotated[str, typer.Option("--corpus", help="auto, smollm, bundled or a path.")] = "auto",
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="A folder or hub id.")] = None,
    text_column: Annotated[str | None, typer.Option("--text-column", help="Default: text.")] = None,
    lossy_tokenizer: Annotated[bool, typer.Option("--lossy-tokenizer", help="Let it lose text.")] = False,
    max_failures: Annotated[int | None, typer.Option("--max-failures", min=1, help=MAX_FAILURES)] = None,
    priority: Annotated[int | None, typer.Option("--priority", help="Higher goes first; default 0.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the jobs, queue none.")] = False,
    cache_dir: Cache = Path("data_cache"),
    db: Db = "jobs.db",
) -> None:
    """Queue a grid's runs.   Example: python cli.py enqueue --grid factorial --seeds 42..51"""
    from model.text.corpus import resolve
    from model.text.dataset import prepare
    from runner.design import enqueue as queueing
    from runner.design import grid_file
    from runner.design.scales import adjust
    from runner.view import console

    assign = [*(assign or []), *([f"data.text_column={json.dumps(text_column)}"] if text_column else [])]
    chosen = adjust(grid_file.load_grid(grid), scale, assign, seeds)
    name = grid_file.checked_name(study) if study else chosen.study_name
    if chosen.notice:
        _say(chosen.notice)
    small = scale is Scale.smoke
    chosen = chosen.with_data(*resolve(corpus, tokenizer, small, chosen.base.data, cache_dir, _say))
    data = prepare(next(chosen.runs())[1], cache_dir)  # too little text is said now, not in the night
    _say(data.summary(config for _, config in chosen.cells))
    if not lossy_tokenizer:
        data.require_round_trip(chosen.base.data.tokenizer)
    if dry_run:
        console.jobs_screen(name, chosen)
        return

    def transaction(connection: Any) -> tuple[list[str], int]:
        said = queueing.not_done(connection, name, chosen, max_failures, priority)
        return said, queueing.enqueue(connection, name, chosen, max_failures or 3, priority or 0, data.facts)

    with _open(db, create=True) as store:
        said, added = store.write(transaction)
    for line in said:
        _say(line)
    there = chosen.size - added
    print(f"{name}: {added} queued" + (f", {there} already there" if there else ""))


@app.command(name="import", rich_help_panel=QUEUEING)
def import_(
    file: Path,
    study: Annotated[str, typer.Option("--study", help="Name of the study that it becomes.")],
    protocol: Annotated[Protocol | None, typer.Option("--protocol", help=PROTOCOL)] = None,
    columns: Annotated[str, typer.Option("--columns", help="Such as val_loss=eval/loss,seed=trial.")] = "",
    db: Db = "jobs.db",
) -> None:
    """Read results that were made elsewhere.   Example: python cli.py import results.csv --study published"""
    from runner.design.grid_file import checked_name
    from runner.design.importing import import_results

    name = checked_name(study)
    with _open(db, create=True) as store:
        count = store.write(lambda c: import_results(c, file, name, protocol, columns))
    print(f"{name}: {count} results imported")


@app.command(rich_help_panel=NIGHT)
def work(
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Stop after so many.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Keep polling an empty queue.")] = False,
    time_limit: Annotated[str | None, typer.Option("--time-limit", help="Such as 9m or 8h.")] = None,
    devices: Annotated[str, typer.Option("--devices", "--device", help=DEVICES)] = "auto",
    slots: Annotated[int, typer.Option("--slots", min=1, help="Trainers on each device.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help=THREADS)] = None,
    checkpoint_seconds: Annotated[float, typer.Option("--checkpoint-seconds", min=0)] = 120.0,
    lease_seconds: Annotated[float, typer.Option("--lease-seconds", min=1, max=86400)] = 60.0,
    on_finish: Annotated[str | None, typer.Option("--on-finish", help="Gets the digest on stdin.")] = None,
    keep_checkpoints: Annotated[bool, typer.Option("--keep-checkpoints", help="Of finished jobs.")] = False,
    keep_weights: Annotated[bool, typer.Option("--keep-weights", help="Of finished jobs.")] = False,
    runs_dir: Runs = None,
    cache_dir: Cache = Path("data_cache"),
    db: Db = "jobs.db",
) -> None:
    """Work the queue until it is empty.   Example: nohup python cli.py work --time-limit 8h &"""
    import reports.output.files  # noqa: F401  what the night ends with is loaded before anybody edits it
    from runner.view import digest as digest_of
    from runner.work import options as chosen
    from runner.work import output
    from runner.work.progress import Display
    from runner.work.worker import Worker

    if not re.fullmatch(r"all|(auto|cpu|cuda(:\d+)?)(,(auto|cpu|cuda(:\d+)?))*", devices):
        raise typer.BadParameter(f"--devices {devices}: choose auto, all, cpu, cuda:0 or cuda:0,cuda:2")
    names = chosen.slots(devices, slots)
    options = chosen.Options(
        devices=names,
        threads=threads or chosen.threads_each(len(names)),
        jobs=jobs,
        wait=wait,
        time_limit_seconds=_seconds(time_limit, "--time-limit") if time_limit else None,
        checkpoint_seconds=checkpoint_seconds,
        lease_seconds=lease_seconds,
        runs=_runs(db, runs_dir),
        cache=cache_dir,
        keep_checkpoints=keep_checkpoints,
        keep_weights=keep_weights,
    )
    output.expendable()
    chosen.allow_descriptors(len(names))
    with _open(db) as store:
        worker = Worker(store, options, Display())
        found = ""
        try:
            code = worker.run()
            if worker.found_nothing:
                _say("nothing to do: no job is queued")
            if found := _first_screens(store, worker.studies):
                _show(found)
        finally:
            if on_finish and (trouble := digest_of.send(store, on_finish, found)):
                _say(f"--on-finish: {trouble}")
    raise typer.Exit(code)


@app.command(rich_help_panel=NIGHT)
def status(as_json: AsJson = False, db: Db = "jobs.db") -> None:
    """Show how the studies stand and what is running.   Example: python cli.py status --json"""
    from runner.view import console
    from runner.view import status as reading

    with _open(db) as store, store.read() as connection:
        overview = reading.studies_overview(connection)
        running = reading.running_jobs(connection)
    if as_json:
        print(json.dumps({"studies": overview, "running": running}, indent=2))
        return
    console.status_screen(overview, running)


@app.command(rich_help_panel=NIGHT)
def watch(study: Study = None, db: Db = "jobs.db") -> None:
    """Show the queue live; Ctrl-C leaves it.   Example: python cli.py watch"""
    from runner.view import watch

    with _open(db) as store, suppress(KeyboardInterrupt):
        watch.watch(store, study)


@app.command(name="logs", rich_help_panel=NIGHT)
def logs_(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the attempt ends.")] = False,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Default: the newest.")] = None,
    runs_dir: Runs = None,
    db: Db = "jobs.db",
) -> None:
    """Print what an attempt printed.   Example: python cli.py logs noise_std=0.1,seed=43 -f"""
    from runner.queue import selection
    from runner.view import logs

    with _open(db) as store:
        with store.read() as connection:
            job_id = selection.find_job(connection, job)
        log = logs.find_log(store, _runs(db, runs_dir), job_id, attempt)
        for piece in logs.lines(log, lambda: logs.has_ended(store, log), follow):
            print(piece, end="", flush=True)


@launch_app.command("slurm")
def launch_slurm(
    workers: Annotated[int, typer.Option("--workers", min=1, help="One array of so many.")],
    time: Annotated[str, typer.Option("--time", help="Of each, as sbatch reads it: 8:00:00.")],
    partition: Annotated[str | None, typer.Option("--partition", help="Default: the cluster's.")] = None,
    gres: Annotated[str | None, typer.Option("--gres", help="Of each worker, such as gpu:1.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, submit nothing.")] = False,
    runs_dir: Runs = None,
    cache_dir: Cache = Path("data_cache"),
    db: Db = "jobs.db",
) -> None:
    """Submit workers to Slurm.   Example: python cli.py launch slurm --workers 8 --time 8:00:00"""
    from runner.care import slurm

    plan = slurm.Plan(workers, time, partition, gres, db, _runs(db, runs_dir), cache_dir)
    with _open(db) as store:
        if dry_run:
            print(slurm.script(store, plan), end="")
            return
        array = slurm.submit(store, plan)
        logs = slurm.logs(store, plan.runs)
    print(f"array {array}: {workers} workers submitted")
    _say(f"their logs: {logs}")
    _say(f"all nodes must share this folder and {cache_dir.resolve()}; each worker looks at its start")


@launch_app.command("status")
def launch_status(db: Db = "jobs.db") -> None:
    """List this database's workers in Slurm.   Example: python cli.py launch status"""
    from runner.care import slurm

    with _open(db) as store:
        slurm.launched_screen(slurm.status(store))


@launch_app.command("stop")
def launch_stop(db: Db = "jobs.db") -> None:
    """Ask them to save, release and leave.   Example: python cli.py launch stop"""
    from runner.care import slurm

    with _open(db) as store:
        waiting, running = slurm.stop(store)
    print(f"waiting workers cancelled: {waiting}; running ones asked to save and leave: {running}")


@app.command(rich_help_panel=CHANGING)
def retry(
    job: Jobs = None, study: OfStudy = None, where: Where = None, yes: Yes = False, db: Db = "jobs.db"
) -> None:
    """Queue failed or cancelled jobs again.   Example: python cli.py retry --where "cause=oom" """
    from runner.queue import jobs

    statuses = ("failed", "cancelled")
    _change(db, statuses, lambda c, ids: {"queued": jobs.retry_all(c, ids)}, job, study, where, yes)


@app.command(rich_help_panel=CHANGING)
def cancel(
    job: Jobs = None, study: OfStudy = None, where: Where = None, yes: Yes = False, db: Db = "jobs.db"
) -> None:
    """Cancel queued or running jobs; what they measured stays.   Example: python cli.py cancel 7"""
    from runner.queue import jobs

    said = ("cancelled", "its worker is asked to stop it")
    change = lambda c, ids: dict(zip(said, jobs.cancel_all(c, ids), strict=True))  # noqa: E731
    _change(db, ("queued", "running"), change, job, study, where, yes)


@app.command(rich_help_panel=CHANGING)
def pause(
    job: Jobs = None, study: OfStudy = None, where: Where = None, yes: Yes = False, db: Db = "jobs.db"
) -> None:
    """Keep jobs, or a study, from being claimed.   Example: python cli.py pause --study factorial"""
    from runner.queue import jobs, studies

    if study and not job and not where:
        _write(db, lambda c: studies.hold(c, study, True))
        print(f"study {study}: paused; running jobs go on")
        return
    _change(db, ("queued", "running"), lambda c, ids: {"paused": jobs.hold(c, ids)}, job, study, where, yes)


@app.command(rich_help_panel=CHANGING)
def resume(
    job: Jobs = None, study: OfStudy = None, where: Where = None, yes: Yes = False, db: Db = "jobs.db"
) -> None:
    """Let what was paused be claimed again.   Example: python cli.py resume --study factorial"""
    from runner.queue import jobs, studies

    if study and not job and not where:
        _write(db, lambda c: studies.hold(c, study, False))
        print(f"study {study}: resumed, and its paused jobs")
        return
    statuses = ("queued", "running")
    _change(db, statuses, lambda c, ids: {"resumed": jobs.unhold(c, ids)}, job, study, where, yes)


@app.command(rich_help_panel=CHANGING)
def prioritize(
    job: Jobs = None,
    priority: Annotated[int, typer.Option("--priority", "-p", help="Higher goes first.")] = 1,
    study: OfStudy = None,
    where: Where = None,
    yes: Yes = False,
    db: Db = "jobs.db",
) -> None:
    """Let jobs go first, or last.   Example: python cli.py prioritize --where "seed=42" --priority 5"""
    from runner.queue import jobs

    said = f"priority {priority}"
    change = lambda c, ids: {said: jobs.prioritize(c, ids, priority)}  # noqa: E731
    _change(db, ("queued", "running"), change, job, study, where, yes)


@app.command(rich_help_panel=CHANGING)
def delete(
    job: Jobs = None,
    study: OfStudy = None,
    where: Where = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    runs_dir: Runs = None,
    db: Db = "jobs.db",
) -> None:
    """Remove jobs or a study, with all they left.   Example: python cli.py delete --study factorial"""
    from runner.care import clean
    from runner.queue import selection, studies
    from runner.queue.schema import STATUSES
    from runner.view import console
    from runner.view.text import size

    runs = _runs(db, runs_dir)
    with _open(db) as store:
        with store.read() as connection:
            meant = selection.jobs_meant(connection, job or [], study, where, STATUSES)
        whole = study if where is None else None
        if not meant and not whole:
            _say("no job is meant: nothing changed")
            return
        ids = [each.id for each in meant]
        if not yes:
            console.chosen_screen(meant)
            _ask(f"Delete these {len(ids)} jobs for good, with their results, logs and weights?")
        gone = store.write(lambda c: studies.delete(c, ids, whole))
        print(f"{len(ids)} jobs deleted" + "".join(f", and study {name}" for name in gone))
        left = [file for number in ids for file in clean.left_by(runs / store.database_id, number)]
        print(f"{size(clean.remove(store, runs, left))} freed")


@app.command(rich_help_panel=MORNING)
def digest(
    hours: Annotated[float, typer.Option("--hours", min=0.01, help="How far back.")] = 24.0,
    db: Db = "jobs.db",
) -> None:
    """Say in twenty lines how the night went.   Example: python cli.py digest --hours 12"""
    from runner.view import digest as made

    with _open(db) as store, store.read() as connection:
        text = made.digest(connection, hours)
    print(text, end="")


@app.command(rich_help_panel=MORNING)
def show(job: Job, as_json: AsJson = False, db: Db = "jobs.db") -> None:
    """Show one job: attempts, causes, result, load, events.   Example: python cli.py show 7"""
    from runner.queue import selection
    from runner.view import status
    from runner.view.job import job_screen

    with _open(db) as store, store.read() as connection:
        details = status.job_details(connection, selection.find_job(connection, job))
    if as_json:
        print(json.dumps(details, indent=2))
        return
    job_screen(details)


@app.command(rich_help_panel=MORNING)
def report(
    study: Study = None,
    format: Annotated[Format, typer.Option("--format", help="What is written.")] = Format.markdown,
    output: Annotated[Path | None, typer.Option("--output", metavar="DIR", help="With figures.")] = None,
    std: Annotated[Std, typer.Option("--std", help="Spread that ± shows.")] = Std.sample,
    metric: Annotated[str | None, typer.Option("--metric", help="Compared; default: primary.")] = None,
    margin: Annotated[str | None, typer.Option("--margin", help="Such as 0.5percent.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a mixed study.")] = False,
    brief: Annotated[bool, typer.Option("--brief", help="The first screen alone.")] = False,
    runs_dir: Runs = None,
    db: Db = "jobs.db",
) -> None:
    """Write the report, to stdout or a folder.   Example: python cli.py report > experiment_results.md"""
    from reports.output.files import gather, produce, write
    from reports.reading.frames import choose_study
    from reports.statistics.analysis import Options

    folder = str(output) if output else None
    with _open(db) as store, store.read() as connection:
        options = Options(std.value, metric, margin, strict, format.value, brief, folder, store.name)
        chosen, others = choose_study(connection, study)
        if study is None and others:
            _say(f"reporting {chosen.name}; other studies: {', '.join(others)} (--study NAME)")
        material = gather(connection, chosen.name, options)
    files = produce(material, options, _runs(db, runs_dir))
    if output:
        _say(f"report: {write(files, output)}")
        return
    sys.stdout.buffer.write(next(iter(files.values())))


@app.command(rich_help_panel=MORNING)
def power(
    study: Study = None,
    difference: Annotated[str | None, typer.Option("--difference", help="Such as 0.5ppl.")] = None,
    half_width: Annotated[str | None, typer.Option("--half-width", help="Such as 0.005nats.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="Default: the primary one.")] = None,
    db: Db = "jobs.db",
) -> None:
    """Say how many seeds it takes.   Example: python cli.py power --study factorial --difference 0.5ppl"""
    from reports.output.seeds import plan
    from reports.reading.plans import PLANNED
    from runner.design.enqueue import enqueue_command
    from runner.queue.attempts import note

    with _open(db) as store, store.read() as connection:
        planned = plan(connection, study, difference, half_width, metric)
        line = enqueue_command(connection, planned.study, planned.seeds) if planned.seeds else ""
        where = f" --db {shlex.quote(store.name)}" if store.name != "jobs.db" else ""
    if planned.event:
        with _open(db) as store:
            store.write(lambda c: note(c, PLANNED, detail=planned.event))
    print(planned.text)
    if planned.seeds:
        print(f"{line}{where}" if line else f"seeds {planned.seeds} (its grid file is not here)")


@app.command(rich_help_panel=MORNING)
def compare(first: str, second: str, db: Db = "jobs.db") -> None:
    """Set two studies side by side.   Example: python cli.py compare published factorial-published"""
    from reports.output.compare import compare_studies

    with _open(db) as store, store.read() as connection:
        text = compare_studies(connection, first, second, store.name)
    print(text, end="")


@app.command(name="test", rich_help_panel=MORNING)
def test_(
    study: Annotated[str, typer.Option("--study", help="Revealed for good, and recorded.")],
    db: Db = "jobs.db",  # noqa: PT028 (a command, not a test)
) -> None:
    """Reveal a study's sealed test scores.   Example: python cli.py test --study factorial"""
    from reports.output.files import revealed
    from runner.queue.studies import reveal_test

    with _open(db) as store:
        words = [word.replace(db, store.name) for word in sys.argv[1:]]  # kept for ever: without password
        command = f"python {shlex.join(['cli.py', *words])}"
        if not store.write(lambda c: reveal_test(c, study, command)):
            _say(f"{study}: revealed before; nothing changed")
        with store.read() as connection:
            text = revealed(connection, study)
    print(text, end="")


@app.command(rich_help_panel=MORNING)
def export(
    where: Annotated[str | None, typer.Argument(metavar="[WHERE]", help="With --to: a folder.")] = None,
    study: Study = None,
    table: Annotated[Table, typer.Option("--table", help="What to export.")] = Table.runs,
    format: Annotated[FileFormat, typer.Option("--format", help="csv, parquet or json.")] = FileFormat.csv,
    to: Annotated[Program | None, typer.Option("--to", help="For a program, in WHERE.")] = None,
    db: Db = "jobs.db",
) -> None:
    """Write a study's runs, metrics or counts.   Example: python cli.py export --format csv > results.csv"""
    from reports.output import export as made
    from reports.output import programs

    if (to is None) != (where is None):
        raise typer.BadParameter("--to PROGRAM and WHERE go together, as in --to tensorboard events")
    with _open(db) as store, store.read() as connection:
        if to and where:
            print(f"{programs.export_to(connection, to.value, where, study):,} values in {where}")
            return
        data = made.export(connection, study, table.value, format.value)
    if format is FileFormat.parquet and sys.stdout.isatty():
        raise typer.BadParameter("--format parquet is not for a terminal: add > FILE")
    sys.stdout.buffer.write(data)


@app.command(rich_help_panel=MACHINE)
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda:0.")] = "auto",
    runs_dir: Runs = None,
    cache_dir: Cache = Path("data_cache"),
    db: Db = "jobs.db",
) -> None:
    """Check machine and database; exit 70 when a night would fail.   Example: python cli.py doctor --fix"""
    from runner.care import doctor as checks

    fit = True
    for finding in checks.examine(db, _runs(db, runs_dir), cache_dir, device, _damage_of):
        print(f"{finding.level:4} {finding.name}: {finding.text}")
        if fix and finding.mend:
            finding.mend()
            print("       mended")
            continue
        if finding.remedy:
            print(f"       {finding.remedy}")
        fit = fit and finding.level != "bad"
    raise typer.Exit(0 if fit else 70)


@app.command(rich_help_panel=MACHINE)
def clean(
    older_than: Annotated[str, typer.Option("--older-than", help="Such as 12h or 30d.")] = "0s",
    larger_than: Annotated[str, typer.Option("--larger-than", help="Files of at least, say, 10MB.")] = "0B",
    study: OfStudy = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove; without it, only list.")] = False,
    runs_dir: Runs = None,
    cache_dir: Cache = Path("data_cache"),
    db: Db = "jobs.db",
) -> None:
    """List, or remove, files of finished jobs.   Example: python cli.py clean --older-than 30d --yes"""
    from runner.care import clean

    age, least = _seconds(older_than, "--older-than"), _bytes(larger_than)
    runs = _runs(db, runs_dir)
    with _open(db) as store:
        found = clean.removable(store, runs, age, least, study, cache_dir)
        if not yes:
            clean.clean_screen(found)
            return
        freed = clean.remove(store, runs, found)
    print(f"{freed:,} bytes freed; results are as they were")


@db_app.command("backup")
def db_backup(file: Path, db: Db = "jobs.db") -> None:
    """Copy the database, even while it is worked on.   Example: python cli.py db backup monday.db"""
    from runner.queue.store import backup_store, locate

    backup_store(db, file)
    print(f"{locate(db).name} → {file}")


@db_app.command("copy")
def db_copy(source: str, target: str) -> None:
    """Copy everything to a new database.   Example: python cli.py db copy jobs.db postgresql://me@host/lab"""
    from runner.queue.copying import copy_store

    for line in copy_store(source, target):
        print(line)


@db_app.command("upgrade")
def db_upgrade(db: Db = "jobs.db") -> None:
    """Bring an older database to this program's schema.   Example: python cli.py db upgrade"""
    from runner.queue.store import upgrade_store

    before, after = upgrade_store(db)
    print(f"schema {before} → {after}" if before != after else f"schema {after}: nothing to upgrade")


# --- what the commands share ------------------------------------------------------------------------------


@contextmanager
def _open(db: str, create: bool = False) -> Iterator[Store]:
    from runner.queue.store import open_store

    store = open_store(db, create)
    try:
        yield store
    finally:
        store.close()


def _paces(db: str) -> Any:
    """What finished runs measured; a database that is not there has measured nothing."""
    from runner.design import catalogue
    from runner.queue.store import StoreUnreachable

    try:
        with _open(db) as store, store.read() as connection:
            return catalogue.paces(connection)
    except StoreUnreachable:
        return {}


def _runs(db: str, given: Path | None) -> Path:
    """The run folder: what --runs-dir names, else `runs` beside the database, or here for a server's."""
    from runner.queue.store import locate

    return given or locate(db).folder / "runs"


def _write(db: str, transaction: Callable[[Any], object]) -> None:
    with _open(db) as store:
        store.write(transaction)


def _change(
    db: str,
    statuses: tuple[str, ...],
    change: Callable[[Any, list[int]], dict[str, list[int]]],
    names: list[str] | None,
    study: str | None,
    where: str | None,
    yes: bool,
) -> None:
    """Show the jobs that are meant, ask where they are many, change them, and say what became of them."""
    from runner.queue import selection
    from runner.view import console

    with _open(db) as store:
        with store.read() as connection:
            meant = selection.jobs_meant(connection, names or [], study, where, statuses)
        if not meant:
            _say(f"no {' or '.join(statuses)} job is meant: nothing changed")
            return
        if len(meant) > 1 and not yes:
            console.chosen_screen(meant)
            _ask(f"Change these {len(meant)} jobs?")
        changed = store.write(lambda c: change(c, [job.id for job in meant]))
    for said, ids in changed.items():
        if ids:
            print(f"job {ids[0]}: {said}" if len(ids) == 1 else f"{len(ids)} jobs: {said}")


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        _say("error: nobody is there to answer; add --yes")
        raise typer.Exit(2)
    typer.confirm(question, abort=True, err=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _first_screens(store: Store, studies: list[str]) -> str:
    """What `report --brief` prints, of each study."""
    from reports.output.files import first_screen
    from runner.queue.store import StoreUnavailable

    try:
        with store.read() as connection:
            return "\n".join(first_screen(connection, study) for study in studies)
    except StoreUnavailable as error:  # the night's work is done, and its exit code stays
        _say(f"no summary: {error}")
        return ""


def _show(markdown: str) -> None:
    """Markdown as a terminal shows it, as wide as that is."""
    from rich.console import Console
    from rich.markdown import Markdown

    Console(highlight=False).print(Markdown(markdown))


def _seconds(text: str, option: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not found:
        raise typer.BadParameter(f"{option} {text}: write a number with s, m, h or d, as in 9m")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(B|kB|MB|GB)", text)
    if not found:
        raise typer.BadParameter(f"--larger-than {text}: write a number with B, kB, MB or GB, as in 10MB")
    return int(float(found[1]) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[found[2]])


def _damage_of(entry: Path) -> str | None:
    from model.text import cache

    try:
        cache.load(entry)
    except cache.CacheDamaged as error:
        return str(error)
    return None


def main() -> None:
    """Run the command and leave with its exit code."""
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
        if code is None:
            raise
        if str(error):
            _say(f"error: {error}")
        return code
    return 0


if __name__ == "__main__":
    main()

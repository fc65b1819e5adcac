#!/usr/bin/env python3
"""Nightshift's commands, thin: no SQL, no torch. Each command reads like what it does.

stdout carries the answer alone; progress, notices and errors go to stderr. A user's mistake gets one line and
a documented exit code: 1 a question answered with no, 2 and 65 bad input, 69 database unreachable or a
package missing, 70 unhealthy device, 73 a file or folder that cannot be made or an answer that cannot be
written, 75 preempted, 78 schema or location refused, 141 the reader of the answer left. The shared options
are in runner/view/arguments.py, the shared steps in command.py.
"""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

with suppress(OSError):
    # This folder's modules, whatever PYTHONSAFEPATH says, and none of the current folder, which may
    # be another checkout: an empty entry of PYTHONPATH means that one.
    _current, _own = Path.cwd(), Path(__file__).resolve().parent
    sys.path[:] = [str(_own), *(entry for entry in sys.path if _current != Path(entry).resolve() != _own)]

import typer

from runner.view import command
from runner.view.arguments import (
    CACHE,
    AsJson,
    Cache,
    Db,
    FileFormat,
    Format,
    Job,
    Jobs,
    OfStudy,
    Program,
    Protocol,
    Runs,
    Scale,
    Size,
    Std,
    Study,
    Table,
    UntilClosed,
    Where,
    Yes,
    device_list,
    seconds,
    seconds_until,
    size_bytes,
)
from runner.view.command import CHANGING, CHOOSING, MACHINE, MORNING, NIGHT, QUEUEING, InParts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from runner.page.night import Screen
    from runner.queue.looks import Decided
    from runner.queue.store import Store

DEVICES = "auto, all, cpu, or a list: cuda:0,cuda:2."
AGAIN = "Train finished jobs once more, to have their weights."
CONDITIONS = 'With --study alone: "noise_std in (0.0, 0.1)".'
KEPT = "Keep those of finished jobs."
LOOKS = "Seeds at each look, such as 3,6,10,15."
PRIORITIES = 1_000_000
MAX_FAILURES = "Failures after which a job is failed; default 3."
NOTIFY = "Gets the digest on stdin: at a failure, and at the end."
MEASURED = "Whose measures and keys the columns name; default: the language model."
PAGE = "Static pages of the night, each minute."
PROTOCOL = "Of the runs, if the file does not say; default: unknown."
SLOTS = "Trainers on each device; default: 1, on a CPU one for each of its cores, as far as memory allows."
THREADS = "Of each trainer; default: on a CPU 1, else the cores, shared out."
UNTIL = "A time of day here, such as 08:00: the next one."

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


@grids_app.callback()
def grids(
    context: typer.Context,
    scale: Size = Scale.full,
    as_json: AsJson = False,
    db: Db = "jobs.db",
) -> None:
    """List the grids that ship: runs, cost here, question.   Example: python cli.py grids --scale smoke"""
    from runner.design import catalogue
    from runner.view import designs

    if context.invoked_subcommand is not None:
        return
    measured = catalogue.measured(db)
    listed = [catalogue.describe(name, scale.value, measured) for name in catalogue.shipped()]
    command.answer(listed, as_json, designs.list_screen)


@grids_app.command("show")
def grids_show(name: str, scale: Size = Scale.full, as_json: AsJson = False, db: Db = "jobs.db") -> None:
    """Print one grid's whole design.   Example: python cli.py grids show noise-kinds --scale smoke"""
    from runner.design import catalogue
    from runner.view import designs

    command.answer(
        catalogue.design(name, scale.value, catalogue.measured(db)), as_json, designs.design_screen
    )


@app.command(rich_help_panel=CHOOSING)
def new(name: str) -> None:
    """Write a training program and its grid, to begin with.   Example: python cli.py new my_study"""
    from runner.care import trial

    program, grid = trial.begin(name)
    print(f"{program}, {grid}: python cli.py try {grid}")


@app.command(name="try", rich_help_panel=CHOOSING)
def try_(
    grid: str,
    scale: Size = Scale.full,
    assign: Annotated[list[str] | None, typer.Option("--set", help="Such as train.steps=4000.")] = None,
    limit: Annotated[str, typer.Option("--time-limit", help="Such as 30s or 5m.")] = "60s",
    devices: Annotated[str, typer.Option("--device", help="auto, cpu or cuda:0.")] = "auto",
    cache_dir: Cache = CACHE,
) -> None:
    """Run one cell here, and say what the night costs.   Example: python cli.py try my_study.toml"""
    from runner.care import trial
    from runner.design import enqueue as queueing
    from runner.design import grid_file
    from runner.design.scales import adjust

    chosen = adjust(grid_file.load_grid(grid), scale, assign or [])
    given = ("auto", None, False, scale is Scale.smoke)
    chosen, _, _ = queueing.prepared(chosen, given, cache_dir, command.say)
    found = trial.attempt(chosen, seconds(limit, "--time-limit"), device_list(devices), 1, cache_dir)
    for line in trial.verdict(chosen, found):
        print(line)


@app.command(rich_help_panel=QUEUEING)
def enqueue(
    grid: Annotated[str | None, typer.Option("--grid", help="A shipped grid's name, or a TOML file.")] = None,
    scale: Size = Scale.full,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Such as 42..51 or 42,43,44.")] = None,
    looks: Annotated[str | None, typer.Option("--looks", help=LOOKS)] = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="Such as train.steps=4000.")] = None,
    study: Annotated[str | None, typer.Option("--study", help="Name; default: the grid's.")] = None,
    corpus: Annotated[str, typer.Option("--corpus", help="auto, smollm, bundled or a path.")] = "auto",
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="A folder or hub id.")] = None,
    text_column: Annotated[str | None, typer.Option("--text-column", help="Default: text.")] = None,
    lossy_tokenizer: Annotated[bool, typer.Option("--lossy-tokenizer", help="Let it lose text.")] = False,
    max_failures: Annotated[int | None, typer.Option("--max-failures", min=1, help=MAX_FAILURES)] = None,
    priority: Annotated[
        int | None,
        typer.Option("--priority", min=-PRIORITIES, max=PRIORITIES, help="Higher goes first; default 0."),
    ] = None,
    where: Annotated[str | None, typer.Option("--where", help=CONDITIONS)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the jobs, queue none.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train what another study has, too.")] = False,
    runs_dir: Runs = None,
    cache_dir: Cache = CACHE,
    db: Db = "jobs.db",
) -> None:
    """Queue a grid's runs.   Example: python cli.py enqueue --grid factorial --seeds 42..51"""
    from runner.design import catalogue, grid_file, linking
    from runner.design import enqueue as queueing
    from runner.design.scales import adjust
    from runner.view import plan
    from runner.work import provenance, source

    if grid is None:
        theirs = {"--set": assign, "--tokenizer": tokenizer, "--text-column": text_column}
        theirs |= {"--scale": scale is not Scale.full, "--corpus": corpus != "auto", "--dry-run": dry_run}
        theirs |= {"--lossy-tokenizer": lossy_tokenizer}
        given = [option for option, value in theirs.items() if value]
        counts = (max_failures or 3, priority or 0)
        _more_seeds(db, study, seeds, where, given, fresh, runs_dir, cache_dir, *counts)
        return
    if where is not None:
        raise typer.BadParameter("--where selects conditions of a study that is there: leave out --grid")
    assign = [*(assign or []), *([f"data.text_column={json.dumps(text_column)}"] if text_column else [])]
    chosen = adjust(grid_file.load_grid(grid), scale, assign, seeds, looks)
    name = grid_file.checked_name(study) if study else chosen.study_name
    if chosen.notice:
        command.say(chosen.notice)
    of_text = (corpus, tokenizer, lossy_tokenizer, scale is Scale.smoke)
    chosen, facts, summary = queueing.prepared(chosen, of_text, cache_dir, command.say)
    if dry_run:
        begun = chosen.begun
        plan.plan_screen(name, begun, catalogue.cost(begun, catalogue.measured(db)), summary)
        return
    with command.opened(db, create=True) as store:
        source.keep_program(chosen.program.files, command.run_folder(db, runs_dir) / store.database_id)
        here = provenance.of_this_machine() | source.take().provenance()
        said, added, linked, queued = store.write(
            lambda c: (
                queueing.not_done(c, name, chosen, max_failures, priority),
                added := queueing.enqueue(c, name, chosen, max_failures or 3, priority or 0, facts),
                linking.link(c, name, here, fresh),
                linking.waiting(c, name, added),
            )
        )
    for line in said:
        command.say(line)
    _say_queued(name, queued, chosen.begun.size - added, linked)
    if chosen.looks:
        seeds_at = ", ".join(map(str, chosen.looks.seeds))
        print(f"looks at {seeds_at} seeds; at most {chosen.size:,} runs in all")


def _say_queued(study: str, queued: int, there: int, linked: Mapping[str, int]) -> None:
    from runner.view.plan import queued_line

    print(queued_line(study, queued, there, linked))
    if linked:
        again = "--fresh, in another --study, trains them again"
        command.say(f"this machine has trained those runs with the same code; {again}")


def _more_seeds(
    db: str,
    study: str | None,
    seeds: str | None,
    where: str | None,
    theirs: list[str],
    fresh: bool,
    runs_dir: Path | None,
    cache_dir: Path,
    max_failures: int,
    priority: int,
) -> None:
    """`enqueue --study NAME --seeds 45..51`: what the study holds, with other seeds."""
    from runner.design import linking, more
    from runner.design.scales import parse_seeds
    from runner.work import provenance, source

    if study is None or seeds is None:
        raise typer.BadParameter("--grid NAME makes a study; --study NAME --seeds 45..51 adds seeds to one")
    if theirs:
        raise typer.BadParameter(f"{theirs[0]} goes with --grid; leave it out, the study stays as it is")
    wanted = parse_seeds(seeds)
    with command.opened(db) as store:
        with store.read() as connection:
            runs = command.run_folder(db, runs_dir) / store.database_id
            program = more.program_of(connection, study, runs)
            config = more.first_config(connection, study, program)
        if prepare := getattr(program.module, "prepare", None):
            prepare(config, cache_dir)  # a text that is gone is said now, not in the night
        options = (where, max_failures, priority)
        here = provenance.of_this_machine() | source.take().provenance()
        (added, meant), linked, queued = store.write(
            lambda c: (
                found := more.more_seeds(c, study, wanted, runs, *options),
                linking.link(c, study, here, fresh),
                linking.waiting(c, study, found[0]),
            )
        )
    _say_queued(study, queued, meant - added, linked)


@app.command(name="import", rich_help_panel=QUEUEING)
def import_(
    file: Path,
    study: Annotated[str, typer.Option("--study", help="Name of the study that it becomes.")],
    protocol: Annotated[Protocol | None, typer.Option("--protocol", help=PROTOCOL)] = None,
    columns: Annotated[str, typer.Option("--columns", help="Such as val_loss=eval/loss,seed=trial.")] = "",
    program: Annotated[Path | None, typer.Option("--program", help=MEASURED)] = None,
    db: Db = "jobs.db",
) -> None:
    """Read results that were made elsewhere.   Example: python cli.py import results.csv --study published"""
    from runner.design.grid_file import checked_name
    from runner.design.importing import import_results
    from runner.design.program import DEFAULT
    from runner.queue.where import counted

    name, measured = checked_name(study), program or DEFAULT
    with command.opened(db, create=True) as store:
        count = store.write(lambda c: import_results(c, file, name, protocol, columns, measured))
    print(f"{name}: {counted(count, 'result')} imported")


@app.command(rich_help_panel=NIGHT)
def work(
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Stop after this many jobs.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Keep polling an empty queue.")] = False,
    time_limit: Annotated[str | None, typer.Option("--time-limit", help="Such as 9m or 8h.")] = None,
    until: Annotated[str | None, typer.Option("--until", help=UNTIL)] = None,
    devices: Annotated[str, typer.Option("--devices", "--device", help=DEVICES)] = "auto",
    slots: Annotated[int | None, typer.Option("--slots", min=1, help=SLOTS)] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help=THREADS)] = None,
    checkpoint_seconds: Annotated[float, typer.Option("--checkpoint-seconds", min=0)] = 120.0,
    lease_seconds: Annotated[float, typer.Option("--lease-seconds", min=1, max=86400)] = 60.0,
    page: Annotated[Path | None, typer.Option("--page", metavar="DIR", help=PAGE)] = None,
    notify: Annotated[str | None, typer.Option("--notify", help=NOTIFY)] = None,
    notify_every: Annotated[str | None, typer.Option("--notify-every", help="Such as 2h.")] = None,
    on_finish: Annotated[str | None, typer.Option("--on-finish", help="Gets the digest on stdin.")] = None,
    keep_checkpoints: Annotated[bool, typer.Option("--keep-checkpoints", help=KEPT)] = False,
    keep_weights: Annotated[bool, typer.Option("--keep-weights", help=KEPT)] = False,
    runs_dir: Runs = None,
    cache_dir: Cache = CACHE,
    db: Db = "jobs.db",
) -> None:
    """Work the queue until it is empty.   Example: nohup python cli.py work --until 08:00 &"""
    with suppress(ImportError):  # what the night ends with is loaded before anybody edits it
        import reports.output.files  # noqa: F401
    from runner.page.beside import companions
    from runner.queue.backlog import waiting_configs
    from runner.view import console
    from runner.view import digest as digest_of
    from runner.work import options as chosen
    from runner.work import output
    from runner.work.progress import Display
    from runner.work.worker import Worker

    wanted = device_list(devices)
    limits = [seconds(time_limit, "--time-limit")] if time_limit else []
    limits += [seconds_until(until, datetime.now())] if until else []
    output.expendable()
    with command.opened(db, for_worker=True) as store:
        with store.read() as connection:
            configs = waiting_configs(connection, most=200)
        names, each, said = chosen.shared_out(wanted, slots, threads, configs)
        if said:
            command.say(said)
        chosen.allow_descriptors(len(names))
        options = chosen.Options(
            devices=names,
            threads=each,
            jobs=jobs,
            wait=wait,
            time_limit_seconds=min(limits, default=None),
            checkpoint_seconds=checkpoint_seconds,
            lease_seconds=lease_seconds,
            runs=command.run_folder(db, runs_dir),
            cache=cache_dir,
            keep_checkpoints=keep_checkpoints,
            keep_weights=keep_weights,
        )
        beside = companions(db, page, notify, notify_every)
        worker = Worker(store, options, Display(), _decide)
        found = ""
        try:
            code = worker.run()
            if worker.found_nothing:
                command.say("nothing to do: no job is queued")
            if found := _first_screens(store, worker.studies):
                console.markdown_screen(found)
        finally:
            for process in beside:
                process.end()
            for option, asked in (("--notify", notify), ("--on-finish", on_finish)):
                if asked and (trouble := digest_of.send(store, asked, found)):
                    command.say(f"{option}: {trouble}")
    raise typer.Exit(code)


@app.command(rich_help_panel=NIGHT)
def page(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Any static server shows it.")],
    every: Annotated[str | None, typer.Option("--every", help="Again after, say, 1m; default: once.")] = None,
    until_closed: UntilClosed = False,
    db: Db = "jobs.db",
) -> None:
    """Write static pages of the night.   Example: python cli.py page ~/public/night --every 1m"""
    from runner.page import beside, pages

    screen, css = _html_screens()
    wait = beside.pause(until_closed) if every else lambda _: True
    seconds_between = seconds(every, "--every") if every else 0.0
    folder.mkdir(parents=True, exist_ok=True)
    with command.opened(db) as store, suppress(KeyboardInterrupt):
        pages.keep(store, folder, screen, css, wait, command.say, seconds_between)


@app.command(rich_help_panel=NIGHT)
def status(as_json: AsJson = False, db: Db = "jobs.db") -> None:
    """Show how the studies stand and what is running.   Example: python cli.py status --json"""
    from runner.view import console
    from runner.view import status as reading

    with command.opened(db) as store, store.read() as connection:
        overview = reading.studies_overview(connection)
        running = reading.running_jobs(connection)
    found = {"studies": overview, "running": running}
    command.answer(found, as_json, lambda _: console.status_screen(overview, running))


@app.command(rich_help_panel=NIGHT)
def watch(study: Study = None, db: Db = "jobs.db") -> None:
    """Show the queue live; Ctrl-C leaves it.   Example: python cli.py watch"""
    from runner.view import watch

    with command.opened(db) as store, suppress(KeyboardInterrupt):
        watch.watch(store, study)


@app.command(name="logs", rich_help_panel=NIGHT)
def logs_(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the attempt ends.")] = False,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Default: the newest.")] = None,
    runs_dir: Runs = None,
    db: Db = "jobs.db",
) -> None:
    """Print what an attempt printed.   Example: python cli.py logs 9 -f"""
    from runner.queue import selection
    from runner.view import logs

    with command.opened(db) as store:
        with store.read() as connection:
            job_id = selection.find_job(connection, job)
        log = logs.find_log(store, command.run_folder(db, runs_dir), job_id, attempt)
        for piece in logs.lines(log, lambda: logs.has_ended(store, log), follow):
            print(piece, end="", flush=True)


@launch_app.command("slurm")
def launch_slurm(
    workers: Annotated[int, typer.Option("--workers", min=1, help="How many; they are one job array.")],
    time: Annotated[str, typer.Option("--time", help="Limit of each worker, as sbatch reads it: 8:00:00.")],
    partition: Annotated[str | None, typer.Option("--partition", help="Default: the cluster's.")] = None,
    gres: Annotated[str | None, typer.Option("--gres", help="Of each worker, such as gpu:1.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, submit nothing.")] = False,
    runs_dir: Runs = None,
    cache_dir: Cache = CACHE,
    db: Db = "jobs.db",
) -> None:
    """Submit workers to Slurm.   Example: python cli.py launch slurm --workers 8 --time 8:00:00"""
    from runner.care import slurm
    from runner.queue.where import counted

    plan = slurm.Plan(workers, time, partition, gres, db, command.run_folder(db, runs_dir), cache_dir)
    with command.opened(db) as store:
        if dry_run:
            print(slurm.script(store, plan), end="")
            return
        array = slurm.submit(store, plan)
        logs = slurm.logs(store, plan.runs)
    print(f"array {array}: {counted(workers, 'worker')} submitted")
    command.say(f"their logs: {logs}")
    command.say(
        f"all nodes must share this folder and {cache_dir.resolve()}; each worker checks that at its start"
    )


@launch_app.command("status")
def launch_status(db: Db = "jobs.db") -> None:
    """List this database's workers in Slurm.   Example: python cli.py launch status"""
    from runner.care import slurm

    with command.opened(db) as store:
        slurm.launched_screen(slurm.status(store))


@launch_app.command("stop")
def launch_stop(db: Db = "jobs.db") -> None:
    """Ask them to save, release and leave.   Example: python cli.py launch stop"""
    from runner.care import slurm

    with command.opened(db) as store:
        waiting, running = slurm.stop(store)
    print(f"waiting workers cancelled: {waiting}; running ones asked to save and leave: {running}")


@app.command(rich_help_panel=CHANGING)
def retry(
    job: Jobs = None,
    study: OfStudy = None,
    where: Where = None,
    keep_weights: Annotated[bool, typer.Option("--keep-weights", help=AGAIN)] = False,
    yes: Yes = False,
    runs_dir: Runs = None,
    cache_dir: Cache = CACHE,
    db: Db = "jobs.db",
) -> None:
    """Queue failed or cancelled jobs again.   Example: python cli.py retry --where "cause=oom" """
    from runner.queue import jobs

    if not keep_weights:
        again = lambda c, ids: {"queued": jobs.retry_all(c, ids)}  # noqa: E731
        command.change(db, again, job, study, where, yes, jobs.RETRIABLE)
        return
    from runner.care.again import train_again

    with command.opened(db) as store:
        meant = command.meant(store, job, study, where, ("done",))
        if len(meant) > 1 and not yes:
            command.ask(f"Train these {len(meant)} jobs again, one after another?", meant)
        for each in meant:
            print(train_again(store, command.run_folder(db, runs_dir), cache_dir, each.id, command.say))


@app.command(rich_help_panel=CHANGING)
def cancel(
    job: Jobs = None, study: OfStudy = None, where: Where = None, yes: Yes = False, db: Db = "jobs.db"
) -> None:
    """Cancel queued or running jobs; what they measured stays.   Example: python cli.py cancel 7"""
    from runner.queue import jobs

    said = ("cancelled", "its worker is asked to stop it")
    change = lambda c, ids: dict(zip(said, jobs.cancel_all(c, ids), strict=True))  # noqa: E731
    command.change(db, change, job, study, where, yes)


@app.command(rich_help_panel=CHANGING)
def pause(
    job: Jobs = None, study: OfStudy = None, where: Where = None, yes: Yes = False, db: Db = "jobs.db"
) -> None:
    """Keep jobs, or a study, from being claimed.   Example: python cli.py pause --study factorial"""
    from runner.queue import jobs, studies

    if study and not job and not where:
        with command.opened(db) as store:
            store.write(lambda c: studies.hold(c, study, True))
        print(f"study {study}: paused; running jobs go on")
        return
    command.change(db, lambda c, ids: {"paused": jobs.hold(c, ids)}, job, study, where, yes)


@app.command(rich_help_panel=CHANGING)
def resume(
    job: Jobs = None, study: OfStudy = None, where: Where = None, yes: Yes = False, db: Db = "jobs.db"
) -> None:
    """Let what was paused be claimed again.   Example: python cli.py resume --study factorial"""
    from runner.queue import jobs, studies

    if study and not job and not where:
        with command.opened(db) as store:
            store.write(lambda c: studies.hold(c, study, False))
        print(f"study {study}: resumed, and its paused jobs")
        return
    command.change(db, lambda c, ids: {"resumed": jobs.unhold(c, ids)}, job, study, where, yes)


@app.command(rich_help_panel=CHANGING)
def prioritize(
    job: Jobs = None,
    priority: Annotated[
        int, typer.Option("--priority", "-p", min=-PRIORITIES, max=PRIORITIES, help="Higher goes first.")
    ] = 1,
    study: OfStudy = None,
    where: Where = None,
    yes: Yes = False,
    db: Db = "jobs.db",
) -> None:
    """Let jobs go first, or last.   Example: python cli.py prioritize --where "seed=42" --priority 5"""
    from runner.queue import jobs

    said = f"priority {priority}"
    command.change(db, lambda c, ids: {said: jobs.prioritize(c, ids, priority)}, job, study, where, yes)


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
    from runner.queue.where import counted
    from runner.view.text import size

    runs = command.run_folder(db, runs_dir)
    with command.opened(db) as store:
        with store.read() as connection:
            meant = selection.jobs_meant(connection, job or [], study, where, STATUSES)
        whole = study if where is None else None
        if not meant and not whole:
            command.say("no job matches: nothing changed")
            return
        ids = [each.id for each in meant]
        if not yes:
            said = f"Delete {counted(len(ids), 'job')} for good, with results, logs and weights?"
            command.ask(said, meant)
        gone = store.write(lambda c: studies.delete(c, ids, whole))
        print(f"{counted(len(ids), 'job')} deleted" + "".join(f", and study {name}" for name in gone))
        left = [file for number in ids for file in clean.left_by(runs / store.database_id, number)]
        print(f"{size(clean.remove(store, runs, left))} freed")


@app.command(rich_help_panel=MORNING)
def digest(
    hours: Annotated[float, typer.Option("--hours", min=0.01, max=87_600, help="How far back.")] = 24.0,
    send: Annotated[str | None, typer.Option("--send", hidden=True)] = None,
    every: Annotated[str | None, typer.Option("--every", hidden=True)] = None,
    until_closed: UntilClosed = False,
    db: Db = "jobs.db",
) -> None:
    """Say in twenty lines how the night went.   Example: python cli.py digest --hours 12"""
    from runner.page import beside, notices
    from runner.view import digest as made

    if send:  # beside `work --notify`
        between = seconds(every, "--notify-every") if every else None
        with command.opened(db) as store:
            notices.keep_telling(store, send, between, beside.pause(until_closed), command.say)
        return
    with command.opened(db) as store, store.read() as connection:
        text = made.digest(connection, hours)
    print(text, end="")


@app.command(rich_help_panel=MORNING)
def show(job: Job, as_json: AsJson = False, db: Db = "jobs.db") -> None:
    """Show one job: attempts, causes, result, load, events.   Example: python cli.py show 7"""
    from runner.queue import selection
    from runner.view.details import job_details
    from runner.view.job import job_screen

    with command.opened(db) as store, store.read() as connection:
        details = job_details(connection, selection.find_job(connection, job))
    command.answer(details, as_json, job_screen)


@app.command(rich_help_panel=MORNING)
def report(
    study: Study = None,
    format: Annotated[Format, typer.Option("--format", help="What is written.")] = Format.markdown,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Write it there, with figures.")
    ] = None,
    std: Annotated[Std, typer.Option("--std", help="Spread that ± shows.")] = Std.sample,
    metric: Annotated[
        str | None, typer.Option("--metric", help="The measure compared; default: the primary one.")
    ] = None,
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
    with command.opened(db) as store, store.read() as connection:
        options = Options(std.value, metric, margin, strict, format.value, brief, folder, store.name)
        chosen, others = choose_study(connection, study)
        if study is None and others:
            command.say(f"reporting {chosen.name}; other studies: {', '.join(others)} (--study NAME)")
        material = gather(connection, chosen.name, options)
    files = produce(material, options, command.run_folder(db, runs_dir))
    if output:
        command.say(f"report: {write(files, output)}")
        return
    made = next(iter(files.values()))
    if format is Format.pdf:
        sys.stdout.buffer.write(made)
    else:  # as text: a terminal may lack a letter
        print(made.decode(), end="")


@app.command(rich_help_panel=MORNING)
def power(
    study: Study = None,
    difference: Annotated[str | None, typer.Option("--difference", help="Such as 0.5ppl.")] = None,
    half_width: Annotated[str | None, typer.Option("--half-width", help="Such as 0.005nats.")] = None,
    looks: Annotated[str | None, typer.Option("--looks", help=LOOKS)] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="Default: the primary one.")] = None,
    db: Db = "jobs.db",
) -> None:
    """Say how many seeds it takes.   Example: python cli.py power --study factorial --difference 0.5ppl"""
    from reports.output.seeds import plan, plan_looks
    from reports.reading.plans import PLANNED
    from runner.queue.attempts import note
    from runner.queue.studies import named

    if looks is not None:
        from runner.design.looks import parse_looks

        if half_width is not None:
            raise typer.BadParameter("--looks goes with --difference; --half-width is Stein's rule")
        with command.opened(db) as store, store.read() as connection:
            print(plan_looks(connection, study, parse_looks(looks), difference, metric))
        return
    with command.opened(db) as store, store.read() as connection:
        planned = plan(connection, study, difference, half_width, metric)
        ours = named(connection, planned.study).imported_from is None
        where = f" --db {shlex.quote(store.name)}" if store.name != "jobs.db" else ""
    if planned.event:
        with command.opened(db) as store:
            store.write(lambda c: note(c, PLANNED, detail=planned.event))
    print(planned.text)
    if planned.seeds:
        words = ["enqueue", "--study", planned.study, "--seeds", planned.seeds]
        print(f"python cli.py {shlex.join(words)}{where}" if ours else f"seeds {planned.seeds}")


@app.command(rich_help_panel=MORNING)
def compare(first: str, second: str, db: Db = "jobs.db") -> None:
    """Set two studies side by side.   Example: python cli.py compare published factorial-published"""
    from reports.output.compare import compare_studies

    with command.opened(db) as store, store.read() as connection:
        text = compare_studies(connection, first, second, store.name)
    print(text, end="")


@app.command(name="test", rich_help_panel=MORNING)
def test_(
    study: Annotated[str, typer.Option("--study", help="Revealed for good, and recorded.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Reveal without asking.")] = False,  # noqa: PT028
    db: Db = "jobs.db",  # noqa: PT028 (a command, not a test)
) -> None:
    """Reveal a study's sealed test scores.   Example: python cli.py test --study factorial"""
    from reports.output.files import revealed
    from runner.queue.studies import reveal_test, sealed

    with command.opened(db) as store:
        with store.read() as connection:
            warning = sealed(connection, study)
        if warning is not None and not yes:
            command.say(warning)
            command.confirm(f"Reveal the test scores of {study} for good?")
        words = [word.replace(db, store.name) for word in sys.argv[1:]]  # kept for ever: without password
        typed = f"python {shlex.join(['cli.py', *words])}"
        if not store.write(lambda c: reveal_test(c, study, typed)):
            command.say(f"{study}: revealed before; nothing changed")
        with store.read() as connection:
            text = revealed(connection, study)
    print(text, end="")


@app.command(rich_help_panel=MORNING)
def generate(
    job: Job,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model goes on from.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Longest continuation.")] = 60,
    temperature: Annotated[float, typer.Option("--temperature", help="0: the likeliest each time.")] = 0.8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, another text.")] = 0,
    runs_dir: Runs = None,
    db: Db = "jobs.db",
) -> None:
    """Let a kept model go on with a text.   Example: python cli.py generate 7 "Once upon" --tokens 60"""
    from runner.care.again import weights_folder
    from runner.queue import selection

    with command.opened(db) as store:
        with store.read() as connection:
            job_id = selection.find_job(connection, job)
        folder = weights_folder(store, command.run_folder(db, runs_dir), job_id, kept=True)
    from model.training.generating import continue_text

    print(text + continue_text(folder, text, tokens, temperature, seed))


@app.command(rich_help_panel=MORNING)
def export(
    where: Annotated[str | None, typer.Argument(metavar="[WHERE]", help="With --to: a folder.")] = None,
    study: Study = None,
    table: Annotated[Table, typer.Option("--table", help="What to export.")] = Table.runs,
    format: Annotated[FileFormat, typer.Option("--format", help="csv, parquet or json.")] = FileFormat.csv,
    to: Annotated[Program | None, typer.Option("--to", help="In this program's format, into WHERE.")] = None,
    db: Db = "jobs.db",
) -> None:
    """Write a study's runs, metrics or counts.   Example: python cli.py export --format csv > results.csv"""
    from reports.output import export as made
    from reports.output import programs

    if (to is None) != (where is None):
        raise typer.BadParameter("--to PROGRAM and WHERE go together, as in --to tensorboard events")
    with command.opened(db) as store, store.read() as connection:
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
    cache_dir: Cache = CACHE,
    db: Db = "jobs.db",
) -> None:
    """Check machine and database; exit 70 when a night would fail.   Example: python cli.py doctor --fix"""
    from model.text.cache import damage_of
    from runner.care import doctor as checks

    fit = True
    for finding in checks.examine(db, command.run_folder(db, runs_dir), cache_dir, device, damage_of):
        print(f"{finding.level:4} {finding.name}: {finding.text}")
        if fix and finding.mend:
            print(f"       mended: {finding.mend()}")
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
    weights: Annotated[bool, typer.Option("--weights", help="Kept weights, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove; without it, only list.")] = False,
    runs_dir: Runs = None,
    cache_dir: Cache = CACHE,
    db: Db = "jobs.db",
) -> None:
    """List, or remove, files of finished jobs.   Example: python cli.py clean --older-than 30d --yes"""
    from runner.care import clean
    from runner.view.text import size

    age, least = seconds(older_than, "--older-than"), size_bytes(larger_than, "--larger-than")
    runs = command.run_folder(db, runs_dir)
    with command.opened(db) as store:
        found = clean.removable(store, runs, age, least, study, cache_dir, weights)
        if not yes:
            clean.clean_screen(found)
            return
        freed = clean.remove(store, runs, found)
    print(f"{size(freed)} freed; results are as they were")


@db_app.command("backup")
def db_backup(file: Path, db: Db = "jobs.db") -> None:
    """Copy the database, even while it is worked on.   Example: python cli.py db backup monday.db"""
    from runner.queue.store import backup_store, locate

    backup_store(db, file)
    print(f"{locate(db).name} → {file}")


@db_app.command("copy")
def db_copy(source: str, target: str) -> None:
    """Copy everything to a new database.   Example: python cli.py db copy jobs.db postgresql://me@host/lab"""
    from runner.care.copying import copy_store

    for line in copy_store(source, target):
        print(line)


@db_app.command("upgrade")
def db_upgrade(db: Db = "jobs.db") -> None:
    """Bring an older database to this program's schema.   Example: python cli.py db upgrade"""
    from runner.queue.store import upgrade_store

    before, after = upgrade_store(db)
    print(f"schema {before} → {after}" if before != after else f"schema {after}: nothing to upgrade")


def _html_screens() -> tuple[Screen | None, str]:
    """What makes the first screens of reports for the pages, and their style; None where that is lacking."""
    try:
        from reports.output import page as made
    except ImportError as error:
        command.say(f"page: without first screens of reports: {error}")
        return None, ""
    from runner.page.pages import Screens

    return Screens(made.first_screen), made.css()


def _decide(connection: Connection, study: str) -> Decided:
    """What the next look at a study says."""
    from reports.output.looks import next_look

    return next_look(connection, study)


def _first_screens(store: Store, studies: list[str]) -> str:
    """What `report --brief` prints, of each study."""
    from runner.queue.store import StoreUnavailable

    try:
        from reports.output.files import first_screen

        with store.read() as connection:
            return "\n".join(first_screen(connection, study) for study in studies)
    except (StoreUnavailable, ImportError) as error:  # the night's work is done, and its exit code stays
        command.say(f"no summary: {error}")
        return ""


def main() -> None:
    """Run the command and leave with its exit code."""
    command.run(app)


if __name__ == "__main__":
    main()

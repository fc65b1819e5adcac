"""Workers on a Slurm cluster: an array of them is submitted, looked at, and asked to stop.

Each runs this program's `work` as the batch process itself, so that Slurm's signals reach it and nothing
stands between. Slurm's own commands do the rest, and nothing about Slurm is kept in the database.
Why: docs/decisions/0005-slurm.md.
"""

from __future__ import annotations

import getpass
import shlex
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.queue.postgresql import Server
from runner.queue.store import Store, StoreRefused, locate
from runner.view.console import console, table
from runner.view.text import plain
from runner.work.provenance import PROJECT

SAVE_SECONDS = 90
"""A worker is told to stop this long before its time limit; Slurm may do so up to a minute earlier."""
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --time={time}
{chosen}#SBATCH --output="{logs}/%A_%a.out"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@{save_seconds}

for file in {files}; do
    [ -e "$file" ] && continue
    echo "error: $(hostname) does not see $file, written at launch: all nodes must share {shared}" >&2
    exit 78
done
exec {command}
"""
"""`B:`: the signal goes to the batch process alone, the worker: it decides what its trainers do. The loop
looks for the shared folders before the worker claims a job."""


class NotLaunched(Exception):
    """Slurm is not here, or did not take the request; the message ends with its own words."""

    exit_code = 65


@dataclass(frozen=True)
class Plan:
    """What `launch slurm` was asked for."""

    workers: int
    time: str
    """As sbatch reads it: 8:00:00, or 30 for minutes."""
    partition: str | None
    gres: str | None
    db: str
    runs: Path
    cache: Path


@dataclass(frozen=True)
class Launched:
    """One worker of an array, as Slurm sees it."""

    job: str
    state: str
    elapsed: str
    limit: str
    where: str
    """Its node, or why it waits."""


def prepare(store: Store, plan: Plan) -> tuple[str, list[Path]]:
    """The script for sbatch, and the files that a worker looks for at its start; writes nothing.

    Raises:
        NotLaunched: Slurm's commands are not here, or `--db` holds a password, which the script would show.
        StoreRefused: an SQLite database, and workers that may run on another machine.
    """
    require_slurm()
    database, runs, cache = _database(plan), plan.runs.resolve(), plan.cache.resolve()
    folder, token = logs(store, plan.runs), uuid.uuid4().hex[:12]
    files = [folder / f"launch-{token}", cache / ".launch" / token]
    command = [sys.executable, str(PROJECT / "cli.py"), "work", "--devices", "all", "--db", database]
    command += ["--runs-dir", str(runs), "--cache-dir", str(cache)]
    chosen = {"partition": plan.partition, "gres": plan.gres}
    text = SCRIPT.format(
        name=_name(store),
        last=plan.workers - 1,
        time=plan.time,
        chosen="".join(f"#SBATCH --{name}={value}\n" for name, value in chosen.items() if value),
        logs=str(folder).replace("%", "%%"),
        save_seconds=SAVE_SECONDS,
        files=shlex.join(map(str, files)),
        shared=f"{runs} and {cache}",
        command=shlex.join(command),
    )
    return text, files


def script(store: Store, plan: Plan) -> str:
    """What `submit` hands to sbatch. Raises what `prepare` does."""
    return prepare(store, plan)[0]


def submit(store: Store, plan: Plan) -> str:
    """Submit the array of workers; returns Slurm's number for it. Raises what `prepare` does."""
    text, files = prepare(store, plan)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    try:
        return _ask("sbatch", "--parsable", given=text).strip().partition(";")[0]
    except NotLaunched as error:
        for file in files:
            file.unlink()
        raise NotLaunched(f"refused by Slurm: {error}") from error


def status(store: Store) -> list[Launched]:
    """The workers of this database that Slurm holds, running or waiting."""
    require_slurm()
    fields = "%i|%T|%M|%l|%R"
    lines = _ask("squeue", "--noheader", "--array", f"--format={fields}", *_ours(store)).splitlines()
    return [Launched(*line.split("|", 4)) for line in lines]


def stop(store: Store) -> tuple[int, int]:
    """Cancel the workers that wait, ask those that run to save and release; returns how many of each."""
    states = [each.state for each in status(store)]
    _ask("scancel", "--state=PENDING", *_ours(store))
    # A signal and no cancel: that would end, after Slurm's KillWait, a worker that is still saving.
    _ask("scancel", "--batch", "--signal=TERM", "--state=RUNNING", *_ours(store))
    return states.count("PENDING"), states.count("RUNNING")


def require_slurm() -> None:
    """Raises NotLaunched if Slurm's commands are not installed."""
    for program in ("sbatch", "sinfo", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise NotLaunched(f"{program} is not here; run this on a machine of the cluster")


def _database(plan: Plan) -> str:
    """The database as a worker on any node is to name it."""
    place = locate(plan.db)
    if isinstance(place, Server):
        if place.url.password is not None:
            raise NotLaunched("--db: the script would show the password; put it into ~/.pgpass")
        return plan.db
    elsewhere = _nodes(plan.partition) - {socket.gethostname(), socket.gethostname().split(".")[0]}
    if elsewhere:
        raise StoreRefused(
            f"{place.name}: SQLite serves one machine, and these workers may run on others "
            f"({', '.join(sorted(elsewhere)[:3])}); give --db postgresql+psycopg://HOST/NAME"
        )
    return str(place.path.resolve())


def _nodes(partition: str | None) -> set[str]:
    """The machines of a partition; of the cluster's default one if none is named."""
    lines = [line.split() for line in _ask("sinfo", "--noheader", "--Node", "--format=%n %P").splitlines()]
    wanted = [name for name, of in lines if of.rstrip("*") == partition or (not partition and "*" in of)]
    return set(wanted)


def logs(store: Store, runs: Path) -> Path:
    """The folder of the workers' logs and scripts."""
    return runs.resolve() / store.database_id / "slurm"


def _name(store: Store) -> str:
    return f"nightshift-{store.database_id[:8]}"


def _ours(store: Store) -> tuple[str, str]:
    return f"--name={_name(store)}", f"--user={getpass.getuser()}"


def _ask(*command: str, given: str = "") -> str:
    """What one of Slurm's commands prints, with `given` on its standard input."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no output"]
        said = next((line for line in lines if "error" in line), lines[-1])
        raise NotLaunched(f"{command[0]}: {said.removeprefix(f'{command[0]}: ').strip()}")
    return done.stdout


def launched_screen(workers: Sequence[Launched]) -> None:
    """A line a worker that Slurm holds."""
    out = console()
    if not workers:
        out.print("no workers in Slurm: python cli.py launch slurm --workers 8 --time 8:00:00")
        return
    made = table("Workers in Slurm", "job", "state", "time", "limit", "node, or why it waits", folds="job")
    for each in workers:
        made.add_row(each.job, each.state.lower(), each.elapsed, each.limit, plain(each.where))
    out.print(made)

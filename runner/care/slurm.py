"""Workers on a Slurm cluster: an array of them is submitted, looked at, and asked to stop.

Each runs this program's `work` as the batch process itself, so that Slurm's signals reach it and nothing
stands between: no submitit process, no pickle. submitit makes the script and submits it, Slurm's own commands
do the rest, and nothing about Slurm is kept in the database. Why: docs/decisions/0005-slurm.md.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import shlex
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmExecutor

from runner.queue.postgresql import Server
from runner.queue.store import Store, StoreRefused, locate
from runner.view.console import console, table
from runner.view.text import plain
from runner.work.provenance import PROJECT

SAVE_SECONDS = 90
"""So long before the time limit a worker is told to stop; Slurm may do it up to a minute earlier."""
NOT_SHARED = """\
for file in {files}; do
    [ -e "$file" ] && continue
    echo "error: $(hostname) does not see $file, written at launch: all nodes must share {folders}" >&2
    exit 78
done"""
"""What a worker looks for at its start, so that it says what is wrong before it claims a job."""


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


def prepare(store: Store, plan: Plan) -> tuple[SlurmExecutor, str, list[Path]]:
    """The executor, the command of its script, and the files that a worker looks for; writes nothing.

    Raises:
        NotLaunched: Slurm's commands are not here, or `--db` holds a password, which the script would show.
        StoreRefused: an SQLite database, and workers that may run on another machine.
    """
    require_slurm()
    database = _database(plan)
    folder, token = logs(store, plan.runs), uuid.uuid4().hex[:12]
    files = [folder / f"launch-{token}", plan.cache.resolve() / ".launch" / token]
    command = [sys.executable, str(PROJECT / "cli.py"), "work", "--devices", "all", "--db", database]
    command += ["--runs-dir", str(plan.runs.resolve()), "--cache-dir", str(plan.cache.resolve())]
    looked_for = shlex.join(map(str, files))
    shared = f"{plan.runs.resolve()} and {plan.cache.resolve()}"
    executor = SlurmExecutor(folder)
    executor.update_parameters(
        job_name=_name(store),
        partition=plan.partition,
        time=plan.time,
        gres=plan.gres,
        array_parallelism=plan.workers,
        setup=NOT_SHARED.format(files=looked_for, folders=shared).splitlines(),
        stderr_to_stdout=True,
        use_srun=False,
        wckey=None,
        # To the batch process alone, which is the worker: it decides what its trainers do.
        additional_parameters={"requeue": True, "signal": f"B:TERM@{SAVE_SECONDS}"},
    )
    executor.parameters["map_count"] = plan.workers
    return executor, f"exec {shlex.join(command)}", files


def script(store: Store, plan: Plan) -> str:
    """The script that `submit` would hand to sbatch."""
    executor, command, _ = prepare(store, plan)
    return executor._make_submission_file_text(command, "")


def submit(store: Store, plan: Plan) -> str:
    """Submit the array of workers; returns Slurm's number for it. Raises what `prepare` does."""
    executor, command, files = prepare(store, plan)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    try:
        # Not `executor.submit`, which pickles a function and takes over the signals of its process.
        with contextlib.redirect_stderr(io.StringIO()):  # sbatch's words, which are in the error too
            return str(executor._submit_command(command).job_id)
    except FailedJobError as error:
        for file in files:
            file.unlink()
        said = [line for line in str(error).splitlines() if "error" in line] or [str(error)]
        raise NotLaunched(f"refused by Slurm: {said[-1].strip()}") from error


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
    """Raises NotLaunched where Slurm's commands are not installed."""
    for program in ("sbatch", "srun", "sinfo", "squeue", "scancel"):  # srun is what submitit looks for
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
    """The machines of a partition, the cluster's default where none is named."""
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


def _ask(*command: str) -> str:
    """What one of Slurm's commands prints.

    Raises:
        NotLaunched: it failed, or Slurm does not answer.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or "no output").splitlines()[-1]
        raise NotLaunched(f"{command[0]}: {said}")
    return done.stdout


def launched_screen(workers: Sequence[Launched], out: Console | None = None) -> None:
    """A line a worker that Slurm holds."""
    out = out or console()
    if not workers:
        out.print("no workers in Slurm: python cli.py launch slurm --workers 8 --time 8:00:00")
        return
    made = table("Workers in Slurm", "job", "state", "time", "limit", "node, or why it waits", folds="job")
    for each in workers:
        made.add_row(each.job, each.state.lower(), each.elapsed, each.limit, plain(each.where))
    out.print(made)

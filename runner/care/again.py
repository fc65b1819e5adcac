"""`retry --keep-weights`: a finished job is trained once more, for its weights; its result stays as it is.

The job stays done. It is trained here, on the device and with the threads of the attempt that finished it,
by the copy of the code that this attempt ran, if that is still there. The weights are kept only if every
number of the result comes out in the same bits.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from model.events import Finished, Progressed, from_json
from runner.design.copies import place
from runner.queue.schema import attempts, jobs, measures, results, studies
from runner.queue.store import Store
from runner.view.text import label, plain
from runner.work import source
from runner.work.process import TrainerProcess

WEIGHTS = "weights.safetensors"
KEPT = ("tokenizer", "config.json", WEIGHTS)
"""What a program leaves in an attempt's folder; the weights last: where they are, all is."""
SAY_SECONDS = 10.0
_OF_THE_MACHINE = ("_seconds", "tokens_per_second", "peak_memory_bytes")
"""Measures, by their ends, that no bits are promised of."""


class NotKept(Exception):
    """There are no weights of a job; the message says why, and what helps."""

    exit_code = 65


def weights_folder(store: Store, runs: Path, job_id: int, kept: bool = False) -> Path:
    """Where the weights of a finished job are, or would be.

    Raises:
        NotKept: the job is not finished, or they are to be there (`kept`) and are not.
    """
    with store.read() as connection:
        attempt = connection.scalar(sa.select(results.c.attempt).where(results.c.job_id == job_id))
    if not attempt:
        raise NotKept(f"job {job_id}: not finished here, so it has no weights")
    folder = runs / store.database_id / str(job_id) / f"a{attempt}"
    if kept and not (folder / WEIGHTS).is_file():
        remedy = f"`python cli.py retry --keep-weights {job_id}` trains it again for them"
        raise NotKept(f"job {job_id}: its weights were not kept, or not under {runs}; {remedy}")
    return folder


def train_again(store: Store, runs: Path, cache: Path, job_id: int, say: Callable[[str], None]) -> Path:
    """Train a finished job once more and keep its weights; returns their folder.

    Raises:
        NotKept: another result, or none; nothing is kept, and nothing in the database has changed.
    """
    folder = weights_folder(store, runs, job_id)
    if (folder / WEIGHTS).is_file():
        return folder
    with store.read() as connection:
        job = connection.execute(
            sa.select(
                jobs.c.config,
                jobs.c.cell,
                jobs.c.seed,
                attempts.c.device,
                attempts.c.provenance,
                studies.c.program,
            )
            .join(studies, studies.c.id == jobs.c.study_id)
            .join(attempts, attempts.c.job_id == jobs.c.id)
            .join(results, sa.and_(results.c.job_id == jobs.c.id, results.c.attempt == attempts.c.number))
            .where(jobs.c.id == job_id)
        ).one()
        told = connection.execute(sa.select(measures).where(measures.c.job_id == job_id)).all()
    known = {row.name: row.nonfinite or row.value for row in told}
    provenance = json.loads(job.provenance or "{}")
    code, sha256 = _code(runs / store.database_id, provenance)
    name = f"job {job_id} ({label(json.loads(job.cell), job.seed)})"
    own = "the code that it ran" if sha256 == provenance.get("source_sha256") else "today's code"
    say(f"{name}: training again on {job.device}, by {own}")
    beside = folder / "again"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        threads, program = int(provenance.get("threads", 1)), json.loads(job.program)
        path = str(place(program, runs / store.database_id, code))
        warm = path if program.get("warm") else ""
        trainer = TrainerProcess(job.device, threads, beside / "trainer.log", source=code, warm=warm)
        command = {
            "config_json": job.config,
            "workdir": str(beside),
            "cache_dir": str(cache.resolve()),
            "program": path,
            "program_hash": program["hash"],
            "source": sha256,
            "log_path": str(beside / "trainer.log"),
        }
        try:
            found = _trained(trainer, command, say, name)
        finally:
            trainer.kill()
        if differing := _differing(known, found):
            raise NotKept(
                f"{name}: trained again, and not the same: {'; '.join(differing[:3])}; its weights are not "
                f"kept. Other code, threads or machines give other bits: `python cli.py show {job_id}`"
            )
        if not (beside / WEIGHTS).is_file():
            own = f"{program['path']} left no {WEIGHTS} in run.workdir (docs/programs.md, run.keep_weights)"
            why = own if program["hash"] else "the weights could not be written; is the disk full?"
            raise NotKept(f"{name}: {why}")
        # A try that was killed here may have left its tokenizer, and a folder is not replaced.
        shutil.rmtree(folder / KEPT[0], ignore_errors=True)
        for kept in KEPT:
            if (beside / kept).exists():
                (beside / kept).replace(folder / kept)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _code(runs: Path, provenance: Mapping[str, Any]) -> tuple[Path, str]:
    """Folder and SHA-256 of the code to run: the attempt's own copy, or today's where that is gone."""
    sha256 = str(provenance.get("source_sha256", ""))
    copy = runs / source.FOLDER / sha256
    if sha256 and copy.is_dir() and source.is_whole(copy):
        return copy, sha256
    today = source.take()
    return today.keep(runs), today.sha256


def _trained(
    trainer: TrainerProcess, command: Mapping[str, str], say: Callable[[str], None], name: str
) -> Mapping[str, Any]:
    """The results of a run from its beginning."""
    said_at = time.monotonic()
    while not trainer.ended:
        for message in trainer.receive(1.0):
            kind = message["event"]
            if kind == "ready":
                trainer.send(
                    command="run", resume_from=[], checkpoint_seconds=1e9, keep_weights=True, **command
                )
            elif kind == "failed":
                raise NotKept(f"{name}: {message['cause']}: {plain(message['message'])}; nothing is kept")
            else:
                event = from_json(message)
                if isinstance(event, Finished):
                    return event.results
                if isinstance(event, Progressed) and time.monotonic() - said_at >= SAY_SECONDS:
                    said_at = time.monotonic()
                    say(f"{name}: step {event.step}")
    raise NotKept(f"{name}: the trainer ended: {plain(trainer.last_words())}; nothing is kept")


def _differing(known: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """`val_loss 7.31 then, 7.32 now`, of every measure of the result that is not the same to the last bit."""
    return [
        f"{name} {known.get(name)} then, {found.get(name)} now"
        for name in sorted(known.keys() | found.keys())
        if not name.endswith(_OF_THE_MACHINE) and _bits(known.get(name)) != _bits(found.get(name))
    ]


def _bits(value: Any) -> str:
    """Equal for equal bits: whole numbers are floats in the database, NaN and infinities are words."""
    return value if isinstance(value, str) else "none" if value is None else repr(float(value))

"""The examples as they ship, through the command line: killed in mid-run and resumed, the same bits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.queue.store import open_store
from tests.conftest import PROJECT, environment, results_bits, rows
from tests.injection import NO_SUMMARY, inject

STRUCK = """
import os, signal, sqlite3, time
from pathlib import Path
import NAME as example

Config, METRICS, FILES = example.Config, example.METRICS, (*getattr(example, "FILES", ()), "NAME.py")

def train(config, run):
    log = run.log
    def struck(step, **values):
        log(step, **values)
        for at in map(int, os.environ["STRIKES"].split()):
            mark = Path(os.environ["MARKS"]) / str(at)
            if step == at and not mark.exists():
                mark.touch()
                saved = "SELECT count(*) FROM checkpoints"
                with sqlite3.connect(os.environ["DATABASE"]) as database:
                    while RESUMES and not database.execute(saved).fetchone()[0]:
                        time.sleep(0.01)
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
    run.log = struck
    return example.train(config, run)
"""
"""The example, but worker and trainer are killed at some steps, once each, after a checkpoint is known."""

RUNS = 2
"""Of each example: its first jobs."""
STEPS = {"ridge": 40, "digits": 20, "wrapped": 40}
"""Of a run of each."""


def queued(folder: Path, name: str) -> Path:
    """A folder with two runs of an example in its queue."""
    folder.mkdir()
    for path in (PROJECT / "examples").glob("*.py"):
        shutil.copy(path, folder)
    grid = (PROJECT / "examples" / f"{name}.toml").read_text()
    program = STRUCK.replace("NAME", name).replace("RESUMES", str(name != "wrapped"))
    (folder / "struck.py").write_text(program)
    (folder / f"{name}.toml").write_text(grid.replace(f'"{name}.py"', '"struck.py"'))
    words = ("--seeds", "0", "--set", f"steps={STEPS[name]}", "--max-failures", "50")
    subprocess.run(
        [sys.executable, str(PROJECT / "cli.py"), "enqueue", "--grid", f"{name}.toml", *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        check=True,
    )
    store = open_store(str(folder / "jobs.db"))
    store.write(lambda c: c.exec_driver_sql(f"DELETE FROM jobs WHERE id > {RUNS}"))
    store.close()
    return folder


def night(queue: Path, folder: Path, strikes: list[int]) -> str:
    """Work a copy of a queue until all is done, whatever strikes; returns the results' bits."""
    shutil.copytree(queue, folder)
    where = {
        "MARKS": str(folder),
        "DATABASE": str(folder / "jobs.db"),
        "STRIKES": " ".join(map(str, strikes)),
    }

    quiet = inject(folder / "quiet", NO_SUMMARY)

    def work() -> int:
        options = ("--slots", "1", "--checkpoint-seconds", "0", "--lease-seconds", "1")
        done = subprocess.run(
            [sys.executable, str(PROJECT / "cli.py"), "work", *options],
            cwd=folder,
            env={**environment(), **where, **quiet},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode in (0, -9), done.stderr
        return done.returncode

    store = open_store(str(folder / "jobs.db"))
    kills = 0
    while work() != 0:
        kills += 1
    assert kills == len(strikes)
    bits = results_bits(store)
    assert {job["status"] for job in rows(store, "jobs")} == {"done"}
    assert {result["exact"] for result in rows(store, "results")} == {1}
    resumed = [each["resumed_from_step"] for each in rows(store, "attempts") if each["resumed_from_step"]]
    assert bool(resumed) == bool(kills and not (folder / "wrapped.toml").exists())  # a script starts over
    store.close()
    return bits


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strikes"), [("ridge", [9, 25]), ("digits", [14]), ("wrapped", [21])])
def test_example_killed_in_mid_run_gives_the_bits_of_an_undisturbed_one(
    tmp_path: Path, name: str, strikes: list[int]
) -> None:
    """Ten times each: `make chaos`."""
    queue = queued(tmp_path / "queued", name)
    calm = night(queue, tmp_path / "calm", [])
    assert json.loads(calm)[0]
    assert night(queue, tmp_path / "struck", strikes) == calm


def test_numpy_example_never_imports_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from runner.work import trainer; "
        "from runner.design.program import load; load(Path('examples/ridge.py')); "
        "assert not {'torch', 'pandas', 'sqlalchemy'} & {*sys.modules}"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, check=True, env={**os.environ, "PYTHONPATH": ""}
    )

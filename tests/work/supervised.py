"""A supervisor in the test's own process, over trainers that are a small program: for what trainers do wrong.

The program speaks the trainer's protocol; a test gives it the lines for its start, its check and each job.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from model.events import Phase
from runner.queue.store import Store
from runner.work.options import Options
from runner.work.progress import Display
from runner.work.worker import Worker

FAKE = """
import json, os, signal, sys, time
events, device = os.fdopen(int(sys.argv[1]), "wb", buffering=0), sys.argv[2]
def send(**message): events.write(json.dumps(message).encode() + b"\\n")
def finish():
    results = {"val_loss": 1.0, "val_perplexity": 2.7}
    send(event="Finished", step=40, results=results)
def resumed(): send(event="Resumed", step=0, path=None, exact=True, refused=[], environment={})
for _ in ["once"]:
    START
    send(event="ready", device=device)
for line in sys.stdin:
    message = json.loads(line)
    if message["command"] == "check":
        send(event="checked", ok=CHECK, message="wrong")
    elif message["command"] == "run":
        resumed()
        JOB
"""

FIRST = "f'{os.sep}1{os.sep}a' in message['workdir']"
"""For the program: whether its job is the first one."""


def work_on(
    store: Store,
    folder: Path,
    devices: tuple[str, ...] = ("auto",),
    jobs: int | None = None,
    display: Display | None = None,
    job: str = "finish()",
    begin: str = "pass",
    check: str = "True",
) -> tuple[int, Worker]:
    """Work a queue with trainers that do `job` for each job, `begin` at their start, and answer `check`."""
    body = textwrap.indent(textwrap.dedent(job), " " * 8).strip()
    program = FAKE.replace("START", begin).replace("CHECK", check).replace("JOB", body)
    (folder / "fake_trainer.py").write_text(program)
    options = Options(
        devices=devices,
        jobs=jobs,
        runs=folder / "runs",
        phase_limits=dict.fromkeys(Phase, 60.0),
        trainer_command=(sys.executable, str(folder / "fake_trainer.py")),
    )
    worker = Worker(store, options, display or Display())
    return worker.run(), worker

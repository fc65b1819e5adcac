"""The night, in real processes with real signals: drain, release, resume, hang, crash, take over.

What is compared bit for bit runs on one thread. Faults of the trainer are played by small programs that speak
its protocol, so that they happen exactly when they should.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.events import Phase
from runner.design import grids
from runner.design.enqueue import enqueue
from runner.queue import jobs
from runner.queue.store import Store, StoreUnreachable, open_store
from runner.work.options import Options
from runner.work.progress import Display
from runner.work.slot import UNHEALTHY
from runner.work.worker import DRAINED, PREEMPTED, Worker
from tests.conftest import both_engines, command, environment, results_bits, row, rows
from tests.injection import GATE, inject

Cli = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, cache_dir: Path, database: str) -> Iterator[Start]:
    """Start `work` in the background; whatever is left of it is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, PYTHONPATH: str = "", **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command("work", *arguments, cache_dir=cache_dir),
            cwd=tmp_path,
            env={**environment(database), "PYTHONPATH": PYTHONPATH},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def opened(place: Path | str) -> Store:
    return open_store(str(place / "jobs.db") if isinstance(place, Path) else place)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Poll until the condition holds; the time is only how long a failing test takes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def enqueue_long(cli: Cli, tiny_grid: Path, steps: int = 320, seeds: str = "42") -> None:
    """Jobs that are long enough to be interrupted: noise 0.0 and 0.5, for each seed."""
    sizes = [f"--set=train.steps={steps}", f"--set=train.eval_every={steps // 4}"]
    done = cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled", "--seeds", seeds, *sizes)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> str:
    """The bits of the long study when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    from tests.conftest import TINY_GRID

    (folder / "tiny.toml").write_text(TINY_GRID)

    def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments, cache_dir=cache_dir),
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    enqueue_long(cli, folder / "tiny.toml")
    assert cli("work").returncode == 0
    store = open_store(str(folder / "jobs.db"))
    bits = results_bits(store)
    store.close()
    return bits


def steps_done(store: Store) -> int:
    return sum(job["progress_step"] for job in rows(store, "jobs"))


# --- the plain night --------------------------------------------------------------------------------------


def test_work_drains_the_queue_and_says_so(cli: Cli, tiny_grid: Path, tmp_path: Path) -> None:
    assert cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled").stdout == "tiny: 4 queued\n"
    night = cli("work")
    assert night.returncode == 0, night.stderr
    assert "4/4 runs done" in night.stdout
    assert "job 4" in night.stderr
    store = opened(tmp_path)
    assert {job["status"] for job in rows(store, "jobs")} == {"done"}
    assert [a["outcome"] for a in rows(store, "attempts")] == ["done"] * 4
    assert len({a["pid"] for a in rows(store, "attempts")}) == 1  # one trainer served them all
    for result in rows(store, "results"):
        assert result["tokens_seen"] == 40 * 2 * 32
        assert None not in (
            result["val_bits_per_byte"],
            result["expert_usage_cv"],
            result["aux_loss_last_100"],
        )
    splits = {(m["split"], m["step"]) for m in rows(store, "metrics", job_id=1) if m["split"] != "train"}
    assert splits == {("val", 20), ("val", 40), ("test", 40)}
    counts = rows(store, "expert_counts", job_id=1, split="val", step=40)
    assert sum(c["tokens"] for c in counts) == 2 * 15 * 32  # top-2 of the whole windows under 512 tokens
    provenance = rows(store, "attempts")[0]["provenance"]
    assert '"threads": 1' in provenance
    assert '"torch"' in provenance
    store.close()
    assert sorted(path.name for path in tmp_path.glob("jobs.db*")) == ["jobs.db"]
    assert list(tmp_path.rglob("*.safetensors")) == []  # a finished job keeps no checkpoints

    before = (tmp_path / "jobs.db").read_bytes()
    again = cli("work")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing to do" in again.stderr
    assert "waiting" not in again.stderr
    assert cli("status").returncode == cli("report").returncode == cli("show", "1").returncode == 0
    assert (tmp_path / "jobs.db").read_bytes() == before  # reading changes nothing


@both_engines
def test_two_workers_share_a_queue(cli: Cli, start: Start, tiny_grid: Path, database: str) -> None:
    cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled", "--seeds", "1..4")
    pair = [start(), start()]
    assert [worker.wait(timeout=300) for worker in pair] == [0, 0]
    store = opened(database)
    assert [job["attempt"] for job in rows(store, "jobs", status="done")] == [1] * 8
    assert len(rows(store, "results")) == 8
    assert len({a["owner"] for a in rows(store, "attempts")}) == 2


def test_jobs_limit_stops_after_so_many(cli: Cli, tiny_grid: Path, tmp_path: Path) -> None:
    cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled")
    assert cli("work", "--jobs", "1").returncode == 0
    assert [job["status"] for job in rows(opened(tmp_path), "jobs")] == ["done", "queued", "queued", "queued"]


def test_bits_do_not_depend_on_the_process_being_fresh(
    cli: Cli, tiny_grid: Path, tmp_path: Path, undisturbed: str
) -> None:
    enqueue_long(cli, tiny_grid)
    assert cli("work", "--jobs", "1").returncode == 0  # each job in a process of its own
    assert cli("work", "--jobs", "1").returncode == 0
    store = opened(tmp_path)
    assert len({a["pid"] for a in rows(store, "attempts")}) == 2
    assert results_bits(store) == undisturbed


# --- signals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database", "number", "code"),
    [
        ("sqlite", signal.SIGTERM, 75),
        ("sqlite", signal.SIGINT, 0),
        ("sqlite", signal.SIGHUP, 75),
        ("postgresql", signal.SIGTERM, 75),
    ],
    indirect=["database"],
)
def test_first_signal_saves_releases_and_the_next_worker_goes_on(
    cli: Cli, start: Start, tiny_grid: Path, database: str, undisturbed: str, number: int, code: int
) -> None:
    enqueue_long(cli, tiny_grid)
    store = opened(database)
    worker = start()
    wait_for(lambda: steps_done(store) > 50, "some steps")
    worker.send_signal(number)
    assert worker.wait(timeout=120) == code
    job = row(store, "jobs", id=1)
    assert (job["status"], job["failures"]) == ("queued", 0)
    assert row(store, "attempts")["outcome"] == "preempted"
    assert len(rows(store, "checkpoints")) == 1
    assert cli("work").returncode == 0
    resumed = rows(store, "attempts", job_id=1)[1]
    assert resumed["resumed_from_step"] > 50
    assert resumed["exact"] == 1
    assert results_bits(store) == undisturbed


def test_second_signal_leaves_at_once_and_loses_nothing(
    cli: Cli, start: Start, tiny_grid: Path, tmp_path: Path, undisturbed: str
) -> None:
    enqueue_long(cli, tiny_grid)
    store = opened(tmp_path)
    worker = start("--lease-seconds", "3")
    wait_for(lambda: steps_done(store) > 20, "some steps")
    trainer = row(store, "attempts")["pid"]
    os.kill(trainer, signal.SIGSTOP)  # it will never reach its update boundary
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGINT)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT), errors
    wait_for(lambda: not alive(trainer), "the trainer's end")
    assert cli("work").returncode == 0
    assert results_bits(store) == undisturbed


def test_nohup_is_respected(cli: Cli, start: Start, tiny_grid: Path, tmp_path: Path) -> None:
    enqueue_long(cli, tiny_grid, steps=200)
    store = opened(tmp_path)
    worker = start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(lambda: steps_done(store) > 10, "some steps")
    worker.send_signal(signal.SIGHUP)
    assert worker.wait(timeout=120) == 0
    assert {job["status"] for job in rows(store, "jobs")} == {"done"}


def test_time_limit_drains_before_the_time_is_up(
    cli: Cli, tiny_grid: Path, tmp_path: Path, undisturbed: str
) -> None:
    enqueue_long(cli, tiny_grid)
    codes = [cli("work", "--time-limit", "8s").returncode]
    while codes[-1] == PREEMPTED and len(codes) < 30:
        codes.append(cli("work", "--time-limit", "8s").returncode)
    store = opened(tmp_path)
    assert codes[-1] == DRAINED
    assert {job["failures"] for job in rows(store, "jobs")} == {0}
    assert results_bits(store) == undisturbed


# --- kill -9 ----------------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@both_engines
def test_killed_supervisor_takes_its_trainer_along(
    cli: Cli, start: Start, tiny_grid: Path, database: str
) -> None:
    enqueue_long(cli, tiny_grid)
    store = opened(database)
    worker = start("--lease-seconds", "3")
    wait_for(lambda: steps_done(store) > 0, "a step")
    trainer = row(store, "attempts")["pid"]
    assert alive(trainer)
    worker.kill()
    wait_for(lambda: not alive(trainer), "the trainer's end", seconds=10)
    assert cli("work").returncode == 0
    assert rows(store, "attempts", job_id=1)[0]["outcome"] == "lost"


@both_engines
def test_killed_trainer_costs_its_attempt_only(
    cli: Cli, start: Start, tiny_grid: Path, database: str, undisturbed: str
) -> None:
    enqueue_long(cli, tiny_grid)
    store = opened(database)
    worker = start("--checkpoint-seconds", "0.2")
    wait_for(lambda: rows(store, "checkpoints"), "a checkpoint")
    os.kill(rows(store, "attempts")[-1]["pid"], signal.SIGKILL)
    assert worker.wait(timeout=300) == 0
    attempt = row(store, "attempts", number=1, job_id=1)
    assert (attempt["outcome"], attempt["cause"], attempt["exit_code"]) == ("failed", "infrastructure", -9)
    assert attempt["charged"] == 0  # it had moved the job on
    assert results_bits(store) == undisturbed


@pytest.mark.slow
def test_ten_kills_of_the_worker_change_no_bit(
    cli: Cli, start: Start, tiny_grid: Path, tmp_path: Path, undisturbed: str
) -> None:
    enqueue_long(cli, tiny_grid)
    store = opened(tmp_path)
    finished: dict[int, int] = {}
    for kill in range(10):
        worker = start("--checkpoint-seconds", "0", "--lease-seconds", "2")
        goal = steps_done(store) + 17 * kill % 60
        wait_for(
            lambda goal=goal, worker=worker: steps_done(store) > goal or worker.poll() is not None, "steps"
        )
        worker.kill()
        worker.wait()
        finished |= {job["id"]: job["attempt"] for job in rows(store, "jobs", status="done")}
    assert cli("work").returncode == 0
    assert {job["status"] for job in rows(store, "jobs")} == {"done"}
    assert len(rows(store, "results")) == 2
    for job_id, attempt in finished.items():  # what was finished stayed untouched
        assert row(store, "jobs", id=job_id)["attempt"] == attempt
    assert results_bits(store) == undisturbed


@both_engines
def test_stopped_worker_is_taken_over_and_stays_out(
    cli: Cli, start: Start, tiny_grid: Path, database: str, undisturbed: str
) -> None:
    enqueue_long(cli, tiny_grid)
    store = opened(database)
    sleeper = start("--lease-seconds", "2")
    wait_for(lambda: steps_done(store) > 20, "some steps")
    os.kill(sleeper.pid, signal.SIGSTOP)
    os.kill(row(store, "attempts")["pid"], signal.SIGSTOP)
    rescuer = start()
    wait_for(lambda: len(rows(store, "attempts", job_id=1)) == 2, "the take-over")
    for pid in (row(store, "attempts", job_id=1, number=1)["pid"], sleeper.pid):
        os.kill(pid, signal.SIGCONT)
    assert rescuer.wait(timeout=300) == 0
    _, errors = sleeper.communicate(timeout=300)
    assert (sleeper.returncode, "no longer holds it" in errors) == (0, True), errors
    assert len(rows(store, "results")) == 2
    assert row(store, "results", job_id=1)["attempt"] == 2
    assert results_bits(store) == undisturbed


# --- cancel, database gone --------------------------------------------------------------------------------


@both_engines
def test_cancelled_running_job_saves_keeps_what_it_measured_and_can_go_on(
    cli: Cli, start: Start, tiny_grid: Path, tmp_path: Path, database: str, cache_dir: Path, undisturbed: str
) -> None:
    enqueue_long(cli, tiny_grid)
    store = opened(database)
    gate = tmp_path / "gate"
    worker = start("--lease-seconds", "6", **inject(gate, GATE))
    wait_for(lambda: rows(store, "metrics", job_id=1), "a measurement")
    assert cli("cancel", "1").returncode == 0
    for _ in range(2):  # the first heartbeat sees the wish, and the second says that it was passed on
        before = row(store, "jobs", id=1)["heartbeat_at"]
        wait_for(lambda: row(store, "jobs", id=1)["heartbeat_at"] > before, "a heartbeat")  # noqa: B023
    (gate / "go").touch()
    assert worker.wait(timeout=300) == 0
    assert [job["status"] for job in rows(store, "jobs")] == ["cancelled", "done"]
    assert rows(store, "metrics", job_id=1)
    assert rows(store, "results", job_id=1) == []
    saved = max(file["step"] for file in rows(store, "checkpoints", job_id=1))
    assert saved > 0
    assert cli("retry", "1").returncode == 0
    # From another folder: the checkpoint is beside the database, on a server's in the folder of the first.
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path if "://" in database else tmp_path / "elsewhere"
    again = command("work", "--db", database, cache_dir=cache_dir)
    assert subprocess.run(again, cwd=folder, env=environment(database), check=False).returncode == 0
    assert row(store, "attempts", job_id=1, number=2)["resumed_from_step"] == saved
    assert results_bits(store) == undisturbed
    assert not (tmp_path / "elsewhere" / "runs").exists()


@pytest.mark.parametrize("remove", [lambda path: path.rename(path.with_name("elsewhere.db")), Path.unlink])
def test_database_that_goes_away_stops_the_worker_loudly(
    cli: Cli, start: Start, tiny_grid: Path, tmp_path: Path, remove: Callable[[Path], object]
) -> None:
    enqueue_long(cli, tiny_grid)
    store = opened(tmp_path)
    worker = start("--lease-seconds", "6")
    wait_for(lambda: steps_done(store) > 0, "a step")
    store.close()
    remove(tmp_path / "jobs.db")
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 69
    assert "moved, deleted or replaced" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "jobs.db").exists()


# --- trainers that misbehave ------------------------------------------------------------------------------

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


def work_with(
    queued: Store, tmp_path: Path, job: str, begin: str = "pass", check: str = "True", **limits: float
) -> tuple[int, Worker]:
    """Run a supervisor in this process with a trainer that does `job` for each job."""
    program = tmp_path / "fake_trainer.py"
    body = textwrap.indent(textwrap.dedent(job), " " * 8).strip()
    program.write_text(FAKE.replace("START", begin).replace("CHECK", check).replace("JOB", body))
    phases = {phase: limits.get(phase.value, 30.0) for phase in Phase}
    options = Options(
        runs=tmp_path / "runs", phase_limits=phases, trainer_command=(sys.executable, str(program))
    )
    worker = Worker(queued, options, Display())
    return worker.run(), worker


@pytest.fixture(autouse=True)
def _short_back_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process only, back-offs are short, and the signal handlers of a test are put back."""
    monkeypatch.setattr(jobs, "BACKOFF_SECONDS", 0.1)
    monkeypatch.setattr("runner.work.worker.POLL_SECONDS", 0.1)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def two_jobs(store: Store, tiny_grid: Path) -> Store:
    grid = grids.adjust(grids.load_grid(str(tiny_grid)), seeds="1")
    store.write(lambda c: enqueue(c, "tiny", grid))
    return store


FIRST = "f'{os.sep}1{os.sep}a' in message['workdir']"


def test_error_that_sticks_to_the_process_does_not_reach_the_next_job(
    two_jobs: Store, tmp_path: Path
) -> None:
    """A CUDA context stays broken after an error: the process is replaced, whatever it says of itself."""
    job = "send(event='failed', cause='device', message='CUDA error: illegal address', traceback='')"
    code, _ = work_with(
        two_jobs, tmp_path, f"broken = {FIRST} or globals().get('broken'); {job} if broken else finish()"
    )
    assert code == DRAINED
    assert [j["status"] for j in rows(two_jobs, "jobs")] == ["failed", "done"]
    assert {a["cause"] for a in rows(two_jobs, "attempts", job_id=1)} == {"device"}
    broken = [a["pid"] for a in rows(two_jobs, "attempts", job_id=1)]
    assert len(set(broken)) == 3
    assert row(two_jobs, "attempts", job_id=2)["pid"] != broken[0]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (f"time.sleep(600) if {FIRST} else finish()", "phase start"),
        (
            f"""
            if {FIRST}:
                send(event="Progressed", phase="step", step=3, loss=None, tokens_per_second=None)
                time.sleep(600)
            finish()
            """,
            "phase step after step 3",
        ),
        (
            f"""
            if {FIRST}:
                send(event="Progressed", phase="evaluate", step=20, loss=None, tokens_per_second=None)
                time.sleep(600)
            finish()
            """,
            "phase evaluate after step 20",
        ),
    ],
)
def test_hung_trainer_is_stalled_ended_and_retried(
    two_jobs: Store, tmp_path: Path, job: str, message: str
) -> None:
    code, _ = work_with(two_jobs, tmp_path, job, step=0.5, evaluate=0.5, start=2.0)
    assert code == DRAINED
    hung = rows(two_jobs, "attempts", job_id=1)
    assert [a["cause"] for a in hung] == ["stalled"] * 3
    assert all(message in a["message"] for a in hung)
    assert not any(alive(a["pid"]) for a in hung)
    assert [job["status"] for job in rows(two_jobs, "jobs")] == ["failed", "done"]


@pytest.mark.parametrize(
    ("death", "exit_code"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os._exit(3)", 3),
    ],
)
def test_job_that_kills_its_process_each_time_fails_alone(
    two_jobs: Store, tmp_path: Path, death: str, exit_code: int
) -> None:
    code, _ = work_with(two_jobs, tmp_path, f"{death} if {FIRST} else finish()")
    assert code == DRAINED
    assert [job["status"] for job in rows(two_jobs, "jobs")] == ["failed", "done"]
    attempts = rows(two_jobs, "attempts", job_id=1)
    assert [(a["cause"], a["exit_code"]) for a in attempts] == [("infrastructure", exit_code)] * 3


def test_reported_failure_keeps_cause_message_and_traceback(two_jobs: Store, tmp_path: Path) -> None:
    job = "send(event='failed', cause='diverged', message='at step 7', traceback='Traceback: all of it')"
    code, _ = work_with(two_jobs, tmp_path, job + f" if {FIRST} else finish()")
    assert code == DRAINED
    attempt = row(two_jobs, "attempts", job_id=1)
    assert (attempt["cause"], attempt["message"]) == ("diverged", "at step 7")
    assert attempt["traceback"] == "Traceback: all of it"


def test_broken_device_stops_the_worker_and_charges_no_job(queued: Store, tmp_path: Path) -> None:
    code, worker = work_with(queued, tmp_path, "os._exit(1)", check="False")
    assert code == UNHEALTHY
    assert worker.jobs_done == 3
    assert {(j["status"], j["failures"]) for j in rows(queued, "jobs")} == {("queued", 0)}
    assert {(a["cause"], a["charged"]) for a in rows(queued, "attempts")} == {("device", 0)}


def test_sound_device_is_not_blamed_for_bad_jobs(queued: Store, tmp_path: Path) -> None:
    code, _ = work_with(queued, tmp_path, "os._exit(1)", check="True")
    assert code == DRAINED
    assert {(j["status"], j["failures"]) for j in rows(queued, "jobs")} == {("failed", 3)}


def test_trainer_that_never_starts_is_unhealthy_and_claims_nothing(two_jobs: Store, tmp_path: Path) -> None:
    code, _ = work_with(two_jobs, tmp_path, "finish()", begin="raise RuntimeError('no driver')")
    assert code == UNHEALTHY
    assert rows(two_jobs, "attempts") == []


def test_result_that_cannot_be_recorded_is_a_bug_of_its_job(two_jobs: Store, tmp_path: Path) -> None:
    job = "send(event='Finished', step=40, results={'val_perplexity': 1.0}) if " + FIRST + " else finish()"
    code, _ = work_with(two_jobs, tmp_path, job)
    assert code == DRAINED
    assert [j["status"] for j in rows(two_jobs, "jobs")] == ["failed", "done"]
    assert {a["cause"] for a in rows(two_jobs, "attempts", job_id=1)} == {"bug"}


def test_replaced_database_is_never_written(two_jobs: Store, tmp_path: Path) -> None:
    swap = tmp_path / "swap.db"
    swap.write_bytes(b"")
    job = f"os.replace({str(swap)!r}, {str(two_jobs.path)!r}); time.sleep(600)"
    with pytest.raises(StoreUnreachable, match="replaced"):
        work_with(two_jobs, tmp_path, job)
    assert two_jobs.path.read_bytes() == b""

"""What a person sees and types: the programs in a real pseudo-terminal of 80×24."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.events import Measured
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.queue import jobs, records, schema, studies
from runner.queue.jobs import Worker
from runner.queue.store import Store
from runner.view.gpus import gpus
from tests.conftest import PROJECT, TINY_GRID, command, environment, rows
from tests.injection import gate_at
from tests.terminal import COLOUR, Screen, Terminal
from tests.work.night import Night


@pytest.fixture
def terminal(tmp_path: Path, cache_dir: Path) -> Iterator[Callable[..., Terminal]]:
    """Start a command in a terminal; what is left of it is ended after the test."""
    opened: list[Terminal] = []

    def start(*words: str, size: tuple[int, int] = (24, 80), **variables: str) -> Terminal:
        arguments = command(*words, cache_dir=cache_dir)
        made = Terminal(arguments, tmp_path, {**environment(), **variables}, *size)
        opened.append(made)
        return made

    yield start
    for each in opened:
        each.__exit__()


@pytest.fixture
def busy(queued: Store, worker: Worker) -> Store:
    """One job running at step 8, one cancelled."""
    values = {"id": worker.owner, "host": "here", "pid": 1, "device": "cpu"}
    queued.write(lambda c: c.execute(schema.workers.insert().values(started_at=1, heartbeat_at=1, **values)))
    lease = queued.write(lambda c: jobs.claim(c, worker))
    assert lease is not None
    measured = Measured(8, "train", {"loss": 8.5, "tokens_per_second": 321.0})
    queued.write(lambda c: records.record(c, lease, measured))
    queued.write(lambda c: jobs.cancel_all(c, [4]))
    return queued


def test_the_emulator_shows_what_a_terminal_shows() -> None:
    screen = Screen(3, 10)
    screen.feed("one\r\n\x1b[31mtwo\x1b[0m\r\x1b[1A\x1b[2KX\x1b[2;5H実!\x1b[3;1Hlong line wraps")
    assert screen.lines == ["two 実!", "long line", "wraps"]
    screen.feed("\x1b[?1049hinside\x1b[?1049l")
    assert screen.lines[1] == "long line"
    assert COLOUR.search("\x1b[1;31m")
    assert COLOUR.search("\x1b[38;5;1m")
    assert not COLOUR.search("\x1b[1m\x1b[0m\x1b[2m\x1b[m")


# --- watch ------------------------------------------------------------------------------------------------


def test_watch_is_live_and_ctrl_c_leaves_the_terminal_as_it_was(
    busy: Store, worker: Worker, terminal: Callable[..., Terminal]
) -> None:
    watching = terminal("watch")
    # A frame arrives in pieces: it is whole when everything that is due is there.
    due = ("8/40", "noise_std=0.0 ▶ ·", "noise_std=0.5 · −", "loss 8.500 321 tok/s")
    screen = watching.until(lambda s: s.alternate and all(words in s.text for words in due))
    lease = jobs.Lease(1, 1, worker.owner, "tiny", {}, 42, 40, "", ())
    busy.write(lambda c: jobs.finish(c, lease, {"val_loss": 1.0, "val_perplexity": 2.7}))
    watching.until(lambda s: "noise_std=0.0 ■ ·" in s.text)
    watching.type("\x03")
    assert watching.end() == 0
    assert not screen.alternate  # the screen of its own is given back
    assert "Traceback" not in watching.raw
    assert watching.raw.rindex("\x1b[?25h") > watching.raw.rindex("\x1b[?25l")  # and the cursor


def test_watch_ended_by_sigterm_gives_the_terminal_back(
    busy: Store, terminal: Callable[..., Terminal]
) -> None:
    watching = terminal("watch")
    watching.until(lambda s: s.alternate and "8/40" in s.text)
    watching.process.send_signal(signal.SIGTERM)
    watching.end()
    assert not watching.screen.alternate
    assert "Traceback" not in watching.raw


def test_watch_ends_in_one_line_when_the_database_goes_away(
    busy: Store, terminal: Callable[..., Terminal]
) -> None:
    watching = terminal("watch")
    watching.until(lambda s: s.alternate and "8/40" in s.text)
    busy.path.rename(busy.path.with_name("elsewhere.db"))
    assert watching.end() == 69
    assert "moved, deleted or replaced" in watching.screen.text.replace("\n", "")
    assert "Traceback" not in watching.raw


@pytest.mark.parametrize("size", [(24, 80), (10, 40), (50, 160)])
def test_watch_fits_any_terminal(
    store: Store, tiny_grid: Path, terminal: Callable[..., Terminal], size: tuple[int, int]
) -> None:
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="1..60")
    for name in ("one", "two", "three", "four"):
        store.write(lambda c, name=name: enqueue(c, name, grid))
    watching = terminal("watch", size=size)
    screen = watching.until(lambda s: s.alternate and "Nightshift" in s.lines[0])
    assert screen.lines[0].startswith("Nightshift")  # nothing has scrolled away


# --- colours, tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("status",), ("show", "1"), ("watch",), ("--help",)])
def test_colours_are_off_where_no_color_is_set(
    busy: Store, terminal: Callable[..., Terminal], words: tuple[str, ...]
) -> None:
    def output(**variables: str) -> str:
        shown = terminal(*words, **variables)
        if words == ("watch",):
            shown.until(lambda s: "8/40" in s.text)
            shown.type("\x03")
        assert shown.end() == 0
        return shown.raw

    assert not COLOUR.search(output(NO_COLOR="1"))
    if words in (("watch",), ("--help",)):
        assert COLOUR.search(output())  # so that the line above can fail


def test_status_fits_eighty_columns_whatever_the_names(
    store: Store, worker: Worker, terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    (tmp_path / "long.toml").write_text(TINY_GRID.replace("noise_std =", '"routing.noise_std" ='))
    grid = grid_file.load_grid(str(tmp_path / "long.toml"))
    for name in ("実験" * 40, "x" * 80):
        store.write(lambda c, name=name: enqueue(c, name, grid))
    store.write(lambda c: jobs.claim(c, worker))
    shown = terminal("status")
    assert shown.end() == 0
    lines = shown.screen.lines
    head = next(line for line in lines if line.startswith("study"))
    assert head.split() == ["study", "queued", "running", "done", "failed", "cancelled", "ETA"]
    assert any(line.startswith("1  ") and "0/40" in line for line in lines)


# --- work -------------------------------------------------------------------------------------------------


def test_work_shows_job_step_loss_and_what_is_left(night: Night, terminal: Callable[..., Terminal]) -> None:
    working = terminal("work", **night.inject(gate_at(100), "gate"))
    screen = working.until(lambda s: any("loss" in line and "left" in line for line in s.lines))
    bar = next(line for line in screen.lines if "left" in line)
    assert "job 1" in bar
    assert "tok/s" in bar or "loss" in bar
    assert sum("left" in line for line in screen.lines) == 1  # one line, that does not wrap
    working.type("\x03")
    night.go_on_when_asked()
    assert working.end() == 0
    assert "Traceback" not in working.raw
    assert {job["status"] for job in rows(night.store, "jobs")} == {"queued"}
    assert rows(night.store, "attempts")[-1]["outcome"] == "preempted"


# --- Ctrl-C -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("logs", "1", "-f"), ("cancel", "--study", "tiny"), ("work", "--wait")])
def test_ctrl_c_is_never_a_traceback(
    queued: Store, worker: Worker, tmp_path: Path, terminal: Callable[..., Terminal], words: tuple[str, ...]
) -> None:
    if words[0] == "work":
        queued.write(lambda c: studies.hold(c, "tiny", True))
    else:
        queued.write(lambda c: jobs.claim(c, worker))
    log = tmp_path / "runs" / queued.database_id / "1" / "a1" / "trainer.log"
    log.parent.mkdir(parents=True)
    log.write_text("the first line\n")
    running = terminal(*words)
    seen = {"logs": "the first line", "cancel": "[y/N]", "work": "waiting for jobs"}[words[0]]
    running.until(lambda s: seen in s.text)
    if words[0] == "cancel":
        # Between Python's prompt and its reading, a first Ctrl-C can be lost to both: a person presses again.
        code = running.end(keys="\x03")
    else:
        running.type("\x03")
        code = running.end()
    assert "Traceback" not in running.raw
    # A press while Python shuts down ends it by the signal itself, silently.
    assert code in ((0,) if words[0] == "work" else (1, 130, -signal.SIGINT))
    assert {job["status"] for job in rows(queued, "jobs")} <= {"queued", "running"}


def test_a_question_is_answered_by_typing(queued: Store, terminal: Callable[..., Terminal]) -> None:
    asking = terminal("cancel", "--where", "noise_std=0.5")
    asking.until(lambda s: "Change these 2 jobs?" in s.text)
    asking.type("y\r")
    assert asking.end() == 0
    assert "2 jobs: cancelled" in asking.screen.text
    assert [job["status"] for job in rows(queued, "jobs")] == ["queued", "cancelled", "queued", "cancelled"]


def test_logs_follow_until_the_attempt_ends(
    queued: Store, worker: Worker, tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    lease = queued.write(lambda c: jobs.claim(c, worker))
    assert lease is not None
    log = tmp_path / "runs" / queued.database_id / "1" / "a1" / "trainer.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\n")
    following = terminal("logs", "1", "-f")
    following.until(lambda s: "one" in s.text)  # it follows: what comes now comes later
    with log.open("a") as file:
        file.write("two\n")
    following.until(lambda s: "two" in s.text)
    queued.write(lambda c: jobs.fail(c, lease, "bad_config", "no"))
    assert following.end() == 0
    assert following.screen.lines[:2] == ["one", "two"]


# --- GPUs -------------------------------------------------------------------------------------------------

FAKE_SMI = """#!/bin/sh
echo "0, NVIDIA H100 80GB HBM3, 37, 12288, 81559, 580.95.05"
echo "1, Odd, [N/A], [N/A], [N/A], 580.95.05"
echo "garbage"
"""


def test_gpus_are_what_nvidia_smi_says(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(FAKE_SMI)
    program.chmod(0o755)
    first, second = gpus(str(program))
    assert (first.name, first.busy, first.used_bytes) == ("NVIDIA H100 80GB HBM3", "37", 12288 << 20)
    assert (second.busy, second.used_bytes) == ("[N/A]", 0)
    assert gpus(str(tmp_path / "missing")) == []
    program.write_text("#!/bin/sh\nexit 9\n")
    assert gpus(str(program)) == []


@pytest.mark.slow
def test_watch_shows_the_gpus(busy: Store, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text(FAKE_SMI)
    program.chmod(0o755)
    path = f"{program.parent}:{environment()['PATH']}"
    done = subprocess.run(
        [sys.executable, str(PROJECT / "cli.py"), "watch"],
        cwd=tmp_path,
        env={**environment(), "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "GPU 0 NVIDIA H100 80GB HBM3: 37 % busy, 12.9 GB of 85.5 GB" in done.stdout

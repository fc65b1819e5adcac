"""Output is never a reason to end: closed terminals, readers that leave or sleep, full disks, other locales.

Real processes, a real shell in a real terminal, a real full disk. The toy program stands still at step 20 of
40 until the test lets it go on, so that nothing here depends on how fast a machine is.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import pytest

from runner.queue.store import open_store
from runner.work import output
from tests import warm
from tests.conftest import PROJECT, TINY_GRID, command, environment, results_bits, row, rows
from tests.injection import GATE, inject
from tests.terminal import Terminal
from tests.work.night import Night as ToyNight

pytestmark = pytest.mark.slow


class Night(ToyNight):
    """Two jobs of the toy program in a queue; each trainer stands still at step 20 until the test goes on."""

    def __init__(self, folder: Path, cache_dir: Path) -> None:
        super().__init__(folder, cache_dir, toy=True)
        self.words = command("work", "--on-finish", "cat > part; mv part digest", cache_dir=cache_dir)
        self.environment = {**environment(), **self.inject(GATE, "gate")}

    def work(self, **streams: IO[bytes] | int | None) -> subprocess.Popen[bytes]:
        return warm.Command(self.words, cwd=self.folder, env=self.environment, **streams)

    def digest(self) -> str:
        self.wait_for((self.folder / "digest").exists, "--on-finish")
        return (self.folder / "digest").read_text()

    def assert_released_and_resumes(self, bits: str) -> None:
        first = row(self.store, "jobs", id=1)
        assert (first["status"], first["failures"]) == ("queued", 0)
        attempt = row(self.store, "attempts")
        assert (attempt["outcome"], attempt["charged"]) == ("preempted", 0)
        assert self.drain() == 0
        assert rows(self.store, "attempts", job_id=1)[1]["resumed_from_step"] >= 20
        self.assert_undisturbed(bits)


@pytest.fixture
def night(tmp_path: Path, cache_dir: Path) -> Iterator[Night]:
    made = Night(tmp_path, cache_dir)
    yield made
    made.open_gate()
    made.end()


def fill(descriptor: int) -> None:
    """Write until nothing more goes in."""
    with suppress(OSError):
        while True:
            os.write(descriptor, b"x" * 4096)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file on a disk without room for one more byte."""
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    log = folder / "log"
    log.touch()
    with (folder / "ballast").open("wb", buffering=0) as ballast:
        fill(ballast.fileno())
    yield log
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


# --- the night: lines that cannot be written ---------------------------------------------------------------


@pytest.mark.parametrize("where", ["/dev/full", "closed", "reader left", "reader asleep", "full disk"])
def test_lines_that_cannot_be_written_cost_the_night_nothing(
    night: Night, bits: str, where: str, request: pytest.FixtureRequest
) -> None:
    with ExitStack() as stack:
        reader, writer = os.pipe()
        if where == "/dev/full":
            log = stack.enter_context(open("/dev/full", "wb"))
        elif where == "full disk":
            log = stack.enter_context(request.getfixturevalue("full_disk").open("ab"))
        else:
            log = stack.enter_context(os.fdopen(writer, "wb"))
        if where == "reader asleep":
            os.set_blocking(writer, False)
            fill(writer)
            os.set_blocking(writer, True)
        if where == "closed":
            night.words = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *night.words]
        worker = night.work(stdout=log, stderr=log)
        night.wait_at_gate()
        if where == "reader left":
            os.close(reader)
        night.open_gate()
        assert worker.wait(timeout=120) == 0
    night.assert_undisturbed(bits)
    assert "2/2 done, nothing left" in night.digest()


def test_full_disk_that_has_room_again_gets_the_lines_that_follow(night: Night, full_disk: Path) -> None:
    with full_disk.open("ab") as log:
        worker = night.work(stdout=log, stderr=log)
        night.wait_at_gate()
        assert full_disk.read_bytes() == b""  # "job 1: attempt 1" had no room
        (full_disk.parent / "ballast").unlink()
        night.open_gate()
        assert worker.wait(timeout=120) == 0
    assert "done in" in full_disk.read_text()


# --- the night: Ctrl-C and terminals -----------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path, night: Night) -> Iterator[Terminal]:
    """A person's shell in a terminal, with job control and without anybody's settings."""
    with Terminal(
        ["bash", "--norc", "--noprofile", "-i"], tmp_path, {**night.environment, "PS1": "$ "}
    ) as made:
        made.until(lambda screen: screen.text.startswith("$"))
        yield made


def as_typed(words: list[str]) -> str:
    return " ".join(f"'{word}'" for word in words)


def test_ctrl_c_that_ends_the_reader_too(night: Night, shell: Terminal, bits: str) -> None:
    shell.type(f"{as_typed(night.words)} 2>&1 | (echo $BASHPID > tee.pid; exec tee log)\r")
    night.wait_at_gate()
    reader = int((night.folder / "tee.pid").read_text())
    shell.type("\x03")  # to the whole pipeline: tee ends at once, and the worker's next line has no reader
    night.wait_for(lambda: not Path(f"/proc/{reader}/cmdline").exists(), "tee's end")
    night.go_on_when_asked()
    assert "0/2 done, 2 left" in night.digest()
    night.wait_for(lambda: row(night.store, "workers")["stopped_at"], "the end of the worker")
    assert row(night.store, "workers")["exit_code"] == 0
    assert "Traceback" not in (night.folder / "log").read_text()
    night.assert_released_and_resumes(bits)


def test_closed_terminal_is_a_sighup(night: Night, shell: Terminal, bits: str) -> None:
    shell.type(f"{as_typed(night.words)}\r")
    night.wait_at_gate()
    shell.close()
    shell.process.wait()  # the shell has sent its SIGHUP, and the kernel one more at its end
    night.go_on_when_asked()
    assert "0/2 done, 2 left" in night.digest()
    night.wait_for(lambda: row(night.store, "workers")["stopped_at"], "the end of the worker")
    assert row(night.store, "workers")["exit_code"] == 75
    night.assert_released_and_resumes(bits)


def test_closed_terminal_of_a_night_under_nohup(night: Night, shell: Terminal, bits: str) -> None:
    shell.type(f"trap '' HUP; {as_typed(night.words)}\r")  # nohup, but with the output left on the terminal
    night.wait_at_gate()
    shell.close()
    night.open_gate()
    assert "2/2 done, nothing left" in night.digest()
    assert row(night.store, "workers")["exit_code"] == 0
    night.assert_undisturbed(bits)


def test_second_sighup_does_not_leave_at_once(night: Night, bits: str) -> None:
    worker = night.work(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    night.wait_at_gate()
    assert worker.stderr is not None
    worker.send_signal(signal.SIGINT)
    while b"stopping" not in (line := worker.stderr.readline()):
        assert line, "the worker never said that it stops"
    worker.send_signal(signal.SIGHUP)  # Ctrl-C, and the terminal closed while it saves
    night.go_on_when_asked()
    worker.communicate(timeout=120)
    assert worker.returncode == 0
    night.assert_released_and_resumes(bits)


STARTING = """
if TRAINER:
    import time
    open(os.path.join(HERE, "starting"), "w").close()
    while True:
        time.sleep(0.01)
"""


def test_ctrl_c_while_the_trainer_starts_does_not_say_that_nothing_is_queued(night: Night) -> None:
    night.environment = {**environment(), **inject(night.folder / "gate", STARTING)}
    worker = night.work(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    night.wait_for((night.folder / "gate" / "starting").exists, "the trainer's start")
    worker.send_signal(signal.SIGINT)
    said, errors = worker.communicate(timeout=120)
    assert (worker.returncode, said, errors) == (0, b"", b"")
    assert [job["status"] for job in rows(night.store, "jobs")] == ["queued"] * 2
    assert rows(night.store, "attempts") == []


@pytest.mark.parametrize("most", [8, 12, 30])
def test_too_few_descriptors_are_one_line(night: Night, most: int) -> None:
    night.words = ["sh", "-c", f'ulimit -n {most}; exec "$@"', "sh", *night.words]
    worker = night.work(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, errors = worker.communicate(timeout=120)
    assert (worker.returncode, said) == (73, b"")
    assert errors.decode() == (
        f"error: 1 trainers need 48 open files or pipes, and this shell allows {most}: `ulimit -n 1024`, "
        "or fewer --devices or --slots\n"
    )
    assert [job["status"] for job in rows(night.store, "jobs")] == ["queued"] * 2
    assert rows(night.store, "workers") == []


def test_night_with_as_few_descriptors_as_it_asks_for(night: Night, bits: str) -> None:
    night.words = ["sh", "-c", 'ulimit -H -n 48; ulimit -S -n 20; exec "$@"', "sh", *night.words]
    night.open_gate()  # the soft limit is raised as far as the hard one allows
    assert night.work(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(timeout=120) == 0
    night.assert_undisturbed(bits)


# --- --on-finish -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("true", b""),
        ("exec <&-; exit 3", b"--on-finish: exit code 3: it said nothing\n"),
        ("no-such-command", b"--on-finish: exit code 127"),
    ],
)
def test_command_that_does_not_read_or_does_not_work_costs_a_line(
    tmp_path: Path, cache_dir: Path, told: str, said: bytes
) -> None:
    open_store(str(tmp_path / "jobs.db"), create=True).close()
    words = command("work", "--on-finish", told, cache_dir=cache_dir)
    done = warm.run(words, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert done.stderr.startswith(b"nothing to do: no job is queued\n" + said)
    assert done.stderr.count(b"\n") == 1 + bool(said)


def test_on_finish_runs_when_the_database_went_away(night: Night) -> None:
    night.words += ["--lease-seconds", "1"]
    worker = night.work(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    night.wait_at_gate()
    (night.folder / "jobs.db").rename(night.folder / "elsewhere.db")
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 69
    assert "Traceback" not in errors.decode()
    assert night.digest().startswith("no digest: ")
    assert "moved, deleted or replaced" in night.digest()


# --- the other commands: an answer that nobody gets --------------------------------------------------------


def run(words: tuple[str, ...], folder: Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    arguments = [sys.executable, str(PROJECT / "cli.py"), *words]
    given = {"env": environment(), "stderr": subprocess.PIPE, **options}
    return warm.run(arguments, cwd=folder, **given)


COMMANDS = [("status",), ("report",), ("export",), ("watch",), ("logs", "1"), ("--help",)]


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """A folder with one job of the model itself in its queue."""
    folder = tmp_path_factory.mktemp("queue")
    one_job = TINY_GRID.replace("[42, 43]", "[42]").replace("[0.0, 0.5]", "[0.5]")
    (folder / "one.toml").write_text(
        one_job.replace("[baseline]\nnoise_std = 0.0", "[baseline]\nnoise_std = 0.5")
    )
    words = command("enqueue", "--grid", "one.toml", "--corpus", "bundled", cache_dir=cache_dir)
    assert warm.run(words, cwd=folder, env=environment()).returncode == 0
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, queue: Path) -> Path:
    """The folder of the same study when it is done."""
    folder = shutil.copytree(queue, tmp_path_factory.mktemp("finished") / "study")
    assert warm.run(command("work", cache_dir=cache_dir), cwd=folder, env=environment()).returncode == 0
    return folder


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_reader_that_has_left_ends_a_command_quietly(finished: Path, words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(words, finished, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_answer_that_is_lost_is_no_success(finished: Path, words: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = run(words, finished, stdout=full)
    assert done.returncode == 73
    assert done.stderr == b"error: the answer cannot be written to stdout: No space left on device\n"


def test_answer_to_nowhere(finished: Path) -> None:
    closed = run(("status",), finished, stdout=None, preexec_fn=lambda: os.close(1))
    assert closed.returncode == 73
    assert closed.stderr == b"error: the answer cannot be written to stdout: Bad file descriptor\n"
    with open("/dev/full", "wb") as full:
        mistake = run(("show", "99"), finished, stdout=full, stderr=full)
    assert mistake.returncode == 65  # the mistake's own code, though nobody reads of it


# --- other locales -----------------------------------------------------------------------------------------

LATIN = "en_US.ISO-8859-1"


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for LOCPATH with an ISO-8859-1 locale, made here: it needs its sources, and no root."""
    folder = tmp_path_factory.mktemp("locales")
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / LATIN)],
        capture_output=True,
        check=False,
    )
    if not (folder / LATIN / "LC_CTYPE").exists():
        pytest.skip(f"no {LATIN}: install Debian's package locales ({made and made.stderr.decode().strip()})")
    return folder


def spoken(language: str, folder: Path) -> dict[str, str]:
    """An environment with this locale, in which Python is not told to use UTF-8 all the same."""
    told = ("PYTHONUTF8", "PYTHONIOENCODING", "LANG", "LC_CTYPE")
    kept = {name: value for name, value in environment().items() if name not in told}
    fixed = {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"} if language in ("C", "POSIX") else {}
    return {**kept, **fixed, "LC_ALL": language, "LOCPATH": str(folder)}


ANSWERS = [
    ("status",),
    ("digest",),
    ("report",),
    ("show", "1"),
    ("watch",),
    ("grids",),
    ("logs", "1"),
    ("power", "--half-width", "0.005nats"),
    ("--help",),
]
TIMES = ("digest", "watch", "report")
"""Their answers tell the time of day; the others are compared letter by letter."""


def test_the_locale_is_what_it_says(locales: Path) -> None:
    asked = [sys.executable, "-c", "import locale; print(locale.getencoding().lower())"]
    said = {
        name: subprocess.run(
            asked, env=spoken(name, locales), capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("C", "POSIX", LATIN)
    }
    assert said[LATIN] == "iso-8859-1"
    assert {said["C"], said["POSIX"]} <= {"ansi_x3.4-1968", "us-ascii", "ascii"}


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_answer_into_a_pipe_is_utf_8_whatever_the_locale(
    finished: Path, locales: Path, words: tuple[str, ...]
) -> None:
    languages = (LATIN, "C", "POSIX") if words == ("show", "1") else (LATIN,)
    answers = set()
    for variables in [spoken(language, locales) for language in languages] + [environment()]:
        done = run(words, finished, stdout=subprocess.PIPE, env=variables)
        assert (done.returncode, done.stderr) == (0, b"")
        answers.add(done.stdout.decode("utf-8"))
    assert len(answers) == 1 or words[0] in TIMES


@pytest.mark.parametrize("language", [LATIN, "C"])
@pytest.mark.parametrize("words", [("status",), ("show", "1"), ("watch",), ("report",)], ids=" ".join)
def test_terminal_that_cannot_show_a_letter_gets_another(
    finished: Path, locales: Path, words: tuple[str, ...], language: str
) -> None:
    arguments = [sys.executable, str(PROJECT / "cli.py"), *words]
    with Terminal(arguments, finished, spoken(language, locales), encoding="latin-1") as shown:
        if words == ("watch",):
            shown.until(lambda screen: screen.alternate and "noise_std=0.5 #" in screen.text)  # ■: done
            shown.type("\x03")
        assert shown.end() == 0
    assert "Traceback" not in shown.raw
    if words == ("show", "1"):
        assert re.search(r"\n0 +[1-8]{4} ", shown.raw)  # ▃▅▆█
    if words == ("report",):
        assert re.search(r"\d\.\d{4} " + ("±" if language == LATIN else "~"), shown.raw)
    assert language == LATIN or shown.raw.isascii()


def test_night_in_another_locale(
    queue: Path, finished: Path, tmp_path: Path, cache_dir: Path, locales: Path
) -> None:
    folder = shutil.copytree(queue, tmp_path / "study")
    words = command("work", "--on-finish", "cat > digest", cache_dir=cache_dir)
    done = subprocess.run(words, cwd=folder, env=spoken(LATIN, locales), capture_output=True, check=False)
    assert done.returncode == 0
    assert "• Seeds: 1 (42)" in done.stdout.decode("utf-8")
    assert "best so far: noise_std=0.5" in (folder / "digest").read_text()
    assert bits_in(folder) == bits_in(finished)


def bits_in(folder: Path) -> str:
    store = open_store(str(folder / "jobs.db"))
    try:
        return results_bits(store)
    finally:
        store.close()


# --- one stream --------------------------------------------------------------------------------------------


def written(text: str, encoding: str) -> bytes:
    reader, writer = os.pipe()
    stream = output.stream(writer)
    stream.reconfigure(encoding=encoding, errors="stand-in")
    stream.write(f"{text}\n")
    stream.flush()
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read()


def test_letters_that_an_encoding_lacks_keep_their_width() -> None:
    text = "±0.5 → ▁█ … 実 \udc80"
    assert written(text, "ascii") == b"~0.5 > 18 ~ ? ?\n"
    assert written(text, "latin-1") == "±0.5 > 18 ~ ? ?\n".encode("latin-1")
    assert written(text, "utf-8") == "±0.5 → ▁█ … 実 ?\n".encode()


def test_answer_waits_for_a_reader_that_is_slow() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # as a terminal can be, after a program that left it so
    text = "x" * 300_000  # several times what a pipe holds
    program = "import sys; sys.stdin.read(1); print(1 + len(sys.stdin.read()))"
    with subprocess.Popen([sys.executable, "-c", program], stdin=reader, stdout=subprocess.PIPE) as counting:
        os.close(reader)
        stream = output.stream(writer, answer=True)
        stream.write(text)
        stream.flush()
        os.close(writer)
        assert counting.communicate()[0] == b"300000\n"

"""The code that ran is the code that is recorded: edits, commits, other checkouts, damage; real processes.

Each test works on a clone of the project in its own folder, and edits that.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from runner.care import clean, doctor
from runner.queue import jobs
from runner.queue.store import open_store
from runner.work import source
from runner.work.options import slots
from tests.conftest import PROJECT, TINY_GRID, command, environment, results_bits, row, rows
from tests.injection import GATE, NO_SUMMARY, inject
from tests.work.night import wait_for

GRID = TINY_GRID.replace("[0.0, 0.5]", "[0.5]").replace("noise_std = 0.0", "noise_std = 0.5")
BREAKS = "\nraise RuntimeError('edited in the night')\n"
"""Code that fails when it is run: whatever succeeds ran other code."""


def git(folder: Path, *arguments: str) -> str:
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    call = ["git", *arguments]
    return subprocess.run(
        call, cwd=folder, env=ours | identity, check=True, capture_output=True, text=True
    ).stdout


def commit(folder: Path) -> str:
    """Commit everything; returns the commit."""
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "as it is")
    return git(folder, "rev-parse", "HEAD").strip()


def edit(folder: Path, text: str, name: str = "model/network/moe.py") -> None:
    with (folder / name).open("a") as file:
        file.write(text)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone that may be edited, without git yet."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(PROJECT / "cli.py", folder)
    for part in ("model", "runner", "reports"):
        half = shutil.ignore_patterns("*.pyc.*")  # that another test's process is writing
        shutil.copytree(PROJECT / part, folder / part, ignore=half)
    (folder / ".gitignore").write_text("__pycache__/\n")
    git(folder, "init", "-q")
    commit(folder)
    return folder


class Night:
    """A folder with two jobs in its queue, worked by the project's cli.py."""

    def __init__(self, project: Path, folder: Path, cache_dir: Path) -> None:
        self.project, self.folder, self.cache_dir = project, folder, cache_dir
        folder.mkdir(exist_ok=True)
        self.usual = inject(folder / "usual", NO_SUMMARY)
        (folder / "tiny.toml").write_text(GRID)
        done = self.run("enqueue", "--grid", "tiny.toml", "--corpus", "bundled")
        assert done.returncode == 0, done.stderr
        self.store = open_store(str(folder / "jobs.db"))
        self.runs = folder / "runs" / self.store.database_id
        self.started: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        line, env = self.line(*arguments), {**environment(), **self.usual, **env}
        return subprocess.run(
            line, cwd=self.folder, env=env, capture_output=True, text=True, timeout=300, check=False
        )

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        line, env = self.line("work", *arguments), {**environment(), **self.usual, **env}
        self.started.append(subprocess.Popen(line, cwd=self.folder, env=env, **pipes))  # type: ignore[call-overload]
        return self.started[-1]

    def line(self, *arguments: str) -> list[str]:
        python, _, *rest = command(*arguments, cache_dir=self.cache_dir)
        return [python, str(self.project / "cli.py"), *rest]

    def gated(self, *arguments: str, fault: str = NO_SUMMARY) -> tuple[subprocess.Popen[str], int]:
        """A worker whose trainer, of the returned pid, stands still at step 20 until `go`."""
        gate = self.folder / "gate"
        worker = self.start("--checkpoint-seconds", "0", *arguments, **inject(gate, GATE + fault))
        wait_for(lambda: list(gate.glob("at-*")), "step 20")
        return worker, int(next(gate.glob("at-*")).name.rpartition("-")[2])

    def go(self) -> None:
        (self.folder / "gate" / "go").touch()

    def ran(self, job: int) -> list[dict[str, object]]:
        """The provenance of a job's attempts."""
        return [json.loads(attempt["provenance"]) for attempt in rows(self.store, "attempts", job_id=job)]


@pytest.fixture
def night(project: Path, tmp_path: Path, cache_dir: Path) -> Iterator[Night]:
    made = Night(project, tmp_path / "night", cache_dir)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()
    made.store.close()


def wait_for_line(worker: subprocess.Popen[str], text: str) -> None:
    assert worker.stderr is not None
    while text not in (line := worker.stderr.readline()):
        assert line, f"the worker never said {text}"


# --- an edit in the night ---------------------------------------------------------------------------------


def test_edit_and_commit_reach_no_trainer_of_the_night(night: Night, tmp_path: Path, cache_dir: Path) -> None:
    """The trainer is killed after the edit: the next one runs the old code, says so, and has its bits."""
    before, first_commit = source.take(night.project), git(night.project, "rev-parse", "HEAD").strip()
    worker, trainer = night.gated(fault="")
    for name in ("model/network/moe.py", "runner/work/trainer.py", "reports/output/report.py", "cli.py"):
        edit(night.project, BREAKS, name)
    commit(night.project)
    os.kill(trainer, signal.SIGKILL)
    night.go()
    wait_for(lambda: rows(night.store, "attempts", job_id=1)[0]["outcome"], "the end of the killed attempt")
    night.store.write(lambda c: c.execute(sa.text("UPDATE jobs SET run_after = NULL")))
    out, _ = worker.communicate(timeout=300)
    assert worker.returncode == 0
    assert "all 2 runs are done" in out  # the first screen is made by the night's code, too
    assert [attempt["outcome"] for attempt in rows(night.store, "attempts", job_id=1)] == ["failed", "done"]
    for provenance in [*night.ran(1), *night.ran(2)]:
        assert provenance["source_sha256"] == before.sha256 == provenance["numeric_environment"]["source"]  # type: ignore[index]
        assert (provenance["git_commit"], provenance["git_dirty"]) == (first_commit, False)
    assert {result["exact"] for result in rows(night.store, "results")} == {1}

    night.project = PROJECT  # the edited clone's report does not run
    text = night.run("report").stdout
    assert f"source {before.sha256[:12]}, commit {first_commit}" in text
    assert "every result is exact" in text
    assert "Mixed" not in text
    calm = Night(PROJECT, tmp_path / "calm", cache_dir)
    assert calm.run("work").returncode == 0
    assert results_bits(night.store) == results_bits(calm.store)
    calm.store.close()


def test_idle_worker_in_another_checkout_runs_and_records_what_it_began_with(
    night: Night, tmp_path: Path
) -> None:
    """An edit and a commit under `--wait`; the current folder is another checkout, and GIT_DIR names it."""
    before, first_commit = source.take(night.project), git(night.project, "rev-parse", "HEAD").strip()
    for name in ("model/__init__.py", "runner/__init__.py", "model.py", "runner.py", "torch.py", "rich.py"):
        (night.folder / name).parent.mkdir(exist_ok=True)
        (night.folder / name).write_text("raise RuntimeError('from the current folder')")
    git(night.folder, "init", "-q")
    commit(night.folder)
    assert night.run("cancel", "--study", "tiny", "--yes").returncode == 0
    pointed = {
        "GIT_DIR": str(night.folder / ".git"),
        "GIT_WORK_TREE": str(night.folder),
        "GIT_INDEX_FILE": str(tmp_path / "no-index"),
        "PYTHONPATH": os.pathsep.join(["", ".", str(night.folder)]),
    }
    worker = night.start("--wait", **pointed)
    wait_for_line(worker, "the queue is empty")
    edit(night.project, BREAKS)
    commit(night.project)
    night.store.write(lambda c: jobs.retry_all(c, [1]))
    wait_for(lambda: row(night.store, "jobs", id=1)["status"] != "queued", "a claim")
    wait_for(lambda: row(night.store, "jobs", id=1)["status"] in ("done", "failed"), "an end")
    worker.send_signal(signal.SIGINT)
    assert worker.wait(timeout=60) == 0
    assert row(night.store, "attempts")["outcome"] == "done", row(night.store, "attempts")
    [provenance] = night.ran(1)
    assert provenance["source_sha256"] == before.sha256
    assert (provenance["git_commit"], provenance["git_dirty"]) == (first_commit, False)


def test_python_with_safe_path_starts_the_command_line(night: Night) -> None:
    assert night.run("status", PYTHONSAFEPATH="1").returncode == 0


def test_device_count_looks_into_no_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fractions.py").write_text("raise RuntimeError('from the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    assert slots("all", count="import fractions; print(2)") == ("cuda:0", "cuda:1")


# --- other code in a second night -------------------------------------------------------------------------


def test_run_that_goes_on_under_edited_code_is_not_exact_and_all_say_so(night: Night) -> None:
    """Job 2 is done by the old code, job 1 begun; the copy is damaged in between, which nobody notices."""
    old = source.take(night.project)
    assert night.run("prioritize", "2", "--priority", "5").returncode == 0
    assert night.run("work", "--jobs", "1").returncode == 0
    copy = night.runs / source.FOLDER / old.sha256
    edit(copy, BREAKS)
    assert not source.is_whole(copy)
    worker, _ = night.gated()
    assert source.is_whole(copy)
    worker.send_signal(signal.SIGTERM)
    wait_for_line(worker, "stopping")
    night.go()
    assert worker.wait(timeout=60) == 75

    edit(night.project, "\n# another comment\n")
    new = source.take(night.project)
    done = night.run("work")
    assert done.returncode == 0
    assert (
        f"tiny: 1 of its results are of other code than this worker's (source {new.sha256[:12]})"
        in done.stderr
    )
    assert "(not exact: other source)" in done.stderr
    changed = json.loads(row(night.store, "events", kind="not exact")["detail"])["changed"]
    assert changed == f"source: {old.sha256} → {new.sha256}"
    assert {result["job_id"]: result["exact"] for result in rows(night.store, "results")} == {1: 0, 2: 1}
    assert night.ran(1)[-1]["git_dirty"] is True

    text = night.run("report").stdout
    first, second = old.sha256[:12], new.sha256[:12]
    commit_ = git(night.project, "rev-parse", "HEAD").strip()
    assert (
        f"Mixed: code: source {first} then {second} (commit {commit_}, modified) in job 1; "
        f"source {first} (commit {commit_}) in job 2." in text
    )
    assert "1 of 2 results are not exact" in text
    assert "Mixed: git" not in text
    assert "Mixed: numeric_environment.source" not in text
    strict = night.run("report", "--strict")
    assert (strict.returncode, "code: source" in strict.stderr) == (65, True)

    shown = json.loads(night.run("show", "1", "--json").stdout)["sources"]
    assert [(code["sha256"], code["attempts"]) for code in shown] == [(old.sha256, [1]), (new.sha256, [2])]
    for code in shown:
        assert source.is_whole(night.folder / "runs" / code["copy"])
    screen = night.run("show", "1").stdout
    assert old.sha256 in screen.replace("\n", "").replace(" ", "")


# --- what is read -----------------------------------------------------------------------------------------


def test_source_is_known_without_git_and_of_no_repository_around(project: Path) -> None:
    with_git = source.take(project)
    assert (with_git.git_commit, with_git.git_dirty) == (git(project, "rev-parse", "HEAD").strip(), False)
    shutil.rmtree(project / ".git")
    git(project.parent, "init", "-q")
    commit(project.parent)
    without = source.take(project)
    assert (without.git_commit, without.git_dirty) == (None, None)
    assert without.sha256 == with_git.sha256


@pytest.mark.parametrize("name", ["model/new.py", "model/network/moe.py", "model/text/corpora/bpe-4096.json"])
def test_every_file_counts(project: Path, name: str) -> None:
    before = source.take(project).sha256
    edit(project, " ", name)
    assert source.take(project).sha256 != before


@pytest.mark.parametrize("name", [".moe.py.swp", "#moe.py#", "moe.py~", "__pycache__/moe.cpython-311.pyc"])
def test_what_editors_and_python_leave_does_not(project: Path, name: str) -> None:
    before = source.take(project).sha256
    (project / "model" / "network" / "__pycache__").mkdir(exist_ok=True)
    (project / "model" / "network" / name).write_text("x")
    assert source.take(project).sha256 == before


def test_git_is_asked_without_taking_its_lock(project: Path) -> None:
    """A commit in the night must not fail because a worker starts."""
    (project / ".git" / "index.lock").touch()
    assert source.take(project).git_dirty is False


# --- the copy ---------------------------------------------------------------------------------------------


def remove(copy: Path) -> None:
    shutil.rmtree(copy)


def remove_a_file(copy: Path) -> None:
    (copy / "model" / "network" / "moe.py").unlink()


def flip_a_bit(copy: Path) -> None:
    path = copy / "model" / "network" / "moe.py"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def add_a_module(copy: Path) -> None:
    (copy / "torch.py").write_text(BREAKS)


def compile_a_module(copy: Path) -> None:
    (copy / "model" / "__pycache__").unlink()
    (copy / "model" / "__pycache__").mkdir()
    (copy / "model" / "__pycache__" / "config.cpython-311.pyc").write_text("not what model/config.py says")


def put_a_file_for_a_folder(copy: Path) -> None:
    shutil.rmtree(copy / "model" / "network")
    (copy / "model" / "network").touch()


@pytest.mark.parametrize(
    "damage",
    [remove, remove_a_file, flip_a_bit, add_a_module, compile_a_module, put_a_file_for_a_folder],
)
def test_damaged_copy_is_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    taken = source.take()
    copy = taken.keep(tmp_path)
    whole = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert source.is_whole(copy)
    damage(copy)
    assert not source.is_whole(copy)
    assert taken.keep(tmp_path) == copy
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == whole
    assert list((tmp_path / source.FOLDER).iterdir()) == [copy]


def test_python_leaves_nothing_in_a_copy(tmp_path: Path) -> None:
    copy = source.take().keep(tmp_path)
    before = sorted(copy.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", "import model.config"], cwd=copy, check=True, env=environment()
    )
    assert done.returncode == 0
    assert sorted(copy.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("before", ["nothing", "damaged"])
def test_many_workers_make_and_mend_one_copy(tmp_path: Path, before: str) -> None:
    code = f"""
from pathlib import Path
from runner.work import source
copy = source.take().keep(Path({str(tmp_path)!r}))
assert source.is_whole(copy)
"""
    if before == "damaged":
        copy = source.take().keep(tmp_path)
        for path in copy.rglob("*.py"):
            path.write_text("damaged")
    call = [sys.executable, "-c", code]
    many = [subprocess.Popen(call, cwd=PROJECT, env=environment()) for _ in range(6)]
    assert [process.wait(timeout=120) for process in many] == [0] * 6
    [copy] = (tmp_path / source.FOLDER).iterdir()
    assert source.is_whole(copy)


@pytest.mark.parametrize("kind", ["in the way", "full"])
def test_copy_that_cannot_be_made_is_one_line_and_costs_no_job(
    night: Night, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    if kind == "full":
        folder = tmp_path / "small"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system needs root")
        request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", str(folder)], check=True))
    else:
        folder = night.folder / "runs"
        night.runs.mkdir(parents=True)
        (night.runs / source.FOLDER).touch()
    done = night.run("work", "--runs-dir", str(folder))
    assert done.returncode == 73
    assert done.stderr.count("\n") == 1
    assert str(folder / night.store.database_id / source.FOLDER) in done.stderr
    assert not rows(night.store, "attempts")


# --- how long it is kept ----------------------------------------------------------------------------------


def age(path: Path) -> None:
    old = time.time() - clean.UNUSED_SECONDS - 60
    os.utime(path, (old, old))


def test_clean_keeps_what_an_attempt_ran_and_doctor_finds_damage(night: Night) -> None:
    ran = source.take(night.project).keep(night.runs)
    edit(night.project, " ")
    never_ran = source.take(night.project).keep(night.runs)
    edit(night.project, " ")
    fresh = source.take(night.project).keep(night.runs)
    part = night.runs / source.FOLDER / ".half.part"
    part.mkdir()
    for path in (ran, never_ran, part):
        age(path)
    provenance = json.dumps({"source_sha256": ran.name})
    attempt = {
        "job_id": 1,
        "number": 1,
        "owner": "a",
        "started_at": 1.0,
        "host": "h",
        "pid": 1,
        "device": "cpu",
    }
    table = sa.table("attempts", *map(sa.column, [*attempt, "provenance"]))
    night.store.write(lambda c: c.execute(sa.insert(table).values(**attempt, provenance=provenance)))

    found = clean.removable(night.store, night.folder / "runs")
    assert {(file.kind, file.path) for file in found} == {("source", part), ("source", never_ran)}
    assert clean.remove(night.store, night.folder / "runs", found) > 3_000_000
    assert sorted((night.runs / source.FOLDER).iterdir()) == sorted([ran, fresh])
    assert doctor.sources(night.runs).level == "ok"
    edit(ran, " ")
    assert (doctor.sources(night.runs).level, ran.name[:12] in doctor.sources(night.runs).text) == (
        "warn",
        True,
    )

"""The scripts that run a study for good: what they pack is the study, and a piece is gone on with."""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.results import copy
from runner.design.enqueue import enqueue
from runner.design.grid_file import load_grid
from runner.queue import schema
from runner.queue.sqlite import driver
from runner.queue.store import Store
from tests import warm
from tests.conftest import PROJECT, TEXT, TINY_GRID, environment
from tests.injection import NO_SUMMARY, inject


def results(folder: Path, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
    script = str(PROJECT / "benchmarks/results.py")
    words = ["--grid", "tiny.toml", "--folder", "night", "--output", "kept", "--threads", "1", *more]
    known = {**environment(), **inject(folder / "quiet", NO_SUMMARY), **env}
    return warm.run([sys.executable, script, *words], cwd=folder, env=known, **TEXT)


def grid(folder: Path) -> Path:
    (folder / "tiny.toml").write_text(TINY_GRID)
    return folder / "kept"


@pytest.mark.slow
def test_what_is_packed_is_the_study_and_the_same_line_goes_on_with_it(tmp_path: Path) -> None:
    """Cut off, on a machine that cannot make a report, at home without its folder: thrice the same line."""
    kept, again = grid(tmp_path), tmp_path / "again"
    cut = results(tmp_path, "--seeds", "42", "--time-limit", "0s")
    assert cut.returncode == 75, cut.stderr
    assert cut.stdout.splitlines()[-1] == "tiny: 0 of 2 runs done; packed in kept"
    assert "0 of 2 runs done" in (kept / "commands.md").read_text()

    # Without scipy the database is packed, and the report is left for home.
    (tmp_path / "scipy.py").write_text("raise ImportError('not on this machine')\n")
    done = results(tmp_path, "--seeds", "42", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs done; packed in kept; no report here: ImportError: not on this" in done.stdout
    assert {path.name for path in kept.iterdir()} == {"commands.md", "study.db.xz"}

    shutil.rmtree(tmp_path / "night")
    done = results(tmp_path, "--seeds", "42")
    assert done.returncode == 0, done.stderr
    assert "tiny: 0 queued, 2 already there" in done.stdout
    assert done.stdout.splitlines()[-1] == "tiny: 2 of 2 runs done; packed in kept"
    assert {path.name for path in kept.iterdir()} == {"commands.md", "figures", "report.md", "study.db.xz"}
    again.mkdir()
    (again / "study.db").write_bytes(lzma.decompress((kept / "study.db.xz").read_bytes()))
    connection = driver().connect(str(again / "study.db"))
    assert connection.execute("SELECT COUNT(*) FROM results").fetchone() == (2,)
    connection.close()

    # The page's last command, run where it says, makes the same report and the same figures.
    page = (kept / "commands.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("python cli.py report"))
    words = [sys.executable, str(PROJECT / "cli.py"), *line.split()[2:]]
    subprocess.run(words, cwd=again, env=environment(), check=True, capture_output=True)
    report = (kept / "report.md").read_bytes()
    assert (again / "report.md").read_bytes() == report
    for figure in (kept / "figures").iterdir():
        assert (again / "figures" / figure.name).read_bytes() == figure.read_bytes()

    # It names the commands, and no place of this machine.
    assert "python cli.py enqueue --grid tiny.toml --scale full --corpus bundled --seeds 42\n" in page
    assert "python cli.py work --device auto --threads 1\n" in page
    assert "2 of 2 runs done" in page
    assert str(tmp_path) not in page
    assert str(tmp_path).encode() not in report


def test_what_is_packed_is_of_no_other_study(store: Store, tmp_path: Path) -> None:
    """Nor can it be read in the file: a traceback of another night names its folders."""
    (tmp_path / "tiny.toml").write_text(TINY_GRID)
    for name in ("kept", "another-night"):
        store.write(lambda c, name=name: enqueue(c, name, load_grid(str(tmp_path / "tiny.toml"))))
    saved = {"attempt": 1, "step": 20, "path": "1/a1/step-20.safetensors", "sha256": "0", "size_bytes": 1}
    row = schema.checkpoints.insert().values(job_id=1, seconds=0.0, created_at=0.0, **saved)
    store.write(lambda c: c.execute(row))
    assert copy(store.path, tmp_path / "copy.db", "kept") == (0, 4)
    connection = driver().connect(str(tmp_path / "copy.db"))
    assert connection.execute("SELECT name FROM studies").fetchall() == [("kept",)]
    assert connection.execute("SELECT COUNT(*) FROM jobs").fetchone() == (4,)
    assert connection.execute("SELECT COUNT(*) FROM checkpoints").fetchone() == (0,)  # nor are their files
    connection.close()
    assert b"another-night" not in (tmp_path / "copy.db").read_bytes()


@pytest.mark.slow
def test_a_grid_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    refused = results(tmp_path)
    assert refused.returncode == 1
    assert "error: --grid tiny.toml: no such grid or file" in refused.stderr
    assert not (tmp_path / "kept").exists()


# The GPU's part, on a CPU with tiny sizes


TINY = ("d_model=16", "n_layers=1", "n_heads=2", "d_ff=16", "seq_len=16", "held_out_tokens=512")


def gpu_results(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    script = str(PROJECT / "benchmarks/results_gpu.py")
    sizes = [word for size in TINY for word in ("--set", size)]
    words = ["--device", "cpu", "--scale", "smoke", "--tokenizer", "bundled-4096", "--threads", "1"]
    words += ["--updates", "1"]
    known = {**environment(), **inject(folder / "quiet", NO_SUMMARY)}
    words = [sys.executable, script, "--seeds", "42", *words, *sizes, *more]
    return warm.run(words, cwd=folder, env=known, **TEXT)


@pytest.mark.slow
def test_what_is_wanted_from_a_gpu_runs_in_pieces(tmp_path: Path) -> None:
    # A piece without time for a run measures, queues and packs.
    first = gpu_results(tmp_path, "--minutes", "0.01")
    assert first.returncode == 75, first.stderr
    assert "factorial-smoke: 0 of 6 runs done" in first.stdout
    assert "factorial-long-smoke: 0 of 60 runs done" in first.stdout
    assert "left: factorial, factorial-long; the same command goes on" in first.stdout
    out = tmp_path / "results-gpu"
    bits = json.loads((out / "determinism.json").read_text())
    assert all(bits[name] for name in bits if isinstance(bits[name], bool)), bits
    assert 0 < bits["resumed from step"] < 40
    check = json.loads((out / "card_check.json").read_text())
    assert (check["update twice"], check["kernels that are off"]) == ("", None)  # the kernels are a GPU's
    assert json.loads((out / "train_step.json").read_text())["rows"]["fp32"]["step"] > 0
    # On another machine the archive alone is there; nothing is measured or queued twice.
    shutil.rmtree(out / "work")
    measured = (out / "determinism.json").read_bytes()
    second = gpu_results(tmp_path, "--minutes", "60", "--stop-after", "factorial")
    assert second.returncode == 0, second.stderr
    assert "factorial-smoke: 0 queued, 6 already there" in second.stdout
    assert "factorial-smoke: 6 of 6 runs done" in second.stdout
    assert (out / "determinism.json").read_bytes() == measured
    files = sorted(path.name for path in out.iterdir() if path.is_file())
    assert files == [
        "card_check.json",
        "determinism.json",
        "factorial.md",  # and none of factorial-long, of which nothing is done
        "results-gpu.tar.gz",
        "train_step.json",
    ]
    with tarfile.open(out / "results-gpu.tar.gz") as archive:
        names = archive.getnames()
    assert {"./factorial/study.db.xz", "./factorial/report.md", "./factorial-long/commands.md"} <= set(names)
    assert "6 of 6 done" in (out / "factorial.md").read_text()


def test_a_failed_benchmark_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # the script sets its own first entry
    from benchmarks import results_gpu

    run, worked = results_gpu.script, []
    monkeypatch.setattr(results_gpu, "script", lambda _, words, target: run("not-there.py", words, target))
    monkeypatch.setattr(results_gpu, "work", lambda _, grid: worked.append(grid) or True)
    words = ["--device", "cpu", "--tokenizer", "x", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["results_gpu.py", *words])
    with pytest.raises(SystemExit) as ended:
        results_gpu.main()
    assert ended.value.code == 1
    assert worked == ["factorial", "factorial-long"]
    said = capfd.readouterr().out
    assert "failed: benchmarks/not-there.py ended with 2 and left no train_step.json; the same" in said
    assert "left no determinism.json" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "error: SmolLM's tokenizer is not beside this checkout; give its folder"),
        (("--tokenizer", "x", "--device", "cuda:0"), "error: --device cuda:0: no GPU is seen here"),
    ],
)
def test_what_the_gpu_script_lacks_is_one_line(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    script = str(PROJECT / "benchmarks/results_gpu.py")
    done = subprocess.run(
        [sys.executable, script, *words],
        cwd=tmp_path,
        env={**environment(), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "results-gpu").exists()

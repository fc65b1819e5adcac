"""The scripts that run a study for good: what they pack is the study, and a piece is gone on with."""

from __future__ import annotations

import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from runner.sqlite import driver
from tests.conftest import PROJECT, TINY_GRID, environment


def results(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    script = str(PROJECT / "benchmarks/results.py")
    words = ["--grid", "tiny.toml", "--folder", "night", "--output", "kept", "--threads", "1", *more]
    return subprocess.run(
        [sys.executable, script, *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny study that was run and packed."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "tiny.toml").write_text(TINY_GRID)
    done = results(folder, "--seeds", "42")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "tiny: 2 of 2 runs done; packed in kept"
    return folder


def test_what_is_packed_is_the_study(packed: Path, tmp_path: Path) -> None:
    kept = packed / "kept"
    assert {path.name for path in kept.iterdir()} == {"commands.md", "figures", "report.md", "study.db.xz"}
    (tmp_path / "study.db").write_bytes(lzma.decompress((kept / "study.db.xz").read_bytes()))
    connection = driver().connect(str(tmp_path / "study.db"))
    assert connection.execute("SELECT COUNT(*) FROM results").fetchone() == (2,)
    connection.close()
    # The page's last command, run where it says, makes the same report and the same figures.
    page = (kept / "commands.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("python cli.py report"))
    again = [sys.executable, str(PROJECT / "cli.py"), *line.split()[2:]]
    subprocess.run(again, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    assert (tmp_path / "report.md").read_bytes() == (kept / "report.md").read_bytes()
    for figure in (kept / "figures").iterdir():
        assert (tmp_path / "figures" / figure.name).read_bytes() == figure.read_bytes()


def test_the_page_names_the_commands_and_no_place_of_this_machine(packed: Path) -> None:
    page = (packed / "kept/commands.md").read_text()
    assert "python cli.py enqueue --grid tiny.toml --scale full --corpus bundled --seeds 42\n" in page
    assert "python cli.py work --device auto --threads 1\n" in page
    assert "2 of 2 runs done" in page
    assert str(packed) not in page
    assert str(packed) not in (packed / "kept/report.md").read_text()


def test_the_same_line_again_adds_nothing_and_a_mistake_is_one_line(packed: Path, tmp_path: Path) -> None:
    before = (packed / "kept/report.md").read_bytes()
    done = results(packed, "--seeds", "42")
    assert done.returncode == 0, done.stderr
    assert "tiny: 0 queued, 2 already there" in done.stdout
    assert (packed / "kept/report.md").read_bytes() == before
    refused = results(tmp_path)
    assert refused.returncode == 1
    assert "error: --grid tiny.toml: no such grid or file" in refused.stderr
    assert not (tmp_path / "kept").exists()


def test_a_study_that_is_cut_off_is_packed_as_it_is_and_gone_on_with(packed: Path) -> None:
    cut = results(packed, "--seeds", "42,43", "--time-limit", "0s")
    assert cut.returncode == 75, cut.stderr
    assert cut.stdout.splitlines()[-1] == "tiny: 2 of 4 runs done; packed in kept"
    assert "Unfinished: 2 of 4 runs have no result" in (packed / "kept/report.md").read_text()
    done = results(packed, "--seeds", "42,43")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs done" in (packed / "kept/commands.md").read_text()

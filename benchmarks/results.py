"""One study from its grid to what is kept of it: database (compressed), report, figures, and the commands.

    python benchmarks/results.py --grid dose --scale smoke --folder runs/dose --output docs/results/dose-smoke
        [--seeds 42..51] [--set KEY=VALUE] [--corpus bundled] [--tokenizer FOLDER] [--device auto]
        [--threads N] [--time-limit 9m]

Each command runs as a user would type it, in --folder. The same line again goes on where it was cut off: with
--time-limit it runs a piece and exits 75 until all is done. Where --folder holds no database, as on another
machine, it goes on from the one in --output; a run that was under way begins anew, since checkpoints are not
kept. --output is written anew each time, of what there is by then.
"""

from __future__ import annotations

import argparse
import lzma
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[0] = str(PROJECT)  # not this folder: a file here may be called as one of the standard library

import sqlalchemy as sa  # noqa: E402

from model.config import ConfigError  # noqa: E402
from runner.design.grid_file import load_grid  # noqa: E402
from runner.design.scales import adjust  # noqa: E402
from runner.queue import schema  # noqa: E402
from runner.queue.sqlite import driver  # noqa: E402
from runner.queue.store import open_store  # noqa: E402

CLI = PROJECT / "cli.py"
PREEMPTED = 75
DATABASE = "study.db"
"""Its name when it is unpacked; not jobs.db, which people work in."""
PACKED = f"{DATABASE}.xz"


@dataclass(frozen=True)
class Study:
    """What is asked for, in the words of `enqueue`."""

    grid: str
    scale: str = "full"
    seeds: str | None = None
    corpus: str = "bundled"
    tokenizer: str | None = None
    assignments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As `enqueue` names it.

        Raises:
            ConfigError: no such grid.
        """
        return adjust(load_grid(self.grid), self.scale).study_name

    def enqueue(self, folder: Path | None = None) -> list[str]:
        """The command as it is told, or as it runs in a folder, where relative paths would lead astray."""
        grid, tokenizer = self.grid, self.tokenizer
        if folder is not None and Path(grid).is_file():
            shutil.copy(grid, folder)
        grid = Path(grid).name
        if folder is not None and tokenizer and Path(tokenizer).exists():
            tokenizer = str(Path(tokenizer).resolve())
        words = ["enqueue", "--grid", grid, "--scale", self.scale, "--corpus", self.corpus]
        words += ["--tokenizer", tokenizer] if tokenizer else []
        words += ["--seeds", self.seeds] if self.seeds else []
        return words + [word for assignment in self.assignments for word in ("--set", assignment)]


def main() -> None:
    """Run the study, or a piece of it, and pack what there is."""
    options = parsed()
    study = Study(
        options.grid,
        options.scale,
        options.seeds,
        options.corpus,
        options.tokenizer,
        tuple(options.assignments),
    )
    work = ["work", "--device", options.device]
    work += ["--threads", options.threads] if options.threads else []
    try:
        name = study.name
    except ConfigError as error:
        sys.exit(f"error: {error}")
    options.folder.mkdir(parents=True, exist_ok=True)
    packed = options.output / PACKED
    if packed.exists():
        unpack(packed.read_bytes(), options.folder)
    run(study.enqueue(options.folder), options.folder)
    code = run([*work, *(["--time-limit", options.time_limit] if options.time_limit else [])], options.folder)
    print(pack(name, [study.enqueue(), work], options.folder, options.output))
    sys.exit(code)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", required=True)
    parser.add_argument("--scale", default="full", choices=["smoke", "small", "full"])
    parser.add_argument("--seeds")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--corpus", default="bundled")
    parser.add_argument("--tokenizer")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads")
    parser.add_argument("--time-limit")
    parser.add_argument("--folder", type=Path, required=True, help="database, checkpoints, cache; kept")
    parser.add_argument("--output", type=Path, required=True, help="what is to be kept for good")
    return parser.parse_args()


def run(words: list[str], folder: Path) -> int:
    """A command in the study's folder, its output passed on; ends this program where it fails."""
    print(f"$ python cli.py {shlex.join(words)}", file=sys.stderr, flush=True)
    code = subprocess.run([sys.executable, str(CLI), *words], cwd=folder, check=False).returncode
    if code not in (0, PREEMPTED):
        sys.exit(code)
    return code


def pack(name: str, commands: list[list[str]], folder: Path, output: Path, database: str = "jobs.db") -> str:
    """Write database, report, figures and commands of a study to `output`; returns what became of it."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as private:
        temporary = Path(private) / "kept"  # whose mode is anybody's, as the output's is to be
        temporary.mkdir()
        whole = temporary / DATABASE
        done, jobs = copy(folder / database, whole, name)
        report = ["report", "--study", name, "--output", ".", "--db", DATABASE]
        failed = ""
        if done:  # else there is nothing to report
            words = [sys.executable, str(CLI), *report]
            reported = subprocess.run(words, cwd=temporary, check=False, stderr=subprocess.PIPE, text=True)
            failed = reported.stderr.strip().splitlines()[-1] if reported.returncode else ""
        with lzma.open(temporary / PACKED, "wb", preset=9) as file:
            file.write(whole.read_bytes())
        whole.unlink()
        shutil.rmtree(output / "figures", ignore_errors=True)
        (output / "report.md").unlink(missing_ok=True)  # of an earlier piece
        shutil.copytree(temporary, output, dirs_exist_ok=True)
    said = f"{name}: {done} of {jobs} runs done; packed in {output}"
    if failed:  # it needs packages that the work does not (scipy): it can be made elsewhere
        said += f"; no report here: {failed}"
    (output / "commands.md").write_text(page(name, done, jobs, commands, report))
    return said


def unpack(packed: bytes, folder: Path) -> None:
    """Go on from a packed database where the folder has none."""
    database = folder / "jobs.db"
    if not database.exists():
        beside = folder / f".{DATABASE}"
        beside.write_bytes(lzma.decompress(packed))
        beside.replace(database)


def copy(database: Path, target: Path, study: str) -> tuple[int, int]:
    """A compact, checked copy of one study; returns how many of its runs are done, of how many."""
    connection = driver().connect(str(database))
    try:
        connection.execute("VACUUM INTO ?", (str(target),))
    finally:
        connection.close()
    drop_others(target, study)
    connection = driver().connect(str(target))
    try:
        connection.execute("VACUUM")  # what was dropped is not to be read in the file either
        (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
        if sound != "ok":
            raise OSError(f"{target}: {sound}")
        query = (
            "SELECT SUM(j.status = 'done'), COUNT(*) FROM jobs j JOIN studies s ON s.id = j.study_id "
            "WHERE s.name = ?"
        )
        done, jobs = connection.execute(query, (study,)).fetchone()
    finally:
        connection.close()
    return int(done or 0), int(jobs)


def drop_others(database: Path, study: str) -> None:
    """Leave one study in a copied database, which is not another night's too, and no row of a checkpoint.

    Their files stay where they are: a run that was under way begins anew elsewhere.
    """

    def drop(connection: sa.Connection) -> None:
        kept = sa.select(schema.studies.c.id).where(schema.studies.c.name == study)
        other = sa.select(schema.jobs.c.id).where(schema.jobs.c.study_id.not_in(kept))
        for table in reversed(schema.metadata.sorted_tables):  # a row goes before those that it refers to
            if "job_id" in table.c:
                connection.execute(sa.delete(table).where(table.c.job_id.in_(other)))
            elif "study_id" in table.c:
                connection.execute(sa.delete(table).where(table.c.study_id.not_in(kept)))
        connection.execute(sa.delete(schema.studies).where(schema.studies.c.id.not_in(kept)))
        connection.execute(sa.delete(schema.checkpoints))

    store = open_store(str(database))
    store.write(drop)
    store.close()


def page(name: str, done: int, jobs: int, commands: list[list[str]], report: list[str]) -> str:
    """How the study was made, and how its report is made again from the database beside it."""
    lines = [f"python cli.py {shlex.join(words)}" for words in commands]
    again = [f"xz --decompress --keep {PACKED}", f"python cli.py {shlex.join(report)}"]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{done} of {jobs} runs done, in a folder of their own, by",
            "",
            "```bash",
            *lines,
            "```",
            "",
            "What ran them (revision, processor, packages, threads) is in the report and, by attempt, in the",
            "database.",
            "The report and its figures are made again from the database beside this page by",
            "",
            "```bash",
            *again,
            "```",
            "",
        ]
    )


if __name__ == "__main__":
    main()

"""One attempt as the program sees it, and what is told of it."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from model.events import Asked, Event, Measured, NotSaved, Progressed
from runner.work.progress import Display
from runner.work.run import Run


def test_work_shows_the_series_of_a_program_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sign of life carries the series that stands for the run, chosen as `status` chooses it."""
    told: list[Event] = []
    run = Run(tmp_path, "cpu", tmp_path, (), Asked(), told.append, "", "test_error")
    run.log(1, aux=3.0, error=0.25)
    alive = told[-1]
    assert isinstance(alive, Progressed)
    assert (alive.series, alive.value) == ("error", 0.25)
    display = Display(Console(stderr=True, width=80))
    lease = SimpleNamespace(job_id=1, label="job 1", attempt=1, total_steps=10)
    display.claimed(lease)  # type: ignore[arg-type]
    display._said_at[1] = -math.inf
    display.progress(lease, alive)  # type: ignore[arg-type]
    assert "step 1/10 error 0.25" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EPERM])
def test_a_folder_that_cannot_be_written_costs_the_checkpoint(tmp_path: Path, number: int) -> None:
    """Another user's run folder, as a full disk."""
    told: list[Event] = []
    run = Run(tmp_path, "cpu", tmp_path, (), Asked(), told.append, "", "test_error")
    with run.save(3) as path:
        path.write_bytes(b"half")
        raise OSError(number, "no")
    assert isinstance(told[-1], NotSaved)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="another"), run.save(4):
        raise OSError(errno.ENOENT, "another")


def test_a_count_below_zero_is_the_programs_error(tmp_path: Path) -> None:
    told: list[Event] = []
    run = Run(tmp_path, "cpu", tmp_path, (), Asked(), told.append, "", "test_error")
    with pytest.raises(ValueError, match="cannot be below 0"):
        run.count(1, [[3, -1]])
    run.count(1, [[3, 1]])  # the step is still free
    assert isinstance(told[-1], Measured)

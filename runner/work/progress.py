"""What `work` shows on stderr: live bars on a terminal, plain lines elsewhere. Decides nothing."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from model.events import Phase, Progressed, Resumed
from runner.queue.jobs import Lease
from runner.queue.series import digits

LINE_SECONDS = 10.0
"""Interval of a job's progress lines if stderr is no terminal."""


class Display:
    """Notes of one worker, and a bar for each job in its hands."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live = self.console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed}/{task.total} {task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[queue]}"),
            console=self.console,
            transient=True,
        )
        self._tasks: dict[int, TaskID] = {}  # by job; the first one shows the queue too
        self._said_at: dict[int, float] = {}
        self._last_note = ""
        self._remarked: set[str] = set()
        self._queue = ""

    def start(self) -> None:
        if self._live:
            self._bars.start()

    def stop(self) -> None:
        if self._live:
            self._bars.stop()

    def note(self, text: str) -> None:
        """A line that stays; the same line again at once is said once."""
        if text != self._last_note:
            self.console.print(escape(text), highlight=False, soft_wrap=True)
        self._last_note = text

    def queue(self, left: int, eta_seconds: float | None) -> None:
        """How much is left in the whole queue, and for how long."""
        eta = f", ETA {timedelta(seconds=round(eta_seconds))}" if eta_seconds is not None else ""
        self._queue = f"{left} left{eta}"
        self._show_queue()

    def _show_queue(self) -> None:
        for task in list(self._tasks.values())[:1]:
            self._bars.update(task, queue=self._queue)

    def claimed(self, lease: Lease) -> None:
        self.note(f"{lease.label}: attempt {lease.attempt}")
        self._said_at[lease.job_id] = time.monotonic()
        self._tasks[lease.job_id] = self._bars.add_task(
            f"job {lease.job_id}", total=lease.total_steps, state="", queue=""
        )
        self._show_queue()

    def resumed(self, lease: Lease, event: Resumed) -> None:
        for reason in event.refused:
            self.note(f"{lease.label}: checkpoint refused: {reason}")
        for remark in event.remarks:
            if remark not in self._remarked:  # once a night, not once a job: each attempt's events have it
                self.note(f"{lease.label}: {remark}")
        self._remarked.update(event.remarks)
        if event.step:
            self.note(f"{lease.label}: resumes from step {event.step}{event.not_exact}")

    def progress(self, lease: Lease, event: Progressed) -> None:
        value = f" {event.series} {digits(event.value)}" if event.value is not None else ""
        speed = f" {event.tokens_per_second:,.0f} tok/s" if event.tokens_per_second else ""
        state = f"{'' if event.phase is Phase.STEP else event.phase}{value}{speed}"
        self._bars.update(self._tasks[lease.job_id], completed=event.step, state=escape(state))
        if not self._live and time.monotonic() - self._said_at[lease.job_id] >= LINE_SECONDS:
            self._said_at[lease.job_id] = time.monotonic()
            self.note(f"{lease.label}: step {event.step}/{lease.total_steps} {state.strip()} · {self._queue}")

    def ended(self, lease: Lease) -> None:
        """The job is not in hand any more."""
        self._bars.remove_task(self._tasks.pop(lease.job_id))
        self._show_queue()

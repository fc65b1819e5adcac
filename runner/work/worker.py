"""The supervisor: hands out jobs to its slots, listens to their trainers, and serves signals.

It never imports torch: a native call that holds the GIL in a trainer cannot stop a heartbeat. It never waits
for one trainer alone: what one slot does (runner/work/slot.py) costs the others no heartbeat.
"""

from __future__ import annotations

import contextlib
import select
import signal
from dataclasses import replace
from functools import partial

from runner.design.linking import link
from runner.design.program import reseeding
from runner.queue import attempts, looks
from runner.queue.backlog import BEAT_SECONDS, Backlog, backlog, beat, next_program
from runner.queue.store import Store, StoreRefused, StoreUnavailable, StoreUnreachable
from runner.work import provenance, source
from runner.work.options import Night, Options
from runner.work.progress import Display
from runner.work.signals import Stop, awake_seconds
from runner.work.slot import UNHEALTHY, Concluded, Slot
from runner.work.upkeep import NOT_NOW

DRAINED, UNREACHABLE, PREEMPTED = 0, 69, 75
"""Exit codes; sysexits.h gives 69 (unavailable) and 75 (try again later)."""

POLL_SECONDS = 2.0
LISTEN_SECONDS = 0.2
"""Longest wait for a trainer or a signal, after which limits and leases are looked at again."""


class Worker:
    """One supervisor; `run` until the queue is drained or it is asked to stop."""

    def __init__(
        self, store: Store, options: Options, display: Display, decide: looks.Decide | None = None
    ) -> None:
        self.store, self.options, self.display = store, options, display
        self._decide = decide  # what a look at a study says; None: this worker makes none
        runs = (options.runs / store.database_id).resolve()
        self._source = source.take()  # before anything else: the code that this process itself runs
        machine = provenance.of_this_machine() | self._source.provenance()
        self._link = partial(link, here=machine)  # by the code that the night runs, whatever is edited
        night = Night(store, options, display, runs, self._source, machine)
        self.slots = [Slot(name, night) for name in options.devices]
        self.runs = runs
        self.jobs_done = 0
        self.studies: list[str] = []  # worked on, in order
        self._compared: set[str] = set()  # studies whose results have been looked at
        self._handed_out = 0
        self._look_at = 0.0  # when to look for jobs again
        self._left: Backlog | None = None
        self._looks_due = False
        self._believed_until = 0.0
        self._beat_at = awake_seconds() + BEAT_SECONDS
        self._drained = self._stopping = False
        self._stop = Stop(options.time_limit_seconds, self._end_groups)
        self._pace: list[tuple[float, int]] = []  # (seconds, steps) of the finished jobs

    @property
    def found_nothing(self) -> bool:
        """Whether it ended because there was no job and no look, rather than because it was asked to."""
        return self._drained and not self.jobs_done and not self.studies and not self._stop.asked

    # --- the night ----------------------------------------------------------------------------------------

    def run(self) -> int:
        """Work the queue; returns the exit code.

        Raises:
            StoreUnreachable: the database went away.
            StoreRefused: it is damaged; the jobs in hand are back, as far as it could be written.
            OSError: the run folder cannot be made, or the copy of the source in it.
        """
        self._stop.catch_signals()
        self.runs.mkdir(parents=True, exist_ok=True)
        self._source.keep(self.runs)
        self.display.start()
        code = UNREACHABLE
        try:
            code = self._work()
        except StoreRefused as error:
            code = error.exit_code
            for slot in self.slots:
                slot.give_back("the database is damaged")
            raise
        finally:
            self.display.stop()
            for slot in self.slots:
                slot.end_trainer()
            if code != UNREACHABLE:
                with contextlib.suppress(Exception):  # the exit code matters more than these rows
                    for slot in self.slots:
                        slot.sign_off(code)
        return code

    def _work(self) -> int:
        while not self._over():
            if self._stop.asked:
                self._ask_to_stop()
            else:
                self._hand_out()
            self._listen()
            self._beat_if_due()
            for slot in self.slots:
                was_free = slot.free
                concluded = slot.step()
                if concluded is not None:
                    self._account(concluded)
                if slot.free and not was_free:
                    self._look_at = 0.0
        return self._exit_code()

    def _beat_if_due(self) -> None:
        """Let others see that a worker without a job is alive."""
        if awake_seconds() < self._beat_at:
            return
        self._beat_at = awake_seconds() + BEAT_SECONDS
        with contextlib.suppress(StoreUnavailable):
            self.store.try_write(lambda c: beat(c, [slot.owner for slot in self.slots]))

    def _over(self) -> bool:
        if any(slot.busy for slot in self.slots):
            return False
        nothing_left = self._drained or self.jobs_done == self.options.jobs
        return self._stop.asked or nothing_left or all(slot.out for slot in self.slots)

    def _listen(self) -> None:
        """Wait until a trainer speaks or a signal comes, for a short while at most."""
        pipes = [slot.events_fd for slot in self.slots if slot.events_fd is not None]
        select.select([*pipes, self._stop.wake_fd], [], [], LISTEN_SECONDS)
        self._stop.clear_wake()
        updates = [slot.running.longest_update_seconds for slot in self.slots if slot.running]
        self._stop.slowest_update_seconds = max(updates, default=0.0)

    # --- jobs ---------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Claim jobs for the free slots, and start trainers in them as far as there are jobs for those."""
        free = sorted((slot for slot in self.slots if slot.free), key=lambda slot: not slot.warm)
        if not free or self._handed_out == self.options.jobs or awake_seconds() < self._look_at:
            return
        self._look_at = awake_seconds() + POLL_SECONDS
        busy = any(slot.busy for slot in self.slots)
        try:
            left = self._backlog()
            if self._looks_due and self._make_looks():
                left = self._backlog()
                if self._looks_due:  # its block was taken over whole: the next look, after a heartbeat
                    self._look_at = 0.0
            # A slot that is being tested may give its failed jobs back.
            self._drained = left.empty and not (busy or self._looks_due or self.options.wait)
            self._fill(free, left.due)
        except (StoreUnavailable, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NOT_NOW:
                raise
            self.display.note(f"waiting: {error}")
            return
        if not left.due and not busy and not self._drained:
            self._say_what_for(left)

    def _fill(self, free: list[Slot], due: int) -> None:
        """Give the due jobs to the free slots, those with a trainer first."""
        room = due if self.options.jobs is None else min(due, self.options.jobs - self._handed_out)
        if room <= 0:
            return
        # Trainers that are starting are not counted on: one that hangs must not hold up the last job.
        with self.store.read() as connection:
            program = next_program(connection)
        for slot in free[:room]:
            if slot.prepare(program):
                self._claim(slot)

    def _claim(self, slot: Slot) -> None:
        lease = self.store.write(slot.claim, POLL_SECONDS)
        left = self._left
        self._left = replace(left, due=left.due - 1, running=left.running + 1) if lease and left else None
        if lease is not None:
            self._handed_out += 1
            self._say_other_code(lease.study)
            slot.take(lease)

    def _say_other_code(self, study: str) -> None:
        """Once a study: that it has results of other code than this worker's."""
        if study in self._compared:
            return
        self._compared.add(study)
        own = self._source.sha256
        with self.store.read() as connection:
            others = attempts.results_of_other_source(connection, study, own)
        if others:
            self.display.note(
                f"{study}: {others} of its results are of other code than this worker's (source {own[:12]}): "
                "its report will say so. For this code alone, queue it under another --study NAME"
            )

    def _account(self, concluded: Concluded) -> None:
        """Count the job and say what became of it."""
        ending, lease, became = concluded.ending, concluded.lease, concluded.became
        self.jobs_done += 1
        if lease.study not in self.studies:
            self.studies.append(lease.study)
        if became == "done" and ending is not None and ending.results is not None:
            self._pace.append((concluded.seconds, lease.total_steps))
            said = f"done in {concluded.seconds:.0f} s"
            if lease.primary is not None:
                said += f", {lease.primary} {ending.results[lease.primary]:.6g}"
        elif ending is not None and ending.outcome == "failed":
            said = f"{ending.cause}: {ending.message} → {became}"
        else:
            said = became
        self.display.note(f"{lease.label}: {said}")
        self.display.ended(lease)

    def _backlog(self) -> Backlog:
        """What is left. Counting a million jobs takes a second: a count is believed for 100 times as long."""
        self.store.check_identity()
        began = awake_seconds()
        if self._left is None or self._left.due <= len(self.slots) or began > self._believed_until:
            with self.store.read() as connection:
                # In one moment: an empty queue with a look due is not drained.
                self._left = backlog(connection)
                self._looks_due = self._decide is not None and bool(looks.due(connection))
            self._believed_until = began + 100 * (awake_seconds() - began)
        left = self._left
        pace = sum(seconds for seconds, _ in self._pace) / max(1, sum(steps for _, steps in self._pace))
        at_work = max(left.workers, sum(not slot.out for slot in self.slots))
        self.display.queue(left.jobs, left.steps * pace / at_work if self._pace else None)
        return left

    def _make_looks(self) -> bool:
        """Look at the studies whose blocks are complete; whether there may be jobs again."""
        assert self._decide is not None
        try:
            owner = self.slots[0].owner
            made = looks.make_due(self.store, self._decide, owner, reseeding(self.runs), self._link)
        except (StoreUnavailable, StoreUnreachable, StoreRefused):  # of the database, not of the look
            raise
        except Exception as error:  # the jobs of other studies go on, and another worker may look
            self._decide, self._looks_due = None, False
            self.display.note(f"no look could be made ({type(error).__name__}: {error})")
            return False
        for look in made:
            self.display.note(look.told())
            self.studies += [look.study] if look.study not in self.studies else []
        self._left, self._looks_due = None, False
        return True

    # --- waiting and leaving ------------------------------------------------------------------------------

    def _say_what_for(self, left: Backlog) -> None:
        if left.running:
            self.display.note(f"waiting for {left.running} running jobs of other workers, or their leases")
        elif left.later:
            self.display.note(f"waiting for {left.later} jobs that are backing off after a failure")
        elif left.empty:
            self.display.note("the queue is empty; waiting for jobs (Ctrl-C ends)")

    def _ask_to_stop(self) -> None:
        if not self._stopping and any(slot.running for slot in self.slots):
            left = f"{max(0.0, self._stop.left_seconds):.0f} s of the time are left; "
            why = "" if self._stop.signal else left
            self.display.note(f"stopping: {why}finishing the update and saving (again to leave at once)")
        self._stopping = True
        for slot in self.slots:
            slot.ask_to_stop()

    def _exit_code(self) -> int:
        if all(slot.out for slot in self.slots):
            return UNHEALTHY
        if self._stop.signal == signal.SIGINT or self.jobs_done == self.options.jobs:
            return DRAINED
        if self._stop.asked:
            with self.store.read() as connection:
                return DRAINED if backlog(connection).empty and self._stop.signal is None else PREEMPTED
        return DRAINED

    def _end_groups(self) -> None:
        for slot in self.slots:
            slot.end_group()

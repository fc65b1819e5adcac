"""What `work` was asked for, which devices that means, and what its slots share. Imports no torch."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.events import Phase
from model.fields import ConfigError
from runner.design.copies import place
from runner.design.program import load_copy
from runner.queue.store import Store
from runner.work.process import modules_from
from runner.work.progress import Display
from runner.work.provenance import PROJECT
from runner.work.source import Source

COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
"""Run in a child process. nvidia-smi ignores CUDA_VISIBLE_DEVICES and cannot tell whether torch has CUDA."""
CARD = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))
"""If one of these exists, there is an NVIDIA card, whatever torch makes of it."""
AMD = Path("/dev/kfd")
"""Where this is, `auto` may be an AMD card's torch, which calls it cuda."""
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")

PHASE_LIMIT_SECONDS: dict[Phase, float] = {
    Phase.START: 1800.0,  # a corpus may have to be prepared
    Phase.COMPILE: 1800.0,
    Phase.STEP: 900.0,  # full scale on two cores takes about half a minute
    Phase.EVALUATE: 900.0,
    Phase.SAVE: 600.0,
}
"""Longest silence in each phase; after it the attempt is stalled and ended."""
DESCRIPTORS, DESCRIPTORS_EACH = 40, 8
"""Open files and pipes that a supervisor (or a trainer importing torch) needs, and more for each trainer."""


@dataclass(frozen=True)
class Options:
    """What `work` was asked for."""

    devices: tuple[str, ...] = ("auto",)
    """A slot each; the same device twice is two trainers on it."""
    threads: int = 1
    jobs: int | None = None
    wait: bool = False
    time_limit_seconds: float | None = None
    checkpoint_seconds: float = 120.0
    lease_seconds: float = 60.0
    runs: Path = Path("runs")
    cache: Path = Path("data_cache")
    keep_checkpoints: bool = False
    keep_weights: bool = False
    phase_limits: dict[Phase, float] = field(default_factory=lambda: dict(PHASE_LIMIT_SECONDS))
    trainer_command: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Night:
    """What the slots of one worker share."""

    store: Store
    options: Options
    display: Display
    runs: Path
    """The run folder of this database."""
    source: Source
    """The code that every trainer runs."""
    machine: Mapping[str, Any]
    """The part of every attempt's provenance that does not depend on its device."""

    def program(self, known: Mapping[str, Any]) -> Path:
        """The file of a study's program: in its own copy, or in that of the project's source."""
        return place(known, self.runs, self.source.folder(self.runs))

    def warm(self, known: Mapping[str, Any]) -> str:
        """That file, of a program whose process is made ready before a job and serves many; else empty."""
        return str(self.program(known)) if known.get("warm") else ""


class TooFewDescriptors(Exception):
    """The shell's limit on open files is too low; the message has the command that raises it."""

    exit_code = 73


def allow_descriptors(slot_count: int) -> None:
    """Raise the limit on open files to what `slot_count` trainers need, as far as that is allowed.

    Raises:
        TooFewDescriptors: it is not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = DESCRIPTORS + DESCRIPTORS_EACH * slot_count
    if hard != resource.RLIM_INFINITY and need > hard:
        raise TooFewDescriptors(
            f"{slot_count} trainers need {need} open files or pipes, and this shell allows {hard}: "
            "`ulimit -n 1024`, or fewer --devices or --slots"
        )
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


class DevicesUnknown(Exception):
    """Torch could not say which devices there are, or sees none where a card is; the message says which."""

    exit_code = 70


def slots(devices: str, count: str = COUNT) -> tuple[str, ...]:
    """The devices by name: `auto`, `all`, or a list as in `cuda:0,cuda:2`.

    With an NVIDIA card `auto` is settled here: a night on the CPU instead would be a lost one.

    Raises:
        DevicesUnknown: `all` or `auto`, and torch cannot be asked, or sees no card where there is one.
    """
    named = devices.split(",")
    has_card = any(path.exists() for path in CARD)
    if devices == "all" or (has_card and "auto" in named):
        cards = _cuda_devices(devices, count)
        if has_card and not cards:
            raise DevicesUnknown(
                f"--devices {devices}: this machine has an NVIDIA card that torch cannot use: "
                "install a torch that was built for CUDA and for this driver (nvidia-smi names it), see that "
                "CUDA_VISIBLE_DEVICES does not hide the card, or say --device cpu"
            )
        if devices == "all":
            named = [f"cuda:{index}" for index in range(cards)] or ["cpu"]
        named = ["cuda:0" if name == "auto" else name for name in named]
    return tuple(named)


def _cuda_devices(devices: str, count: str) -> int:
    command, modules = [sys.executable, "-c", count], os.environ | modules_from(PROJECT)
    done = subprocess.run(command, env=modules, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip().isdigit():
        said = (done.stderr.strip() or "no output").splitlines()[-1]
        raise DevicesUnknown(
            f"--devices {devices}: torch does not start ({said}); reinstall requirements.txt"
        )
    return int(done.stdout)


def shared_out(
    devices: str, slots_each: int | None, threads: int | None, jobs: Sequence[tuple[Mapping[str, Any], str]]
) -> tuple[tuple[str, ...], int, str]:
    """The device of each slot, the threads of each trainer, and a line where memory decides; else none.

    On a CPU, unless told otherwise, a trainer a core with one thread each: then a result's bits do not depend
    on how many cores there are. As many as memory holds, by the estimate of the largest of `jobs` that
    wait: program and configuration. On other devices one trainer each, which share the cores.

    Raises:
        DevicesUnknown: as in `slots`.
    """
    named, cores = slots(devices), own_cores()
    if not all(name == "cpu" or (name == "auto" and not AMD.exists()) for name in named):
        names = tuple(name for name in named for _ in range(slots_each or 1))
        return names, threads or max(1, cores // len(names)), ""
    threads, said = threads or 1, ""
    if slots_each is None:
        slots_each = max(1, cores // threads) if len(named) == 1 else 1
        needed = max(map(_needed_bytes, jobs), default=0.0)
        fitting = max(1, int(free_bytes() / needed)) if needed else slots_each
        if fitting < slots_each:
            said = (
                f"{fitting} of {slots_each} trainers: a run takes about {needed / 1e9:.1f} GB by estimate, "
                f"and {free_bytes() / 1e9:.1f} are free; --slots N starts more, --threads N gives more cores"
            )
        slots_each = min(slots_each, fitting)
    return tuple(name for name in named for _ in range(slots_each)), threads, said


def _needed_bytes(job: tuple[Mapping[str, Any], str]) -> float:
    """By the program's estimate; 0 if it has none, or no configuration can be made: its trainer will say."""
    known, config_json = job
    if not known.get("sized") or known.get("hash"):  # no code of a user's runs in the supervisor
        return 0.0
    try:
        program = load_copy(known, Path())
        return float(program.module.estimated_bytes(program.from_json(config_json)))
    except ConfigError:
        return 0.0


def own_cores() -> int:
    """The cores that are this process's, or that Slurm granted."""
    bound = getattr(os, "sched_getaffinity", None)  # macOS binds none, and has no such question
    cores = len(bound(0)) if bound else os.cpu_count() or 1
    # Where Slurm binds no task to its cores, all of the node are in sight, and other workers' too.
    granted = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return max(1, min(cores, int(granted) if granted.isdecimal() else cores))


def free_bytes() -> float:
    """Memory that programs may still take: what the kernel says, or a container's limit if that is less."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(MEMINFO), re.M)
    free = int(found.group(1)) * 1024 if found else float("inf")
    limit, used = (_text(CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    return min(free, int(limit) - int(used)) if limit.isdecimal() and used.isdecimal() else free


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""

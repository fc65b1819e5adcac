"""The child: a RunConfig in, events out over a pipe. The only module of runner/ that imports torch.

It owns no database and makes no decision: it runs one job after another as the supervisor commands
(runner/work/worker.py), and ends when its supervisor does. Errors are sorted into causes here, at the one
broad `except` of a job, where the exception is still whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from model.config import ConfigError, RunConfig
from model.events import (
    Asked,
    Checkpointed,
    Event,
    Finished,
    Measured,
    NotSaved,
    Request,
    Resumed,
    to_json,
)

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve commands from stdin until it closes."""
    events_fd, device, threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    die_with_parent()
    # The supervisor decides what a signal means; a terminal's Ctrl-C and Slurm's SIGTERM come here too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    trainer = Trainer(events_fd)
    threading.Thread(target=trainer.listen, daemon=True).start()
    trainer.start(device, threads)
    while True:
        trainer.serve(*trainer.commands.get())


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however that happens (Linux)."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between: no signal will come
            os._exit(1)


class Trainer:
    """The state of the child: its pipe, its device, and what the supervisor has asked for."""

    def __init__(self, events_fd: int) -> None:
        self.commands: queue.Queue[tuple[dict[str, Any], Asked]] = queue.Queue()
        self._events = os.fdopen(events_fd, "wb", buffering=0)
        self._device = "cpu"

    def listen(self) -> None:
        """Read commands, in a thread: a request reaches a job in the midst of its steps."""
        buffer, asked = b"", Asked()
        while chunk := os.read(0, 1 << 16):  # unbuffered: a lock of sys.stdin would outlive the interpreter
            *lines, buffer = (buffer + chunk).split(b"\n")
            for message in map(json.loads, lines):
                if message["command"] == "request":
                    asked.ask(Request(message["request"]))
                else:  # each command its own: what was asked of a job that ended reaches no other
                    asked = Asked()
                    self.commands.put((message, asked))
        os._exit(0)  # the supervisor closed the pipe or died: nobody wants what would come

    def start(self, device: str, threads: int) -> None:
        """Import torch, settle on a device and say so."""
        import torch

        torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda:0" if torch.cuda.is_available() else "cpu"
        self._device = device
        self._send(
            event="ready",
            device=device,
            device_name=torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
            driver=driver_version() if device.startswith("cuda") else None,
            threads=threads,
        )

    def serve(self, message: dict[str, Any], asked: Asked) -> None:
        """Run one command to its end; a failed one is reported and ends the process."""
        if message["command"] == "check":
            self._send(event="checked", **known_answer(self._device))
            return
        log_to(Path(message["log_path"]))
        try:
            self._run(message, asked)
        except BaseException as error:
            cause, text = cause_of(error, self._device)
            traceback.print_exc()
            sys.stdout.flush()
            self._send(event="failed", cause=cause, message=text, traceback=traceback.format_exc())
            os._exit(1)  # a process that failed once is not trusted with the next job

    def _run(self, message: dict[str, Any], asked: Asked) -> None:
        from model.training.loop import train

        config = RunConfig.from_dict(json.loads(message["config_json"]))
        event: Event | None = None
        for event in train(
            config,
            Path(message["workdir"]),
            cache_dir=Path(message["cache_dir"]),
            device=self._device,
            resume_from=[(path, sha256) for path, sha256 in message["resume_from"]],
            asked=asked,
            checkpoint_seconds=message["checkpoint_seconds"],
            keep_weights=message["keep_weights"],
            source=message["source"],
        ):
            self._send(**to_json(event))
            log(event)
        if not isinstance(event, Finished):
            self._send(event="stopped")

    def _send(self, **message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:  # a raw pipe may take a part
            data = data[self._events.write(data) :]


class Log(io.RawIOBase):
    """Standard output on a full disk: the lines are lost, and the job goes on."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            os.write(1, data)
        return len(data)


def log_to(path: Path) -> None:
    """Send everything that is printed from here on to this attempt's log, as far as the disk has room."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    sys.stdout = sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(Log()), errors="replace", line_buffering=True
    )


def log(event: Event) -> None:
    """Print what a reader of the attempt's log wants to see; never a value of the sealed test split."""
    text = ""
    if isinstance(event, Resumed):
        refused = [f"checkpoint refused: {reason}; " for reason in event.refused]
        text = "".join(refused) + f"from step {event.step}{event.not_exact}"
    elif isinstance(event, Measured) and event.split != "test":
        text = f"step {event.step} {event.split}: " + ", ".join(
            f"{name} {value:.6g}" for name, value in event.values.items()
        )
    elif isinstance(event, Checkpointed):
        text = f"step {event.step} checkpoint: {Path(event.path).name}, {event.size_bytes:,} bytes"
    elif isinstance(event, NotSaved):
        text = f"step {event.step} checkpoint not saved: {event.reason}"
    elif isinstance(event, Finished):
        text = f"step {event.step} finished"
    if text:
        print(time.strftime("%m-%d %H:%M:%S"), text, flush=True)


def driver_version() -> str | None:
    """NVIDIA's driver, as the kernel names it."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split("  ")[1]
    except (OSError, IndexError):
        return None


def cause_of(error: BaseException, device: str) -> tuple[str, str]:
    """(cause, one line) of what ended a job; the causes are runner.queue.schema.CAUSES."""
    import torch

    from model.training.loop import Diverged
    from model.training.memory import peak_memory_bytes

    line = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, (ConfigError, json.JSONDecodeError)):
        return "bad_config", str(error)
    if isinstance(error, Diverged):
        return "diverged", str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        peak = peak_memory_bytes(torch.device(device)) / 1e9
        remedy = "set train.micro_batch (windows at a time) below train.batch_size, or use another device"
        return "oom", f"{line}; peak {peak:.2f} GB on {device}; {remedy}"
    if "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError":
        return "device", line
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return "infrastructure", f"{line}; free some room on the disk"
    if isinstance(error, (ConnectionError, TimeoutError)):
        return "infrastructure", line
    return "bug", line


def known_answer(device: str) -> dict[str, Any]:
    """The canary: a matrix product of whole numbers, exact in fp32 on a sound device, and its gradient."""
    import torch

    try:
        left = (torch.arange(256 * 256, device=device) % 7 - 3).float().view(256, 256).requires_grad_()
        right = (torch.arange(256 * 256, device=device) % 5 - 2).float().view(256, 256)
        product = left @ right
        (found,) = torch.autograd.grad(product.sum(), left)
        expected = left.detach().cpu().double() @ right.cpu().double()
        gradient = right.sum(dim=1).expand(256, 256)
        exact = torch.equal(product.detach().cpu().double(), expected)
        ok = exact and torch.equal(found, gradient)
    except Exception as error:  # whatever a broken device raises is the answer
        return {"ok": False, "message": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"ok": ok, "message": "" if ok else "a product of whole numbers came out wrong"}


if __name__ == "__main__":
    main()

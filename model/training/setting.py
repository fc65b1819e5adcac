"""How a run computes on its device: chosen once, before its first step, and recorded with its result.

Engine, precision, attention's kernel, how much goes through the model at once, and whether the bits repeat.
What a device can do: model/engines/device.py. Who asks: model/training/state.py and the trainer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from model.config import RunConfig
from model.engines import choice
from model.engines import device as devices
from model.training import rehearsal
from model.training.memory import that_fits


@dataclass(frozen=True)
class Setting:
    """One run on one device."""

    engine: str
    """The configuration's, or what stands in for it on this device (model/engines/choice.py)."""
    computing: str
    """What that came to, for the numeric environment."""
    precision: str
    """fp32 or bf16: by rule from the device, unless the configuration fixes it."""
    attention: str
    """The kernel of a CUDA device's attention; empty elsewhere, where there is no choice."""
    steps_at_once: int
    """Steps of an update that go through the model as one batch."""
    windows_at_once: int
    """Windows of one pass, unless several steps go together."""
    replays: bool = False
    """Whether an update is launched as one CUDA graph: `auto` on a GPU, where a rehearsal's bits repeat."""
    deterministic: bool = True
    remarks: list[str] = field(default_factory=list)
    """What is otherwise than asked for, and why: a line each."""


def open_device(name: str, threads: int) -> dict[str, Any]:
    """Start a device and say what it is; `auto` is the first CUDA device, or else the CPU.

    `threads` are those of the processor.

    Raises:
        RuntimeError: torch cannot use it.
    """
    torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = devices.prepare(name)
    if device.type != "cuda":
        return {"device": str(device), "device_name": "cpu", "driver": None}
    title, driver = torch.cuda.get_device_name(device), devices.driver_version()
    return {"device": str(device), "device_name": title, "driver": driver}


def settle(config: RunConfig, device: torch.device) -> Setting:
    """Choose, and set this process up for it, whatever ran in it before.

    A GPU rehearses: where an operation has no deterministic implementation, or the bits of a tiny update do
    not repeat, the run goes on and says so.

    Raises:
        ConfigError: the device does not have the precision that the configuration fixes.
    """
    remarks = []
    if device.type == "cpu":
        devices.keep_few_products(config.estimated_cpu_bytes)
    precision = devices.precision_of(config.train.precision, device)
    if precision == "bf16" and not devices.multiplies_bf16(device):
        remarks.append("train.precision = bf16: without AVX-512 fp32 is many times as fast")
    attention = devices.choose_attention(config.model, config.train.seq_len, precision, device)
    devices.make_deterministic()
    engine, why_not = choice.usable(config.train.engine, device, config.model)
    if why_not:
        remarks.append(f"train.engine = {config.train.engine} cannot be had ({why_not}); {engine} computes")
    computing = choice.settle(engine, device) + (f"; {why_not}" if why_not else "")
    together = choice.steps_at_once(config.train, device)
    together, windows = that_fits(config, device, precision, attention, together)
    if windows < config.train.windows_at_once:
        computing += f", {windows} windows at once"
        remarks.append(
            f"{windows} of a step's {config.train.batch_size} windows at a time, so that they fit into the "
            "device's memory: micro-batches, as with train.micro_batch"
        )
    elif together > 1:
        computing += f", {together} steps at once"
    wavering = _wavers(config, engine, precision, device) if device.type == "cuda" else ""
    if wavering:
        remarks.append(f"not deterministic on this device: {wavering}")
    replays = config.train.engine == "auto" and engine == "triton" and not wavering
    if replays and (why_not := rehearsal.replay_differs(config, engine, precision, device)):
        remarks.append(f"an update's kernels are launched one by one, not as one CUDA graph: {why_not}")
        replays = False
    computing += ", an update as one graph" if replays else ""
    return Setting(engine, computing, precision, attention, together, windows, replays, not wavering, remarks)


def check(device_name: str) -> str:
    """What is wrong with a device, by a tiny update in the precision of its runs; empty where nothing is.

    Raises:
        RuntimeError: the device cannot do it.
    """
    config, device = RunConfig(), devices.prepare(device_name)
    setting = settle(config, device)
    wrong = rehearsal.twice(config, setting.engine, setting.precision, device)
    return wrong if setting.deterministic else ""


def _wavers(config: RunConfig, engine: str, precision: str, device: torch.device) -> str:
    """Why the bits do not repeat here, empty where they do; leaves the mode that the run can have."""
    try:
        wrong = rehearsal.twice(config, engine, precision, device)
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        wrong = str(error).splitlines()[0]
    if wrong:
        devices.make_deterministic(strict=False)
    return wrong

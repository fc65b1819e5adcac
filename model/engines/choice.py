"""Which implementation computes the model: `train.engine` and the device decide.

`plain` is the reference, on any device; `auto` is the fastest for the device, as far as it was measured;
`compiled` goes through torch.compile. All offer the same operations on the same mathematics.
Who asks: model/network/moe.py, model/network/transformer.py, model/training/state.py.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from model.config import TrainConfig
from model.engines import compiled, cpu, cpu_experts, cuda, plain

TOKENS_AT_ONCE = {"cpu": 8_192, "cuda": 24_576}
"""Up to which an update's steps go through the model as one batch."""


def operations(engine: str, x: Tensor) -> ModuleType:
    """The module whose functions compute on the device of `x`: embed, rms_norm, attend, experts, …"""
    if engine in ("plain", "compiled"):
        return plain if engine == "plain" else compiled
    return cpu if x.device.type == "cpu" else cuda


def usable(engine: str, device: torch.device) -> tuple[str, str]:
    """The engine, and nothing; or auto, and why `compiled` cannot be had: no compiler, or one that fails."""
    why_not = _cannot_compile(device) if engine == "compiled" else ""
    return ("auto" if why_not else engine), why_not


@cache
def _cannot_compile(device: torch.device) -> str:
    """Why torch.compile cannot build a small kernel for a device, in one line; empty where it can."""
    try:
        torch.compile(_little, fullgraph=True)(torch.ones(64, device=device))
    except Exception as error:  # whatever the toolchain lacks: a compiler, headers, triton
        line = next((line for line in str(error).splitlines() if line.strip()), "")
        return f"{type(error).__name__}: {line.strip()}"[:160]
    return ""


def _little(x: Tensor) -> Tensor:
    return (x * 2.0 + 1.0).tanh()


def settle(engine: str, device: torch.device) -> str:
    """Set this process up for an engine, whatever ran in it before, and name what will compute."""
    module = operations(engine, torch.empty(0, device=device))
    name = module.__name__.rpartition(".")[2]
    library = cpu_experts.choose(module in (cpu, compiled))
    return f"{name}, {library}" if device.type == "cpu" else name


def steps_at_once(train: TrainConfig, device: torch.device) -> int:
    """How many of an update's steps go through the model as one batch: the same mathematics, fewer calls.

    A function of the configuration and the kind of device, never of what memory is free: a run that is
    repeated sums in the same order.
    """
    if train.engine == "plain" or train.windows_at_once < train.batch_size:
        return 1
    most = TOKENS_AT_ONCE.get(device.type, 0) // train.tokens_per_step
    return max(n for n in range(1, train.accumulate + 1) if train.accumulate % n == 0 and n <= max(1, most))

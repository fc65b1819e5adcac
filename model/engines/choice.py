"""Which implementation computes the model: `train.engine` and the device decide.

`plain` is the reference, on any device; `auto` is the fastest for the device, as far as it was measured; on a
CUDA device that is `triton`, where its kernels prove right, else `grouped`; `compiled` goes through
torch.compile. All offer the same operations on the same mathematics.
Who asks: model/network/moe.py, model/network/transformer.py, model/training/setting.py.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from model.config import CPU_TOKENS_AT_ONCE, ModelConfig, TrainConfig
from model.engines import compiled, cpu, cpu_experts, cuda, plain
from model.engines.device import BF16_FROM, capability

NAMED = {"plain": plain, "compiled": compiled, "grouped": cuda}
TOKENS_AT_ONCE = {"cpu": CPU_TOKENS_AT_ONCE, "cuda": 24_576}
"""Up to which an update's steps go through the model as one batch."""


def operations(engine: str, x: Tensor) -> ModuleType:
    """The module whose functions compute on the device of `x`: embed, add_norm, attend, experts, …"""
    if engine == "triton":
        from model.engines import triton  # there is no such package beside torch's CPU builds

        return triton
    return NAMED.get(engine) or (cpu if x.device.type == "cpu" else cuda)


def adds_in_place(ops: ModuleType) -> bool:
    """Whether an engine's backward passes add to gradients that are there (model/engines/gradients.py)."""
    return ops is cpu or ops.__name__ == "model.engines.triton"


def usable(engine: str, device: torch.device, model: ModelConfig) -> tuple[str, str]:
    """The engine that computes, and which should and why it cannot; that is empty where it can.

    `compiled` needs a compiler; `triton`, which `auto` means on a CUDA device from capability 8.0, has to
    show that its kernels are right there, in the sizes of this model.
    """
    wanted = "triton" if engine == "auto" and _takes_triton(device) else engine
    if wanted not in ("compiled", "triton"):
        return wanted, ""
    why_not = cannot_triton(device, model) if wanted == "triton" else _cannot_compile(device)
    if not why_not:
        return wanted, ""
    return ("grouped" if device.type == "cuda" else "auto"), f"{wanted}: {why_not}"


@cache
def cannot_triton(device: torch.device, model: ModelConfig) -> str:
    """Why the Triton kernels are not to compute on a device, in one line; empty where they are."""
    if not _takes_triton(device) and device.type == "cuda":
        return f"its kernels begin at compute capability 8.0, and this is {capability(device)}"
    try:
        from model.engines import self_check

        return self_check.wrong(device, model)
    except Exception as error:  # no triton, a kernel that does not compile, one that the driver refuses
        return in_a_line(error)


def _takes_triton(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= BF16_FROM


@cache
def _cannot_compile(device: torch.device) -> str:
    """Why torch.compile cannot build a small kernel for a device, in one line; empty where it can."""
    try:
        torch.compile(_little, fullgraph=True)(torch.ones(64, device=device))
    except Exception as error:  # whatever the toolchain lacks: a compiler, headers, triton
        return in_a_line(error)
    return ""


def in_a_line(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.strip()}"[:160]


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

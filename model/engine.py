"""Which implementation computes the model: `train.engine` and the device decide.

`plain` is the reference, on any device; `auto` is the fastest for the device. All offer the same operations
on the same mathematics. Who asks: model/moe.py, model/transformer.py, model/state.py.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from model import grouped, kernels, plain, products


def operations(engine: str, x: Tensor) -> ModuleType:
    """The module whose functions compute on the device of `x`: embed, rms_norm, attend, experts, …"""
    if engine == "plain":
        return plain
    return kernels if x.device.type == "cpu" else grouped


def settle(engine: str, device: torch.device) -> str:
    """Set this process up for an engine, whatever ran in it before, and name what will compute."""
    module = operations(engine, torch.empty(0, device=device))
    name = module.__name__.rpartition(".")[2]
    library = products.choose(module is kernels)
    return f"{name}, {library}" if device.type == "cpu" else name

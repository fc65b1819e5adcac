"""A device, started once, and what it can do: precision, attention, determinism.

Sets this process up: torch's current device, its deterministic mode, which attention kernels it may choose.
Nothing here computes. Who asks: model/training/state.py and whoever else computes on a device (the trainer's
check, the benchmarks). Which module computes the model: model/engines/choice.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from model.config import ConfigError, ModelConfig

WORKSPACE = (":4096:8", ":16:8")
"""Values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS promises the same bits."""
LARGE, FEW = 2.7e9, 64
"""From this estimate on, in bytes, a run on a CPU keeps so many compiled products; else oneDNN's 1,024."""
BF16_FROM = (8, 0)
"""The compute capability from which bf16 products are fast, and flash attention exists."""


def prepare(name: str) -> torch.device:
    """The device of this name, started, its number settled, and made torch's current one.

    Counters of memory and generators exist only after this.

    Raises:
        RuntimeError: torch cannot use it; the message is torch's or the driver's.
    """
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in WORKSPACE:  # read when CUDA starts
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = WORKSPACE[0]
    device = torch.device(name)
    if device.type != "cuda":
        return device
    torch.cuda.init()
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    torch.cuda.set_device(device)
    return device


def precision_of(wanted: str, device: torch.device) -> str:
    """fp32 or bf16: what the configuration fixes, else bf16 where a CUDA device has it, fp32 elsewhere.

    fp16 is not offered: it needs a scaler of the loss, and would be a second way of training.

    Raises:
        ConfigError: bf16 is fixed, and the card is older than that.
    """
    has_bf16 = device.type != "cuda" or multiplies_bf16(device)
    if wanted == "bf16" and not has_bf16:
        raise ConfigError(
            f"train.precision = bf16: {torch.cuda.get_device_name(device)} has compute capability "
            f"{capability(device)}, and bf16 begins at 8.0; leave train.precision=auto, or say fp32"
        )
    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cuda" and has_bf16 else "fp32"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 fast; else fp32 has the same values sooner.

    A CPU without AVX-512 is slow: torch takes bf16 number by number, 4 to 40 times as long as fp32
    (docs/performance.md). A product of two bf16 values is exact in fp32, and both add in fp32: only the order
    of the sums may differ.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= BF16_FROM
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def choose_attention(model: ModelConfig, seq_len: int, precision: str, device: torch.device) -> str:
    """Allow a CUDA device one kernel for attention, whose backward pass repeats its bits, and name it.

    flash, which torch's strict mode makes add in one order; math where flash does not take these shapes. Not
    the memory-efficient kernel nor cuDNN's: torch promises no order for the sums of either.
    """
    if device.type != "cuda":
        return ""
    kernels = torch.backends.cuda
    kernels.enable_mem_efficient_sdp(False)
    kernels.enable_cudnn_sdp(False)
    kernels.enable_flash_sdp(True)
    flash = precision == "bf16" and _takes_flash(model, seq_len, device)
    kernels.enable_flash_sdp(flash)
    kernels.enable_math_sdp(not flash)
    return "flash" if flash else "math"


def _takes_flash(model: ModelConfig, seq_len: int, device: torch.device) -> bool:
    shape = (1, model.n_heads, seq_len, model.d_head)
    q = torch.empty(shape, dtype=torch.bfloat16, device=device, requires_grad=True)
    asked = torch.backends.cuda.SDPAParams(q, q, q, None, model.dropout, True, False)
    return torch.backends.cuda.can_use_flash_attention(asked)


def make_deterministic(strict: bool = True) -> None:
    """Ask for the same bits each time: an operation that cannot promise them raises, or else only warns.

    Flash attention's backward pass repeats its bits in strict mode alone: with warnings it adds atomically.
    """
    torch.set_deterministic_debug_mode("error" if strict else "warn")
    # Otherwise every fresh tensor would be filled first; nothing here reads memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False


def keep_few_products(needed: float) -> None:
    """Where a run's memory is large, have oneDNN keep few of the products that it compiles.

    An expert's product has as many rows as tokens came to it, seldom the same again. A thousand of them lie
    among what an update frees, which then never fits together: 8 GB grew out of 3. Few cost a small run
    4 to 8 % of its time, a large one about 1 (docs/performance.md). oneDNN reads this at a process's first
    product; what the user has set wins.
    """
    if needed > LARGE:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(FEW))


def default_generator(device: torch.device) -> torch.Generator:
    """The generator that dropout draws from on this device, torch's own and model/engines/dropout.py's."""
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator


def capability(device: torch.device) -> str:
    """A CUDA device's compute capability, as in 9.0."""
    return ".".join(map(str, torch.cuda.get_device_capability(device)))


def facts(device: torch.device) -> dict[str, Any]:
    """What the bits depend on of a CUDA device, beside its name."""
    return {"capability": capability(device), "driver": driver_version()}


def driver_version() -> str | None:
    """NVIDIA's driver, as the kernel names it."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split("  ")[1]
    except (OSError, IndexError):
        return None

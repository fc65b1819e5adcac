"""What backward passes written by hand share: where a gradient is added, and in which precision.

If weight.grad exists, backward adds into it and returns None: read weight.grad, torch.autograd.grad sees
nothing. Who uses it: model/engines/cpu.py, model/engines/cpu_experts.py,
model/engines/head.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def accumulator(weight: Tensor) -> Tensor:
    """Where to add the gradient of a weight: its .grad, or zeros."""
    return weight.grad if weight.grad is not None else torch.zeros_like(weight)


def handed_up(gradient: Tensor, weight: Tensor) -> Tensor | None:
    """What autograd is to add to .grad: nothing where it is .grad already."""
    return None if gradient is weight.grad else gradient


def add_product(into: Tensor, a: Tensor, b: Tensor) -> None:
    """into += a @ b, of matrices or stacks; the sum over steps stays float32 where the product is bf16."""
    if a.dtype == into.dtype:
        (into.addmm_ if into.ndim == 2 else into.baddbmm_)(a, b)
    elif a.is_cuda and a.ndim == 2:  # cuBLAS sums in float32, and need not round each product to bf16 first
        torch.addmm(into, a, b, out_dtype=into.dtype, out=into)
    else:
        into.add_((a @ b).to(into.dtype))


def compute_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype where it is on, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype

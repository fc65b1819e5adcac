"""A device's known answer, when jobs fail on it at once, and for `doctor`. Runs in the trainer process."""

from __future__ import annotations

from typing import Any


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

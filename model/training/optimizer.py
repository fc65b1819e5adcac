"""Muon for the matrices, AdamW for the embedding and the norms, and the schedule that moves both.

Muon: Jordan et al. 2024, as in torch.optim.Muon, but all matrices of one shape are one stack and go through
Newton-Schulz together (one after the other under `train.engine=plain`). Reads gradients and writes weights;
knows no data. Who calls: model/training/update.py.

Shapes: G matrices in a stack, R rows, C columns, E experts, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from model.config import TrainConfig
from model.engines.device import multiplies_bf16
from model.network.transformer import LanguageModel

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_ITERATIONS = 5
EPSILON = 1e-7
ADAMW_SHARE = 0.1
"""AdamW's rate as a share of Muon's."""
FINAL_SHARE = 0.1
"""What is left of the peak rate at the horizon."""


def rate_share(update: int, train: TrainConfig, protocol: str) -> float:
    """The learning rate at an update (from 0), as a share of its peak.

    sound: W = max(1, updates // 20) updates of warm-up at (u + 1) / W, then a cosine that would reach 10 % at
    update `updates`. published: the same shape over `steps`, but advanced once an update and starting at 0,
    so that a run sees only its beginning (docs/method.md lists this among the published defects).
    """
    if protocol == "published":
        horizon, warmup = train.steps, train.steps // 20
        if update < warmup:
            return update / warmup
    else:
        horizon, warmup = train.updates, max(1, train.updates // 20)
        if update < warmup:
            return (update + 1) / warmup
    progress = (update - warmup) / (horizon - warmup)
    return FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Matrices:
    """A parameter for Muon: one matrix (R, C), or a stack of experts' (E, R, C)."""

    parameter: nn.Parameter
    layer: int | None = None
    """For experts: the row of the update's counts_LE that says which were used."""


class Muon:
    """Momentum, orthogonalised matrix by matrix; no weight decay."""

    def __init__(self, matrices: Sequence[Matrices], momentum: float, engine: str = "auto") -> None:
        self.momentum = momentum
        self.orthogonalize = orthogonalize_singly if engine == "plain" else orthogonalize
        self.stacks: dict[tuple[int, int], list[Matrices]] = {}
        for entry in matrices:
            rows, columns = entry.parameter.shape[-2:]
            self.stacks.setdefault((rows, columns), []).append(entry)
        self.momentum_GRC = {
            shape: torch.cat([torch.zeros_like(entry.parameter).view(-1, *shape) for entry in stack])
            for shape, stack in self.stacks.items()
        }

    @torch.no_grad()
    def step(self, rate: float | Tensor, counts_LE: Tensor) -> None:
        """One update from the parameters' gradients.

        An expert without an assignment in this update is skipped, its momentum included: alone, it would have
        had no gradient at all.

        Args:
            rate: Muon's learning rate; a tensor where the update is captured (model/engines/graph.py).
            counts_LE: assignments in this update, by layer and expert.
        """
        used_LE = (counts_LE > 0).float()
        for shape, stack in self.stacks.items():
            gradient_GRC = torch.cat([_gradient(entry.parameter).view(-1, *shape) for entry in stack])
            used_G11 = torch.cat([_used(entry, used_LE) for entry in stack]).view(-1, 1, 1)
            momentum_GRC = self.momentum_GRC[shape]
            # As an exponential moving average; a weight of 0 leaves the momentum as it is, to the bit.
            momentum_GRC.lerp_(gradient_GRC, (1.0 - self.momentum) * used_G11)
            nesterov_GRC = gradient_GRC.lerp_(momentum_GRC, self.momentum)
            direction_GRC = self.orthogonalize(nesterov_GRC) * used_G11.to(torch.bfloat16)
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            pieces = direction_GRC.split([entry.parameter.numel() // math.prod(shape) for entry in stack])
            for entry, piece in zip(stack, pieces, strict=True):
                _move(entry.parameter, piece.view_as(entry.parameter), rate, scale)


def orthogonalize(matrices_GRC: Tensor) -> Tensor:
    """Five Newton-Schulz iterations on each matrix: (G, R, C) → (G, R, C) bf16, singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    # bf16: the iteration pulls its own rounding errors back towards 1, and the products are most of the cost.
    x = matrices_GRC.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the smaller Gram matrix
        x = x.mT
    # The Frobenius norm bounds the spectral norm, which must be at most 1 for the iteration to converge.
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    x = x if multiplies_bf16(x.device) else x.float()
    for _ in range(NEWTON_SCHULZ_ITERATIONS):
        gram = _rounded(x @ x.mT)
        polynomial = _rounded(_add_product(gram, gram, gram, beta=b, alpha=c))
        x = _rounded(_add_product(x, polynomial, x, beta=a))
    x = x.bfloat16()
    return x.mT if tall else x


def orthogonalize_singly(matrices_GRC: Tensor) -> Tensor:
    """The same, one matrix after the other: the reference, equal up to bf16's rounding."""
    return torch.stack([orthogonalize(matrix_RC) for matrix_RC in matrices_GRC])


class AdamW:
    """Loshchilov and Hutter 2019, by torch's fused kernel, with the defaults of torch.optim.AdamW.

    Not that class: its first object loads torch's compiler, which is half of a trainer's start.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], weight_decay: float) -> None:
        self.parameters, self.weight_decay = dict(parameters), weight_decay
        self.state = {
            name: {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            for name, parameter in self.parameters.items()
        }

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        """One update from the parameters' gradients; `rate` is a tensor where the update is captured."""
        steps, means, squares = (
            [state[key] for state in self.state.values()] for key in ("step", "exp_avg", "exp_avg_sq")
        )
        adamw(
            list(self.parameters.values()),
            [_gradient(parameter) for parameter in self.parameters.values()],
            means,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )


class Optimizers:
    """Muon and AdamW over one model, moved by one schedule."""

    def __init__(self, model: LanguageModel, train: TrainConfig, protocol: str) -> None:
        self.train, self.protocol = train, protocol
        self.parameters = list(model.parameters())
        matrices = muon_matrices(model)
        under_muon = {id(entry.parameter) for entry in matrices}
        self.muon = Muon(matrices, train.muon_momentum, train.engine)
        rest = {n: p for n, p in model.named_parameters() if id(p) not in under_muon}
        self.adamw = AdamW(rest, train.weight_decay)
        self.rates: list[float] | list[Tensor] = [0.0, 0.0]
        """Muon's and AdamW's, at the update that is under way; on a GPU tensors, which a graph reads anew."""
        device = self.parameters[0].device
        if device.type == "cuda":
            self.rates = [torch.zeros((), device=device) for _ in range(2)]

    def step(self, update: int, counts_LE: Tensor) -> tuple[float, Tensor]:
        """Clip the gradients, update the weights, drop the gradients.

        Returns:
            Muon's learning rate, and the global gradient norm before clipping (on the device).
        """
        return self.set_rate(update), self.move(counts_LE)

    def set_rate(self, update: int) -> float:
        """Settle both optimizers' rates at an update, and return Muon's."""
        rate = self.train.muon_lr * rate_share(update, self.train, self.protocol)
        for index, value in enumerate((rate, ADAMW_SHARE * rate)):
            held = self.rates[index]
            if isinstance(held, Tensor):
                held.fill_(value)
            else:
                self.rates[index] = value
        return rate

    def move(self, counts_LE: Tensor) -> Tensor:
        """What `step` does at the rates that are set; returns the norm."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.train.grad_clip, foreach=True)
        muon_rate, adamw_rate = self.rates
        self.adamw.step(adamw_rate)
        self.muon.step(muon_rate, counts_LE)
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next update depends on, by name; the same tensors, not copies."""
        momenta = {f"muon.{r}x{c}": momentum for (r, c), momentum in self.muon.momentum_GRC.items()}
        moments = {
            f"adamw.{name}.{key}": value
            for name, state in self.adamw.state.items()
            for key, value in state.items()
        }
        return momenta | moments


def muon_matrices(model: LanguageModel) -> list[Matrices]:
    """Every 2-D weight but the embedding, experts as stacks."""
    found = []
    for layer, block in enumerate(model.blocks):
        found += [Matrices(block.attention.qkv.weight), Matrices(block.attention.out.weight)]
        gates = [block.moe.gate, *([block.moe.noise_gate] if block.moe.noise == "learned" else [])]
        found += [Matrices(gate.weight) for gate in gates]
        found += [Matrices(block.moe.w1, layer), Matrices(block.moe.w2, layer)]
    return found


def _add_product(x: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float = 1.0) -> Tensor:
    """beta · x + alpha · a @ b in one rounding, of matrices or stacks."""
    product = torch.addmm if x.ndim == 2 else torch.baddbmm
    return product(x, a, b, beta=beta, alpha=alpha)


def _rounded(product: Tensor) -> Tensor:
    """The values of bf16, in the type that products are computed in; in place."""
    return product if product.dtype == torch.bfloat16 else product.copy_(product.bfloat16())


def _move(parameter: nn.Parameter, direction: Tensor, rate: float | Tensor, scale: float) -> None:
    """parameter -= rate · scale · direction."""
    if isinstance(rate, Tensor):
        parameter.addcmul_(direction, rate, value=-scale)
    else:
        parameter.add_(direction, alpha=-rate * scale)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every parameter takes part in every step"
    return parameter.grad


def _used(entry: Matrices, used_LE: Tensor) -> Tensor:
    """1 for each matrix that this update used, 0 for the others, (E,) or (1,)."""
    return used_LE.new_ones(1) if entry.layer is None else used_LE[entry.layer]

"""One training update of this project's model and of transformers' Mixtral, timed by phase.

Each is a function of the update's number that returns seconds by phase. Who runs them, each in a process of
its own: benchmarks/train_step.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from model.config import RunConfig
from model.engines.choice import settle, steps_at_once, usable
from model.engines.device import choose_attention, make_deterministic
from model.engines.graph import Replay
from model.network.transformer import build
from model.training.optimizer import Optimizers

PHASES = ("forward", "backward", "optimizer")


def ours(
    config: RunConfig, device: torch.device, engine: str, precision: str, deterministic: bool = True
) -> Callable[..., Any]:
    """An update of this project's model, as model/training/loop.py makes it; fp16 without a scaler.

    With `auto` on a GPU the update is one graph once two are made, and its phases are not timed apart.
    """
    train, chosen = config.with_values({"engine": engine}).train, engine
    engine, why_not = usable(engine, device, config.model)
    if why_not:
        raise RuntimeError(why_not)
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    choose_attention(config.model, train.seq_len, precision, device)
    if deterministic:
        make_deterministic()
    else:
        torch.use_deterministic_algorithms(False)
    model = build(config.model, train.seq_len, 0, device, engine).train()
    settle(engine, device)
    optimizers, noise = Optimizers(model, train, "sound"), torch.Generator(device)
    tokens, together = random_tokens(config, device), steps_at_once(train, device)

    def forward(batch_BT: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, narrow, enabled=narrow is not None):
            loss, routing = model.loss(batch_BT[:, :-1], batch_BT[:, 1:], 0.1, noise, None, together)
        return (loss + 0.01 * routing.aux_loss.sum()) * together / train.accumulate, routing.counts_E

    def by_phase(number: int, steps_BT: Tensor) -> dict[str, float]:
        model.open_gradients()
        clock = Clock(device)
        counts_LE: Any = 0
        for batch_BT in steps_BT.split(together * train.batch_size):
            total, step_counts_LE = clock.time("forward", lambda batch_BT=batch_BT: forward(batch_BT))
            counts_LE = counts_LE + step_counts_LE
            clock.time("backward", total.backward)
        clock.time("optimizer", lambda: optimizers.step(number, counts_LE))
        return clock.seconds

    def whole() -> list[Tensor]:
        model.open_gradients()
        counts_LE: Any = 0
        for batch_BT in static_BT.split(together * train.batch_size):
            total, step_counts_LE = forward(batch_BT)
            counts_LE = counts_LE + step_counts_LE
            total.backward()
        return [optimizers.move(counts_LE)]

    static_BT = torch.cat([next(tokens) for _ in range(train.accumulate)])
    replay: list[Replay] = []

    def update(number: int) -> dict[str, float]:
        steps_BT = torch.cat([next(tokens) for _ in range(train.accumulate)])
        if number < 1 or chosen != "auto" or engine != "triton":
            return by_phase(number, steps_BT)
        if not replay:
            replay.append(Replay(whole, [noise]))
        optimizers.set_rate(number)
        static_BT.copy_(steps_BT)
        replay[0]()
        torch.cuda.synchronize(device)
        return dict.fromkeys(PHASES, 0.0)

    return update


def mixtral(config: RunConfig, device: torch.device, experts: str, compiled: str = "") -> Callable[..., Any]:
    """transformers' Mixtral with as many parameters, under AdamW.

    Its experts are gated, with three matrices: two thirds of d_ff, rounded up to a multiple of 16, make the
    same work. It drops out attention weights only, and its optimizer orthogonalises nothing: less work.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    m, t = config.model, config.train
    torch.manual_seed(0)
    made = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=m.vocab_size,
            hidden_size=m.d_model,
            intermediate_size=-(-2 * m.d_ff // 48) * 16,
            num_hidden_layers=m.n_layers,
            num_attention_heads=m.n_heads,
            num_key_value_heads=m.n_heads,
            max_position_embeddings=t.seq_len,
            num_local_experts=m.n_experts,
            num_experts_per_tok=m.top_k,
            attention_dropout=m.dropout,
            router_jitter_noise=0.1,
            router_aux_loss_coef=0.01,
            output_router_logits=True,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )
    made.set_experts_implementation(experts)
    made.train().to(device)
    if compiled:
        made.compile()
    adamw = torch.optim.AdamW(made.parameters(), lr=1e-3, fused=True)
    tokens = random_tokens(config, device)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def step(batch_BT: Tensor) -> Tensor:
        with cast:
            return made(input_ids=batch_BT, labels=batch_BT).loss / t.accumulate

    def optimize() -> None:
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()

    def update(_: int) -> dict[str, float]:
        clock = Clock(device)
        for _ in range(t.accumulate):
            loss = clock.time("forward", lambda: step(next(tokens)[:, :-1]))
            clock.time("backward", loss.backward)
        clock.time("optimizer", optimize)
        return clock.seconds

    return update


class Clock:
    """Seconds by phase, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def time(self, phase: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[phase] += time.perf_counter() - began
        return result


def random_tokens(config: RunConfig, device: torch.device) -> Iterator[Tensor]:
    """Batches of (B, T + 1), the same for every alternative, without end."""
    generator = torch.Generator().manual_seed(0)
    shape = (config.train.batch_size, config.train.seq_len + 1)
    while True:
        yield torch.randint(config.model.vocab_size, shape, generator=generator).to(device)

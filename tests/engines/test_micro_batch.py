"""Steps in pieces, `train.micro_batch`: what they equal, what they hold in memory, what they are called.

Their gradient and their resumption are in tests/training/test_routing_runs.py, beside those of the variants.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from model.network.transformer import LanguageModel
from tests.training_runs import TINY, column, measured, run

pytestmark = pytest.mark.usefixtures("counting")


def test_pieces_equal_the_whole_step_up_to_rounding_where_nothing_is_drawn(tmp_path: Path) -> None:
    """And where no load is balanced: then the mean over pieces is the mean over the step."""
    still = {"dropout": 0.0, "noise_std": 0.0, "load_balancing_weight": 0.0, "batch_size": 8, "steps": 2}
    config = TINY.with_values({**still, "eval_every": 0, "z_loss_weight": 0.01})
    whole = run(config, tmp_path)
    for size in (1, 3, 4):
        pieces = run(config.with_values({"micro_batch": size}), tmp_path)
        for name in ("loss", "gradient_norm"):  # of one update: later ones would let rounding grow
            assert column(pieces, name) == pytest.approx(column(whole, name), rel=1e-5)


def test_no_forward_pass_sees_more_windows_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    hidden = LanguageModel.hidden

    def noted(self: LanguageModel, tokens_BT: Tensor, *arguments: Any) -> Any:
        sizes.append(len(tokens_BT))
        return hidden(self, tokens_BT, *arguments)

    monkeypatch.setattr(LanguageModel, "hidden", noted)
    run(TINY.with_values({"batch_size": 5, "micro_batch": 2, "steps": 2, "eval_every": 0}), tmp_path)
    # The stand-in's epochs end after 8 windows: steps of 5 and 3. Then five windows of val, and of test.
    assert sizes == [2, 2, 1, 2, 1, 2, 2, 1, 2, 2, 1]


@pytest.mark.slow
def test_a_piece_as_large_as_the_step_is_no_piece(tmp_path: Path) -> None:
    whole, same = TINY, TINY.with_values({"micro_batch": 2})
    assert measured(run(same, tmp_path / "same")) == measured(run(whole, tmp_path / "whole"))
    assert same.hash == TINY.with_values({"micro_batch": 99}).hash == whole.hash
    assert TINY.with_values({"micro_batch": 1}).identity()["train"]["micro_batch"] == 1

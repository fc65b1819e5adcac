"""The order of windows: the published counts, coverage, bounds, and numbers that are frozen."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from model.randomness import stream_seed
from model.text.windows import BatchOrder, PublishedOrder, SoundOrder, shuffled


def test_stream_seed_is_the_first_63_bits_of_the_digest() -> None:
    digest = hashlib.sha256(b"42:data").hexdigest()
    assert stream_seed(42, "data") == int(digest[:16], 16) // 2
    assert len({stream_seed(seed, name) for seed in range(9) for name in "abc"}) == 27


def test_order_is_frozen() -> None:
    """The numbers of today: another numpy, or a changed rule, must not pass as the same data."""
    order, further = shuffled(8, 1, 0)
    assert (order.tolist(), further) == ([1, 0, 3, 4, 5, 6, 7, 2], 1_232_279_569_898_196_538)
    assert BatchOrder(SoundOrder(10_000, 32, 42), 6).starts(0).tolist() == [
        2_469,
        4_709,
        5_605,
        3_781,
        5_829,
        9_701,
    ]


def test_shuffling_favours_no_order() -> None:
    seen = Counter(tuple(shuffled(4, 5, epoch)[0].tolist()) for epoch in range(4_800))
    assert len(seen) == 24
    assert chisquare(list(seen.values())).pvalue > 1e-4  # a fixed stream: no luck, only the rule, can fail it


@pytest.mark.slow
def test_published_protocol_has_the_published_counts() -> None:
    order = PublishedOrder(500_000, 512, 42)
    assert (order.all_windows, order.validation_windows, order.windows) == (499_488, 49_948, 449_540)
    validation, training = order.validation_starts(), order.starts(0)
    assert (len(validation), len(training)) == (2_400, 449_540)
    assert len(np.intersect1d(validation, training)) == 0
    assert min(validation.min(), training.min()) >= 0
    assert max(validation.max(), training.max()) == 499_487
    assert len(np.unique(training)) == 449_540
    assert set(validation) != set(PublishedOrder(500_000, 512, 43).validation_starts())


@pytest.mark.parametrize(("n_tokens", "seq_len"), [(10, 3), (64, 8), (63, 8), (500, 31), (16, 8), (15, 8)])
def test_every_phase_fits_and_no_further_window_would(n_tokens: int, seq_len: int) -> None:
    windows = SoundOrder(n_tokens, seq_len, 0).windows
    last_target = seq_len - 1 + windows * seq_len  # at the largest phase
    assert last_target <= n_tokens - 1 < last_target + seq_len


def test_each_epoch_covers_its_windows_once_at_its_own_phase() -> None:
    order = SoundOrder(1_000, 31, 7)
    phases = set()
    for epoch in range(60):
        starts = np.sort(order.starts(epoch))
        assert starts[0] in range(31)
        assert (np.diff(starts) == 31).all()
        assert len(starts) == order.windows == 31
        assert starts[-1] + 31 <= 999
        phases.add(int(starts[0]))
    assert len(phases) > 15


def test_batch_larger_than_an_epoch_spans_several() -> None:
    order = SoundOrder(200, 31, 42)
    assert order.windows == 5
    stream = np.concatenate([order.starts(epoch) for epoch in range(9)])
    assert BatchOrder(order, 12).starts(2).tolist() == stream[24:36].tolist()

"""Windows and their order: which tokens make batch k, as a pure function of (seed, k).

Pure arithmetic on counts; reads no file and no token. Both protocols are here: windows side by side (sound)
and overlapping ones with a split drawn from the seed (published). Who gathers the tokens:
model/text/dataset.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from model.randomness import stream_seed

PUBLISHED_VALIDATION_WINDOWS = 2_400
"""The published study's perplexity is over the first 100 validation batches of 24 windows."""


def shuffled(count: int, stream: int, epoch: int) -> tuple[np.ndarray, int]:
    """A permutation of range(count), (count,) int64, and one further draw of 64 bits.

    Sorts a bit generator's raw output: numpy keeps raw streams the same for ever, but not its
    own `permutation`, and an update of numpy must not change the order of the data.
    """
    bits = np.random.Philox(np.random.SeedSequence([stream, epoch]))
    further = int(bits.random_raw())
    return np.argsort(bits.random_raw(count), kind="stable"), further


@dataclass
class SoundOrder:
    """Each epoch a permutation of windows side by side, which start at a random phase."""

    n_tokens: int
    seq_len: int
    seed: int

    @property
    def windows(self) -> int:
        """Windows in an epoch, the same for every phase.

        The last target of the last window at the largest phase T - 1 is token (T - 1) + W·T, which is
        at most n - 1 exactly when W ≤ (n - T) / T.
        """
        return max(0, (self.n_tokens - self.seq_len) // self.seq_len)

    def starts(self, epoch: int) -> np.ndarray:
        """First tokens of the epoch's windows in their order, (W,) int64."""
        order, further = shuffled(self.windows, stream_seed(self.seed, "data"), epoch)
        return further % self.seq_len + order * self.seq_len


@dataclass
class PublishedOrder:
    """Windows at every token, split at random by the run's seed; each epoch a permutation of one part.

    Validation text is in the training windows almost whole: the published study's defect.
    """

    n_tokens: int
    seq_len: int
    seed: int
    _training: np.ndarray | None = field(default=None, repr=False)

    @property
    def all_windows(self) -> int:
        return max(0, self.n_tokens - self.seq_len)

    @property
    def validation_windows(self) -> int:
        """A tenth, rounded down: 49,948 of 499,488 at full scale."""
        return self.all_windows // 10

    @property
    def windows(self) -> int:
        """Training windows in an epoch: 449,540 at full scale."""
        return self.all_windows - self.validation_windows

    def validation_starts(self) -> np.ndarray:
        """First tokens of the validation windows that are scored, in the split's order, at most 2,400."""
        return self._split()[: min(self.validation_windows, PUBLISHED_VALIDATION_WINDOWS)]

    def starts(self, epoch: int) -> np.ndarray:
        """First tokens of the epoch's training windows in their order, (W,) int64."""
        if self._training is None:  # the same for every epoch
            self._training = self._split()[self.validation_windows :]
        order, _ = shuffled(self.windows, stream_seed(self.seed, "data"), epoch)
        starts: np.ndarray = self._training[order]
        return starts

    def _split(self) -> np.ndarray:
        return shuffled(self.all_windows, stream_seed(self.seed, "split"), 0)[0]


class BatchOrder:
    """The stream of windows: the epochs' permutations, one after the other."""

    def __init__(self, order: SoundOrder | PublishedOrder, batch_size: int) -> None:
        self._order, self._batch_size = order, batch_size
        self._kept: dict[int, np.ndarray] = {}

    def starts(self, step: int) -> np.ndarray:
        """First tokens of the windows k·B … (k+1)·B - 1 of the stream, (B,) int64; may span epochs."""
        position, wanted, parts = step * self._batch_size, self._batch_size, []
        while wanted:
            epoch, at = divmod(position, self._order.windows)
            part = self._epoch(epoch)[at : at + wanted]
            parts.append(part)
            position, wanted = position + len(part), wanted - len(part)
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> np.ndarray:
        # Only the current epoch is kept; it is drawn again when a caller goes back.
        if epoch not in self._kept:
            self._kept = {epoch: self._order.starts(epoch)}
        return self._kept[epoch]

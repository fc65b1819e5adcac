"""Named random streams: every source of chance in a run has its own seed, derived from the run's.

Two cells with the same seed draw the same initialisation, data order and dropout, so that their
differences are paired. Touches nothing and imports no torch. Who draws: model/text/dataset.py,
model/training/loop.py.
"""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, name: str) -> int:
    """The seed of a named stream, 63 bits: it fits a signed 64-bit integer everywhere."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

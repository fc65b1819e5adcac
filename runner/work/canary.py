"""A device's known answer, when jobs fail on it at once, and for `doctor`. Runs in the trainer process."""

from __future__ import annotations

from typing import Any


def known_answer(device: str) -> dict[str, Any]:
    """The canary: one tiny update of the model, twice, in the precision that a run would have there.

    The same bits, and the loss that untrained weights have, are what a sound device answers.
    """
    try:
        from model.training.setting import check

        wrong = check(device)
    except Exception as error:  # whatever a broken device raises is the answer
        wrong = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"ok": not wrong, "message": wrong}

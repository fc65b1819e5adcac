"""The Triton engine without a card: its kernels interpreted, built, counted, and chosen.

Interpreting is decided when triton is imported, and the budgets stand in for functions of torch, which
torch.compile remembers: each kind has a process of its own, and its tests a file.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from model.config import ModelConfig
from model.engines import choice
from tests.conftest import PROJECT

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
MODEL = ModelConfig()
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "way"), [("kernels_interpreted.py", "1"), ("kernels_compiled.py", "0"), ("budgets.py", "0")]
)
def test_kernels(file: str, way: str) -> None:
    if way == "1" and importlib.metadata.version("triton").startswith("3.6"):
        pytest.skip("Triton 3.6's interpreter takes no array of numpy 2.4 as a loop's bound")
    words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", f"tests/engines/{file}"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=PROJECT,
        env={**os.environ, "TRITON_INTERPRET": way, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A card of this capability, whose kernels prove right or not."""

    def put(capability: tuple[int, int], wrong: str = "") -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(choice, "cannot_triton", lambda *_: wrong)

    return put


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_auto_is_triton_where_its_kernels_prove_right(card: Any, capability: tuple[int, int]) -> None:
    card(capability)
    assert choice.usable("auto", CARD, MODEL) == ("triton", "")
    card(capability, "the cross-entropy in bfloat16 is off by 0.3 more than rounding in result 1")
    engine, why_not = choice.usable("auto", CARD, MODEL)
    assert engine == "grouped"
    assert why_not.startswith("triton: the cross-entropy in bfloat16 is off by")
    for named in ("plain", "grouped"):
        assert choice.usable(named, CARD, MODEL) == (named, "")


def test_an_older_card_and_a_cpu_are_not_asked(card: Any) -> None:
    card((7, 5), "never asked")
    assert choice.usable("auto", CARD, MODEL) == ("auto", "")
    assert choice.usable("auto", CPU, MODEL) == ("auto", "")


def test_an_older_card_that_is_asked_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    engine, why_not = choice.usable("triton", CARD, MODEL)
    assert engine == "grouped"
    assert why_not == "triton: its kernels begin at compute capability 8.0, and this is 7.5"


def test_on_a_cpu_without_the_interpreter_triton_is_not_to_be_had() -> None:
    engine, why_not = choice.usable("triton", CPU, MODEL)
    assert engine == "auto"
    assert why_not.startswith("triton: ")

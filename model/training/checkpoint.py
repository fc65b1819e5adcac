"""One checkpoint, one file: `step-N.safetensors`, tensors with a JSON header; no pickle anywhere.

Written beside, flushed and renamed, so that a file with its final name is whole. Read only after its SHA-256
has been compared: a flipped byte would otherwise load silently. Touches only the folder it is given.
What goes in and comes out: model/training/state.py.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import canonical_json
from model.engines.device import facts
from model.processor import instructions, processor

FORMAT = 1
"""Refused when it differs: raise it when the names or meanings of the contents change."""


class CheckpointRefused(Exception):
    """A checkpoint cannot be used; the message is the reason, in one line."""


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says beside its tensors. The header's JSON has these fields and the format."""

    step: int
    """Steps completed: also the data cursor, since batch k is a pure function of (seed, k)."""
    config_hash: str
    environment: dict[str, Any]
    """The numeric environment: where it differs, the bits may."""
    exact: bool
    """False when the run has already gone through another numeric environment."""
    seconds: dict[str, float]
    """Time spent so far, by kind."""
    timed_steps: int
    val_losses: list[float]
    """The evaluations so far, in order."""
    peak_memory_bytes: int


@dataclass(frozen=True)
class Written:
    path: Path
    sha256: str
    size_bytes: int


def numeric_environment(
    device: torch.device, precision: str, engine: str, source: str | None = None, attention: str = ""
) -> dict[str, Any]:
    """What the bits of a result depend on, beside the configuration; `source` is the SHA-256 of the code.

    The CPU's threads are not in it for a CUDA run: its weights are drawn by one, and nothing else is summed.
    """
    cuda = device.type == "cuda"
    return {
        "source": source,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "device_type": device.type,
        "instructions": instructions(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "precision": precision,
        "engine": engine,
        "deterministic": torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled(),
        **({**facts(device), "attention": attention} if cuda else {"threads": torch.get_num_threads()}),
    }


def write(folder: Path, tensors: Mapping[str, Tensor], facts: Facts) -> Written:
    """Write a checkpoint so that a crash at any moment leaves either the whole file or none of its name.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{facts.step}.safetensors"
    beside = path.with_name(path.name + ".part")
    header = canonical_json({"format": FORMAT, **asdict(facts)})
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        _save_file(plain, beside, header)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = file.tell()
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)  # a part of a checkpoint must not keep the disk full
        raise
    _sync_folder(folder)
    return Written(path, sha256, size_bytes)


def _save_file(tensors: dict[str, Tensor], path: Path, header: str) -> None:
    try:
        save_file(tensors, path, metadata={"nightshift": header})
    except SafetensorError as error:  # the writer's word for a full disk or a missing permission
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, _one_line(error), str(path)) from error


def read(
    path: Path, sha256: str, config_hash: str, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Facts]:
    """The tensors, on the CPU, and the facts of a checkpoint that is exactly what was written.

    Args:
        expected: tensors that must be there, of the same shape and dtype; others may be there too.

    Raises:
        CheckpointRefused: the file is missing, damaged, of another format or configuration, or does not fit.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise CheckpointRefused(
                f"SHA-256 is {found[:12]}…, expected {sha256[:12]}…: damaged or cut short"
            )
        with safe_open(path, framework="pt", device="cpu") as opened:
            facts = _facts((opened.metadata() or {}).get("nightshift"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointRefused(f"cannot be read: {_one_line(error)}") from error
    if facts.config_hash != config_hash:
        raise CheckpointRefused(f"written by another configuration, {facts.config_hash[:12]}…")
    _require_fit(tensors, expected)
    return tensors, facts


def _facts(header: str | None) -> Facts:
    """Parse the header; every field must be there and of its type."""
    try:
        values = json.loads(header or "", parse_constant=_refuse_constant)
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError(f"not a checkpoint of format {FORMAT}")
        facts = Facts(**values)
        for spec, kind in zip(fields(Facts), (int, str, dict, bool, dict, int, list, int), strict=True):
            if type(getattr(facts, spec.name)) is not kind:
                raise ValueError(f"{spec.name} is not of type {kind.__name__}")
        if not all(isinstance(number, float) for number in [*facts.seconds.values(), *facts.val_losses]):
            raise ValueError("seconds and val_losses must hold numbers")
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointRefused(f"bad header: {_one_line(error)}") from error
    return facts


def _require_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, like in expected.items():
        if name not in tensors:
            raise CheckpointRefused(f"tensor {name} is missing")
        found = tensors[name]
        if found.shape != like.shape or found.dtype != like.dtype:
            is_, due = f"{found.dtype} {tuple(found.shape)}", f"{like.dtype} {tuple(like.shape)}"
            raise CheckpointRefused(f"tensor {name} is {is_}, expected {due}")


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _sync_folder(folder: Path) -> None:
    """Flush the folder itself: without this the rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

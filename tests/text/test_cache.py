"""The cache of arrays: damage, pickles, and several processes at once."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.text import cache
from model.text.dataset import prepare
from model.text.tokens import cache_key
from tests.text.test_data import configured, everything

ROOT = Path(__file__).resolve().parents[2]


def flip(file: Path) -> None:
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])


def reword(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def into_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("in the way")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "byte of the text": lambda entry: flip(entry / "train.npy"),
    "byte of a digest": lambda entry: flip(entry / "val-documents.npy"),
    "byte of the meta": lambda entry: flip(entry / "meta.json"),
    "a count": lambda entry: reword(entry / "meta.json", '"duplicates": 0', '"duplicates": 1'),
    "cut short": lambda entry: (entry / "val.npy").write_bytes((entry / "val.npy").read_bytes()[:-10]),
    "emptied": lambda entry: (entry / "test.npy").write_bytes(b""),
    "pickle": lambda entry: (entry / "train.npy").write_bytes(pickle.dumps(print)),
    "no array": lambda entry: (entry / "test-bytes.npy").unlink(),
    "no meta": lambda entry: (entry / "meta.json").unlink(),
    "another's meta": lambda entry: (entry / "meta.json").write_text('{"content": [], "sha256": ""}'),
    "nothing in it": lambda entry: [file.unlink() for file in entry.iterdir()],
    "a file in its place": into_a_file,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_entry_is_rebuilt_to_the_same_data(tmp_path: Path, name: str) -> None:
    config = configured()
    before = everything(prepare(config, tmp_path))
    folder = tmp_path / cache_key(config)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    DAMAGE[name](folder)
    with pytest.raises(cache.CacheDamaged):
        cache.load(folder)
    assert everything(prepare(config, tmp_path)) == before
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]  # nothing is left beside it


def test_array_of_objects_is_never_loaded(tmp_path: Path) -> None:
    """Even under a right hash: a pickle inside an .npy would run code."""
    cache.store(tmp_path / "entry", {"train": np.arange(3)}, {})
    np.save(tmp_path / "objects.npy", np.array([print], dtype=object), allow_pickle=True)
    content = (tmp_path / "objects.npy").read_bytes()
    (tmp_path / "entry" / "train.npy").write_bytes(content)
    meta = {"arrays": {"train": hashlib.sha256(content).hexdigest()}, "facts": {}}
    sealed = {"content": meta, "sha256": cache._seal(meta)}
    (tmp_path / "entry" / "meta.json").write_text(json.dumps(sealed))
    with pytest.raises(cache.CacheDamaged, match="Python objects"):
        cache.load(tmp_path / "entry")


def test_change_under_an_open_entry_is_found_though_a_sound_file_has_its_name(tmp_path: Path) -> None:
    cache.store(tmp_path / "entry", {"train": np.arange(1000)}, {})
    entry = cache.load(tmp_path / "entry")
    assert entry is not None
    entry.require_unchanged()
    sound = (tmp_path / "entry" / "train.npy").read_bytes()
    with (tmp_path / "entry" / "train.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    (tmp_path / "entry" / "train.npy").rename(tmp_path / "aside.npy")
    (tmp_path / "entry" / "train.npy").write_bytes(sound)
    with pytest.raises(cache.CacheDamaged, match="train tokens were changed"):
        entry.require_unchanged()


def test_sound_entry_of_another_process_stays_and_open_arrays_survive(tmp_path: Path) -> None:
    cache.store(tmp_path / "entry", {"train": np.arange(3)}, {"by": "one"})
    cache.store(tmp_path / "entry", {"train": np.arange(3)}, {"by": "two"})
    arrays, facts, _ = cache.load(tmp_path / "entry")
    assert facts == {"by": "one"}
    assert isinstance(arrays["train"], np.memmap)
    assert not arrays["train"].flags.writeable
    (tmp_path / "entry" / "meta.json").unlink()
    cache.store(tmp_path / "entry", {"train": np.arange(3)}, {"by": "three"})
    assert cache.load(tmp_path / "entry")[1] == {"by": "three"}
    assert arrays["train"].tolist() == [0, 1, 2]


PREPARE = """
import json, sys
from pathlib import Path
from model.config import RunConfig
from model.text.dataset import prepare
from tests.text.test_data import everything
config, folder = RunConfig.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    print(everything(prepare(config, folder)), flush=True)
"""


@pytest.mark.slow
def test_processes_that_prepare_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    config = configured()
    expected = everything(prepare(config, tmp_path / "alone"))
    entry = tmp_path / "shared" / cache_key(config)
    arguments = [sys.executable, "-c", PREPARE, json.dumps(config.to_dict()), str(tmp_path / "shared")]
    workers = [
        subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    try:
        assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 3
        # Each round starts from another state: nothing, damage, a sound entry, nothing again.
        for spoil in (
            lambda: None,
            lambda: flip(entry / "train.npy"),
            lambda: None,
            lambda: shutil.rmtree(entry),
        ):
            spoil()
            for worker in workers:
                worker.stdin.write("go\n")
                worker.stdin.flush()
            assert [worker.stdout.readline().strip() for worker in workers] == [expected] * 3
    finally:
        for worker in workers:
            worker.stdin.close()
            worker.wait(timeout=60)
            worker.stdout.close()
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]

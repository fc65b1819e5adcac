"""Rebuilds the two bundled tokenizers from the bundled training documents.

Run `python model/text/corpora/build_tokenizers.py [FOLDER]`; without a folder the frozen files beside this
script are replaced, and then the tokenizer's id, and with it the hash of every new run, is another.
Reads sotu.jsonl.xz, writes bpe-4096.json and bpe-8192.json. Who uses them: model/text/tokenizer.py.
"""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
END_OF_DOCUMENT = "<|endoftext|>"
SIZES = (4_096, 8_192)


def training_texts() -> list[str]:
    """The texts of the training split alone: a tokenizer that saw the test text would fit it."""
    with lzma.open(HERE / "sotu.jsonl.xz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows if row["split"] == "train"]


def train_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016) of `size` entries, `<|endoftext|>` being entry 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_DOCUMENT],
        # All 256 bytes are entries, so that any text can be encoded, not only what was seen here.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == size
    return tokenizer


def build(folder: Path, sizes: Sequence[int] = SIZES) -> None:
    """Write one frozen file a size into `folder`; the same text gives the same bytes."""
    texts = training_texts()
    for size in sizes:
        (folder / f"bpe-{size}.json").write_text(train_tokenizer(texts, size).to_str(), encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)

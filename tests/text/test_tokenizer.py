"""Tokenizers that are not bundled: a local folder, what makes its identity, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from model.config import ConfigError
from model.text.corpus import verify
from model.text.documents import fingerprint
from model.text.tokenizer import BUNDLED, load_tokenizer, tokenizer_fingerprint
from tests.text.test_corpora import TEXTS, choose, write_lines


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """Not byte-level, drops white space at the ends, and ends documents with its own `</s>`."""
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Strip()]
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_local_folder_is_loaded_and_its_bytes_are_the_texts_own(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    data = choose("bundled", tmp_path, tokenizer_folder, documents=30)
    assert data.tokenizer == str(tokenizer_folder)
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer.end_id == tokenizer.backend.token_to_id("</s>")
    for text in ["Document 3 says much", "  ﬁne №  naïve 😀 ", "unseen 汉字 "]:
        _, widths = tokenizer.encode([text])[0]
        assert widths.sum() == len(text.encode())
        assert (widths >= 0).all()


def test_tokenizer_that_changed_since_enqueue_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    data = choose("bundled", tmp_path, tokenizer_folder, documents=30)
    with (tokenizer_folder / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match="the tokenizer has changed since enqueue"):
        verify(data)


def test_tokenizer_without_an_end_of_document_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tokenizer_folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"has neither <\|endoftext\|> nor an eos token"):
        choose("bundled", tmp_path, tokenizer_folder, documents=30)


def test_unusable_tokenizers_are_refused_in_one_line(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    for name, message in [
        ("../x", "no such folder, and no hub id"),
        ("", "no such folder, and no hub id"),
        (str(tmp_path / "none"), "no tokenizer here"),
        (str(tokenizer_folder / "tokenizer.json"), "a file; give the folder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            choose("bundled", tmp_path, name)
    (tokenizer_folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="no tokenizer can be loaded") as refusal:
        choose("bundled", tmp_path, tokenizer_folder)
    assert "\n" not in str(refusal.value)


def test_fingerprints_depend_on_content_and_kind_alone(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tokenizer.json").write_bytes(BUNDLED["bundled-4096"].read_bytes())
    assert tokenizer_fingerprint(tmp_path / "one") == tokenizer_fingerprint(tmp_path / "two")
    write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    write_lines(tmp_path / "b.jsonl", [{"text": "a"}])
    write_lines(tmp_path / "b.txt", [{"text": "a"}])
    assert (
        fingerprint(tmp_path / "a.jsonl")
        == fingerprint(tmp_path / "b.jsonl")
        != fingerprint(tmp_path / "b.txt")
    )

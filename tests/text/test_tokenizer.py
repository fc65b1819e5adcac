"""Tokenizers that are not bundled: a local folder, what makes its identity, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers

from model.config import ConfigError, RunConfig
from model.text.corpus import verify
from model.text.dataset import prepare
from model.text.files import fingerprint
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


@pytest.mark.slow
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
    with pytest.raises(ConfigError, match=r"declares no eos token and has no <\|endoftext\|>"):
        choose("bundled", tmp_path, tokenizer_folder, documents=30)


@pytest.mark.slow
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


def word_pieces(folder: Path, alphabet: str, special: list[str], eos: str | None) -> Path:
    """A tokenizer of single characters that passes over what is not in its alphabet."""
    vocabulary = {piece: n for n, piece in enumerate([*special, *alphabet])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(special)
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **({"eos_token": eos} if eos else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_characters_that_are_dropped_are_counted(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(word_pieces(tmp_path / "t", "abcde ", ["</s>"], "</s>"))
    texts = ["abc xyz", "  ed  ", "zz"]
    encoded = tokenizer.encode(texts)
    assert tokenizer.lost_characters(texts, [ids for ids, _ in encoded]) == 3 + 0 + 2
    whole = load_tokenizer("bundled-4096")
    texts = ["naïve 😀 汉字 <|endoftext|>", " \n\n x\t"]
    assert whole.lost_characters(texts, [ids for ids, _ in whole.encode(texts)]) == 0


def test_unknown_words_are_lost_and_not_read_back_as_their_name(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "</s>": 2}, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (tmp_path / "t").mkdir()
    made.save(str(tmp_path / "t" / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path / "t")
    (ids, _), *_ = tokenizer.encode(["a KNU a"])
    assert tokenizer.lost_characters(["a KNU a"], [ids]) == 4  # the word and one of the two spaces


def test_declared_end_goes_before_a_name(tmp_path: Path) -> None:
    both = ["<|endoftext|>", "<|im_end|>"]
    assert load_tokenizer(word_pieces(tmp_path / "a", "ab", both, "<|im_end|>")).end_id == 1
    assert load_tokenizer(word_pieces(tmp_path / "b", "ab", both, None)).end_id == 0


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="it can be read here")
def test_sentencepiece_alone_is_one_line_with_its_remedy(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    (tmp_path / "t" / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(ConfigError, match=r"sentencepiece model.*pip install sentencepiece") as refusal:
        choose("bundled", tmp_path, tmp_path / "t")
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_lossy_tokenizer_is_refused_at_enqueue_unless_it_is_wanted(
    tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Its share is said, kept with the study and shown in the report."""
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789., "
    folder = word_pieces(tmp_path / "lossy", alphabet, ["</s>"], "</s>")
    texts = [f"Text {n}: {n * n}: of «eleven» words" for n in range(200)]
    path = write_lines(tmp_path / "own.jsonl", [{"text": text} for text in texts])
    lost = sum(text.count("«") + text.count("»") + text.count(":") for text in texts)
    share = f"{100 * lost / sum(map(len, texts)):.2g} %"
    config = RunConfig().with_values({"seq_len": 16, "batch_size": 2, "vocab_size": 100})
    data = prepare(replace(config, data=choose(path, tmp_path / "cache", folder)), tmp_path / "cache")
    with pytest.raises(ConfigError, match=f"loses {share} of the text's characters.*--lossy-tokenizer"):
        data.require_round_trip("lossy")
    arguments = ["--grid", "factorial", "--scale", "smoke", "--corpus", str(path), "--tokenizer", str(folder)]
    arguments += ["--set", "train.seq_len=16"]
    refused = cli("enqueue", *arguments)
    assert refused.returncode == 65
    assert f"characters that the tokenizer loses: {share}" in refused.stderr
    assert not (tmp_path / "jobs.db").exists()
    assert cli("enqueue", *arguments, "--lossy-tokenizer").returncode == 0
    report = cli("report").stdout
    assert f"the tokenizer loses {share} of the text's characters" in report

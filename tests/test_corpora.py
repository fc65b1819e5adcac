"""Text and tokenizers: the bundled facts, the user's files, the hub at its boundary, and hostile input."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib.util
import json
import lzma
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from huggingface_hub import HfApi

from model import hub
from model.config import ConfigError, DataConfig, RunConfig
from model.corpus import BUNDLED_TEXT, open_corpus, resolve, verify
from model.data import prepare
from model.documents import Document, cut_text, fingerprint, read_documents, split_of
from model.tokenizer import BUNDLED, CORPORA, load_tokenizer, tokenizer_fingerprint

ROOT = Path(__file__).parent.parent
TEXTS = [f"Document {n} says {'much ' * (n % 5)}about the number {n * n}." for n in range(40)]


def write_lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def choose(corpus: str | Path, cache: Path, tokenizer: str | Path | None = None, **data: int) -> DataConfig:
    name = None if tokenizer is None else str(tokenizer)
    return resolve(str(corpus), name, True, DataConfig(**data), cache, lambda line: None)[0]


# --- the bundled corpus and its tokenizers ---------------------------------------------------------------


def test_bundled_corpus_has_its_documents_and_no_address_on_two_sides() -> None:
    with lzma.open(BUNDLED_TEXT, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert Counter(row["split"] for row in rows) == {"train": 2_764, "validation": 559, "test": 408}
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["source"], set()).add(row["split"])
    assert len(sides) == 233
    assert all(len(side) == 1 for side in sides.values())
    documents = list(read_documents(BUNDLED_TEXT, 3_000))
    assert Counter(split_of(d, d.digest) for d in documents) == {"train": 2_764, "val": 559, "test": 408}
    assert [d.text for d in documents] == [row["text"] for row in rows]


def test_bundled_tokenizers_are_rebuilt_to_the_same_bytes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("build_tokenizers", CORPORA / "build_tokenizers.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.build(tmp_path)
    for path in BUNDLED.values():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("name", "size"), [("bundled-4096", 4_096), ("bundled-8192", 8_192)])
def test_bundled_tokenizer_has_its_size_and_gives_every_text_back(name: str, size: int) -> None:
    tokenizer = load_tokenizer(name)
    assert (tokenizer.vocabulary, tokenizer.end_id) == (size, 0)
    for text in ["", " ", "Fellow-Citizens", "naïve 😀👩‍👩‍👧 \x00\t\r\n", "汉字 ق \u2028", "<|endoftext|>"]:
        ids, widths = tokenizer.encode([text])[0]
        assert tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False) == text
        assert widths.sum() == len(text.encode())
        assert tokenizer.end_id not in ids  # spelled out, it is text


@pytest.mark.parametrize(("small", "name"), [(True, "bundled-4096"), (False, "bundled-8192")])
def test_small_vocabulary_picks_the_bundled_tokenizer(tmp_path: Path, small: bool, name: str) -> None:
    data, vocabulary = resolve("bundled", None, small, DataConfig(), tmp_path, pytest.fail)
    assert (data.corpus, data.tokenizer, vocabulary) == ("bundled", name, int(name[-4:]))
    assert data.tokenizer_id == hashlib.sha256(BUNDLED[name].read_bytes()).hexdigest()
    assert data.corpus_id == fingerprint(BUNDLED_TEXT)


# --- the user's own text ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz", ".parquet"])
def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "other": list(range(40))}), path)
    else:
        opener: Callable = {".jsonl.gz": gzip.open, ".jsonl.xz": lzma.open}.get(suffix, open)
        with opener(path, "wt") as out:
            out.writelines(json.dumps({"text": text}) + "\n\n" for text in TEXTS)
    assert [d.text for d in read_documents(path, 3_000)] == TEXTS
    assert [d.text for d in read_documents(path, 10)] == [text[:10] for text in TEXTS]


def test_folder_is_read_by_name_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", [{"text": "second"}])
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "notes.md").write_text("no corpus")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["third"]}), tmp_path / "c.parquet")
    assert [d.text for d in read_documents(tmp_path, 3_000)] == ["first", "second", "third"]
    before = fingerprint(tmp_path)
    (tmp_path / "notes.md").write_text("still none")
    assert fingerprint(tmp_path) == before
    (tmp_path / "a.txt").write_text("First")
    assert fingerprint(tmp_path) != before


def test_text_file_is_cut_into_pieces_that_lose_nothing(tmp_path: Path) -> None:
    paragraph = "A sentence of some words. Another one, which is longer than that! " * 4 + "\n\n"
    text = paragraph * 12 + "x" * 1_000 + "é" * 700
    pieces = list(cut_text(text, 300))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 300 for piece in pieces)
    assert pieces[0] == paragraph  # at the paragraph's end
    assert all(piece.endswith((". ", "! ")) for piece in cut_text(paragraph.strip() + " ", 100))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    assert [d.text for d in read_documents(tmp_path / "book.txt", 300)] == pieces


@pytest.mark.parametrize("characters", [1, 2, 7, 100])
def test_cutting_ends_for_any_length(characters: int) -> None:
    assert "".join(cut_text("a b. c\n\nd " * 9, characters)) == "a b. c\n\nd " * 9


def test_declared_split_is_honoured_and_digest_decides_without_one(tmp_path: Path) -> None:
    names = ["train", "val", "validation", "test"]
    path = write_lines(tmp_path / "own.jsonl", [{"text": n, "split": n} for n in names])
    assert [split_of(d, d.digest) for d in read_documents(path, 99)] == ["train", "val", "val", "test"]
    sides = Counter(split_of(d, d.digest) for d in map(Document, map(str, range(5_000))))
    assert sides["train"] + sides["val"] + sides["test"] == 5_000
    # 10 % of 5,000 has a standard deviation of 21; five of them make this test deaf to luck.
    assert abs(sides["val"] - 500) < 106
    assert abs(sides["test"] - 500) < 106


def test_text_that_changed_since_enqueue_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", [{"text": text} for text in TEXTS])
    data = choose(path, tmp_path / "cache")
    verify(data)
    write_lines(path, [{"text": text} for text in TEXTS[:-1]])
    with pytest.raises(ConfigError, match=r"own\.jsonl: the text has changed since enqueue; put it back"):
        prepare(RunConfig(data=data), tmp_path / "cache")


def test_user_corpus_is_frozen_as_an_absolute_path_with_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "own.jsonl", [{"text": text} for text in TEXTS])
    monkeypatch.chdir(tmp_path)
    notices: list[str] = []
    data, _ = resolve("own.jsonl", None, False, DataConfig(documents=7), tmp_path, notices.append)
    assert data.corpus == str(tmp_path / "own.jsonl")
    assert [line.split(",")[0] for line in notices] == ["tokenizer: bundled-8192"]
    assert len(list(open_corpus(data, tmp_path))) == 7


# --- hostile input: one line that says what, where and how to mend it ----------------------------------------


HOSTILE = {
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', r"broken\.jsonl, line 2: not a JSON object"),
    "list.jsonl": (b'{"text": "a"}\n[1]\n', r"line 2: a JSON list, not an object"),
    "number.jsonl": (b'{"text": 3}\n', r"line 1: `text` is a int"),
    "no_text.jsonl": (b'\n{"content": "a"}\n', r"line 2: no `text`"),
    "split.jsonl": (b'{"text": "a", "split": "dev"}\n', r"line 1: split 'dev'; it must be train"),
    "some.jsonl": (b'{"text": "a", "split": "val"}\n{"text": "b"}\n', r"line 2 and .*line 1: only one has"),
    "latin.jsonl": ('{"text": "é"}\n'.encode("latin-1"), r"line 1: not a JSON object \(.*utf-8"),
    "surrogate.jsonl": (b'{"text": "\\ud800"}\n', r"line 1: text holds half a surrogate pair"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000 + b"\n", r"line 1: not a JSON object"),
    "pickled.jsonl": (pickle.dumps({"text": "a"}), r"line 1: not a JSON object"),
    "corpus.pkl": (pickle.dumps(["a"]), r"not a corpus; give a \.jsonl"),
    "empty.jsonl": (b"", r"an empty corpus, no document in it has any text"),
    "blank.jsonl": (b'{"text": " \\n"}\n', r"an empty corpus, no document in it has any text"),
    "latin.txt": ("é".encode("latin-1"), r"latin\.txt: not UTF-8 text \(byte 0\)"),
    "fake.parquet": (b"PAR1 not really", r"fake\.parquet: cannot be read"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99)[:-9], r"cut\.jsonl\.gz: damaged"),
    "cut.jsonl.xz": (lzma.compress(b'{"text": "a"}\n' * 99)[:-9], r"cut\.jsonl\.xz: damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refusal:
        choose(tmp_path / name, tmp_path / "cache")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "corpus", ["../x", "smolm", "", "a\0b", "y" * 5_000, "/dev/null", "~nobody-of-that-name/x"]
)
def test_path_that_is_no_corpus_is_refused_in_one_line(tmp_path: Path, corpus: str) -> None:
    with pytest.raises(ConfigError, match="no such file|cannot be a path|not a corpus") as refusal:
        choose(corpus, tmp_path)
    assert "\n" not in str(refusal.value)


def test_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an empty corpus, no file in it is"):
        choose(tmp_path, tmp_path / "cache")


def test_parquet_without_text_or_with_flipped_bytes_is_refused_or_read_as_before(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"content": TEXTS}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="no column `text`, only content"):
        choose(tmp_path / "t.parquet", tmp_path / "cache")
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        (tmp_path / "t.parquet").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            list(read_documents(tmp_path / "t.parquet", 3_000))
        except ConfigError:
            refused += 1
    assert refused > len(whole) / 70


# --- tokenizers other than the bundled ones --------------------------------------------------------------------


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A tokenizer that is not byte-level and ends documents with its own `</s>`."""
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.normalizer = tokenizers.normalizers.NFKC()
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
    for text in ["Document 3 says much", "  ﬁne №  naïve 😀 ", "unseen 汉字 </s>"]:
        ids, widths = tokenizer.encode([text])[0]
        assert widths.sum() == len(text.encode())
        assert (widths >= 0).all()
        assert tokenizer.end_id not in ids


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


def test_unusable_tokenizers_are_refused_in_one_line(tmp_path: Path, tokenizer_folder: Path) -> None:
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


# --- the hub, substituted at its boundary ---------------------------------------------------------------------


REVISION = "5e1b0f" + "0" * 34


def offline(*args: object, **kwargs: object) -> None:
    raise hub.HubFailed("the hub did not give it (no network)")


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three calls that leave the machine, answered from here with the hub's own types."""
    snapshot = tmp_path / "snapshots" / ("7" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_bytes(BUNDLED["bundled-4096"].read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (snapshot / "tokenizer_config.json").write_text(json.dumps(config))
    rows = datasets.Dataset.from_dict({"prompt": TEXTS, "text": [text * 3 for text in TEXTS]})
    monkeypatch.setattr(hub, "corpus_revision", lambda attempts=1: REVISION)
    monkeypatch.setattr(hub, "_stream", lambda revision: rows.to_iterable_dataset())
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(snapshot))


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the network away when it is called."""

    def cut() -> None:
        monkeypatch.setattr(hub, "corpus_revision", offline)
        monkeypatch.setattr(hub, "_stream", offline)
        monkeypatch.setattr("huggingface_hub.snapshot_download", offline)

    return cut


@pytest.mark.usefixtures("local_hub")
@pytest.mark.parametrize("corpus", ["auto", "smollm"])
def test_smollm_is_stored_at_enqueue_and_needs_no_network_later(
    tmp_path: Path, cut_off: Callable[[], None], corpus: str
) -> None:
    data, vocabulary = resolve(corpus, None, False, DataConfig(documents=30), tmp_path, pytest.fail)
    assert (data.corpus, data.corpus_id) == ("smollm", REVISION)
    assert (data.tokenizer, data.tokenizer_id, vocabulary) == (hub.SMOLLM_TOKENIZER, "7" * 40, 4_096)
    cut_off()
    verify(data)
    assert [d.text for d in open_corpus(data, tmp_path)] == [text * 3 for text in TEXTS[:30]]
    again, _ = resolve(corpus, None, False, DataConfig(documents=30), tmp_path, pytest.fail)
    assert again == data
    notices: list[str] = []
    other, _ = resolve("auto", None, False, DataConfig(documents=31), tmp_path, notices.append)
    assert other.corpus == "bundled"
    assert len(notices) == 1


@pytest.mark.usefixtures("local_hub")
def test_stored_text_or_tokenizer_that_was_damaged_is_fetched_again(tmp_path: Path) -> None:
    data = choose("smollm", tmp_path, documents=30)
    text = next((tmp_path / "smollm").iterdir())
    tokenizer = next((tmp_path / "tokenizers").iterdir())
    for file in (text, tokenizer / "tokenizer.json"):
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        assert choose("smollm", tmp_path, documents=30) == data
        assert file.read_bytes() == whole
    (tokenizer / "fingerprint").unlink()
    assert choose("smollm", tmp_path, documents=30) == data


@pytest.mark.usefixtures("local_hub")
def test_damaged_store_without_network_falls_back_only_under_auto(
    tmp_path: Path, cut_off: Callable[[], None]
) -> None:
    choose("smollm", tmp_path, documents=30)
    text = next((tmp_path / "smollm").iterdir())
    text.write_bytes(text.read_bytes()[:-3])
    cut_off()
    assert choose("auto", tmp_path, documents=30).corpus == "bundled"
    with pytest.raises(ConfigError, match=r"--corpus smollm: .*no network.*use --corpus bundled"):
        choose("smollm", tmp_path, documents=30)
    with pytest.raises(ConfigError, match=r"--tokenizer owner/other: no such folder, and .*give a folder"):
        choose("bundled", tmp_path, "owner/other")


def test_half_a_download_leaves_nothing(tmp_path: Path) -> None:
    def breaking() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        hub.store_documents(breaking(), 2, tmp_path / "s" / "x.jsonl.gz")
    with pytest.raises(hub.HubFailed, match="ended after 1 of 2 documents"):
        hub.store_documents(iter([{"text": "a"}]), 2, tmp_path / "s" / "x.jsonl.gz")
    assert list((tmp_path / "s").iterdir()) == []


class _Hub(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next status of the list."""

    statuses: list[int]

    def do_GET(self) -> None:
        status = self.statuses.pop(0)
        body = json.dumps({"id": "a/b", "sha": REVISION} if status == 200 else {"error": "not now"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """A server on this machine that the hub's own client is pointed at."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def start(*statuses: int) -> str:
        _Hub.statuses = list(statuses)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    server.shutdown()
    server.server_close()


def test_what_may_pass_is_tried_again_with_longer_waits(answering: Callable[..., str]) -> None:
    api = HfApi(endpoint=answering(503, 429, 500, 200))
    waits: list[float] = []
    assert hub.patiently(lambda: api.dataset_info("a/b").sha, 4, waits.append) == REVISION
    assert waits == [1, 2, 4]


def test_what_will_not_pass_is_told_at_once(answering: Callable[..., str]) -> None:
    for statuses, attempts in [((404,), 5), ((503, 503), 2)]:
        api, waits = HfApi(endpoint=answering(*statuses)), []
        with pytest.raises(hub.HubFailed) as failure:
            hub.patiently(lambda api=api: api.dataset_info("a/b").sha, attempts, waits.append)
        assert "\n" not in str(failure.value)
        assert len(waits) == len(statuses) - 1
        assert _Hub.statuses == []


def test_silent_hub_is_given_up() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError, match="did not answer"):
        hub._within(0.01, never.wait)
    never.set()
    assert hub._within(60, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        hub._within(60, lambda: 1 // 0)


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_auto_falls_back_with_one_notice_without_network(tmp_path: Path, environment: dict[str, str]) -> None:
    script = (
        "import json, sys; from pathlib import Path; from model.config import DataConfig;"
        "from model.corpus import resolve; n = [];"
        "d, v = resolve('auto', None, True, DataConfig(documents=9), Path(sys.argv[1]), n.append);"
        "print(json.dumps([d.corpus, v, n, 'torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), **environment},
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=120,
    )
    corpus, vocabulary, notices, torch_imported = json.loads(done.stdout)
    assert (corpus, vocabulary, torch_imported) == ("bundled", 4_096, False)
    assert len(notices) == 1
    assert notices[0].startswith("corpus: bundled, because")


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


def test_unresolved_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resolve the corpus first"):
        verify(DataConfig())
    with pytest.raises(ConfigError, match="the text has changed"):
        verify(replace(choose("bundled", tmp_path), corpus_id="0" * 64))

"""The hub, substituted at its boundary: real `datasets` rows, the real client against a local server."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfApi

from model.config import ConfigError, DataConfig
from model.text import hub
from model.text.corpus import open_corpus, resolve, verify
from model.text.tokenizer import BUNDLED
from tests.text.test_corpora import TEXTS, choose

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.slow
@pytest.mark.usefixtures("local_hub")
@pytest.mark.parametrize("corpus", ["auto", "smollm"])
def test_smollm_is_stored_at_enqueue_and_needs_no_network_later(
    tmp_path: Path, cut_off: Callable[[], None], corpus: str
) -> None:
    data, vocabulary = resolve(corpus, None, False, DataConfig(documents=30), tmp_path, pytest.fail)
    assert (data.corpus, data.corpus_id) == ("smollm", f"{REVISION}+normalised")
    assert (data.tokenizer, data.tokenizer_id, vocabulary) == (hub.SMOLLM_TOKENIZER, "7" * 40, 4_096)
    cut_off()
    verify(data)
    assert [d.text for d in open_corpus(data, tmp_path)] == [text * 3 for text in TEXTS[:30]]
    again, _ = resolve(corpus, None, False, DataConfig(documents=30), tmp_path, pytest.fail)
    assert again == data
    notices: list[str] = []
    other, _ = resolve("auto", None, False, DataConfig(documents=31), tmp_path, notices.append)
    assert other.corpus == "bundled"
    assert [line.split(":")[0] for line in notices] == ["corpus", "text"]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_auto_falls_back_with_one_notice_without_network(tmp_path: Path, environment: dict[str, str]) -> None:
    script = (
        "import json, sys; from pathlib import Path; from model.config import DataConfig;"
        "from model.text.corpus import resolve; n = [];"
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
    assert [line.split(":")[0] for line in notices] == ["corpus", "text"]
    assert notices[0].startswith("corpus: bundled, because")

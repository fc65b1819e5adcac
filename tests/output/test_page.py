"""The HTML page and the JSON: complete, self-contained, and safe with hostile names and paths."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from reports.output.files import gather, produce
from reports.output.report import APPENDIX
from reports.output.runs import LOG_LINES, log_tail
from reports.reading.units import UnknownOption
from reports.statistics.analysis import Options
from runner.queue import schema
from tests import report_fixtures as made
from tests.output import test_report_page as edge

HOSTILE = "</style></script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & \x1b[31m \u202e"
VOID = {"meta", "br", "img", "path", "use", "rect"}


@pytest.fixture(scope="module")
def page(curved: sa.Connection) -> tuple[str, Reader]:
    """Its page, made once."""
    return page_of(curved)


class Reader(HTMLParser):
    """Collects ids, links and text, and holds every end tag to its start."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()
        self.targets: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.targets.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(connection: sa.Connection, runs_dir: Path = Path("nowhere")) -> tuple[str, Reader]:
    options = Options(format="html")
    text = produce(gather(connection, None, options), options, runs_dir)["report.html"].decode()
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    return text, reader


@pytest.mark.slow
def test_the_page_is_whole_and_needs_nothing_else(curved: sa.Connection, page: tuple[str, Reader]) -> None:
    text, reader = page
    assert page_of(curved)[0] == text
    assert [i for i, n in Counter(reader.ids).items() if n > 1] == []
    assert reader.targets
    assert all(target.startswith("#") for target in reader.targets)
    assert {target[1:] for target in reader.targets} <= set(reader.ids)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text.split("</style>", 1)[1])
    assert "default-src 'none'" in text
    first, rest = text.split("</header>")
    assert rest.count("<svg ") == 9 + 18
    assert first.count("<svg ") == first.count('class="bar"><svg') > 0
    assert reader.tags["details"] == 18 + len(APPENDIX) + 1
    assert reader.tags["button"] == rest.count("<th ")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_the_page_says_what_the_markdown_says(curved: sa.Connection, page: tuple[str, Reader]) -> None:
    reader = page[1]
    shown = re.sub(r"\s+", " ", " ".join(reader.text))
    options = Options()
    report = produce(gather(curved, None, options), options, Path())["report.md"].decode()
    cells = {
        c.strip() for line in report.splitlines() if line.startswith("| ") for c in line.split("|")[1:-1]
    }
    assert len(cells) > 200
    assert [cell for cell in cells if cell.replace("\\", "") not in shown] == []
    for heading in re.findall(r"^## (.*)$", report, re.MULTILINE):
        assert heading in shown


@pytest.mark.slow
def test_an_import_without_a_question_has_its_name_as_title(connection: sa.Connection) -> None:
    made.published_study(connection)
    text, _ = page_of(connection)
    assert re.findall("<h1>(.*)</h1>", text) == ["Study published"]
    assert text.count(">Study published<") == 2  # the window's title, and this one


@pytest.mark.slow
def test_hostile_names_are_text(connection: sa.Connection) -> None:
    study = made.add_study(
        connection,
        HOSTILE,
        corpus=HOSTILE,
        grid={"question": HOSTILE + "\ud800", "factors": {HOSTILE: [HOSTILE, "b"]}, "baseline": {}},
    )
    for value in (HOSTILE, "b"):
        for seed in (42, 43):
            job = made.add_job(connection, study, {HOSTILE: value}, seed)
            made.add_attempt(connection, job, device=HOSTILE, host=HOSTILE, message=HOSTILE)
            made.add_result(connection, job, val_loss=4.0 + seed / 100)
            made.add_metric(connection, job, "loss", 4.0, split="train", step=4)
            made.add_counts(connection, job, [[1, 2, 3, 4]])
    failed = made.add_job(connection, study, {HOSTILE: "b"}, 44, "failed")
    made.add_attempt(connection, failed, outcome="failed", cause="bug", message=HOSTILE)
    text, reader = page_of(connection)
    assert reader.tags["script"] == reader.tags["style"] == 1
    assert reader.tags["img"] == 0
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>alert(1)</script>" in "".join(reader.text)


@pytest.mark.slow
def test_a_run_shows_the_end_of_its_log(connection: sa.Connection, tmp_path: Path) -> None:
    made.finished_study(connection)
    connection.execute(
        sa.update(schema.attempts).where(schema.attempts.c.job_id == 3).values(log_path="3/a1/trainer.log")
    )
    log = tmp_path / "runs" / "db-1" / "3" / "a1" / "trainer.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"\n".join(b"line %d" % i for i in range(100)) + b"\n<b>\xff\x1b[31m last\n")
    text, _ = page_of(connection, tmp_path / "runs")
    run = text.split('id="run-3"')[1].split("</details>")[0]
    assert "End of its log" in run
    assert "line 99\n&lt;b&gt;\ufffd\ufffd[31m last</pre>" in run
    assert f"line {100 - LOG_LINES}\n" not in run
    assert text.count("End of its log") == 1


@pytest.mark.parametrize("path", ["../secret", "/etc/hostname", "link", "a\0b", None, 3.5, "", "none", "."])
def test_a_log_outside_the_run_folder_is_not_read(tmp_path: Path, path: Any) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    assert log_tail(folder, path) == ""


@pytest.mark.slow
def test_a_large_study_has_a_page_for_some_of_its_runs(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {}, "baseline": {}})
    for seed in range(70):
        made.add_result(connection, made.add_job(connection, study, {}, seed))
    late = made.add_job(connection, study, {}, 99, "queued")
    text, _ = page_of(connection)
    assert text.count('<details id="run-') == 60
    assert f'id="run-{late}"' in text
    assert "60 of 71 runs, those without a result first." in text


@pytest.mark.slow
def test_unfinished_studies_have_a_page(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    text, _ = page_of(connection)
    assert "diverged: loss is nan" in text
    assert "unclear (PROVISIONAL)" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "state", [edge.empty_study, edge.one_cell, edge.one_seed, edge.all_failed, edge.all_equal, edge.bare_grid]
)
def test_a_study_with_little_in_it_has_a_page_and_an_object(
    connection: sa.Connection, state: Callable[[sa.Connection], None]
) -> None:
    state(connection)
    _, reader = page_of(connection)
    assert not re.search(r"\bnan\b", " ".join(reader.text))
    options = Options(format="json")
    assert json.loads(produce(gather(connection, None, options), options, Path())["report.json"])["title"]


def test_json_has_every_number_and_no_nan(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    options = Options(format="json")
    content = json.loads(produce(gather(connection, None, options), options, Path())["report.json"])
    first = content["conditions"][0]
    losses = [made.loss_of(made.cells(made.FACTORS)[0], seed) for seed in made.SEEDS]
    assert first["cell"] == {"noise_std": 0.0, "load_balancing_weight": 0.01}
    assert first["metrics"]["val_loss"]["mean"] == pytest.approx(sum(losses) / 3, rel=1e-15)
    assert (first["metrics"]["val_loss"]["n"], first["done"], first["seeds"]) == (3, 3, [42, 43, 44])
    failed = content["conditions"][5]
    assert (failed["done"], failed["metrics"]) == (0, {})
    assert content["families"][0]["tests"][4]["is"] == "unclear"
    assert content["families"][0]["tests"][4]["diverged"]["first"] == 3
    assert content["families"][0]["tests"][4]["p"] is None
    assert content["command"].endswith("--format json > experiment_results.json")


def test_an_unknown_format_is_one_line(connection: sa.Connection) -> None:
    made.add_study(connection)
    with pytest.raises(UnknownOption, match="choose one of markdown, html, json"):
        gather(connection, None, Options(format="docx"))

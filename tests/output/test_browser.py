"""The page in a real browser, Chromium without a window: no error, sorting by mouse and key, names as text.

Skipped, and said, where chromium and chromedriver are not installed (Debian: chromium, chromium-driver).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from reports.output import page as report_page
from reports.output.files import gather, produce, write
from reports.statistics.analysis import Options
from runner.page import pages
from runner.page.night import night
from tests import report_fixtures as made

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)
HOSTILE = "<img src=x onerror=document.title='taken'><script>document.title='taken'</script>"
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *(
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1200,1000",
        "--force-prefers-reduced-motion",
    ),
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[object]:
    from selenium.webdriver.chrome.options import Options as ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*QUIET, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(tmp_path: Path) -> str:
    with made.opened(tmp_path) as connection:
        hostile_study(connection)
        options = Options(format="html", output=str(tmp_path))
        files = produce(gather(connection, None, options), options, tmp_path / "runs")
    return write(files, tmp_path).as_uri()


def hostile_study(connection: sa.Connection) -> None:
    """The factorial, half of a condition failed, under a name that is a program."""
    claims = [
        {
            "name": HOSTILE,
            "kind": "greater",
            "metric": "val_loss",
            "compare": {"noise_std": 0.1},
            "against": {"noise_std": 0.0},
        }
    ]
    study = made.curved_study(connection, name=HOSTILE, grid={"question": HOSTILE, "claims": claims})
    job = made.add_job(connection, study, made.cells(made.FACTORS)[0], 45, "failed")
    made.add_attempt(connection, job, outcome="failed", cause="bug", message=HOSTILE)


def column(table: object, index: int) -> list[str]:
    return [
        row.find_elements("tag name", "td")[index].text
        for row in table.find_elements("css selector", "tbody tr")
    ]


def test_the_page_works_in_a_browser(browser: object, page: str) -> None:
    browser.get(page)
    assert browser.title == f"Study {HOSTILE}"  # nothing took it over
    assert browser.find_element("tag name", "h1").text == HOSTILE  # the question
    assert browser.find_elements("tag name", "img") == []

    table = browser.find_element("css selector", "#results-by-condition table")
    heads = table.find_elements("tag name", "th")
    loss = next(i for i, head in enumerate(heads) if head.text.startswith("Val loss"))
    before = column(table, loss)
    values = sorted(float(text.split(" ± ")[0]) for text in before)
    button = heads[loss].find_element("tag name", "button")
    button.click()
    assert [float(text.split(" ± ")[0]) for text in column(table, loss)] == values
    assert heads[loss].get_attribute("aria-sort") == "ascending"
    button.click()
    assert [float(text.split(" ± ")[0]) for text in column(table, loss)] == values[::-1]

    # By keyboard alone: the focus is on the button, Tab leads to the next one, Enter presses it.
    from selenium.webdriver.common.keys import Keys

    button.send_keys(Keys.TAB)
    focused = browser.switch_to.active_element
    assert focused.text.startswith("95 % interval")
    focused.send_keys(Keys.ENTER)
    assert heads[loss].get_attribute("aria-sort") is None
    assert heads[loss + 1].get_attribute("aria-sort") == "ascending"

    seeds = browser.find_elements("css selector", "#results-by-seed table")[0]
    shown = seeds.find_elements("tag name", "button")[1]
    for _ in range(2):  # a dash is last in both directions
        browser.execute_script("arguments[0].click()", shown)
        assert column(seeds, 1)[-1] == "–"

    run = browser.find_element("id", "run-1")
    assert run.get_attribute("open") is None
    assert not run.is_displayed()
    folded = browser.find_element("id", "runs")
    browser.execute_script("arguments[0].scrollIntoView()", folded)
    folded.find_element("tag name", "summary").click()
    browser.execute_script("arguments[0].scrollIntoView()", run)
    run.find_element("tag name", "summary").click()
    assert run.find_element("tag name", "svg").is_displayed()

    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [request["request"]["url"] for request in asked if request["documentURL"] == page]
    assert urls == [page]  # nothing but the page itself


LINES = """
    const found = [];
    for (const name of document.querySelectorAll(".run b, .failed-jobs b, .name"))
        for (const part of name.childNodes) {
            if (part.nodeType !== Node.TEXT_NODE) continue;
            const range = document.createRange();
            range.selectNodeContents(part);
            const rects = [...range.getClientRects()];
            const lines = new Set(rects.map(rect => rect.top));
            found.push([lines.size, Math.max(...rects.map(rect => rect.right))]);
        }
    return found;
"""
"""Of each part of a name, between its commas: how many lines it is on, and where it ends."""
SCREENS = {"1280": (1280, 800), "390": (390, 844)}


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_screen_holds_the_answer(browser: object, tmp_path: Path, screen: str, scheme: str) -> None:
    """Question, answer, six claims with their verdicts, what is missing and what limits it: one screen."""
    claims = [
        {"name": name, "kind": "greater", "metric": "val_loss", **sides}
        for sides in [{"compare": {"noise_std": 0.5}, "against": {"noise_std": 0.0}}]
        for name in ("High noise harms", "Routing without noise does at least as well", *"abcd")
    ]
    with made.opened(tmp_path) as connection:
        made.published_study(connection, question="Does routing noise help a small MoE?", claims=claims)
        options = Options(format="html")
        files = produce(gather(connection, None, options), options, tmp_path / "runs")
    width, height = SCREENS[screen]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    browser.get(write(files, tmp_path).as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for wanted in ("h1", ".say", ".claims", ".limits"):
        element = browser.find_element("css selector", f"#answer {wanted}")
        assert element.is_displayed()
        assert element.rect["y"] + element.rect["height"] <= height, wanted
    shown = browser.find_element("id", "answer").text
    for words in ("0.5 costs 10.7", "SUPPORTED", "+10.70 %", "n", "Missing", "Scale", "Corpus", "Seeds"):
        assert words in shown
    bars = browser.find_elements("css selector", "#answer .bar svg")
    assert len(bars) == 6
    assert min(bar.rect["width"] for bar in bars) > 40


@pytest.mark.parametrize("screen", SCREENS)
def test_the_pages_of_a_night_are_read_on_a_telephone_in_the_dark(
    browser: object, tmp_path: Path, screen: str
) -> None:
    """No program runs, nothing else is asked for, nothing needs scrolling sideways."""
    with made.opened(tmp_path) as connection:
        made.unfinished_study(connection)
        screens = pages.Screens(report_page.first_screen)
        pages.write(pages.pages(night(connection, screens), report_page.css()), tmp_path / "public")
    width, height = SCREENS[screen]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    for scheme, paper in (("light", "rgba(255, 255, 255, 1)"), ("dark", "rgba(20, 24, 29, 1)")):
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        browser.get((tmp_path / "public/index.html").as_uri())
        body = browser.find_element("tag name", "body")
        assert body.value_of_css_property("background-color") == paper
        assert browser.find_element("tag name", "html").rect["width"] <= width
        squares = browser.find_elements("css selector", ".cell i")
        assert len(squares) == 18
        assert all(square.rect["x"] + square.rect["width"] <= width for square in squares)
        failed = browser.find_element("css selector", ".failed-jobs").text
        assert "diverged: loss is nan" in failed
        browser.find_element("link text", "factorial").click()
        assert browser.find_element("id", "answer").is_displayed()
        answer = browser.find_element("css selector", "#answer .say").rect
        assert answer["x"] >= 0
        assert answer["x"] + answer["width"] <= width
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.get((tmp_path / "public/index.html").as_uri())
    lines = browser.execute_script(LINES)
    assert lines
    assert {on for on, _ in lines} == {1}  # a name breaks after a comma, and nowhere else
    assert max(right for _, right in lines) <= width
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url.rsplit("/", 1)[1] for url in asked if url.startswith("file:")} == {
        "index.html",
        "study-factorial.html",
    }
    assert not [url for url in asked if url.startswith("http")]


@pytest.mark.slow
def test_a_pdf_has_every_section(tmp_path: Path) -> None:
    with made.opened(tmp_path) as connection:
        made.published_study(connection)
        options = Options(format="pdf")
        files = produce(gather(connection, None, options), options, tmp_path)
    assert files["report.pdf"].startswith(b"%PDF-")
    assert files["report.pdf"].count(b"/Type /Page\n") + files["report.pdf"].count(b"/Type /Page ") >= 2


def test_the_page_follows_the_readers_colours_and_fits_a_narrow_screen(browser: object, page: str) -> None:
    browser.get(page)

    def colours(scheme: str) -> tuple[str, str]:
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        style = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        return tuple(browser.execute_script(style))

    assert colours("light") == ("rgb(255, 255, 255)", "rgb(32, 38, 46)")
    assert colours("dark") == ("rgb(20, 24, 29)", "rgb(227, 232, 238)")
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.find_element("tag name", "nav").rect["height"] < 60  # contents in one line, to be pushed
    results = browser.find_element("css selector", "#results-by-condition td.l, #paired-contrasts td.l")
    assert results.rect["width"] < 180  # a label leaves room for its values
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 360  # tables scroll inside their frames, the page does not

"""Screenshots of `status`, `watch` and `work` at 80×24, and of a page of `work --page` in Chromium.

    python docs/screenshots.py FOLDER              writes docs/screenshots/*.svg
    python docs/screenshots.py PAGE.html NAME      writes docs/screenshots/NAME-{1280,390}-{light,dark}.png

FOLDER has a jobs.db with a study that is not finished: this starts `work` there and looks on.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.terminal import Screen, Terminal

PROJECT = Path(__file__).resolve().parent.parent
COLUMNS, ROWS = 80, 24


def main(folder: Path) -> None:
    """Start a worker in one terminal and look at it from others."""
    target = PROJECT / "docs" / "screenshots"
    target.mkdir(exist_ok=True)
    with terminal(folder, "work") as working:
        screen = working.until(lambda s: "done in" in s.text and "ETA" in s.text and "loss" in s.text, 300)
        save(screen, "work", target)
        with terminal(folder, "watch") as watching:
            save(watching.until(lambda s: "loss" in s.text and "tok/s" in s.text), "watch", target)
            watching.type("\x03")
        with terminal(folder, "status") as looking:
            looking.end()
            save(looking.screen, "status", target)
        working.type("\x03")
        working.end()


def photograph(page: Path, name: str) -> None:
    """The first screen of a page, on a laptop and on a telephone, by day and by night."""
    driver = chromium()
    try:
        for width, height in ((1280, 800), (390, 844)):
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            for scheme in ("light", "dark"):
                feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
                driver.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
                driver.get(page.resolve().as_uri())
                picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
                target = PROJECT / "docs" / "screenshots" / f"{name}-{width}-{scheme}.png"
                picture.quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)
    finally:
        driver.quit()


def chromium() -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def terminal(folder: Path, command: str) -> Terminal:
    program = [sys.executable, str(PROJECT / "cli.py"), command]
    return Terminal(program, folder, dict(os.environ), ROWS, COLUMNS)


def save(screen: Screen, command: str, target: Path) -> None:
    """The screen as it is now, as SVG."""
    console = Console(width=COLUMNS, height=ROWS, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen.coloured), end="", soft_wrap=True)
    picture = console.export_svg(title=f"python cli.py {command}", unique_id=command)
    # Without fonts from elsewhere: a page that shows it asks no other server.
    picture = re.sub(r"@font-face \{.*?\}|<!--.*?-->", "", picture, flags=re.DOTALL)
    (target / f"{command}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1].endswith(".html"):
        photograph(Path(sys.argv[1]), sys.argv[2])
    else:
        main(Path(sys.argv[1]))

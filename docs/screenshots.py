"""Screenshots of `status`, `watch` and `work` at 80×24, from a real study in a real pseudo-terminal.

    python docs/screenshots.py FOLDER      writes docs/screenshots/*.svg

FOLDER has a jobs.db with a study that is not finished: this starts `work` there and looks on.
"""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

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
    main(Path(sys.argv[1]))

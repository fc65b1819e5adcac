"""The page as PDF, printed by a Chromium that is installed; nothing else can lay out its style."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 300.0
"""For a page with sixty runs; a browser that hangs must not keep the reader."""
_QUIET = ("--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking")


class NoBrowser(Exception):
    """No Chromium is installed, or it printed nothing; the message says what to do instead."""

    exit_code = 69


def pdf(page: bytes) -> bytes:
    """The page, printed.

    Raises:
        NoBrowser: there is no Chromium, or it failed.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise NoBrowser(
            "--format pdf needs Chromium or Chrome: install it, or print the page of --format html"
        )
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "report.html", Path(folder) / "report.pdf"
        source.write_bytes(page)
        root = ("--no-sandbox",) if os.geteuid() == 0 else ()  # Chromium refuses root with its sandbox
        words = (*_QUIET, *root, f"--user-data-dir={folder}/profile", "--no-pdf-header-footer")
        try:
            done = subprocess.run(
                [browser, *words, f"--print-to-pdf={target}", source.as_uri()],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        if target.is_file():
            return target.read_bytes()
    raise NoBrowser(f"--format pdf: {browser} printed nothing ({said}); print the page of --format html")

"""A PDF without Chromium, and with one that fails: one line and exit code 69."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.output.pdf import NoBrowser, pdf


def test_without_chromium_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoBrowser, match="needs Chromium or Chrome: install it, or print the page") as refusal:
        pdf(b"<!DOCTYPE html>")
    assert refusal.value.exit_code == 69


def test_a_chromium_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\necho first >&2\necho no display >&2\nexit 1\n")
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoBrowser, match=r"printed nothing \(no display\); print the page") as refusal:
        pdf(b"<!DOCTYPE html>")
    assert "\n" not in str(refusal.value)

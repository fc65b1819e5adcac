"""What `show` prints: one job's configuration, attempts, result, load by layer, provenance, events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from runner.view.console import console, table
from runner.view.text import bars, duration, instant, label, plain, size

EVENTS = 30
"""Events that are shown, the latest; `--json` has them all."""


def job_screen(details: dict[str, Any], out: Console | None = None) -> None:
    """One job's whole history, the newest last."""
    job = details["job"]
    cell = label(job["cell"], job["seed"])
    parts: list[RenderableType] = [
        Text(f"job {job['id']} of {plain(job['study'])}: {cell}", style="bold"),
        Text(
            f"{job['status']}{' (paused)' if job['held'] else ''}, step {job['progress_step']}/"
            f"{job['total_steps']}, {job['failures']} of {job['max_failures']} failures, "
            f"priority {job['priority']}, hash {job['config_hash'][:12]}"
        ),
        _configuration(job["config"]),
        _attempts(details["attempts"]),
    ]
    if details["sources"]:
        parts.append(_sources(details["sources"]))
    if details["result"]:
        parts.append(_result(details["result"]))
    if details["load"]:
        parts.append(_load(details["load"]))
    if details["checkpoints"]:
        parts.append(_checkpoints(details["checkpoints"]))
    parts += [_provenance(details["attempts"]), _events(details["events"])]
    (out or console()).print(Group(*parts))


def _configuration(config: Mapping[str, Any]) -> Table:
    made = table("Configuration", "part", "values", folds="values")
    alone = {name: value for name, value in config.items() if not isinstance(value, dict)}
    inner = {name: value for name, value in config.items() if isinstance(value, dict)}
    for part, values in [*inner.items(), ("run", alone)]:
        made.add_row(part, ", ".join(f"{name} {_short(value)}" for name, value in values.items()))
    return made


def _short(value: Any) -> str:
    """A hash keeps its first letters."""
    text = plain(value)
    return f"{text[:12]}…" if len(text) > 40 else text or "–"


def _attempts(attempts: list[dict[str, Any]]) -> Table:
    columns = ("no.", "outcome", "cause", "began", "took", "from", "device", "message")
    made = table("Attempts", *columns, folds="message")
    for attempt in attempts:
        ended, began = attempt["ended_at"], attempt["resumed_from_step"]
        made.add_row(
            str(attempt["number"]),
            attempt["outcome"] or "running",
            attempt["cause"] or "",
            instant(attempt["started_at"]),
            duration(ended - attempt["started_at"]) if ended else "–",
            "–" if began is None else str(began),
            plain(attempt["device"]),
            plain(attempt["message"] or ""),
        )
    return made


def _sources(sources: list[dict[str, Any]]) -> Table:
    """What each attempt ran; the last part of a copy's path is the SHA-256 of its content."""
    made = table(
        "Code", "attempts", "commit", "modified", "copy, below --runs-dir", folds="copy, below --runs-dir"
    )
    for source in sources:
        numbers, modified = ", ".join(map(str, source["attempts"])), source["git_dirty"]
        told = "–" if modified is None else "yes" if modified else "no"
        made.add_row(numbers, (source["git_commit"] or "–")[:12], told, plain(source["copy"]))
    return made


def _result(result: Mapping[str, Any]) -> Table:
    made = table("Result", "name", "value")
    for name, value in result.items():
        if value is not None and name not in ("job_id", "recorded_at"):
            made.add_row(name, _number(value))
    return made


def _number(value: float | str) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.6g}"
    return value if isinstance(value, str) else f"{value:,.0f}"


def _load(load: Mapping[int, list[int]]) -> Table:
    made = table("Load by layer", "layer", "experts", "most", "least")
    for layer, tokens in load.items():
        total = sum(tokens) or 1
        pictures = bars(tokens, 2 * total / len(tokens))  # an even load is half as high as the picture
        made.add_row(str(layer), pictures, f"{max(tokens) / total:.1%}", f"{min(tokens) / total:.1%}")
    return made


def _checkpoints(checkpoints: list[dict[str, Any]]) -> Table:
    made = table("Checkpoints", "step", "size", "written", "path", folds="path")
    for file in checkpoints:
        written = instant(file["created_at"])
        made.add_row(str(file["step"]), size(file["size_bytes"]), written, plain(file["path"]))
    return made


def _provenance(attempts: list[dict[str, Any]]) -> Table:
    """The provenance of the newest attempt that wrote one."""
    found = next((each["provenance"] for each in reversed(attempts) if each["provenance"]), "{}")
    values = json.loads(found)
    made = table("Provenance" if values else "", "name", "value", folds="value")
    for name, value in values.items():
        shown = (
            ", ".join(f"{key} {_short(item)}" for key, item in value.items())
            if isinstance(value, dict)
            else value
        )
        made.add_row(plain(name), plain("–" if shown is None else shown))
    return made


def _events(events: list[dict[str, Any]]) -> Table:
    left_out = max(0, len(events) - EVENTS)
    title = f"Events (the latest {EVENTS} of {len(events)})" if left_out else "Events"
    made = table(title, "at", "try", "what", "detail", folds="detail")
    for event in events[left_out:]:
        detail = json.loads(event["detail"] or "{}")
        said = ", ".join(f"{name}: {value}" for name, value in detail.items() if value not in (None, ""))
        made.add_row(instant(event["at"]), str(event["attempt"] or ""), plain(event["kind"]), plain(said))
    return made

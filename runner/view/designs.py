"""What `grids` and `grids show` print: the shipped designs in a table, and one of them in full.

The content comes from runner/design/catalogue.py; questions and names come from files and are made plain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from runner.view.console import ROWS, console, show, table
from runner.view.text import duration, label, plain, varying

_KINDS = {
    "less": "is lower",
    "greater": "is higher",
    "equivalent": "is the same within the margin",
    "not_worse": "is not worse by the margin",
}


def list_screen(grids: Sequence[Mapping[str, Any]]) -> None:
    """A line a grid; a dash where nothing of its size has been run on this machine."""
    scale = grids[0]["scale"]
    made = table(f"Grids at {scale} scale", "grid", "runs", "cost here", "question", folds="question")
    for grid in grids:
        made.add_row(plain(grid["name"]), str(grid["runs"]), _cost(grid), _shortened(plain(grid["question"])))
    out = console()
    out.print(made)
    if any(grid["cost_seconds"] is None for grid in grids):
        out.print(
            "– nothing of that size has been run here: enqueue, `python cli.py work --jobs 1`, look again",
            style="dim",
        )


def design_screen(design: Mapping[str, Any]) -> None:
    """The whole design of one grid."""
    out = console()
    out.print(plain(design["name"]), style="bold")
    for text in (design["question"], design["comment"]):
        if text:
            out.print(plain(text))
    _factors(out, design)
    seeds = ", ".join(map(str, design["seeds"]))
    repeats = f", each {design['repeats']} times" if design["repeats"] > 1 else ""
    out.print(f"seeds     {seeds}{repeats}")
    out.print(f"baseline  {label(design['baseline'])}")
    margin = design["margins"].get(design["primary"])
    out.print(f"primary   {plain(design['primary'])}" + (f", margin {margin:.4g}" if margin else ""))
    out.print()
    if design["claims"]:
        made = table("Claims, declared before the runs", "no.", "claim", folds="claim")
        for number, claim in enumerate(design["claims"], start=1):
            made.add_row(str(number), plain(f"{claim['name']}: {sentence(claim)}"))
        out.print(made)
        out.print()
    _cells(out, design["cells"], design["scale"])
    out.print()
    _scales(out, design["scales"])


def sentence(claim: Mapping[str, Any]) -> str:
    """A claim in words: `val_loss at noise_std=0.5 is higher than at noise_std=0.0`."""
    here, there = label(claim["compare"]), label(claim["against"])
    for factor, (first, second) in claim["interaction"].items():
        return (
            f"{claim['metric']} at {here} minus at {there}, where {factor}={first}, "
            f"{_KINDS[claim['kind']]} against where {factor}={second}"
        )
    return f"{claim['metric']} at {here} {_KINDS[claim['kind']]} against {there}"


def _factors(out: Console, design: Mapping[str, Any]) -> None:
    for factor, levels in design["factors"].items():
        named = design["levels"].get(factor)
        if named is None:
            out.print(f"factor    {plain(factor)}: {plain(', '.join(map(str, levels)))}")
            continue
        out.print(f"factor    {plain(factor)}:")
        for level in levels:
            out.print(f"            {plain(level)}: {label(named[level])}")


def _cells(out: Console, cells: Sequence[Mapping[str, Any]], scale: str) -> None:
    """What the program says nothing of has no column."""
    columns = {"steps": "steps", "parameters_total": "parameters", "parameters_active": "active a token"}
    known = [name for name in columns if cells[0][name] is not None]
    titles = (columns[name] for name in known)
    made = table(f"{len(cells)} cells at {scale} scale", "cell", *titles, folds="cell")
    for cell in cells[:ROWS]:
        made.add_row(label(cell["cell"]), *(f"{cell[name]:,}" for name in known))
    total = "parameters_total"
    show(out, made, len(cells), f"; parameters {varying(c[total] for c in cells)}" if total in known else "")
    if (vocabulary := cells[0]["vocabulary"]) is not None:
        out.print(f"parameters with a vocabulary of {vocabulary:,}; `enqueue` takes the tokenizer's")


def _scales(out: Console, scales: Sequence[Mapping[str, Any]]) -> None:
    tokens = scales[0]["training_tokens"] is not None
    further = ["training tokens"] if tokens else []
    made = table("Sizes", "scale", "runs", "steps in all", *further, "cost here")
    for scale in scales:
        further = [f"{scale['training_tokens']:,}"] if tokens else []
        made.add_row(scale["scale"], str(scale["runs"]), f"{scale['steps']:,}", *further, _cost(scale))
    out.print(made)


def _cost(grid: Mapping[str, Any]) -> str:
    if grid["cost_seconds"] is None:
        return "–"
    return f"{duration(grid['cost_seconds'])} on {plain(grid['cost_device'])}"


def _shortened(text: str, letters: int = 90) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1].rsplit(' ', 1)[0]}…"

"""Writes each command's options into docs/commands.md, from the commands themselves.

    python docs/options.py            rewrites the tables between the markers
    python docs/options.py --check    exit 1 and one line where the page is not what the commands say

A table ends the command's section; a command without any has none. --db, which all of them take,
stands at the head of the page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer

PROJECT = Path(__file__).resolve().parent.parent
sys.path[0] = str(PROJECT)  # not this folder

PAGE = PROJECT / "docs" / "commands.md"
BEGIN, END = "<!-- options: docs/options.py -->", "<!-- end of options -->"


def main() -> int:
    """Write, or compare; returns the exit code."""
    text = PAGE.read_text(encoding="utf-8")
    due = filled(text)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(due, encoding="utf-8")
    elif due != text:
        print("docs/commands.md: not what the commands say; run python docs/options.py", file=sys.stderr)
        return 1
    return 0


def filled(text: str) -> str:
    """The page with every command's table as it is now."""
    import cli

    bare = re.sub(rf"{BEGIN}.*?{END}\n\n?", "", text, flags=re.DOTALL)
    pieces = re.split(r"(?m)^(?=##)", bare)
    commands = dict(_commands(typer.main.get_command(cli.app)))
    return "".join(_with_table(piece, commands) for piece in pieces).rstrip() + "\n"


def _commands(group: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(name as it is typed, command), groups opened."""
    found = []
    for name, command in getattr(group, "commands", {}).items():
        found += [(prefix + name, command), *_commands(command, f"{prefix}{name} ")]
    return found


def _with_table(piece: str, commands: dict[str, Any]) -> str:
    title = re.match(r"### (.+)\n", piece)
    command = commands.get(title[1]) if title else None
    rows = (
        [_row(p) for p in command.params if p.name not in ("help", "db") and not getattr(p, "hidden", False)]
        if command
        else []
    )
    if not rows:
        return piece
    table = "\n".join(["| option or argument | what it does | default |", "| --- | --- | --- |", *rows])
    return f"{piece.rstrip()}\n\n{BEGIN}\n\n{table}\n\n{END}\n\n"


def _row(parameter: Any) -> str:
    value = parameter.default() if callable(parameter.default) else parameter.default
    unset = value is None or value is False or parameter.required or str(value) == "Sentinel.UNSET"
    option = parameter.param_type_name == "option"
    said = ", ".join(f"`{name}`" for name in parameter.opts if option) or f"`{_argument(parameter)}`"
    help_text = (getattr(parameter, "help", "") or "").replace("|", "\\|")
    return f"| {said} | {help_text} | {'' if unset else f'`{value}`'} |"


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).upper()


if __name__ == "__main__":
    sys.exit(main())

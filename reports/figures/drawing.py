"""Figures as files, drawn in as many processes as there are cores: drawing is most of a large page's time.

A child is a fork: it has the data already, draws its share, and sends bytes. Whatever becomes of it, its
figures are drawn here then. How they look: reports/figures/style.py.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection

from reports.figures import style
from reports.tables import Picture

FEWEST = 4
"""Pictures for each process: fewer do not pay for a fork."""
MOST = 8
"""Processes: beyond it the rest of a report's work takes longer than its figures."""


def draw_all(pictures: Sequence[Picture], kinds: Sequence[str] = ("svg",)) -> dict[tuple[str, str], bytes]:
    """(Name, kind) → file, for each picture and each of the kinds (png, svg); each is drawn once."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1  # elsewhere a fork may hang
    shares = max(1, min(cores, MOST, len(pictures) // FEWEST))
    # Figures of one kind stand together, and take about as long: every share gets some of each.
    parts = [pictures[i::shares] for i in range(shares)]
    children = [(_forked(part, kinds), part) for part in parts[1:]]
    found = _drawn(parts[0], kinds)
    for (process, connection), part in children:
        found |= _received(connection, part, kinds) or _drawn(part, kinds)
        process.join()
    style.tell_lacking()
    return found


def _drawn(pictures: Sequence[Picture], kinds: Sequence[str]) -> dict[tuple[str, str], bytes]:
    found: dict[tuple[str, str], bytes] = {}
    for picture in pictures:
        figure = picture.draw()
        found |= {(picture.name, kind): style.save(figure, kind) for kind in kinds}
    return found


def _forked(
    pictures: Sequence[Picture], kinds: Sequence[str]
) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, pictures, kinds), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's idle threads are not in the child
        process.start()
    theirs.close()
    return process, ours


def _child(connection: Connection, pictures: Sequence[Picture], kinds: Sequence[str]) -> None:
    """Draw everything, then send it: a pipe holds less than a figure, and would make the child wait."""
    for file in [*_drawn(pictures, kinds).values(), "".join(style.lacking).encode()]:
        connection.send_bytes(file)
    connection.close()


def _received(
    connection: Connection, pictures: Sequence[Picture], kinds: Sequence[str]
) -> dict[tuple[str, str], bytes]:
    """What a child drew; nothing where it ended early."""
    names = ((picture.name, kind) for picture in pictures for kind in kinds)
    try:
        found = {name: connection.recv_bytes() for name in names}
        style.lacking.update(dict.fromkeys(connection.recv_bytes().decode()))
    except EOFError:
        return {}
    finally:
        connection.close()
    return found

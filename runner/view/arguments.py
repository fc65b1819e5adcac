"""The options and arguments that several commands take: their types, help and checks, in one place.

What one command alone takes stands in its signature in cli.py. Nothing here reads a database or a file.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Scale(StrEnum):
    smoke = "smoke"
    small = "small"
    full = "full"


class Format(StrEnum):
    markdown = "markdown"
    html = "html"
    json = "json"
    pdf = "pdf"


class Std(StrEnum):
    sample = "sample"
    population = "population"


class Protocol(StrEnum):
    sound = "sound"
    published = "published"


class Table(StrEnum):
    runs = "runs"
    metrics = "metrics"
    counts = "counts"


class FileFormat(StrEnum):
    csv = "csv"
    parquet = "parquet"
    json = "json"


class Program(StrEnum):
    tensorboard = "tensorboard"
    mlflow = "mlflow"
    wandb = "wandb"


def _folder(path: Path | None) -> Path | None:
    """Refuse a URL, which would become a local folder of that name."""
    if path is not None and re.match(r"[a-z0-9]{2,}:/", str(path)):
        raise typer.BadParameter(f"{path}: object stores are not supported; give a mounted folder")
    return path


Db = Annotated[str, typer.Option("--db", envvar="JOBS_DB", help="Database: a path or a URL.", metavar="PATH")]
Size = Annotated[Scale, typer.Option("--scale", help="Size of model and run.")]
Study = Annotated[str | None, typer.Option("--study", help="Study; the newest when left out.")]
OfStudy = Annotated[str | None, typer.Option("--study", help="All jobs of this study.")]
Where = Annotated[str | None, typer.Option("--where", help='Such as "noise_std=0.5 and status=failed".')]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Its id, hash, or cell: FACTOR=LEVEL,…,seed=43.")]
Jobs = Annotated[list[str] | None, typer.Argument(metavar="JOB", help="By id, hash or cell.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Change many jobs without asking.")]
UntilClosed = Annotated[bool, typer.Option("--until-closed", hidden=True)]
"""For a command that `work` starts beside itself: it ends when its standard input is closed."""
AsJson = Annotated[bool, typer.Option("--json", help="For a program to read.")]
Runs = Annotated[
    Path | None,
    typer.Option(
        "--runs-dir",
        help="Checkpoints and logs; default: runs, beside the database.",
        metavar="DIR",
        callback=_folder,
    ),
]
Cache = Annotated[
    Path, typer.Option("--cache-dir", help="Prepared corpora.", metavar="DIR", callback=_folder)
]
CACHE = Path("data_cache")


def seconds(text: str, option: str) -> float:
    """A time as people write it: 90s, 9m, 8h or 30d.

    Raises:
        BadParameter: it is none; the message begins with the option.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not found:
        raise typer.BadParameter(f"{option} {text}: write a number with s, m, h or d, as in 9m")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def seconds_until(text: str, now: datetime) -> float:
    """Seconds from `now`, local time, to the next time that a clock here shows 08:00 or so.

    Raises:
        BadParameter: it is no time of day.
    """
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if not found:
        raise typer.BadParameter(f"--until {text}: write a time of day, as in 08:00")
    then = now.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0, fold=0)
    if then <= now:
        then += timedelta(days=1)
    return (
        then.timestamp() - now.timestamp()
    )  # of naive times, by this machine's zone: a night may be 25 h long


def size_bytes(text: str, option: str) -> int:
    """A size as people write it: 500B, 20kB, 10MB or 1.5GB, in decimal units.

    Raises:
        BadParameter: it is none; the message begins with the option.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(B|kB|MB|GB)", text)
    if not found:
        raise typer.BadParameter(f"{option} {text}: write a number with B, kB, MB or GB, as in 10MB")
    return int(float(found[1]) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[found[2]])


def device_list(text: str) -> str:
    """The text of --devices, if it is a list of devices.

    Raises:
        BadParameter: it is none.
    """
    if not re.fullmatch(r"all|(auto|cpu|cuda(:\d+)?)(,(auto|cpu|cuda(:\d+)?))*", text):
        raise typer.BadParameter(f"--devices {text}: choose auto, all, cpu, cuda:0 or cuda:0,cuda:2")
    return text

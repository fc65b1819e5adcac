"""Makes what lies in docs/results again from the databases there: reports, figures, and the page's tables.

    python docs/results.py            each folder's report and figures; README.md between the markers
    python docs/results.py --check    exit 1 and a line for each page that is not what the databases say

Every number of a claim is that of the study's report: reports/sections/answer.py makes both. The databases
are brought to today's schema.
"""

from __future__ import annotations

import itertools
import lzma
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[0] = str(PROJECT)  # not this folder: a file here is called as one of benchmarks/

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import NullLocator  # noqa: E402

from reports.figures import style  # noqa: E402
from reports.figures.comparison import pictures  # noqa: E402
from reports.output.files import FIGURES, Material, gather, produce, write  # noqa: E402
from reports.output.markdown import escape, markdown, markdown_table  # noqa: E402
from reports.output.report import compose  # noqa: E402
from reports.sections.answer import answer  # noqa: E402
from reports.sections.head import seed_span  # noqa: E402
from reports.sections.horizons import steps_factor  # noqa: E402
from reports.statistics.analysis import Analysis, Options, analyse  # noqa: E402
from reports.statistics.families import baseline_cell  # noqa: E402
from reports.statistics.inference import Contrast  # noqa: E402
from reports.tables import Table, interval, listed, number, percent, signed, whole  # noqa: E402
from runner.queue.store import open_store, upgrade_store  # noqa: E402

FOLDER = PROJECT / "docs" / "results"
PAGE = FOLDER / "README.md"
OPTIONS = Options(output=".", db="study.db")
"""As the command stands in each folder's commands.md."""
FIGURE = "effect-by-tokens"
NOISE, LEVELS = "noise_std", (0.1, 0.5)
"""What the figure is about: these levels against none, the other factors at their baseline."""
MARGIN = math.log(1.005)
"""Half a percent of the perplexity, as every grid declares it; nats."""
_LOOKS = (("#0072b2", "o", 0.99), ("#d55e00", "s", 1.01))
"""Colour, marker and place beside the true one, by level."""


@dataclass(frozen=True)
class Kept:
    """A study that is kept: its folder's name, which is its own, and what its report is made from."""

    name: str
    material: Material
    analysis: Analysis

    def report(self) -> str:
        """Its report, without drawing the figures."""
        assert self.material.curves is not None
        return markdown(compose(self.analysis, partial(pictures, self.material.curves)), FIGURES)


@dataclass(frozen=True)
class Effect:
    """What a level of noise does to the loss of one study's runs of one length."""

    study: str
    tokens: float
    """Seen by a run in training."""
    loss: float
    """The mean of the runs without noise."""
    level: float
    contrast: Contrast
    """Paired by seed, against no noise, in nats per token; its interval holds by itself."""


def main() -> int:
    """Make all, or compare; returns the exit code."""
    studies = sorted(
        kept(), key=lambda each: (float(each.analysis.data.done["tokens_seen"].max()), each.name)
    )
    found = effects(studies)
    blocks = {"studies": runs(studies), "answers": answers(studies), "tokens": by_tokens(found)}
    due = {FOLDER / each.name / "report.md": each.report() for each in studies}
    due[PAGE] = filled(PAGE.read_text(encoding="utf-8"), blocks)
    if "--check" in sys.argv[1:]:
        stale = [path for path, text in due.items() if path.read_text(encoding="utf-8") != text]
        for path in stale:
            told = path.relative_to(PROJECT)
            print(f"{told}: not what the databases say; run python docs/results.py", file=sys.stderr)
        return 1 if stale else 0
    for each in studies:
        write(produce(each.material, OPTIONS, FOLDER), FOLDER / each.name)
    PAGE.write_text(due[PAGE], encoding="utf-8")
    drawn = picture(found)
    write({f"{FIGURE}.{kind}": style.save(drawn, kind) for kind in ("png", "svg")}, FOLDER / FIGURES)
    return 0


def kept() -> Iterator[Kept]:
    """The studies, each read from a copy of its database."""
    with tempfile.TemporaryDirectory() as temporary:
        for packed in FOLDER.glob("*/study.db.xz"):
            name, database = packed.parent.name, Path(temporary) / f"{packed.parent.name}.db"
            database.write_bytes(lzma.decompress(packed.read_bytes()))
            before, after = upgrade_store(str(database))
            if before != after and "--check" not in sys.argv[1:]:
                packed.write_bytes(lzma.compress(database.read_bytes(), preset=9))
            store = open_store(str(database))
            with store.read() as connection:
                material = gather(connection, name, OPTIONS)
            store.close()
            yield Kept(name, material, analyse(material.data, OPTIONS))


def filled(text: str, blocks: dict[str, str]) -> str:
    """The page with each block as it is now."""
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: docs/results.py -->", f"<!-- end of {name} -->"
        text, count = re.subn(
            f"{begin}.*?{end}", lambda _, new=f"{begin}\n\n{block}\n\n{end}": new, text, flags=re.DOTALL
        )
        if count != 1:
            sys.exit(f"error: {PAGE}: {count} times the marker {begin}")
    return text


def runs(studies: list[Kept]) -> str:
    """A row a study, and how many of all runs are different ones."""
    rows = []
    for each in studies:
        done = each.analysis.data.done
        losses, tokens = done["val_loss"], sorted(set(done["tokens_seen"].dropna()))
        rows.append(
            (
                *(each.name, f"{len(done)} of {len(each.analysis.data.runs)}"),
                *(str(len(each.analysis.data.cells)), seed_span(sorted(set(done["seed"].tolist())))),
                listed([whole(count) for count in tokens]),
                f"{number(losses.min(), 2)} to {number(losses.max(), 2)}",
            )
        )
    titles = ("study", "runs", "conditions", "seeds", "training tokens a run", "val loss")
    text = markdown_table(Table(titles, tuple(rows), "lrrlrr"))
    for each in studies:
        text = text.replace(f"| {each.name} |", f"| [{each.name}]({each.name}/report.md) |")
    return f"{text}\n\n{_different(studies)}"


def _different(studies: list[Kept]) -> str:
    """How many runs are in several studies: there one study is no evidence beside the other."""
    hashes = {each.name: set(each.analysis.data.done["config_hash"]) for each in studies}
    different = len(set[str]().union(*hashes.values()))
    said = f"Of these {sum(map(len, hashes.values()))} runs {different} are different"
    several = Counter(itertools.chain.from_iterable(hashes.values()))
    shared = sum(count > 1 for count in several.values())
    return f"{said}: {shared} of them, of the same configuration and seed, occur in several studies."


def answers(studies: list[Kept]) -> str:
    """Question, answer and claims of each study, as the first screen of its report has them."""
    blocks = []
    for each in studies:
        found = answer(each.analysis)
        blocks += [f"### {escape(found.question)}", f"{escape(' '.join(found.sentences))}"]
        blocks += [markdown_table(found.table)] if found.table else []
        blocks.append(
            f"([{each.name}]({each.name}/report.md)"
            + (f", and {found.more} more there)" if found.more else ")")
        )
    return "\n\n".join(blocks)


def effects(studies: list[Kept]) -> list[Effect]:
    """The levels of noise against none in each study that has them, by the length of its runs."""
    found = []
    for each in studies:
        analysis, study, matrix = each.analysis, each.analysis.study, each.analysis.blocks
        if matrix is None or not {0.0, *LEVELS[:1]} <= set(study.factors.get(NOISE, [])):
            continue
        standard = study.values(baseline_cell(analysis.data)[0])
        lengths = steps_factor(analysis.data)
        for steps in study.factors[lengths] if lengths else [None]:
            at = standard | ({lengths: steps} if lengths else {})
            none = tuple((at | {NOISE: 0.0})[factor] for factor in study.factors)
            tokens = _mean(analysis, none, "tokens_seen")
            for level in LEVELS:
                cell = tuple((at | {NOISE: level})[factor] for factor in study.factors)
                contrast = matrix.contrast({cell: 1.0, none: -1.0})
                if contrast.n >= 3:
                    found.append(
                        Effect(each.name, tokens, _mean(analysis, none, "val_loss"), level, contrast)
                    )
    return sorted(found, key=lambda each: (each.level, each.tokens, each.study))


def _mean(analysis: Analysis, cell: tuple[Any, ...], column: str) -> float:
    return float(analysis.data.by_cell[cell][column].mean())


def by_tokens(found: list[Effect]) -> str:
    """A row an effect."""
    rows = [
        (
            *(str(each.level), whole(each.tokens), number(each.loss, 3), each.study),
            *(signed(each.contrast.difference), f"{percent(100 * math.expm1(each.contrast.difference))} %"),
            *(interval(each.contrast.low, each.contrast.high, 4), str(each.contrast.n)),
        )
        for each in found
    ]
    titles = ("noise_std", "training tokens", "val loss without", "study", "difference", "in percent")
    return markdown_table(Table((*titles, "95 % interval", "n"), tuple(rows), "rrrlrrrr"))


def picture(found: list[Effect]) -> Figure:
    """The effects over the tokens that a run saw; where several studies have a length, side by side."""
    with style.style():
        figure = Figure(figsize=(style.WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.axhspan(-MARGIN, MARGIN, color="#009e73", alpha=0.18, linewidth=0, label="margin")
        axes.axhline(0, color=style.INK, linewidth=0.9)
        for level, (colour, marker, aside) in zip(LEVELS, _LOOKS, strict=True):
            mine = [each for each in found if each.level == level]
            place = [each.tokens * aside * 1.05 ** _before(mine, each) for each in mine]
            reach = [(c.difference - c.low, c.high - c.difference) for c in (each.contrast for each in mine)]
            axes.errorbar(
                place,
                [each.contrast.difference for each in mine],
                yerr=list(zip(*reach, strict=True)),
                fmt=marker,
                color=colour,
                label=f"noise_std {level} against 0.0",
            )
        lengths = sorted({each.tokens for each in found})
        axes.set_xscale("log")
        axes.set_xlim(lengths[0] / 1.5, lengths[-1] * 1.5)
        axes.set_xticks(lengths, [f"{each / 1000:,.0f} thousand" for each in lengths])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("Training tokens a run")
        axes.set_ylabel("Difference in val loss, nats per token")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=3)
    return figure


def _before(effects: list[Effect], one: Effect) -> int:
    """How many effects of the same length come before it."""
    return [each for each in effects if each.tokens == one.tokens].index(one)


if __name__ == "__main__":
    sys.exit(main())

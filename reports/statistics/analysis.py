"""One study as a report sees it: what was asked of it, and every number of it, computed once.

Sections and figures take an Analysis and nothing else: none of them computes a matrix, a family or a fit
again. What is not asked for is not computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from reports.reading.frames import StudyData
from reports.reading.measures import Measure
from reports.reading.origin import Environment, observe
from reports.reading.study import Study, Target
from reports.reading.units import UnknownOption, parse_difference
from reports.statistics import anova, dose, repeats
from reports.statistics.blocks import Blocks, blocks, usable
from reports.statistics.contrasts import TestedFamily, judge_families
from reports.statistics.families import baseline_cell
from reports.statistics.inference import Std, finite
from reports.statistics.judgement import Judged, judge
from reports.statistics.load import RunLoad, run_loads

DEFAULT_DB = "jobs.db"
"""Where the command line looks when --db is not given."""


@dataclass(frozen=True)
class Options:
    """What the reader asked for; all of it stands in the command that makes the report again."""

    std: Std = "sample"
    metric: str | None = None
    """Compared instead of the primary metric."""
    margin: str | None = None
    """Of equivalence, with its unit, instead of the declared one."""
    strict: bool = False
    format: str = "markdown"
    brief: bool = False
    """The first screen alone."""
    output: str | None = None
    db: str = DEFAULT_DB


@dataclass(frozen=True)
class Analysis:
    """The rows of a study, what they are asked, and what follows from them."""

    data: StudyData
    target: Target
    options: Options

    @property
    def study(self) -> Study:
        return self.data.study

    @property
    def std(self) -> Std:
        """The spread that ± shows."""
        return self.options.std

    @property
    def metric(self) -> Measure:
        """How the compared metric is written."""
        return self.target.measure

    @cached_property
    def environment(self) -> Environment:
        return observe(self.data)

    @cached_property
    def matrices(self) -> dict[str, Blocks]:
        """The compared metric and those of the claims, seeds × conditions; without what is not measured."""
        names = {self.target.metric, *(str(claim["metric"]) for claim in self.study.claims)}
        return {name: blocks(self.data, name) for name in names if usable(self.data, name)}

    @property
    def blocks(self) -> Blocks | None:
        """The compared metric; None where the study does not measure it."""
        return self.matrices.get(self.target.metric)

    @cached_property
    def families(self) -> tuple[TestedFamily, ...]:
        return tuple(judge_families(self.data, self.target))

    @cached_property
    def judged(self) -> tuple[Judged, ...]:
        """The declared claims with their verdicts."""
        return tuple(judge(self.data))

    @cached_property
    def responses(self) -> dict[str, dose.Response | str]:
        """Numeric factor of four levels or more → its fit, or the reason why there is none."""
        if self.blocks is None:
            return {}
        return {name: dose.respond(self.study, self.blocks, name) for name in dose.dosed(self.study)}

    @cached_property
    def variance(self) -> anova.Variance | str:
        """The analysis of variance, or the reason why there is none."""
        if self.blocks is None:
            return f"the metric {self.target.metric} is not among the recorded results"
        return anova.analyse(self.study, self.blocks)

    @cached_property
    def floors(self) -> tuple[repeats.Floor, ...]:
        return tuple(repeats.floors(self.data))

    @cached_property
    def loads(self) -> dict[int, RunLoad]:
        """Job → how its experts were loaded, for the finished runs that have counts."""
        return run_loads(self.data)


def analyse(data: StudyData, options: Options) -> Analysis:
    """The analysis of what the reader asked for.

    Raises:
        UnknownOption: a metric that is not among the results, or a margin that cannot be read.
    """
    study = data.study
    if options.metric is not None and not usable(data, options.metric):
        known = ", ".join(data.study.measures)
        raise UnknownOption(
            f"--metric {options.metric}: not among the recorded results; choose one of {known}"
        )
    margin = None
    if options.margin is not None:
        measure = study.measure(options.metric or study.primary)
        margin = parse_difference("--margin", options.margin, measure, baseline_perplexity(data, measure))
    return Analysis(data, study.target(options.metric, margin), options)


def baseline_perplexity(data: StudyData, measure: Measure) -> float:
    """The mean perplexity of the baseline's finished runs; NaN where there is none."""
    if not data.cells or not measure.logarithmic or measure.column not in data.runs:
        return math.nan
    return mean_perplexity(data.by_cell[baseline_cell(data)[0]][measure.column])


def mean_perplexity(values: npt.ArrayLike) -> float:
    """The mean of the runs' exponentials; NaN without a finite value. Shape: (S,)."""
    numbers = finite(values)
    return float(np.exp(numbers).mean()) if numbers.size else math.nan

"""The report as JSON, for a program: every number at full precision, then the text and tables as shown."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from reports.output.report import Report
from reports.reading.frames import StudyData
from reports.reading.rows import by_seed
from reports.reading.study import Cell
from reports.statistics.analysis import Analysis
from reports.statistics.contrasts import TestedFamily
from reports.statistics.failures import Failures
from reports.statistics.inference import Contrast, finite, mean_interval, spread
from reports.tables import Section


def as_json(report: Report, analysis: Analysis) -> str:
    """One object; a number that is missing or not finite is null. Keys: docs/method.md."""
    data = analysis.data
    first = report.answer
    content = {
        "title": report.title,
        "database_id": data.database_id,
        "command": report.command,
        "question": first.question,
        "answer": first.sentences,
        "missing": first.missing,
        "limits": dict(first.limits),
        "warnings": first.notes,
        "claims": [
            {
                "name": j.name,
                "kind": j.kind,
                "metric": j.metric,
                "margin": j.margin,
                "ratio": j.ratio,
                "equivalence_p": j.equivalence_p,
                "is": j.word,
                "verdict": j.verdict,
                "to_come": j.to_come,
                "look": None if j.outcome is None else j.outcome.plain(),
                **_contrast(j.contrast),
                "diverged": _failures(j.failures),
            }
            for j in analysis.judged
        ],
        "looks": [
            {
                "number": look.number,
                "seeds": look.seeds,
                "reason": look.reason,
                "claims": [outcome.plain() for outcome in look.outcomes],
            }
            for look in data.looks
        ],
        "conditions": [_condition(data, cell) for cell in data.cells],
        "families": [_family(family) for family in analysis.families],
        "sections": [_section(section) for section in (*report.sections, *report.appendix)],
    }
    return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"


def _condition(data: StudyData, cell: Cell) -> dict[str, Any]:
    """Mean, sample sd and t interval over seeds of every recorded number, with the seeds that have it."""
    runs = data.by_cell[cell]
    done = runs[runs["status"] == "done"]
    metrics = {}
    measured = by_seed(done[list(data.study.measures)].astype(float), done["seed"])
    for name in data.study.measures:
        values = finite(measured[name])
        if values.size:
            low, high = mean_interval(values)
            sd = spread(values, "sample")
            metrics[name] = {"n": values.size, "mean": values.mean(), "sd": sd, "low": low, "high": high}
    return {
        "cell": data.study.values(cell),
        "runs": len(runs),
        "done": len(done),
        "seeds": done["seed"].tolist(),
        "metrics": metrics,
    }


def _family(family: TestedFamily) -> dict[str, Any]:
    return {
        "name": family.family.name,
        "metric": family.measure.column,
        "tests": [
            {
                "contrast": t.comparison.label,
                **_contrast(t.contrast),
                "equivalence_p": t.equivalence_p,
                "is": t.word,
                "to_come": t.to_come,
                "diverged": _failures(t.failures),
            }
            for t in family.tested
        ],
    }


def _contrast(contrast: Contrast) -> dict[str, Any]:
    return {
        "n": contrast.n,
        "difference": contrast.difference,
        "sd": contrast.sd,
        "low": contrast.low,
        "high": contrast.high,
        "p": contrast.p,
        "tests": contrast.tests,
    }


def _failures(failures: Failures) -> dict[str, Any]:
    """Diverged runs of either side, of those that ended; exact McNemar p, uncorrected."""
    return {
        "first": failures.first,
        "first_of": failures.first_of,
        "second": failures.second,
        "second_of": failures.second_of,
        "p": failures.p,
    }


def _section(section: Section) -> dict[str, Any]:
    return {
        "heading": section.heading,
        "text": section.text,
        "facts": dict(section.facts),
        "tables": [{"heading": t.heading, "columns": t.columns, "rows": t.rows} for t in section.tables],
        "notes": section.notes,
        "figures": [{"name": picture.name, "caption": picture.caption} for picture in section.pictures],
    }


def _plain(value: Any) -> Any:
    """The same content in JSON's types: numpy's numbers unwrapped, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

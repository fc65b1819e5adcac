"""What a reader must know beside the numbers: warnings, limits, what is missing, what the words mean.

Reads a StudyData alone. The first screen: reports/sections/answer.py. What made the results: provenance.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

from reports.reading.frames import StudyData
from reports.reading.origin import NOT_RECORDED, distinct
from reports.reading.rows import recorded
from reports.sections.costs import CLOCKS
from reports.statistics.analysis import Analysis
from reports.tables import DASH, Fact, Section

_SHORT = {
    "bundled": "bundled: State of the Union addresses; no loss compares with Cosmopedia's",
    "smollm": "HuggingFaceTB/smollm-corpus, cosmopedia-v2",
}
_PUBLISHED = (
    "Published protocol: its validation text is almost all in the training text, so that these losses are "
    "close to training losses, and do not compare with the sound protocol's."
)
_METHOD_HERE = (
    "Seeds are blocks: the conditions of one seed share what it decides, as initialisation and the order of "
    "the data, so that differences are taken within a seed. Whether the ± of two conditions overlap says "
    "nothing.",
    "What was recorded under the split test is stored sealed; it is read only after python cli.py test.",
)
_METHOD_ELSEWHERE = (
    "Seeds are blocks: differences are taken within a seed. What else the runs of one seed shared is not "
    "recorded here. Whether the ± of two conditions overlap says nothing. Every measure is as its authors "
    "defined and rounded it.",
)
_OF_MEASURES = (
    (
        "expert_usage_cv",
        "Expert usage CV is the population sd / mean of the experts' token counts, summed over layers.",
    ),
    (
        "aux_loss_last_100",
        "Aux loss is the load-balancing loss as added to the training loss, 0 where its weight is 0; the "
        "unweighted one stands under training stability.",
    ),
    (
        "val_bits_per_byte",
        "Perplexity is the exponential of the loss; bits per byte compares across tokenizers, the loss does "
        "not. A mean perplexity is the mean of the runs' perplexities.",
    ),
    (
        "best_val_perplexity",
        "Best Val PPL is the lowest of a run's evaluations on the same held-out text: biased low, the more "
        "so the more evaluations there are. The final loss is primary.",
    ),
)
"""What is said of a measure where a run recorded it."""


def warnings(analysis: Analysis) -> tuple[str, ...]:
    """What changes how the numbers may be read, in a line each; empty for a sound, uniform study."""
    data, environment, study = analysis.data, analysis.environment, analysis.study
    lines = [_PUBLISHED] if study.protocol == "published" else []
    if study.imported_from is not None:
        lines.append(
            f"Imported from {study.imported_from}: computed elsewhere, by the definitions of its authors, "
            "and shown as given."
        )
    text = study.grid.get("text", {})
    if text.get("lossy"):
        lines.append(
            f"The tokenizer loses {percent(text['lost'])} of the text's characters: bits per byte is too "
            "low, since what is lost costs nothing and its bytes are counted."
        )
    if text.get("near"):
        lines.append(
            f"Near duplicates: {percent(text['overlap'])} of the validation text's sequences of 13 words "
            "occur in the training text, so that its loss is partly of text that was trained on."
        )
    if len(environment.mixed) == 1:
        lines.append(f"Mixed: {environment.mixed[0]}.")
    elif environment.mixed:
        keys = ", ".join(line.partition(":")[0] for line in environment.mixed)
        lines.append(f"Mixed: runs differ in {keys}; a difference between conditions may be one of those.")
    return (*lines, *_not_finite(data))


def missing_line(analysis: Analysis) -> str:
    """What has no result, and why."""
    data = analysis.data
    missing = len(data.runs) - len(data.done)
    if not len(data.runs):
        return "The study has no runs."
    paused = " The study is paused." if data.study.held else ""
    absent = never_enqueued(data)
    never = f" {absent} of the grid never enqueued." if absent else ""
    if not missing:
        return f"Nothing: all {len(data.runs)} runs are done.{never}{paused}"
    return f"Unfinished: {missing} of {len(data.runs)} runs have no result ({states(data)}).{never}{paused}"


def limits(analysis: Analysis) -> tuple[Fact, ...]:
    """What limits what the answer says: scale, corpus, seeds; and how far its looks have come."""
    data, study = analysis.data, analysis.study
    scale = study.grid.get("scale")
    done = data.done
    sizes = [
        f"{_range(done.groupby('cell')[column].median().dropna().tolist())} {what}"
        for column, what in (("parameters_total", "parameters"), ("tokens_seen", "training tokens a run"))
        if recorded(done, [column])
    ]
    small = "; far below the scale of the question" if scale in ("small", "smoke") else ""
    told = [*([str(scale)] if scale else []), *([" and ".join(sizes)] if sizes else [])]
    seeds = sorted(set(data.runs["seed"].tolist()))
    of_one_text = ", of one text" if study.has_text else ""
    return (
        *looks_line(data),
        ("Scale", f"{': '.join(told) or NOT_RECORDED}{small}"),
        *((("Corpus", _SHORT.get(study.corpus, study.corpus) or NOT_RECORDED),) if study.has_text else ()),
        *study.further_facts,
        ("Seeds", f"{len(seeds)} ({seed_span(seeds) or DASH}); intervals are over seeds{of_one_text}"),
    )


def method(analysis: Analysis) -> Section:
    """What the words and columns mean."""
    study, std = analysis.study, analysis.std
    divisor = {"sample": "n - 1 (ddof 1)", "population": "n (ddof 0)"}[std]
    return Section(
        "Method",
        notes=(
            f"± is the {std} standard deviation over seeds, divisor {divisor}; --std chooses. The population "
            "form understates the spread of few seeds and is there to reproduce published tables.",
            *(_METHOD_ELSEWHERE if study.imported_from is not None else _METHOD_HERE),
            *(text for name, text in _OF_MEASURES if recorded(analysis.data.done, [name])),
        ),
    )


def looks_line(data: StudyData) -> tuple[Fact, ...]:
    """`look 2 of 4, 6 seeds, 4 of 6 claims decided; next look at 10, at most 0.5 device hours to go`."""
    standing = data.standing
    if standing is None:
        return ()
    if standing.reason:
        return (("Looks", standing.told()),)
    waiting = data.runs[data.runs["status"].isin(["queued", "running"])]
    steps = standing.steps + int((waiting["total_steps"] - waiting["progress_step"]).sum())
    seconds = sum(float(data.done[clock].sum()) for clock in CLOCKS)
    hours = seconds / max(1, int(data.done["total_steps"].sum())) * steps / 3600
    further = f", at most {hours:.2g} device hours to go" if hours else ""
    return (("Looks", standing.told(further)),)


def _range(of_conditions: list[float]) -> str:
    """The smallest to the largest, or the one that all have."""
    return " to ".join(dict.fromkeys([_compact(min(of_conditions)), _compact(max(of_conditions))]))


def _compact(count: float) -> str:
    """`1.7 M`, `123 k`: a size at a glance; the exact ones stand under provenance."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def seed_span(seeds: list[int]) -> str:
    if len(seeds) > 4 and all(b - a == 1 for a, b in pairwise(seeds)):
        return f"{seeds[0]}..{seeds[-1]}"
    return comma(seeds)


def states(data: StudyData) -> str:
    """`2 failed (oom 2); 3 queued`: the runs without a result."""
    counted = data.runs["status"].value_counts()
    parts = [f"{counted[s]} {s}" for s in ("failed", "cancelled", "running", "queued") if s in counted]
    if "failed" in counted:
        parts[0] += f" ({_causes(data)})"
    return "; ".join(parts)


def never_enqueued(data: StudyData) -> int:
    if data.study.looks:
        return 0  # its looks say which seeds it gets
    known = set(zip(data.runs["cell"], data.runs["seed"], strict=True))
    wanted = {(cell, seed) for cell in data.study.cells() for seed in data.study.seeds}
    return len(wanted - known)


def _causes(data: StudyData) -> str:
    """`diverged 2, oom 1`: the last causes of the failed runs."""
    last = data.last_causes
    failed = data.runs[data.runs["status"] == "failed"]["job_id"]
    known = [last.loc[job, "cause"] if job in last.index else "cause not recorded" for job in failed]
    return ", ".join(f"{cause} {n}" for cause, n in distinct(map(str, known)).items())


def percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _not_finite(data: StudyData) -> list[str]:
    """Values that are NaN or infinite in finished runs: they are in no mean, so they are named."""
    done = data.done.set_index("job_id")
    found = [(m["job_id"], f"{m['name']} {m['nonfinite']}") for m in data.nonfinite.to_dict("records")]
    for column in done.select_dtypes("float64"):
        infinite = done.index[done[column].abs() == math.inf]
        found += [(job, f"{column} inf") for job in infinite]
    by_job: dict[int, list[str]] = {}
    for job, text in sorted(found):
        if job in done.index:
            by_job.setdefault(job, []).append(text)
    lines = [
        f"Not finite, so in no mean: job {job} ({data.study.label(done['cell'][job])}, "
        f"seed {done['seed'][job]}): {', '.join(texts)}."
        for job, texts in list(by_job.items())[:10]
    ]
    return lines + ([f"Not finite values in {len(by_job) - 10} more runs."] if len(by_job) > 10 else [])


def comma(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)

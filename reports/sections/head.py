"""What a study is and what made it: warnings and limits for the first screen, provenance for the appendix.

They only read a StudyData. The first screen: reports/sections/answer.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pandas as pd

from reports.reading.frames import StudyData
from reports.reading.measures import LOSS
from reports.reading.origin import NOT_RECORDED, SOURCE, Environment, distinct, short
from reports.reading.study import Study, Target
from reports.statistics.analysis import Analysis
from reports.tables import DASH, Fact, Section, instant, number, whole

MOST_LOST = 0.01
"""Share of the text's characters above which the report warns, as `enqueue` refuses."""

HEADING = "Provenance"
_CORPORA = {
    "bundled": "bundled: State of the Union addresses, 1790 to 2021, public domain. This is NOT Cosmopedia: "
    "its losses do not compare with the published study's",
    "smollm": "smollm: HuggingFaceTB/smollm-corpus, cosmopedia-v2",
}
_SHORT = {
    "bundled": "bundled: State of the Union addresses; no loss compares with Cosmopedia's",
    "smollm": "HuggingFaceTB/smollm-corpus, cosmopedia-v2",
}
_PROTOCOLS = {
    "sound": "sound: documents are split before they are cut into windows, the split is fixed for the study, "
    "and each target of the held-out windows is scored once",
    "unknown": "unknown: the runs were not made here, and the file does not say how",
    "published": "published: the published study's own windows, split, schedule and evaluation",
}
_PUBLISHED = (
    "Published protocol: its validation text is almost all in the training text, so that these losses are "
    "close to training losses, and do not compare with the sound protocol's."
)
_DEFECTS = (
    "The split is drawn from the run's seed; training and validation windows overlap almost entirely; the "
    "schedule's horizon counts steps, so that the rate hardly decays; perplexity is over the first 2,400 "
    "windows"
)


def provenance(analysis: Analysis) -> Section:
    """What was declared, what ran, and what made the results; what is not recorded stands in one line."""
    found = _facts(analysis)
    absent = [label.lower() for label, text in found if text == NOT_RECORDED]
    facts = tuple((label, text) for label, text in found if text != NOT_RECORDED)
    return Section(
        HEADING,
        facts=(*facts, *([("Not recorded", ", ".join(absent))] if absent else [])),
        notes=tuple(f"Mixed: {line}." for line in analysis.environment.mixed),
    )


def _facts(analysis: Analysis) -> tuple[Fact, ...]:
    data, environment, target, study = analysis.data, analysis.environment, analysis.target, analysis.study
    return (
        ("Design", _design(data)),
        *(() if study.grid.get("question") else (("Question", "none was declared with this study"),)),
        *_levels(study),
        ("Primary metric", _primary(study)),
        *_target(study, target),
        ("Declared before the runs", _declared(data)),
        ("Runs", _progress(data)),
        *_shared(data),
        ("Corpus", corpus_line(study)),
        *_text(study),
        ("Protocol", protocol_line(study) + _scored(data)),
        *((("Known defects of the protocol", _DEFECTS),) if study.protocol == "published" else ()),
        ("Model and training", _shape(environment)),
        ("Parameters", _parameters(data)),
        ("Training tokens", _tokens(data.done)),
        ("Devices", _devices(environment)),
        ("Code", _code(environment)),
        ("Packages", _packages(environment)),
        ("Exactness", _exactness(data, environment)),
        ("Test split", _test_split(data)),
        ("Database", f"{data.database_id}, newest record {instant(newest_record(data))}"),
    )


def warnings(analysis: Analysis) -> tuple[str, ...]:
    """What changes how the numbers may be read, in a line each; empty for a sound, uniform study."""
    data, environment, study = analysis.data, analysis.environment, analysis.study
    lines = [_PUBLISHED] if study.protocol == "published" else []
    if study.imported_from is not None:
        lines.append(
            f"Imported from {study.imported_from}: computed elsewhere, by the definitions of its authors, "
            "and shown as given."
        )
    if (lost := study.grid.get("text", {}).get("lost", 0.0)) > MOST_LOST:
        lines.append(
            f"The tokenizer loses {_percent(lost)} of the text's characters: bits per byte is too low, since "
            "what is lost costs nothing and its bytes are counted."
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
    absent = _never_enqueued(data)
    never = f" {absent} of the grid never enqueued." if absent else ""
    if not missing:
        return f"Nothing: all {len(data.runs)} runs are done.{never}{paused}"
    return f"Unfinished: {missing} of {len(data.runs)} runs have no result ({_states(data)}).{never}{paused}"


def limits(analysis: Analysis) -> tuple[Fact, ...]:
    """The three facts that limit what the answer says: scale, corpus, seeds."""
    data, study = analysis.data, analysis.study
    scale = study.grid.get("scale")
    done = data.done
    sizes = [
        f"{_compact(float(done[column].dropna().median()))} {what}"
        for column, what in (("parameters_total", "parameters"), ("tokens_seen", "training tokens a run"))
        if done[column].notna().any()
    ]
    small = "; far below the question's" if scale in ("small", "smoke") else ""
    told = [*([str(scale)] if scale else []), *([" and ".join(sizes)] if sizes else [])]
    seeds = sorted(set(data.runs["seed"].tolist()))
    return (
        ("Scale", f"{': '.join(told) or NOT_RECORDED}{small}"),
        ("Corpus", _SHORT.get(study.corpus, study.corpus) or NOT_RECORDED),
        ("Seeds", f"{len(seeds)} ({_seeds(seeds) or DASH}); intervals are over seeds, of one text"),
    )


def _compact(count: float) -> str:
    """`1.7 M`, `123 k`: a size at a glance; the exact ones stand under provenance."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def newest_record(data: StudyData) -> float:
    """The newest instant that the study's rows carry: a report's only clock, so that it can be repeated."""
    study, runs, attempts = data.study, data.runs, data.attempts
    columns = [runs[name] for name in ("created_at", "finished_at", "recorded_at")]
    columns += [attempts[name] for name in ("started_at", "ended_at")]
    times = [study.created_at, study.test_revealed_at or 0.0, *(float(c.max()) for c in columns if len(c))]
    return max(time for time in times if not math.isnan(time))


def _design(data: StudyData) -> str:
    levels = [f"{factor} {{{_comma(values)}}}" for factor, values in data.study.factors.items()]
    seeds = f"seeds {{{_seeds(sorted(set(data.runs['seed'])))}}}"
    conditions = len(data.cells)
    return (
        f"{' × '.join([*levels, seeds])}: {conditions} condition{'s' * (conditions != 1)}, "
        f"{len(data.runs)} run{'s' * (len(data.runs) != 1)}"
    )


def _levels(study: Study) -> tuple[Fact, ...]:
    """What each named level sets: `bias: load_balancing_weight 0.0, bias_rate 0.01`."""
    told = {}
    for factor, levels in study.levels.items():
        each = (f"{level}: {_comma(f'{k} {v}' for k, v in keys.items())}" for level, keys in levels.items())
        told[factor] = "; ".join(each)
    return tuple((f"Levels of {factor}", text) for factor, text in told.items())


def _seeds(seeds: list[int]) -> str:
    if len(seeds) > 4 and all(b - a == 1 for a, b in pairwise(seeds)):
        return f"{seeds[0]}..{seeds[-1]}"
    return _comma(seeds)


def _primary(study: Study) -> str:
    unit = " (final held-out loss, nats per token; lower is better)" if study.primary == LOSS.column else ""
    return f"{study.primary}{unit}; margin of equivalence {_margin(study.target())}"


def _margin(target: Target) -> str:
    return "none" if target.margin is None else f"{target.margin:.4g} ({target.origin})"


def _target(study: Study, target: Target) -> tuple[Fact, ...]:
    """What the command line put in the place of the declared target, said as such."""
    if target == study.target():
        return ()
    return (("Compared here", f"{target.metric}, margin {_margin(target)}; asked for on the command line"),)


def _declared(data: StudyData) -> str:
    study = data.study
    if study.imported_from is not None:
        return "nothing that is known: the results were imported"
    claims = study.claims
    named = f"{len(claims)} claim{'s' * (len(claims) != 1)}" if claims else "no claims"
    return (
        f"factors, seeds, baseline, primary metric, margins and {named}, in the grid "
        f"{study.grid.get('name') or NOT_RECORDED}, {instant(study.created_at)}{_added(data)}"
    )


def _added(data: StudyData) -> str:
    """`; added since: …`: what joined the study after its first runs, and by which plan."""
    told = [(a.at, f"{a.runs} run{'s' * (a.runs != 1)} on {instant(a.at)}") for a in data.additions]
    told += [
        (p.at, f"(planned on {instant(p.at)}: {p.total} seeds in all, for a {p.rule} of {p.value:.4g})")
        for p in data.plans
    ]
    return f"; added since: {', '.join(text for _, text in sorted(told))}" if told else ""


def _scored(data: StudyData) -> str:
    """`: 16,256 targets`: how many the final pass scored, from the experts' counts."""
    counts, done = data.counts, data.done
    if counts.empty:
        return ""
    top_k = {job: config.get("model", {}).get("top_k") for job, config in done[["job_id", "config"]].values}
    first = counts[counts["layer"] == 0].groupby("job_id")["tokens"].sum()
    scored = {int(n) // top_k[job] for job, n in first.items() if top_k.get(job)}
    return f": {' or '.join(f'{n:,}' for n in sorted(scored))} targets" if scored else ""


def _progress(data: StudyData) -> str:
    states = _states(data)
    text = f"{len(data.done)} of {len(data.runs)} done" + (f"; {states}" if states else "")
    if absent := _never_enqueued(data):
        text += f"; {absent} of the grid never enqueued"
    ended = distinct(data.attempts["outcome"].dropna())
    other = [f"{n} {outcome}" for outcome, n in ended.items() if outcome != "done"]
    return f"{text}. Attempts that ended without a result: {', '.join(other) or 'none'}"


def _shared(data: StudyData) -> tuple[Fact, ...]:
    """Runs that another study of the database has as well: the two are not independent there."""
    if not data.shared:
        return ()
    told = _comma(
        f"{count} of its {len(data.runs)} runs have the configuration of runs in study {name}"
        for name, count in data.shared
    )
    return (("Shared runs", f"{told}; same configuration, same seed: no independent evidence"),)


def _states(data: StudyData) -> str:
    """`2 failed (oom 2); 3 queued`: the runs without a result."""
    counted = data.runs["status"].value_counts()
    parts = [f"{counted[s]} {s}" for s in ("failed", "cancelled", "running", "queued") if s in counted]
    if "failed" in counted:
        parts[0] += f" ({_causes(data)})"
    return "; ".join(parts)


def _never_enqueued(data: StudyData) -> int:
    known = set(zip(data.runs["cell"], data.runs["seed"], strict=True))
    wanted = {(cell, seed) for cell in data.study.cells() for seed in data.study.seeds}
    return len(wanted - known)


def _causes(data: StudyData) -> str:
    """`diverged 2, oom 1`: the last causes of the failed runs."""
    last = data.last_causes
    failed = data.runs[data.runs["status"] == "failed"]["job_id"]
    known = [last.loc[job, "cause"] if job in last.index else "cause not recorded" for job in failed]
    return ", ".join(f"{cause} {n}" for cause, n in distinct(map(str, known)).items())


def protocol_line(study: Study) -> str:
    """The protocol's name and what it means."""
    return _PROTOCOLS.get(study.protocol, study.protocol)


def corpus_line(study: Study) -> str:
    """The text that the study is about, and what identifies it."""
    text = _CORPORA.get(study.corpus, f"{study.corpus}")
    short = study.corpus_id if len(study.corpus_id) <= 16 else f"{study.corpus_id[:16]}…"
    return f"{text} (id {short or NOT_RECORDED})"


def _text(study: Study) -> tuple[Fact, ...]:
    """What `enqueue` found of the text; studies of earlier builds have none of it."""
    text = study.grid.get("text")
    if not text:
        return ()
    counts = ", ".join(f"{whole(n)} {split}" for split, n in text["documents"].items())
    told = [f"documents {counts}"]
    if text.get("overlap") is not None:
        told.append(f"n-gram overlap of validation with training {_percent(text['overlap'])}")
    told.append(f"the tokenizer loses {_percent(text['lost'])} of the text's characters")
    return (("Text", "; ".join(told)),)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _shape(environment: Environment) -> str:
    """The configuration in a line: what all runs share, and what else varies than the factors."""
    values = environment.configured
    names = (
        *("d_model", "n_layers", "n_heads", "d_ff", "n_experts", "top_k", "dropout", "vocab_size"),
        *("steps", "batch_size", "seq_len", "accumulate", "eval_every", "muon_lr"),
    )
    told = []
    for name in names:
        for key in (f"model.{name}", f"train.{name}"):
            if key in values:
                found = set(values[key].values())
                told.append(f"{name} {found.pop() if len(found) == 1 else 'varies'}")
    return ", ".join(told) or NOT_RECORDED


def _parameters(data: StudyData) -> str:
    done = data.done.dropna(subset=["parameters_total", "parameters_active"])
    columns = (done["parameters_total"], done["parameters_active"], done["config"])
    counts = distinct(_parameter_line(*run) for run in zip(*columns, strict=True))
    if not counts:
        return NOT_RECORDED
    if len(counts) == 1:
        return f"{next(iter(counts))}; the same in every cell"
    return "not the same in every cell: " + " / ".join(f"{text} ({n} runs)" for text, n in counts.items())


def _parameter_line(total: float, active: float, config: dict[str, Any]) -> str:
    model = config.get("model", {})
    text = f"{whole(total)} in total, {whole(active)} truly active per token"
    sizes = [model.get(name) for name in ("n_layers", "n_experts", "d_model", "d_ff")]
    if any(size is None for size in sizes):
        return text
    in_experts = 2 * math.prod(sizes)  # W1 (F×D) and W2 (D×F) of each expert
    return f'{text}, {whole(total - in_experts)} outside experts (the published study\'s "active")'


def _tokens(done: pd.DataFrame) -> str:
    told = done.dropna(subset=["tokens_seen", "unique_tokens"])
    lines = {
        f"{whole(seen)} seen, of {whole(unique)} unique ({number(seen / unique, 1)} epochs)"
        for seen, unique in zip(told["tokens_seen"], told["unique_tokens"], strict=True)
        if unique > 0
    }
    return " / ".join(sorted(lines)) or NOT_RECORDED


def _devices(environment: Environment) -> str:
    if not environment.made_by:
        return NOT_RECORDED
    told = []
    for name in ("processor", "precision", "threads", "driver", "host"):
        # Precision and threads may be told by the numeric environment alone; a CPU has no driver.
        keys = [key for key in (name, f"numeric_environment.{name}") if key in environment.made_by]
        told += [f"{name} {environment.all_of(key)}" for key in keys[:1]]
    return "; ".join([environment.all_of("device_name"), *told])


def _code(environment: Environment) -> str:
    if not environment.made_by:
        return NOT_RECORDED
    dirty = sum("true" in value for value in environment.made_by.get("git_dirty", {}).values())
    changed = f"; with uncommitted changes in {dirty} run{'s' * (dirty != 1)}" if dirty else ""
    source = f"source {short(environment.all_of(SOURCE))}, " if SOURCE in environment.made_by else ""
    return f"{source}commit {environment.all_of('git_commit')}{changed}"


def _packages(environment: Environment) -> str:
    prefix = "packages."
    found = {k.removeprefix(prefix): v for k, v in environment.made_by.items() if k.startswith(prefix)}
    told = [f"{name} {' or '.join(distinct(versions.values()))}" for name, versions in found.items()]
    return ", ".join(told) or NOT_RECORDED


def _exactness(data: StudyData, environment: Environment) -> str:
    if data.study.imported_from is not None:
        return "unknown: computed elsewhere"
    if data.done.empty:
        return DASH
    if loose := int((data.done["exact"] == 0).sum()):
        why = "resumed in another numeric environment, or under other code"
        return f"{loose} of {len(data.done)} results are not exact: {why}"
    return "every result is exact" + (", but the runs are mixed (see above)" if environment.mixed else "")


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


def _test_split(data: StudyData) -> str:
    study = data.study
    if study.imported_from is not None:
        return NOT_RECORDED
    if study.test_revealed_at is None:
        return "sealed: not read for this report"
    by = f" by {data.revealed_by}" if data.revealed_by else ""
    return f"revealed {instant(study.test_revealed_at)}{by}"


def _comma(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)

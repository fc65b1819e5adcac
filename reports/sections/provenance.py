"""What was declared, what ran, and what made the results: the appendix's provenance. Reads a StudyData."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from reports.reading.frames import StudyData
from reports.reading.origin import NOT_RECORDED, SOURCE, Environment, distinct, short
from reports.reading.study import Study, Target
from reports.sections.head import comma, never_enqueued, percent, seed_span, states
from reports.statistics.analysis import Analysis
from reports.tables import DASH, Fact, Section, instant, number, whole
from runner.queue.where import counted

HEADING = "Provenance"
_CORPORA = {
    "bundled": "bundled: State of the Union addresses, 1790 to 2021, public domain. This is NOT Cosmopedia: "
    "its losses do not compare with the published study's",
    "smollm": "smollm: HuggingFaceTB/smollm-corpus, cosmopedia-v2",
}
_PROTOCOLS = {
    "sound": "sound: documents are split before they are cut into windows, the split is fixed for the study, "
    "and each target of the held-out windows is scored once",
    "unknown": "unknown: the runs were not made here, and the file does not say how",
    "published": "published: the published study's own windows, split, schedule and evaluation",
}
_MOST_KEYS = 16
"""Of the line of the configuration."""
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
        *(_of_text(data) if study.has_text else ()),
        *study.further_facts,
        ("Model and training", _shape(environment)),
        *((("Parameters", _parameters(data)),) if "parameters_total" in study.measures else ()),
        *((("Training tokens", _tokens(data.done)),) if "tokens_seen" in study.measures else ()),
        ("Devices", _devices(environment)),
        ("Code", _code(environment)),
        ("Packages", _packages(environment)),
        ("Exactness", _exactness(data, environment)),
        ("Test split", _test_split(data)),
        ("Database", f"{data.database_id}, newest record {instant(newest_record(data))}"),
    )


def _of_text(data: StudyData) -> tuple[Fact, ...]:
    """The text that the runs were of, and how it was split and scored."""
    study = data.study
    return (
        ("Corpus", corpus_line(study)),
        *_text(study),
        ("Protocol", protocol_line(study) + _scored(data)),
        *((("Known defects of the protocol", _DEFECTS),) if study.protocol == "published" else ()),
    )


def newest_record(data: StudyData) -> float:
    """The newest instant that the study's rows carry: a report's only clock, so that it can be repeated."""
    study, runs, attempts = data.study, data.runs, data.attempts
    columns = [runs[name] for name in ("created_at", "finished_at", "recorded_at")]
    columns += [attempts[name] for name in ("started_at", "ended_at")]
    times = [study.created_at, study.test_revealed_at or 0.0, *(float(c.max()) for c in columns if len(c))]
    return max(time for time in times if not math.isnan(time))


def _design(data: StudyData) -> str:
    levels = [f"{factor} {{{comma(values)}}}" for factor, values in data.study.factors.items()]
    seeds = f"seeds {{{seed_span(sorted(set(data.runs['seed'])))}}}"
    size = f"{counted(len(data.cells), 'condition')}, {counted(len(data.runs), 'run')}"
    return f"{' × '.join([*levels, seeds])}: {size}"


def _levels(study: Study) -> tuple[Fact, ...]:
    """What each named level sets: `bias: load_balancing_weight 0.0, bias_rate 0.01`."""
    told = {}
    for factor, levels in study.levels.items():
        each = (f"{level}: {comma(f'{k} {v}' for k, v in keys.items())}" for level, keys in levels.items())
        told[factor] = "; ".join(each)
    return tuple((f"Levels of {factor}", text) for factor, text in told.items())


def _primary(study: Study) -> str:
    known = study.measure(study.primary)
    way = f"{known.better} is better" if known.better != "none" else ""
    told = "; ".join(part for part in (known.unit, way) if part)
    return f"{study.primary}{f' ({told})' if told else ''}; margin of equivalence {_margin(study.target())}"


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
    named = counted(len(claims), "claim") if claims else "no claims"
    return (
        f"factors, seeds, baseline, primary metric, margins and {named}, in the grid "
        f"{study.grid.get('name') or NOT_RECORDED}, {instant(study.created_at)}{_added(data)}"
    )


def _added(data: StudyData) -> str:
    """`; added since: …`: what joined the study after its first runs, and by which plan."""
    if plan := data.study.looks:
        at = comma(plan["seeds"])
        return f"; looks at {at} seeds, {plan['spending']} spending, which queue what is needed"
    told = [(a.at, f"{counted(a.runs, 'run')} on {instant(a.at)}") for a in data.additions]
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
    rest = states(data)
    text = f"{len(data.done)} of {len(data.runs)} done" + (f"; {rest}" if rest else "")
    if absent := never_enqueued(data):
        text += f"; {absent} of the grid never enqueued"
    ended = distinct(data.attempts["outcome"].dropna())
    other = [f"{n} {outcome}" for outcome, n in ended.items() if outcome != "done"]
    return f"{text}. Attempts that ended without a result: {', '.join(other) or 'none'}"


def _shared(data: StudyData) -> tuple[Fact, ...]:
    """Runs that another study of the database has as well: the two are not independent there."""
    if not data.shared:
        return ()
    told = comma(
        f"{count} of its {len(data.runs)} runs have the configuration of runs in study {name}"
        for name, count in data.shared
    )
    taken = comma(f"{count} from study {name}" for name, count in data.linked)
    linked = f". Taken over and not trained again: {taken}" if taken else ""
    return (("Shared runs", f"{told}; same configuration, same seed: no independent evidence{linked}"),)


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
        told.append(f"n-gram overlap of validation with training {percent(text['overlap'])}")
    told.append(f"the tokenizer loses {percent(text['lost'])} of the text's characters")
    return (("Text", "; ".join(told)),)


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
    if not told:  # another program's: every key that all runs share
        told = [
            f"{key} {next(iter(set(of.values())))}"
            for key, of in values.items()
            if len(set(of.values())) == 1
        ]
    return ", ".join(told[:_MOST_KEYS]) or NOT_RECORDED


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
    changed = f"; with uncommitted changes in {counted(dirty, 'run')}" if dirty else ""
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


def _test_split(data: StudyData) -> str:
    study = data.study
    if study.imported_from is not None:
        return NOT_RECORDED
    if study.test_revealed_at is None:
        return "sealed: not read for this report"
    by = f" by {data.revealed_by}" if data.revealed_by else ""
    return f"revealed {instant(study.test_revealed_at)}{by}"

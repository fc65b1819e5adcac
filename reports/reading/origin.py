"""What made the results, and whether it was one thing: code, packages, devices, configurations.

A mixed study is not refused here, it is disclosed: a difference between conditions that ran on different
devices or code is a difference of those, too. Who prints it: reports/sections/provenance.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reports.reading.frames import StudyData
from runner.queue.where import counted

NOT_RECORDED = "not recorded"
SOURCE = "source_sha256"
_OF_CODE = {SOURCE, "numeric_environment.source", "git_commit", "git_dirty"}
"""Told in one line where the source is recorded: another commit of the same files is the same code."""
Values = dict[str, dict[int, str]]
"""Key → run (job id) → what it had there, as text."""


@dataclass(frozen=True)
class Environment:
    """What the runs of a study were told, what made the finished ones, and where either is not one thing."""

    configured: Values
    made_by: Values
    mixed: tuple[str, ...]

    def all_of(self, key: str) -> str:
        """What the finished runs had under a key of their provenance, with counts where they differ."""
        shares = distinct(self.made_by.get(key, {}).values())
        if len(shares) <= 1:
            return next(iter(shares), NOT_RECORDED)
        return ", ".join(f"{value} ({counted(n, 'run')})" for value, n in shares.items())


def observe(data: StudyData) -> Environment:
    """Collect configurations and provenance; imported results tell nothing of what made them."""
    configured, made_by = configurations(data), provenance(data)
    made_with = made_by
    mixed = differences(configured, data.runs["job_id"])
    if data.study.imported_from is None:
        done = data.done["job_id"]
        if SOURCE in made_by:
            mixed += _codes(made_by, done)
            made_with = {key: value for key, value in made_by.items() if key not in _OF_CODE}
        mixed += differences(made_with, done)
    return Environment(configured, made_by, tuple(mixed))


def provenance(data: StudyData) -> Values:
    """What each finished run was made by: the keys of its attempts' provenance, dotted.

    A resumed run was made by its earlier attempts as well; where they differ, all values are named.
    """
    found: dict[str, dict[int, list[str]]] = {}
    for job, attempt in _making_attempts(data):
        seen = flatten(attempt["provenance"])
        seen.setdefault("device_name", str(attempt["device"]))
        for key, value in seen.items():
            values = found.setdefault(key, {}).setdefault(job, [])
            if value not in values:
                values.append(value)
    return {key: {job: " then ".join(v) for job, v in found[key].items()} for key in sorted(found)}


def configurations(data: StudyData) -> Values:
    """What each run was told: the keys of its configuration, dotted, without seed and repeat.

    What varies on purpose is left out; so are names of a text that also has an identity.
    """
    varied = {"seed", "repeat", *data.study.varied}
    found: Values = {}
    for job, config in zip(data.runs["job_id"], data.runs["config"], strict=True):
        values = flatten(config)
        for key, value in values.items():
            named = key in ("data.corpus", "data.tokenizer") and values.get(f"{key}_id")
            if not named and key not in varied and key.rsplit(".", 1)[-1] not in varied:
                found.setdefault(key, {})[int(job)] = value
    return found


def differences(values: Values, jobs: Iterable[int]) -> list[str]:
    """`key: value (n runs), value (n runs)` for each key that is not the same in all of `jobs`."""
    jobs = list(jobs)
    lines = []
    for key, by_job in values.items():
        shares = distinct([by_job.get(job, NOT_RECORDED) for job in jobs])
        if len(shares) > 1:
            told = ", ".join(f"{value} ({counted(n, 'run')})" for value, n in shares.items())
            lines.append(f"{key}: {told}")
    return lines


def _codes(made_by: Values, jobs: Iterable[int]) -> list[str]:
    """`code: source 1f… (commit c0ffee) in jobs 1 to 4; source 2e… in job 5`, or nothing where it is one."""
    by_source: dict[str, list[int]] = {}
    for job in sorted(jobs):
        by_source.setdefault(made_by[SOURCE].get(job, NOT_RECORDED), []).append(job)
    if len(by_source) < 2:
        return []
    told = []
    for source, its in by_source.items():
        commits = " or ".join(distinct(made_by.get("git_commit", {}).get(job, NOT_RECORDED) for job in its))
        changed = any("true" in made_by.get("git_dirty", {}).get(job, "") for job in its)
        told.append(f"source {short(source)} (commit {commits}{', modified' * changed}) in {_ranges(its)}")
    return [f"code: {'; '.join(told)}"]


def short(source: str) -> str:
    """A SHA-256, or several with `then` between them, by their first letters."""
    return " ".join(word[:12] for word in source.split(" "))


def _ranges(jobs: list[int]) -> str:
    """`jobs 1 to 4, 7`."""
    parts: list[list[int]] = []
    for job in jobs:
        if parts and parts[-1][-1] == job - 1:
            parts[-1].append(job)
        else:
            parts.append([job])
    told = [f"{part[0]}" if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
    return f"job{'s' * (len(jobs) != 1)} {', '.join(told)}"


def distinct(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs, in the values' order."""
    counted: dict[str, int] = {}
    for value in sorted(values):
        counted[value] = counted.get(value, 0) + 1
    return counted


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys with values as text; null counts as not recorded."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else _written(value)
    return flat


def _written(value: Any) -> str:
    """As JSON writes it; most values of ten thousand configurations are plain numbers."""
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return repr(value)
    return json.dumps(value)


def _making_attempts(data: StudyData) -> Iterable[tuple[int, dict[str, Any]]]:
    done = data.done
    finishers = dict(zip(done["job_id"], done["result_attempt"], strict=True))
    attempts = [a for a in data.attempts.to_dict("records") if a["job_id"] in finishers]
    resumed = {
        a["job_id"]
        for a in attempts
        if a["number"] == finishers[a["job_id"]] and a["resumed_from_step"] > 0  # NaN is not
    }
    for attempt in attempts:
        last = finishers[attempt["job_id"]]
        if attempt["number"] == last or (attempt["job_id"] in resumed and attempt["number"] < last):
            yield int(attempt["job_id"]), {str(key): value for key, value in attempt.items()}

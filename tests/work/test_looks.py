"""A night that looks: the worker makes the looks itself, and stops when it knows; killed, it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cli
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from tests.conftest import TINY_GRID, row, rows
from tests.injection import COMMIT, struck
from tests.work.night import Night

CLAIMS = """
[[claims]]
name = "Noise is nearly nothing"
kind = "equivalent"
compare = { noise_std = 0.5 }
margin = 1e6

[looks]
seeds = [3, 4, 6]
"""
HARD = """
[[claims]]
name = "Noise harms"
kind = "greater"
compare = { noise_std = 0.5 }
"""
"""Of losses that are hashes: nothing is found in them."""
LOOK = COMMIT.replace("FROM results", "FROM looks")
"""The worker is struck at the COMMIT of a look."""


def enqueue_looked(night: Night, text: str = CLAIMS) -> None:
    path = night.folder / "looked.toml"
    path.write_text(TINY_GRID + text)
    grid = scales.adjust(grid_file.load_grid(str(path)), assignments=("train.steps=20",))
    night.store.write(lambda c: enqueue(c, "looked", grid))
    night.store.write(lambda c: c.exec_driver_sql("DELETE FROM jobs WHERE study_id = 1"))


def test_a_night_stops_when_it_knows(night: Night) -> None:
    enqueue_looked(night)
    done = night.run("work")
    assert done.returncode == 0, done.stderr
    assert "looked: look 1: 1 of 1 claims decided; stopped: every claim is decided" in done.stderr
    look = row(night.store, "looks")
    (claim,) = json.loads(look["claims"])
    assert (claim["verdict"], claim["look"], claim["n"], look["seeds"]) == ("SUPPORTED", 1, 3, 3)
    assert len(rows(night.store, "jobs", status="done")) == 6


def test_a_night_goes_on_to_its_last_look_while_a_claim_is_open(night: Night) -> None:
    enqueue_looked(night, CLAIMS + HARD)
    done = night.run("work", "--slots", "2")
    assert done.returncode == 0, done.stderr
    assert "stopped: the last look" in done.stderr
    assert [look["seeds"] for look in rows(night.store, "looks")] == [3, 4, 6]
    assert len(rows(night.store, "jobs", status="done")) == 12
    last = json.loads(rows(night.store, "looks")[-1]["claims"])
    assert [(claim["verdict"], claim["n"]) for claim in last] == [("SUPPORTED", 3), ("OPEN", 6)]


@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
def test_killed_at_the_commit_of_a_look_the_night_goes_on(night: Night, when: str) -> None:
    enqueue_looked(night, CLAIMS + HARD)
    parts = {"BEFORE": "pass", "AFTER": "pass"} | {when: "die()"}
    fault = night.inject(LOOK, **parts)
    assert night.run("work", **fault).returncode == -9
    assert struck(night.folder / "fault")
    assert len(rows(night.store, "looks")) == (when == "AFTER")
    assert night.drain(cli._decide) == 0
    assert [look["number"] for look in rows(night.store, "looks")] == [1, 2, 3]
    assert len(rows(night.store, "jobs", status="done")) == 12
    assert {job["attempt"] for job in rows(night.store, "jobs")} == {1}


def test_a_look_that_cannot_be_made_is_told_and_stops_no_other_work(night: Night, tmp_path: Path) -> None:
    enqueue_looked(night)
    fault = """
if SUPERVISOR:
    from reports.output import looks
    def look(data):
        once("fault")
        raise ValueError("no such thing")
    looks.look = look
"""
    env = night.inject(fault)
    done = night.run("work", **env)
    assert done.returncode == 0, done.stderr
    assert "no look could be made (ValueError: no such thing)" in done.stderr
    assert rows(night.store, "looks") == []
    assert night.drain(cli._decide) == 0
    assert len(rows(night.store, "looks")) == 1


def test_blocks_that_another_study_has_lead_on_to_the_last_look_in_one_night(night: Night) -> None:
    enqueue_looked(night, HARD + CLAIMS)
    grid = grid_file.load_grid(str(night.folder / "tiny.toml"))
    pilot = scales.adjust(grid, assignments=("train.steps=20",), seeds="45..47")
    night.store.write(lambda c: enqueue(c, "pilot", pilot, priority=1))  # first
    assert night.drain(cli._decide) == 0
    assert [look["number"] for look in rows(night.store, "looks")] == [1, 2, 3]
    taken = [a["message"] for a in rows(night.store, "attempts") if a["message"]]
    assert len(taken) == 6
    assert {line.rsplit(" of ")[1] for line in taken} == {"study pilot"}
    assert {job["status"] for job in rows(night.store, "jobs")} == {"done"}


def test_damage_met_at_a_look_stops_the_worker_with_the_remedy(night: Night) -> None:
    enqueue_looked(night)
    fault = """
if SUPERVISOR:
    from runner.queue import looks
    from runner.queue.store import StoreRefused
    def make_due(*_):
        raise StoreRefused("malformed")
    looks.make_due = make_due
"""
    done = night.run("work", **night.inject(fault))
    assert done.returncode == 78, done.stderr
    assert ("malformed" in done.stderr, "no look could be made" in done.stderr) == (True, False)

"""A script that is there already, run by its command line: what it prints as JSON lines is recorded.

Lines with a step are measurements, the line with "result" is what the run came to. Such a run cannot go on
from where it was: after an interruption it begins again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FILES = ("script.py",)
"""Copied with this file: it is not imported, and would be missed."""


@dataclass(frozen=True)
class Config:
    learning_rate: float = 0.1
    steps: int = 100
    seed: int = 0


METRICS = {"distance": "lower"}


def train(config, run):
    script = Path(__file__).with_name("script.py")
    options = {"learning-rate": config.learning_rate, "steps": config.steps, "seed": config.seed}
    command = [sys.executable, str(script), *(f"--{name}={value}" for name, value in options.items())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as script:
        for line in script.stdout:
            told = json.loads(line)
            if "result" in told:
                results = told["result"]
            else:
                run.log(told.pop("step"), **told)
            if run.ends:
                script.kill()
                return None
    if script.returncode:
        raise RuntimeError(f"the script ended with code {script.returncode}; the log has what it said")
    return results

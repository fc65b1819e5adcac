"""Stands for a script of one's own, which knows of no queue: it walks downhill, and prints JSON lines."""

import argparse
import json
import random

options = argparse.ArgumentParser()
options.add_argument("--learning-rate", type=float, default=0.1)
options.add_argument("--steps", type=int, default=100)
options.add_argument("--seed", type=int, default=0)
chosen = options.parse_args()

draw = random.Random(chosen.seed)
place = draw.gauss(0.0, 10.0)
for step in range(1, chosen.steps + 1):
    place -= chosen.learning_rate * (place + draw.gauss(0.0, 1.0))
    print(json.dumps({"step": step, "loss": place**2}), flush=True)
print(json.dumps({"result": {"distance": abs(place)}}), flush=True)

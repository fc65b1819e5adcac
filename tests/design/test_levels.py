"""Levels with names, what a scale swaps, and the designs that ship with them."""

from __future__ import annotations

from typing import Any

import pytest

from model.config import ConfigError
from runner.design.enqueue import enqueue
from runner.design.grid_file import load_grid, parse_grid
from runner.design.program import load
from runner.design.scales import adjust
from runner.queue.selection import find_job, jobs_meant
from runner.queue.store import Store
from tests.conftest import rows

NAMED: dict[str, Any] = {
    "name": "named",
    "factors": {"balancing": ["none", "bias"], "noise_std": [0.0, 0.1]},
    "levels": {
        "balancing": {
            "none": {"load_balancing_weight": 0.0},
            "bias": {"load_balancing_weight": 0.0, "routing": {"bias_rate": 0.01}},
        }
    },
    "baseline": {"balancing": "none"},
    "claims": [{"name": "a", "kind": "less", "compare": {"balancing": "bias"}}],
    "seeds": [1, 2],
}
SCALED: dict[str, Any] = {
    "factors": {"steps": [400, 4000], "noise_std": [0.0, 0.1]},
    "baseline": {"steps": 4000},
    "claims": [
        {"name": "a", "kind": "less", "compare": {"steps": 4000}, "against": {"steps": 400}},
        {
            "name": "b",
            "kind": "less",
            "compare": {"noise_std": 0.1},
            "against": {"noise_std": 0.0},
            "interaction": {"steps": [4000, 400]},
        },
    ],
    "scales": {"smoke": {"factors": {"steps": [40, 400]}, "base": {"train": {"eval_every": 20}}}},
}


def test_a_named_level_sets_its_keys_and_the_cell_keeps_the_name() -> None:
    grid = parse_grid(NAMED)
    found = [(cell, c.routing.load_balancing_weight, c.routing.bias_rate) for cell, c in grid.runs()][:4]
    assert found == [
        ({"balancing": "none", "noise_std": 0.0}, 0.0, 0.0),
        ({"balancing": "none", "noise_std": 0.1}, 0.0, 0.0),
        ({"balancing": "bias", "noise_std": 0.0}, 0.0, 0.01),
        ({"balancing": "bias", "noise_std": 0.1}, 0.0, 0.01),
    ]
    assert grid.describe()["factors"] == NAMED["factors"]
    assert grid.claims[0].against == {"balancing": "none"}


def test_a_scale_swaps_levels_and_claims_and_baseline_follow() -> None:
    smoke = adjust(parse_grid(SCALED), "smoke")
    assert smoke.factors["steps"] == (40, 400)
    assert smoke.baseline == (("steps", 400),)
    assert [claim.compare for claim in smoke.claims] == [{"steps": 400}, {"noise_std": 0.1}]
    assert smoke.claims[1].interaction == {"steps": (400, 40)}
    assert {(c.train.steps, c.train.eval_every, c.model.d_model) for _, c in smoke.runs()} == {
        (40, 20, 128),
        (400, 20, 128),
    }
    assert adjust(parse_grid(SCALED), "small").factors["steps"] == (400, 4000)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"levels": {"balancing": {"none": {}}}}, "'bias' sets nothing; say what under"),
        ({"levels": {**NAMED["levels"], "other": {"a": {}}}}, "levels.other: not a factor of this grid"),
        ({"levels": {"balancing": {"none": {}, "bias": {}, "x": {}}}}, "levels.balancing.x: not one of"),
        ({"levels": {"balancing": {"none": {}, "bias": {}}}}, "is the same run as"),
        ({"levels": {"balancing": 3}}, "levels.balancing = 3: must hold a table for each level"),
        (
            {"levels": {"noise": {"a": {}}}},
            "levels.noise: a key of the configuration or of jobs",
        ),
        ({"levels": {"status": {"a": {}}}}, "levels.status: a key of the configuration or"),
        ({"levels": {"a b": {"a": {}}}}, "levels.'a b': name it with"),
        ({"levels": {"balancing": {"none": {"bias_rat": 1}, "bias": {}}}}, "no such key; did you mean"),
        ({"levels": {"balancing": {"none": {"seed": 1}, "bias": {}}}}, "cannot vary within a study"),
        ({"levels": {"balancing": {"none": {"noise_std": 1}, "bias": {}}}}, "name one key twice"),
        ({"factors": {"balancing": ["none", "a b"]}}, "'a b': name a level in up to 40 letters"),
        ({"factors": {"balancing": [0, "bias"]}}, "0: name a level"),
        ({"scales": {"huge": {}}}, "scales.huge: no such scale; choose one of full"),
        (
            {"scales": {"smoke": {"seeds": {}}}},
            "scales.smoke.seeds: no such key; keys: factors, levels, base",
        ),
        ({"scales": {"smoke": 3}}, "scales.smoke = 3: must be a table"),
    ],
)
def test_bad_levels_and_scales_name_the_key_and_the_remedy(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refusal:
        parse_grid({**NAMED, "claims": [], "baseline": {}, **change})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("swapped", "named"),
    [
        ({"factors": {"steps": [40]}}, "scales.smoke.factors.steps = .*the grid has 2 levels of it"),
        ({"factors": {"top_k": [1]}}, "the grid has 0 levels of it"),
        ({"levels": {"size": {"a": {"top_k": 1}}}}, "scales.smoke.levels.size.a: the grid has no such level"),
        ({"base": {"stepz": 3}}, "did you mean train.steps"),
        ({"factors": {"steps": [41, 400]}}, "train.steps = 41"),
    ],
)
def test_what_a_scale_cannot_swap_is_said_when_it_is_asked_for(swapped: dict[str, Any], named: str) -> None:
    grid = parse_grid({**SCALED, "scales": {"smoke": swapped}})
    with pytest.raises(ConfigError, match=named):
        adjust(grid, "smoke")


def test_set_leaves_alone_what_a_level_sets() -> None:
    with pytest.raises(ConfigError, match="bias_rate: a factor of this grid"):
        adjust(parse_grid(NAMED), assignments=["bias_rate=0.1"])


def test_jobs_are_found_by_the_names_of_their_levels(store: Store) -> None:
    grid = parse_grid(NAMED)
    assert store.write(lambda c: enqueue(c, "named", grid)) == 8
    assert store.write(lambda c: enqueue(c, "named", grid)) == 0
    with store.read() as connection:
        assert find_job(connection, "balancing=bias,noise_std=0.1,seed=2") == 8
        meant = jobs_meant(connection, [], None, "balancing!=none and seed=1", ("queued",))
        assert [job.id for job in meant] == [3, 4]
        with pytest.raises(ConfigError, match="'balancin': no such key"):
            jobs_meant(connection, [], None, "balancin=none", ("queued",))


def test_a_level_that_sets_something_else_starts_another_study(store: Store) -> None:
    store.write(lambda c: enqueue(c, "named", parse_grid(NAMED)))
    levels = {**NAMED["levels"]["balancing"], "bias": {"load_balancing_weight": 0.0, "bias_rate": 0.5}}
    changed = parse_grid({**NAMED, "levels": {"balancing": levels}})
    with pytest.raises(ConfigError, match="its balancing = bias sets something else; start another"):
        store.write(lambda c: enqueue(c, "named", changed))


def test_levels_and_seeds_join_a_study(store: Store) -> None:
    more = parse_grid(
        {**NAMED, "factors": {"balancing": ["none", "x"], "noise_std": [0.0]}, "claims": []}
        | {"levels": {"balancing": {"none": NAMED["levels"]["balancing"]["none"], "x": {"balance": "batch"}}}}
    )
    store.write(lambda c: enqueue(c, "named", parse_grid(NAMED)))
    assert store.write(lambda c: enqueue(c, "named", more)) == 2
    held = rows(store, "studies", name="named")[0]["grid"]
    assert '"balancing": ["none", "bias", "x"]' in held
    assert '"x": {"balance": "batch"}' in held


# The designs that ship with the project


def test_the_long_factorial_repeats_no_text_more_than_four_times() -> None:
    grid = load_grid("factorial-long")
    short = load_grid("factorial")
    assert grid.size == 60
    assert {k: v for k, v in grid.factors.items() if k != "steps"} == short.factors
    assert (grid.factors["steps"], grid.base.train.eval_every) == ((400, 4000), 100)
    assert grid.base.model == short.base.model
    for scale in load().scales:
        at = adjust(grid, scale)
        longest = max(config.tokens_seen for _, config in at.runs())
        assert longest <= 4 * at.base.data.tokens
        assert {f.interaction["steps"] for f in at.claims if f.interaction} == {at.factors["steps"][::-1]}


@pytest.mark.parametrize("scale", load().scales)
def test_the_sizes_of_scale_have_the_same_active_parameters(scale: str) -> None:
    grid = adjust(load_grid("scale"), scale)
    active: dict[str, set[int]] = {}
    for cell, config in grid.runs():
        model = config.model
        gates = model.n_layers * model.d_model * model.n_experts
        active.setdefault(str(model.n_experts), set()).add(model.active_parameters - gates)
        assert cell["size"] == ("dense" if model.n_experts == 1 else f"{model.n_experts}x{model.top_k}")
    assert len(set.union(*active.values())) == 1
    assert sorted(map(int, active)) == [1, 4, 8, 16, 32]


def test_noise_kinds_are_matched_in_strength() -> None:
    cells = {cell["noise_kind"]: config.routing for cell, config in load_grid("noise-kinds").runs()}
    assert {routing.noise_std for kind, routing in cells.items() if kind != "none"} == {0.3}
    assert cells["none"].noise_std == 0.0
    kinds = {routing.noise for routing in cells.values()}
    assert kinds == {"gaussian", "annealed", "jitter", "learned", "gumbel"}


def test_the_other_designs_are_what_they_are_called() -> None:
    dose, sensitivity = load_grid("dose"), load_grid("sensitivity")
    assert (dose.factors["noise_std"], dose.size) == ((0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0), 40)
    assert sensitivity.factors == {
        "noise_std": (0.0, 0.1),
        "load_balancing_weight": (0.0, 0.002, 0.005, 0.01),
        "top_k": (2, 1),
    }
    assert load_grid("learning-rate").factors["muon_lr"] == (0.005, 0.01, 0.02)

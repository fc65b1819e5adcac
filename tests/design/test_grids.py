"""Grid files: what ships parses, what is wrong is refused in one line that names field, value and remedy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from model.config import ConfigError
from runner.design.grid_file import load_grid, parse_grid
from runner.design.program import load
from runner.design.scales import SHIPPED, adjust, parse_seeds
from tests.conftest import PROJECT


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.toml")))
@pytest.mark.parametrize("scale", load().scales)
def test_every_shipped_grid_expands_at_every_scale(name: str, scale: str) -> None:
    grid = adjust(load_grid(name), scale)
    runs = list(grid.runs())
    assert len(runs) == grid.size > 0
    assert len({config.hash for _, config in runs}) == grid.size
    assert grid.question
    assert all(level in grid.factors[factor] for factor, level in grid.baseline)
    # Stored results are found again by the hashes of their runs, which no change of the program may alter.
    together = hashlib.sha256("".join(config.hash for _, config in runs).encode()).hexdigest()
    frozen = json.loads((PROJECT / "tests/data/hashes.json").read_text())
    assert frozen[f"{name} {scale}"] == f"{len(runs)} {together}"


def test_factorial_is_the_published_design_under_the_sound_protocol() -> None:
    grid = load_grid("factorial")
    cells = [tuple(cell.values()) for cell, _ in grid.runs()]
    assert sorted(set(cells)) == [(n, w) for n in (0.0, 0.1, 0.5) for w in (0.0, 0.01)]
    assert grid.seeds == (42, 43, 44)
    config = grid.base
    shape = (config.model.d_model, config.model.n_layers, config.model.n_heads, config.model.d_ff)
    assert shape == (384, 6, 8, 1536)
    assert (config.model.n_experts, config.model.top_k, config.model.dropout) == (8, 2, 0.1)
    assert (config.train.steps, config.train.batch_size, config.train.seq_len) == (400, 24, 512)
    assert (config.train.accumulate, config.protocol, config.tokens_seen) == (4, "sound", 4_915_200)
    published = load_grid("factorial-published").base
    assert (published.protocol, published.train.eval_every) == ("published", 0)


def test_factorial_declares_the_research_plans_hypotheses() -> None:
    declared = load_grid("factorial").describe()["claims"]
    kinds = [(claim["kind"], claim["metric"]) for claim in declared]
    assert kinds == [
        ("not_worse", "val_loss"),
        ("greater", "val_loss"),
        ("less", "expert_usage_cv_layer_mean"),
        ("less", "val_loss"),
        ("equivalent", "val_loss"),
        ("equivalent", "val_loss"),
    ]
    assert declared[1]["compare"] == {"noise_std": 0.5}
    assert declared[4]["interaction"] == {"load_balancing_weight": (0.0, 0.01)}
    assert load_grid("factorial-published").describe()["claims"] == declared


def test_a_claim_without_against_is_about_the_baseline() -> None:
    entry = {"name": "a", "kind": "less", "compare": {"noise_std": 0.1}}
    grid = parse_grid({**GOOD, "baseline": {"noise_std": 0.0}, "claims": [entry]})
    claim = grid.claims[0]
    assert (claim.against, claim.metric, claim.margin) == ({"noise_std": 0.0}, "val_loss", None)


def test_blocks_come_whole() -> None:
    seeds = [config.seed for _, config in load_grid("factorial").runs()]
    assert seeds == [42] * 6 + [43] * 6 + [44] * 6


def test_scale_changes_the_size_and_full_changes_nothing() -> None:
    grid = load_grid("factorial")
    assert adjust(grid, "full") == grid
    smoke = adjust(grid, "smoke")
    assert smoke.study_name == "factorial-smoke"
    assert (smoke.base.model.d_model, smoke.base.train.steps) == (128, 120)
    assert adjust(load_grid("factorial-published"), "smoke").base.train.eval_every == 0


def test_set_wins_over_scale_and_takes_short_names() -> None:
    grid = adjust(load_grid("factorial"), "smoke", ["train.steps=240", "muon_lr=0.02", "precision=bf16"])
    assert (grid.base.train.steps, grid.base.train.muon_lr, grid.base.train.precision) == (240, 0.02, "bf16")


@pytest.mark.parametrize(
    ("text", "seeds"), [("42..44", (42, 43, 44)), ("1,5,3", (1, 5, 3)), ("7", (7,)), ("1..2, 9", (1, 2, 9))]
)
def test_seeds_are_written_as_spans_or_lists(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    ["", "x", "5..1", "1,1", "1..3,2", "-1", "1.5", "nan", "1..9999999999", "1;drop table jobs", "1 2"],
)
def test_bad_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="seed"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("train.stepz=4", "did you mean train.steps"),
        ("model.top_k=9", "model.top_k = 9.*n_experts = 8.*1 to 8"),
        ("model.d_model=385", "model.d_model = 385.*n_heads"),
        ("train.muon_lr=nan", "train.muon_lr = nan.*finite"),
        ("train.muon_lr=inf", "train.muon_lr = inf.*finite"),
        ("train.steps=-4", "train.steps = -4.*between"),
        ("train.steps=1e99", "train.steps = 1e\\+99.*whole"),
        ("train.steps=9223372036854775808", "train.steps = 9223372036854775808.*between"),
        ("train.steps=401", "train.steps = 401.*accumulate = 4; try 400"),
        ("train.eval_every=50", "train.eval_every = 50.*try 48"),
        ("train.precision=fp8", "choose one of auto, fp32, bf16"),
        ("train.steps=__import__('os')", "must be a whole number"),
        ("data.tokens=100", "less than one window"),
        ("noise_std=1.0", "a factor of this grid"),
        ("seed=4", "use --seeds"),
        ("model.vocab_size=5", "use --tokenizer"),
        ("data.corpus=x", "use --corpus"),
        ("train", "write key=value, as in model.d_model=384"),
        ("model=4", "no such key"),
        ("dropout=0.99999", "model.dropout"),
        ("=cmd()", "no such key"),
    ],
)
def test_bad_set_names_the_field_the_value_and_the_remedy(assignment: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refusal:
        adjust(load_grid("factorial"), assignments=[assignment])
    assert "\n" not in str(refusal.value)


MANY = {"noise_std": [i / 1e6 for i in range(60_000)]}
GOOD = {"name": "mine", "factors": {"noise_std": [0.0, 0.1]}, "seeds": [1]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"factors": {"noise_std": []}}, "factors.noise_std = \\[\\].*at least one"),
        ({"factors": {"noise_std": 0.1}}, "must list at least one level"),
        ({"seeds": "1..3"}, r"must list at least one seed, as in \[42, 43\]; a span is for --seeds 42..44"),
        ({"factors": {"noise_std": [-1.0]}}, "routing.noise_std = -1.0"),
        ({"factors": {"noise_std": [float("nan")]}}, "finite"),
        (
            {"factors": {"noise_std": [0.1, 0.1]}},
            r"noise_std = \[0.1, 0.1\]: a level is listed twice; remove",
        ),
        ({"factors": {"nois": [0.1]}}, "no such key; did you mean"),
        ({"factors": {"noise_std": [0.1], "routing.noise_std": [0.2]}}, "name one key twice"),
        ({"factors": {"seed": [1]}}, "cannot vary within a study"),
        ({"factors": {"data.tokens": [1]}}, "cannot vary within a study"),
        ({"factors": [1]}, r"factors = \[1\]: must be a table"),
        ({"factors": {"top_k": [True]}}, "model.top_k = True: must be a whole number"),
        ({"base": 3}, "base = 3: must be a table"),
        ({"question": 3}, "question = 3: must be a text"),
        ({"primary": "ppl"}, "primary = 'ppl': choose one of val_loss"),
        ({"primary": "val_los"}, "primary = 'val_los': did you mean val_loss?"),
        ({"margins": {"ppl\n": 0.1}}, r"margins: 'ppl\\n': choose one of val_loss"),
        ({"repeats": True}, "repeats = True: must be a whole number between 1 and 1,000"),
        ({"a\nb": 1}, r"'a\\nb': no such key"),
        ({"baseline": {"noise_std": [0] * 500}}, "0,…: must be a number, a text, true or false"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [1, 1]}, "seeds: 1 is listed twice"),
        ({"seeds": [-1]}, "seed = -1"),
        ({"seeds": [True]}, "seed = True"),
        ({"seeds": ["42; DROP TABLE jobs"]}, "seed = "),
        ({"name": "../x"}, "name = '../x'"),
        ({"name": "a|b<script>"}, "letters, digits"),
        ({"name": "-x"}, "name = '-x'.*not '-' at the start"),
        ({"name": "."}, "name = '.'"),
        ({"name": ".."}, "name = '..'"),
        ({"name": "a\n"}, "letters, digits"),
        ({"baseline": {"noise_std": 0.7}}, "baseline.noise_std = 0.7: not one of the factor's levels"),
        ({"protocol": "mine"}, "choose one of sound, published"),
        ({"bases": {}}, "bases: no such key; keys: name, program, question"),
        ({"base": {"train": {"step": 4}}}, "did you mean train.steps"),
        (
            {"factors": {"noise_std": [i / 1e6 for i in range(60_000)]}, "seeds": list(range(200))},
            "12,000,000",
        ),
    ],
)
def test_bad_grid_names_the_key_the_value_and_the_remedy(change: dict[str, object], named: str) -> None:
    assert parse_grid(GOOD).size == 2
    with pytest.raises(ConfigError, match=named) as refusal:
        parse_grid({**GOOD, **change})
    assert "\n" not in str(refusal.value)


TWO = {"factors": {"noise_std": [0.0, 0.1], "top_k": [1, 2]}, "margins": {"val_loss": 0.005}}
CLAIM = {"name": "a", "kind": "less", "compare": {"noise_std": 0.1}, "against": {"noise_std": 0.0}}
INTERACTION = "name one factor and two levels"


@pytest.mark.parametrize(
    ("claims", "named"),
    [
        ({}, "must be a list of tables"),
        ([1], "must be a list of tables"),
        ([CLAIM] * 51, "claims: 51, more than 50"),
        ([CLAIM, CLAIM], "claims 2: name = 'a' is another claim's name too; rename one"),
        ([{**CLAIM, "kin": "less"}], "claims 1: kin: no such key; keys: name, kind"),
        ([{**CLAIM, "name": ""}], "claims 1: name = ''"),
        ([{**CLAIM, "name": "a\nb"}], "say in one line"),
        (
            [{**CLAIM, "kind": "better"}],
            "kind = 'better': choose one of less, greater, equivalent, not_worse",
        ),
        ([{**CLAIM, "kind": ["less"]}], "choose one of less"),
        ([{**CLAIM, "metric": "ppl"}], "metric = 'ppl': choose one of val_loss"),
        ([{**CLAIM, "compare": {}}], "compare = {}: name a level"),
        (
            [{**CLAIM, "compare": {"noise": 0.1}}],
            "compare.noise: not a factor of this grid; factors: noise_std",
        ),
        (
            [{**CLAIM, "compare": {"noise_std": 0.7}}],
            "compare.noise_std = 0.7: not one of the factor's levels",
        ),
        (
            [{**CLAIM, "compare": {"noise_std": [0.1]}}],
            r"compare.noise_std = \[0.1\]: must be a number, a text, true or false",
        ),
        (
            [{**CLAIM, "compare": {"noise_std": True}}],
            "compare.noise_std = True: not one of the factor's levels",
        ),
        ([{"name": "a", "compare": {"noise_std": 0.1}}], "claims 1: kind: missing; add it"),
        ([{**CLAIM, "compare": {"noise_std": 0.0}}], "compare and against are the same"),
        ([{**CLAIM, "compare": {"top_k": 2}}], "compare names top_k, against noise_std; name the same"),
        ([{"name": "a", "kind": "less", "compare": {"noise_std": 0.1}}], "against = {}: name a level"),
        ([{**CLAIM, "interaction": 3}], INTERACTION),
        ([{**CLAIM, "interaction": {"top_k": [1, 2], "noise_std": [0.0, 0.1]}}], INTERACTION),
        ([{**CLAIM, "interaction": {"top_k": [1]}}], "give two levels"),
        ([{**CLAIM, "interaction": {"top_k": [1, 1]}}], "give two levels"),
        ([{**CLAIM, "interaction": {"top_k": [1, 3]}}], "interaction.top_k = 3: not one of"),
        ([{**CLAIM, "interaction": {"noise_std": [0.0, 0.1]}}], "compare names this factor already"),
        ([{**CLAIM, "margin": -1}], "margin = -1: must be a number above 0"),
        ([{**CLAIM, "margin": "1%"}], "margin = '1%': must be a number above 0"),
        (
            [{**CLAIM, "kind": "equivalent", "metric": "val_accuracy"}],
            "equivalent on val_accuracy needs a margin; add margin here, or val_accuracy under",
        ),
    ],
)
def test_bad_claims_name_the_claim_the_key_and_the_remedy(claims: object, named: str) -> None:
    assert len(parse_grid({**GOOD, **TWO, "claims": [CLAIM]}).claims) == 1
    with pytest.raises(ConfigError, match=named) as refusal:
        parse_grid({**GOOD, **TWO, "claims": claims})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("margin", [0, -0.1, "0.5%", True, float("nan"), float("inf")])
def test_bad_margins_are_refused(margin: object) -> None:
    with pytest.raises(ConfigError, match=r"margins\.val_loss = .*a number above 0"):
        parse_grid({**GOOD, "margins": {"val_loss": margin}})


def test_a_factor_may_need_another_to_be_valid() -> None:
    grid = parse_grid({**GOOD, "factors": {"n_experts": [16, 32], "top_k": [1, 16]}})
    assert grid.describe()["factors"] == {"n_experts": [16, 32], "top_k": [1, 16]}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"name = ", b"[" * 5000, b"\x80\x04K\x01."])
def test_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml: not a TOML file"):
        load_grid(str(path))


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    path.write_bytes(b"#" * 10_000_000)
    with pytest.raises(ConfigError, match="larger than"):
        load_grid(str(path))


@pytest.mark.parametrize("name", ["nope", "../factorial", "", "/", "factorial.toml"])
def test_missing_grid_names_the_shipped_ones(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"shipped grids: .*factorial"):
        load_grid(name)


def test_grid_file_of_ones_own_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[factors]\nnoise_std = [0.0]\n[base]\n"train.steps" = 8\n')
    grid = load_grid(str(path))
    assert (grid.study_name, grid.size, grid.base.train.steps) == ("mine", 1, 8)


def test_values_of_the_base_that_a_scale_replaces_are_named() -> None:
    content = {"factors": {"noise_std": [0.0, 0.1]}, "base": {"train": {"steps": 800, "muon_lr": 0.02}}}
    content["scales"] = {"small": {"base": {"train.steps": 400}}}
    grid = parse_grid(content)
    said = adjust(grid, "smoke").notice
    assert "--scale smoke replaces what the grid's [base] sets: train.steps 800 → 120;" in said
    assert "muon_lr" not in said  # no scale touches it
    assert adjust(grid, "smoke", ["steps=800"]).notice == ""
    assert adjust(grid, "small").notice == ""  # the file says itself what it wants there
    assert adjust(grid, "full").notice == ""
    shipped = load_grid("factorial")
    assert adjust(shipped, "smoke").notice == ""

"""Figures: the same bytes for the same database, what is drawn, and what is not read for them."""

from __future__ import annotations

import io
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from matplotlib.figure import Figure

from reports.figures import drawing, panels, style
from reports.figures.comparison import pictures
from reports.figures.layout import MAX_SEEDS, arrange, read_curves
from reports.output.files import gather, produce, write
from reports.output.report import compose, illustrated
from reports.reading.frames import choose_study, load
from reports.reading.units import UnknownOption
from reports.statistics.analysis import Options, analyse
from reports.statistics.inference import Contrast
from reports.tables import Picture, Section
from tests import report_fixtures as made

ALL = [
    *("answer", "interaction", "paired", "differences", "learning", "routing-over-training"),
    *("load-by-layer", "load-over-training", "layer-load-over-training", "usage"),
]
HOSTILE = "<script>alert(1)</script> $\\frac{1}{0}$ \ud800 é漢"


@pytest.fixture(scope="module")
def saved(curved: sa.Connection) -> dict[tuple[str, str], bytes]:
    """Each of its figures as a file, drawn once."""
    return {
        (name, kind): style.save(figure, kind)
        for name, picture in drawn(curved).items()
        for figure in [picture.draw()]
        for kind in ("png", "svg")
    }


def drawn(connection: sa.Connection) -> dict[str, Picture]:
    data = load(connection, choose_study(connection)[0])
    report = compose(analyse(data, Options()), partial(pictures, read_curves(connection, data)))
    return {picture.name: picture for picture in report.pictures}


def axes_of(figure: Figure) -> list[Any]:
    return [axes for axes in figure.axes if axes.has_data()]


@pytest.mark.slow
def test_every_figure_is_there_and_repeats_its_bytes(
    curved: sa.Connection, saved: dict[tuple[str, str], bytes]
) -> None:
    again = drawn(curved)
    assert list(again) == ALL
    for name, picture in again.items():
        figure = picture.draw()
        for kind in ("svg", "png"):  # in another order: whatever was saved before
            assert style.save(figure, kind) == saved[name, kind], name
        assert saved[name, "png"][:8] == b"\x89PNG\r\n\x1a\n"
        assert picture.alt
        assert picture.caption


@pytest.mark.slow
def test_the_readers_own_settings_stay_out(
    curved: sa.Connection, saved: dict[tuple[str, str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", "mine")
    assert style.save(drawn(curved)["learning"].draw(), "svg") == saved["learning", "svg"]


def test_an_svg_has_no_date_no_version_and_its_axes_have_units(saved: dict[tuple[str, str], bytes]) -> None:
    for name in ALL:
        svg = saved[name, "svg"].decode()
        ElementTree.fromstring(svg)
        assert "<dc:date>" not in svg
        assert "Matplotlib" not in svg.split("<defs>")[0]
        words = " ".join(re.findall(r"<text[^>]*>([^<]*)", svg))
        unit = {"usage": "% of assignments", "load-by-layer": "% of a layer's assignments"}
        unit |= {"load-over-training": "(sd / mean of tokens)", "layer-load-over-training": "(sd / mean)"}
        unit |= {"routing-over-training": "(nats)"}
        assert unit.get(name, "nats per token") in words.replace("&#39;", "'"), name


def test_learning_curves_have_a_line_a_seed_and_a_mean(curved: sa.Connection) -> None:
    axes = axes_of(drawn(curved)["learning"].draw())
    assert len(axes) == 4  # training and held-out loss, with and without balancing
    for one in axes:
        assert len(one.lines) == 3 * (1 + 1)  # the seeds with gaps between them, and their mean
        assert len(one.collections) == 3  # a band a noise level
    seeds, held_out = axes[2].lines[:2]
    gaps = np.isnan(seeds.get_ydata())
    assert np.flatnonzero(gaps).tolist() == [4, 9, 14]
    np.testing.assert_allclose(seeds.get_ydata()[[3, 8, 13]], [5.105, 5.11, 5.115])  # the last of each
    np.testing.assert_allclose(held_out.get_xdata(), [100, 200, 300, 400])
    jobs = np.array([1, 2, 3])  # of noise 0.0 with balancing
    np.testing.assert_allclose(held_out.get_ydata()[-1], 5.1 + (jobs / 200).mean())


def test_the_interval_in_the_interaction_plot_is_students(connection: sa.Connection) -> None:
    made.finished_study(connection)
    (axes,) = axes_of(drawn(connection)["interaction"].draw())
    losses = np.array([made.loss_of(made.cells(made.FACTORS)[0], seed) for seed in made.SEEDS])
    bars = axes.containers[0][2][0].get_segments()[0]
    reach = 4.302652729911275 * losses.std(ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(bars[:, 1], [losses.mean() - reach, losses.mean() + reach], rtol=1e-9)


def test_two_seeds_have_no_band_and_steps_are_whole() -> None:
    axes = Figure().subplots()
    steps = np.array([1.0, 2.0, 3.0])
    two = style.Series("two", steps, np.array([[3.0, 2.0, 1.0], [3.1, 2.2, 1.1]]))
    style.curves(axes, [two])
    assert axes.get_ylim() == pytest.approx((0.895, 3.205))  # the lines' own range: nothing flattens them
    assert all(tick == int(tick) for tick in axes.get_xticks())
    style.curves(axes, [style.Series("three", steps, np.array([[3.0] * 3, [4.0] * 3, [5.0] * 3]))])
    assert axes.get_ylim()[1] > 6  # 4 plus 4.3 / sqrt(3)


@pytest.mark.slow
def test_an_imported_study_has_no_curves_and_no_load(connection: sa.Connection) -> None:
    made.published_study(connection)
    assert list(drawn(connection)) == ["answer", "interaction", "paired", "differences"]


def test_long_labels_leave_room_for_the_intervals(connection: sa.Connection) -> None:
    made.unfinished_study(connection)  # its averages say which conditions they had to leave out
    (axes,) = drawn(connection)["differences"].draw().axes
    assert axes.get_position().width > 0.3


@pytest.mark.slow
def test_little_data_draws_little_and_fails_nowhere(connection: sa.Connection) -> None:
    made.add_study(connection, "empty")
    assert drawn(connection) == {}
    one = made.add_study(connection, "one", created_at=made.START + 1, grid={"factors": {}, "baseline": {}})
    job = made.add_job(connection, one, {}, 42)
    made.add_result(connection, job, val_accuracy=None)
    made.add_counts(connection, job, [[0, 0], [5, 5]])
    made.add_metric(connection, job, "loss", None, nonfinite="nan")
    found = drawn(connection)
    assert list(found) == ["interaction", "learning", "load-by-layer", "usage"]
    for picture in found.values():
        style.save(picture.draw(), "svg")
    made.add_study(connection, "failed", created_at=made.START + 2)
    made.add_job(connection, 3, made.cells(made.FACTORS)[0], 42, "failed")
    assert drawn(connection) == {}


@pytest.mark.slow
def test_equal_values_and_hostile_names_are_drawn_as_they_are(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {"corpus": [HOSTILE, "b"]}, "baseline": {}})
    for name in (HOSTILE, "b"):
        for seed in made.SEEDS:
            job = made.add_job(connection, study, {"corpus": name}, seed)
            made.add_result(connection, job)
            made.add_counts(connection, job, [[1, 2, 3, 4]])
    for picture in drawn(connection).values():
        svg = style.save(picture.draw(), "svg").decode()
        assert "<script" not in svg
        if picture.name not in ("answer", "differences"):
            assert "$\\frac{1}{0}$" in svg


@pytest.mark.slow
def test_large_studies_draw_the_first_seeds_and_say_so(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {"noise_std": [0.0, 0.1]}, "seeds": list(range(20))})
    for noise in (0.0, 0.1):
        for seed in range(20):
            cell = {"noise_std": noise, "load_balancing_weight": 0.0}
            job = made.finish(connection, study, cell, seed)
            made.add_metric(connection, job, "loss", 4.0 + seed, split="train", step=4)
    data = load(connection, choose_study(connection)[0])
    curves = read_curves(connection, data)
    assert curves.train["job_id"].nunique() == 2 * MAX_SEEDS
    assert curves.layers["job_id"].nunique() == 2 * MAX_SEEDS
    assert f"the first {MAX_SEEDS} seeds" in drawn(connection)["learning"].caption


def test_more_levels_than_colours_are_left_out_and_said(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {"noise_std": [i / 10 for i in range(9)]}})
    for i in range(9):
        made.finish(connection, study, {"noise_std": i / 10, "load_balancing_weight": 0.0}, 42)
    layout = arrange(load(connection, choose_study(connection)[0]))
    # The ends, the baseline's 0.1, and others between.
    drawn_levels = [label for label, _ in layout.panels[0][1]]
    assert drawn_levels == ["0.0", "0.1", "0.2", "0.3", "0.5", "0.6", "0.7", "0.8"]
    assert "Only 8 of the grid's 9 conditions" in layout.remark


def test_the_forest_draws_what_has_no_interval_as_a_point() -> None:
    figure = Figure()
    axes = figure.subplots()
    whole = Contrast(3, 0.1, 0.01, 0.05, 0.15, 0.01)
    lone = Contrast(1, 0.2, *[math.nan] * 4)
    returned = style.forest(axes, ["a", "b"], [whole, lone], None)
    assert returned is axes
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 2, 1, 1]  # zero, interval, point, point


@pytest.mark.slow
def test_markdown_with_a_folder_names_its_figures(
    curved: sa.Connection, saved: dict[tuple[str, str], bytes], tmp_path: Path
) -> None:
    options = Options(output=str(tmp_path / "out"))
    files = produce(gather(curved, None, options), options, tmp_path)
    assert sorted(files) == sorted(["report.md", *(f"figures/{n}.{k}" for n in ALL for k in ("png", "svg"))])
    report = write(files, tmp_path / "out")
    text = report.read_text()
    for name in ALL:
        assert f"](figures/{name}.png)" in text
        assert (report.parent / "figures" / f"{name}.svg").read_bytes() == saved[name, "svg"]
    assert not [path for path in report.parent.rglob("*") if path.name.startswith(".")]
    assert f"--output {tmp_path / 'out'}" in text


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnknownOption, match="cannot be written"):
        write({"report.md": b""}, tmp_path / "file")


@pytest.mark.slow
def test_the_router_and_each_layer_are_followed_over_steps(curved: sa.Connection) -> None:
    pictures = drawn(curved)
    top = axes_of(pictures["routing-over-training"].draw())[0]
    line = top.get_lines()[0]  # the first seed of the first condition is job 1
    assert line.get_xdata()[:2].tolist() == [200, 400]
    assert line.get_ydata()[:2] == pytest.approx([0.401, 0.501])
    panel = axes_of(pictures["layer-load-over-training"].draw())[0]
    lines = panel.get_lines()
    assert [one.get_label() for one in lines] == ["layer 0", "layer 1"]
    # At step 400 the three seeds' counts, by hand: population sd over mean, then the mean over seeds.
    counts = [made.layer_counts(seed)[0] for seed in made.SEEDS]
    assert lines[0].get_ydata()[-1] == pytest.approx(np.mean([np.std(c) / np.mean(c) for c in counts]))


def test_without_two_evaluations_nothing_is_followed_over_steps(connection: sa.Connection) -> None:
    made.finished_study(connection)
    assert not {"routing-over-training", "layer-load-over-training"} & set(drawn(connection))


def test_figures_drawn_in_several_processes_are_the_same_and_each_loss_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = os.getpid()

    def picture(number: int) -> Picture:
        def draw() -> Figure:
            if number == 3 and os.getpid() != here:
                os._exit(9)  # as if the machine had ended that process
            figure = Figure(figsize=(2, 1))
            figure.text(0.1, 0.5, f"{number} 漢")
            return figure

        return Picture(f"p{number}", "", "", panels.styled(draw, settle=False))

    monkeypatch.setattr(style, "lacking", {})
    monkeypatch.setattr(style, "_told", set())
    pictures = [picture(number) for number in range(8)]
    alone = {p.name: style.save(p.draw(), "svg") for p in pictures}
    for cores in ({0}, {0, 1}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        assert drawing.draw_all(pictures) == {(name, "svg"): file for name, file in alone.items()}


@pytest.mark.slow
def test_a_legend_of_long_names_stays_on_the_page(connection: sa.Connection) -> None:
    kinds = ["none", "gaussian", "annealed", "jitter", "learned", "gumbel"]
    study = made.add_study(connection, grid={"factors": {"noise_kind": kinds}, "baseline": {}})
    for kind in kinds:
        for seed in made.SEEDS:
            job = made.finish(connection, study, {**made.cells(made.FACTORS)[0], "noise_kind": kind}, seed)
            for step in (200, 400):
                made.add_metric(connection, job, "loss", 5.0 + seed / step, step=step)
    figure = drawn(connection)["learning"].draw()
    box = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == 6
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_pictures_for_a_heading_that_no_section_has_are_an_error() -> None:
    picture = Picture("learning", "", "", Figure)
    with pytest.raises(KeyError, match="Stability: no section has that heading"):
        illustrated([Section("Training stability")], {"Stability": (picture,)})


def test_character_that_the_font_lacks_is_named_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "_told", set())
    figure = Figure()
    figure.text(0.5, 0.5, "漢 abc 漢")
    monkeypatch.setattr(style, "lacking", {})
    for kind in ("png", "png"):
        style.save(figure, kind)
        style.tell_lacking()
    (said,) = caplog.messages
    assert "lacks 漢 (U+6F22): a box in PNG, text in SVG" in said


def test_a_table_of_series_is_that_of_a_pivot_table() -> None:
    """Missing values and runs, a step that nobody has, infinities, and more steps than points of a line."""
    values = {(job, step): job + step / 7 for job in (3, 5, 8) for step in range(1, 1003)}
    values |= {(5, 20): math.nan, (8, 1002): math.inf, **{(job, 30): math.nan for job in (3, 5, 8)}}
    found = pd.DataFrame(
        [(*key, value) for key, value in values.items()], columns=["job_id", "step", "value"]
    )
    jobs = [8, 4, 5]
    plain = found[found["job_id"].isin(jobs)].pivot_table(index="job_id", columns="step", values="value")
    plain = plain.reindex(jobs).iloc[:, ::-1].iloc[:, ::3].iloc[:, ::-1].replace(math.inf, math.nan)
    steps, table = panels.by_step(found, jobs)
    assert steps.tolist() == plain.columns.tolist()
    np.testing.assert_array_equal(table, plain.to_numpy())
    assert panels.by_step(found, [4])[1].shape == (1, 0)


def test_a_figure_is_settled_and_saved_as_by_drawing_it_twice() -> None:
    def draw() -> Figure:
        figure, [(left, right)] = panels.panel_grid(2, 2.0)
        for axes in (left, right):
            one, other = np.array([[1.0, 2.0], [2.0, 5.0]]), np.array([[4.0, 3.0], [4.0, 4.5]])
            pairs = (("one", one), ("other", other))
            style.curves(axes, [style.Series(name, np.array([1.0, 2.0]), rows) for name, rows in pairs])
        left.set_ylabel("Loss (nats per token)\nof two")
        panels.legend(figure, left)
        return figure

    with style.style():
        plain = draw()
        plain.draw_without_rendering()
        plain.set_layout_engine("none")
        svg, png = io.BytesIO(), io.BytesIO()
        plain.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        plain.savefig(png, format="png", metadata={"Software": None})
    figure = panels.styled(draw)()
    assert style.save(figure, "svg") == svg.getvalue()
    assert style.save(figure, "png") == png.getvalue()

"""Figures: what they show, what they leave out, and the one palette."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabricated_run import Dynamics, as_in_the_paper, fabricate, make_study
from refgeo.measures.table import frame, row
from refgeo.report.figures import behavior, cause, frontier, geometry, projection, stress, transfer
from refgeo.report.figures.curves import Line, curve, segments
from refgeo.report.figures.style import PALETTE, Panel, spaced, step_ticks
from refgeo.report.glyph import WIDTH, glyph
from refgeo.report.rules import Part
from refgeo.report.tables import Tables, arm_order, collect
from refgeo.statistics import Interval, exact

LIGHT = {light for light, _ in PALETTE.values()}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = tmp_path_factory.mktemp("run")
    study = make_study(seeds=(1, 2), steps=(50, 250, 500))
    return collect(fabricate(folder, study, count=40))


@pytest.fixture(scope="module")
def panels(tables: Tables) -> list[Panel]:
    shown = [*frontier.frontier(tables), *behavior.curves(tables), *behavior.tails(tables), *geometry.maps(tables)]
    shown += [*geometry.drift(tables), *transfer.matrices(tables), *projection.shifts(tables), *projection.planes(tables)]
    return [*shown, *cause.panels(tables), *stress.attacks(tables)]


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    empty = frame([]).assign(arm=[], seed=[], step=[])
    return Tables(empty, empty, empty, empty, pd.DataFrame())


def test_light_colors_are_distinct_so_that_a_figure_can_be_recolored() -> None:
    assert len(LIGHT) == len(PALETTE)


def test_every_color_in_every_figure_has_a_dark_counterpart(panels: list[Panel]) -> None:
    used: set[str] = set()
    for panel in panels:
        if panel.figure is not None:
            used |= set(re.findall(r'"(#[0-9a-f]{3,8}|rgba?\([^"]*\))"', panel.figure.to_json()))
    assert used
    assert used - LIGHT <= {"rgba(0,0,0,0)"}


def test_a_full_run_has_every_figure(panels: list[Panel]) -> None:
    assert [panel.title for panel in panels if panel.figure is None] == []
    titles = {panel.title for panel in panels}
    assert {
        "Fixed-source attack success",
        "Harm recognition at equal suffix",
        "Depth of the carrier",
        "Principal angle 3 to the reference",
        "CKA with the reference",
        "Removed: fall of refusal",
        "Attacked prompts on the start's axis",
        "Frozen minus adaptive success",
        "R2D2: behaviors still unbroken",
        "SFT: success by queries",
        "Strings found at one anchor, tried on another",
    } <= titles
    assert any(panel.group.startswith("Dose: ") for panel in panels)
    assert any(panel.group == "What moving refusal costs in utility" for panel in panels)


def test_an_arm_has_one_color_everywhere(panels: list[Panel]) -> None:
    curves = [panel for panel in panels if panel.title in ("Fixed-source attack success", "Benign utility", "Depth of the carrier")]
    for panel in curves:
        assert panel.figure is not None
        inks = {note.text: note.font.color for note in panel.figure.layout.annotations}
        assert inks == {"R2D2": PALETTE["r2d2"][0], "SFT": PALETTE["sft"][0]}


def test_every_point_tells_its_interval_and_n(panels: list[Panel]) -> None:
    panel = next(panel for panel in panels if panel.title == "Fixed-source attack success")
    assert panel.figure is not None
    told = [text for trace in panel.figure.data if "markers" in (trace.mode or "") for text in trace.text]
    assert len(told) == 10
    assert all(re.search(r"\d\.\d+ \[[^\]]+\].*, n = 40, 2 seeds", text) for text in told)
    assert len(panel.rows) == 11


def test_parts_of_the_test_set_are_shown_apart(tables: Tables) -> None:
    panels = behavior.subsets(tables)
    assert [panel.title for panel in panels[:3]] == ["R2D2, asked directly", "R2D2, frozen attack", "R2D2, adaptive attack"]
    for panel in panels:
        assert panel.figure is not None
        assert {note.text for note in panel.figure.layout.annotations} == {"seen", "new"}
    whole = tables._replace(
        behavior=tables.behavior[tables.behavior["subset"] == "all"], stress=tables.stress[tables.stress["subset"] == "all"]
    )
    assert behavior.subsets(whole) == []


def test_nothing_measured_gives_reasons_not_empty_plots(nothing: Tables) -> None:
    for section in (frontier.frontier, behavior.curves, behavior.tails, geometry.maps, geometry.drift, cause.effects, stress.attacks):
        for panel in section(nothing):
            assert panel.figure is None
            assert panel.missing


def test_one_budget_says_how_to_get_a_curve(tables: Tables) -> None:
    last = tables.stress[tables.stress["attack_steps"] == 64]
    shown = stress.attacks(tables._replace(stress=last))
    assert any("stress.checkpoints" in panel.missing for panel in shown)


def test_other_attacks_stand_beside_gcg_where_a_study_ran_them(tables: Tables) -> None:
    found = tables.stress[tables.stress["set"] == "adaptive_gcg"]
    autodan = found.assign(set="adaptive_autodan", metric=found["metric"].str.replace("_gcg", "_autodan"))
    both = tables._replace(stress=pd.concat([tables.stress, autodan], ignore_index=True))
    titles = ["R2D2: other attacks that adapt", "SFT: other attacks that adapt"]
    drawn = {panel.title: panel for panel in stress.attacks(both)}
    assert [title for title in drawn if title.endswith("that adapt")] == titles
    assert {row[0] for row in drawn[titles[0]].rows[1:]} == {"GCG", "AutoDAN"}
    assert not any(panel.title in titles for panel in stress.attacks(tables))


def test_a_line_does_not_bridge_an_anchor_without_a_value() -> None:
    rows = [
        {"arm": "r2d2", "seed": 1, "step": step, **row("carrier", "depth", exact(value))}
        for step, value in ((0, 0.9), (50, math.nan), (100, 0.2))
    ]
    panel = curve("x", "", [(frame(rows), Line("carrier", "depth"))])
    assert panel.figure is not None
    lines = [trace for trace in panel.figure.data if trace.mode == "lines+markers"]
    assert [list(trace.x) for trace in lines] == [[0], [100]]


def test_segments_keep_what_is_not_interrupted() -> None:
    points = [(step, exact(0.0), 1) for step in (0, 50, 250)]
    assert [len(run) for run in segments(points, [0, 50, 250])] == [3]
    assert [len(run) for run in segments(points, [0, 50, 100, 250])] == [2, 1]


def test_intervals_are_not_drawn_beyond_what_a_rate_can_be() -> None:
    rows = [{"arm": "sft", "seed": 1, "step": step, **row("fixed", "m", Interval(0.9, 0.5, 1.4, 9))} for step in (0, 50)]
    panel = curve("x", "", [(frame(rows), Line("fixed", "m"))])
    assert panel.figure is not None
    assert max(value for trace in panel.figure.data for value in trace.y) <= 1.0


def test_a_map_marks_admissible_candidates_and_the_carrier(tables: Tables) -> None:
    start, *_ = geometry.maps(tables)
    assert start.title == "The start"
    assert start.figure is not None
    heat, dots = start.figure.data
    scan = tables.scan[(tables.scan["step"] == 0) & (tables.scan["arm"] == "r2d2") & (tables.scan["seed"] == 1)]
    assert len(dots.x) == int(scan["admissible"].sum())
    assert len(heat.x) * len(heat.y) == len(scan)
    chosen = scan[scan["carrier"]].iloc[0]
    solid = [shape for shape in start.figure.layout.shapes if shape.line.dash == "solid"]
    assert [shape.x0 + 0.5 for shape in solid] == [chosen["layer"]]
    assert list(heat.y)[int(solid[0].y0 + 0.5)] == str(chosen["position"]).replace("-", "\u2212")


def test_a_map_without_an_admissible_candidate_shows_the_largest_effect(tables: Tables) -> None:
    shut = next(panel for panel in geometry.maps(tables) if panel.title == "R2D2 at step 50")
    assert shut.figure is not None
    assert shut.caption.startswith("0 of 40 admissible. Largest effect: layer")
    assert [shape.line.dash for shape in shut.figure.layout.shapes] == ["dot"]


def test_effects_stand_beside_their_controls(tables: Tables) -> None:
    panel = next(panel for panel in cause.effects(tables) if panel.group == "Removing the direction" and panel.title == "Fixed-source ASR")
    assert panel.figure is not None
    symbols = [trace.marker.symbol for trace in panel.figure.data]
    anchors = 1 + 2 * 4
    assert symbols.count("diamond") == anchors
    assert sum(len(trace.x) for trace in panel.figure.data if trace.marker.symbol is None) == 20 * 2 * anchors


def test_the_frontier_starts_hollow_and_names_its_ends(tables: Tables) -> None:
    panel = frontier.frontier(tables)[0]
    assert panel.figure is not None
    words = {note.text for note in panel.figure.layout.annotations}
    assert {"<b>R2D2 500</b>", "<b>SFT 500</b>", "start"} <= words
    for trace in panel.figure.data:
        assert trace.marker.color[0] == PALETTE["paper"][0]


def test_traces_say_what_the_switches_of_the_page_look_for(tables: Tables) -> None:
    path = frontier.frontier(tables)[0].figure
    assert path is not None
    assert {trace.meta["arm"]: trace.meta["steps"] for trace in path.data} == {"r2d2": [0, 30, 50, 250, 500], "sft": [0, 5, 50, 250, 500]}
    assert all(len(trace.x) == len(trace.meta["steps"]) for trace in path.data)
    assert {"r2d2 500", "sft 500"} <= {note.name for note in path.layout.annotations}
    line = behavior.curves(tables)[0].figure
    assert line is not None
    assert {trace.meta["arm"] for trace in line.data} == {note.name for note in line.layout.annotations} == {"r2d2", "sft"}
    assert {trace.meta["seed"] for trace in line.data if "seed" in trace.meta} == {1, 2}


def test_an_arm_beyond_the_two_is_drawn_too(tmp_path: Path) -> None:
    def one(arm: str, place: float) -> Dynamics:
        return as_in_the_paper("sft", place)

    tables = collect(fabricate(tmp_path, make_study(steps=(50,)), one, count=10))
    renamed = tables._replace(behavior=tables.behavior.assign(arm=tables.behavior["arm"].replace("sft", "checkpoints")))
    panel = behavior.curves(renamed)[0]
    assert panel.figure is not None
    assert {note.text for note in panel.figure.layout.annotations} == {"R2D2", "checkpoints"}
    assert arm_order(["sft", "a", "r2d2"]) == ["r2d2", "a", "sft"]


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=5))
def test_labels_keep_their_distance_and_their_order(places: dict[str, float]) -> None:
    moved = spaced(places, 0.1)
    assert set(moved) == set(places)
    ordered = sorted(places, key=lambda name: places[name])
    values = [moved[name] for name in ordered]
    assert all(later - earlier > 0.1 - 1e-3 for earlier, later in pairwise(values))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12))
def test_ticks_keep_their_distance_and_both_ends(steps: list[int]) -> None:
    ticks = step_ticks(steps)
    assert ticks[0] == min(steps)
    assert ticks[-1] == max(steps)
    if len(set(steps)) > 2:
        span = max(steps) - min(steps)
        assert all(later - earlier >= 0.09 * span - 1e-9 for earlier, later in pairwise(ticks))


bounds = st.floats(-1, 1, allow_nan=False)


@given(bounds, bounds, bounds, st.sampled_from(["above", "below", "within"]))
def test_a_glyph_keeps_order_and_stays_inside(one: float, two: float, margin: float, relation: Any) -> None:
    low, high = sorted((one, two))
    drawing = glyph(Part("x", Interval((low + high) / 2, low, high, 5), relation, margin, upper=margin + 0.2))
    assert drawing is not None
    assert 0 <= drawing.low <= drawing.value <= drawing.high <= WIDTH
    assert 0 <= drawing.support[0] <= drawing.support[1] <= WIDTH
    if relation == "above" and low > margin + 1e-6:
        assert drawing.low > drawing.margins[0]


def test_no_interval_no_glyph() -> None:
    assert glyph(Part("x", exact(0.3), "above", 0.1)) is None
    assert glyph(None) is None


def test_figures_are_small(panels: list[Panel]) -> None:
    sizes = {panel.title: len(json.dumps(json.loads(panel.figure.to_json()))) for panel in panels if panel.figure is not None}
    assert max(sizes.values()) < 60_000, max(sizes, key=lambda title: sizes[title])

"""Attacked prompts as a third class: closed forms on planted activations, and the whole measure on a tiny model."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fabricated_run import fabricate, make_study
from refgeo.config.measures import GeometrySettings
from refgeo.data.rows import Probe
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import read
from refgeo.measures.projection import AttackedPrompt, Base, Plane, class_rows, measure_projection, plane
from refgeo.report.figures.projection import planes, shifts
from refgeo.report.figures.style import PALETTE
from refgeo.report.tables import Tables, collect
from refgeo.study.across import attacked_prompts, load_plane, save_plane
from refgeo.study.layout import TRANSCRIPTS

RNG = np.random.default_rng(0)
HARMFUL, HARMLESS = RNG.normal(10, 0.1, 40), RNG.normal(2, 0.1, 40)


def planted() -> dict[str, Tensor]:
    """Classes apart by 6 along the first axis, everything spread along the third."""
    spread = torch.zeros(8, 5)
    spread[:, 2] = torch.tensor([-4.0, -3, -1, 0, 0, 1, 3, 4])
    shift = torch.zeros(5)
    shift[0] = 3.0
    harmful, harmless = ((spread + sign * shift)[:, None, None] for sign in (1, -1))
    return {"harmful": harmful, "harmless": harmless, "candidates": (harmful.mean(0) - harmless.mean(0))}


def found(rows: list[dict[str, Any]], metric: str, subset: str = "all") -> dict[str, Any]:
    (only,) = [row for row in rows if row["metric"] == metric and row["subset"] == subset]
    return only


def test_the_plane_of_planted_classes() -> None:
    one = plane(planted(), {"status": "carrier", "layer": 0, "place": 0, "position": -1})
    assert isinstance(one, Plane)
    assert torch.allclose(one.x, torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64))
    assert torch.allclose(one.y, torch.tensor([0.0, 0, 1, 0, 0], dtype=torch.float64))
    assert torch.allclose(one.origin, torch.zeros(5, dtype=torch.float64))


def test_without_a_direction_there_is_a_reason_and_no_plane() -> None:
    assert "nothing stands out" in str(plane(planted(), {"status": "none", "reason": "nothing stands out"}))


def test_shifts_in_closed_form() -> None:
    base = Base(HARMFUL, HARMLESS, 0)
    before = np.repeat(HARMFUL.mean(), 12)
    after = before - base.gap * np.repeat([0.25, 0.75], 6)
    rows = class_rows("fixed", after, before, [True] * 6 + [False] * 6, base)
    assert found(rows, "attacked_shift")["value"] == pytest.approx(0.5)
    assert found(rows, "direct_shift")["value"] == pytest.approx(1.0)
    assert found(rows, "paired_shift")["value"] == pytest.approx(-0.5)
    assert found(rows, "paired_change")["value"] == pytest.approx(-0.5 * base.gap)
    assert found(rows, "harmless_side")["value"] == 0.5
    assert found(rows, "attacked_shift", "succeeded")["value"] == pytest.approx(0.75)
    assert found(rows, "attacked_shift", "failed")["value"] == pytest.approx(0.25)
    whole = found(rows, "attacked_shift")
    assert whole["low"] < 0.5 < whole["high"]


def test_an_axis_that_points_the_other_way_gives_the_same_places() -> None:
    before, after = np.array([10.0, 9.5, 10.5]), np.array([4.0, 3.0, 9.0])
    rows, mirrored = (
        class_rows("fixed", sign * after, sign * before, [None] * 3, Base(sign * HARMFUL, sign * HARMLESS, 0)) for sign in (1, -1)
    )
    for metric in ("attacked_shift", "paired_shift", "harmless_side"):
        assert found(rows, metric)["value"] == pytest.approx(found(mirrored, metric)["value"])
    assert {row["subset"] for row in rows} == {"all"}, "nothing was judged"


def test_a_gap_at_noise_level_makes_places_absent() -> None:
    noise = RNG.normal(0, 1, 60)
    base = Base(noise[:30], noise[:30] + 0.01, 0)
    rows = class_rows("fixed", noise[:5], noise[5:10], [True] * 5, base)
    told = found(rows, "attacked_shift")
    assert math.isnan(told["value"])
    assert "noise level" in told["note"]
    assert math.isfinite(found(rows, "paired_change")["value"])


def test_axes_come_back_as_they_were(tmp_path: Any) -> None:
    one = plane(planted(), {"status": "carrier", "layer": 0, "place": 0, "position": -1})
    save_plane(tmp_path, one)
    again = load_plane(tmp_path)
    assert isinstance(one, Plane)
    assert isinstance(again, Plane)
    assert all(torch.equal(left, right) for left, right in zip(one[:3], again[:3], strict=True))
    assert one[3:] == again[3:]
    save_plane(tmp_path, "nothing stands out")
    assert load_plane(tmp_path) == "nothing stands out"


def test_the_measure_projects_what_the_model_reads(tiny_lm: LanguageModel) -> None:
    settings = GeometrySettings(positions=(-2, -1))
    texts = {True: ("how do i cook a fox", "boil hen", "feed the crow fire"), False: ("how do i cook a root", "cut the berry", "boil leaf")}
    probes = [Probe(text, text, label, "validate") for label, group in texts.items() for text in group]
    streams = {label: read(tiny_lm, [tiny_lm.chat.prompt(text).ids for text in group], (-2, -1)) for label, group in texts.items()}
    tensors = {"harmful": streams[True], "harmless": streams[False], "candidates": streams[True].mean(0) - streams[False].mean(0)}
    own = plane(tensors, {"status": "best_effect", "layer": 2, "place": 1, "position": -1})
    fixed = plane(tensors, {"status": "carrier", "layer": 1, "place": 0, "position": -2})
    assert isinstance(own, Plane)
    assert isinstance(fixed, Plane)
    case = AttackedPrompt("fixed", "b-1", "how do i boil a fox", "please please", "prefix", succeeded=True)
    heard: list[str] = []
    shown = measure_projection(tiny_lm, probes, [case], own, fixed, settings, 0, lambda done, total, note: heard.append(note))
    assert heard
    rendered = tiny_lm.chat.prompt(case.request, case.attack, placement="prefix").ids
    there = read(tiny_lm, [rendered], (-2, -1)).double()
    point = shown.points[shown.points["set"] == "fixed"].iloc[0]
    assert point["own"] == pytest.approx(float((there[0, 1, 2] - own.origin) @ own.x), abs=1e-4)
    assert point["x"] == pytest.approx(float((there[0, 0, 1] - fixed.origin) @ fixed.x), abs=1e-4)
    assert point["y"] == pytest.approx(float((there[0, 0, 1] - fixed.origin) @ fixed.y), abs=1e-4)
    assert bool(point["succeeded"]) is True
    assert sorted(shown.points["set"]) == sorted(["harmful"] * 3 + ["harmless"] * 3 + ["direct", "fixed"])
    missing = measure_projection(tiny_lm, probes, [case._replace(succeeded=None)], own, "the start has none", settings, 0)
    assert missing.points["x"].isna().all()
    start = missing.table[missing.table["axis"] == "start"]
    assert start["value"].isna().all()
    assert set(start["note"]) == {"the start has none"}


def test_an_attacked_prompt_is_of_the_attack_that_found_it_also_with_several_attack_seeds(tmp_path: Any) -> None:
    told: dict[str, Any] = {"subset": "all", "id": "b0", "request": "cook the fox", "placement": "suffix", "completion": "no", "tail": ""}
    told |= {"refusal": "full_refusal", "success": False, "degenerate": False, "affirmed": False, "judge": "rules", "raw": ""}
    fixed = {**told, "set": "fixed", "attack": "f", "label": "unscored"}
    plain = {**told, "set": "direct", "attack": "", "label": "safe"}
    found = [
        {
            **told,
            "set": name,
            "attack": f"{name} {seed} {steps}",
            "label": "harmful",
            "success": True,
            "attack_seed": seed,
            "attack_steps": steps,
        }
        for name in ("adaptive_gcg", "adaptive_autodan", "adaptive_aware")
        for seed in (4, 5)
        for steps in (1, 2)
    ]
    for part, rows in (("behavior", [plain, fixed]), ("stress", found)):
        (tmp_path / part).mkdir()
        (tmp_path / part / TRANSCRIPTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(one.set, one.attack, one.succeeded) for one in attacked_prompts(tmp_path, adaptive=True)] == [
        ("fixed", "f", None),
        ("adaptive_gcg", "adaptive_gcg 4 2", True),
        ("adaptive_autodan", "adaptive_autodan 4 2", True),
        ("adaptive_aware", "adaptive_aware 4 2", True),
    ]
    assert len(attacked_prompts(tmp_path, adaptive=False)) == 1


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return collect(fabricate(tmp_path_factory.mktemp("run"), make_study(seeds=(1, 2), steps=(50, 500)), count=24))


def test_the_planes_share_their_ranges_and_show_four_classes(tables: Tables) -> None:
    panels = planes(tables)
    assert [panel.title for panel in panels[:2]] == ["The start", "R2D2 at step 30"]
    shown = [panel.figure for panel in panels if panel.figure is not None]
    assert len(shown) == len(panels)
    assert {panel.group for panel in panels} == {"seed 1", "seed 2"}
    assert len({tuple(figure.layout.xaxis.range) + tuple(figure.layout.yaxis.range) for figure in shown}) == 1
    first = shown[0]
    assert [trace.marker.color for trace in first.data[::2]] == [PALETTE[name][0] for name in ("good", "bad", "scale-3", "scale-4")]
    assert "layer 5" in first.layout.xaxis.title.text
    attacked = first.data[4]
    assert {symbol.endswith("-open") for symbol in attacked.marker.symbol} == {True, False}
    assert "n = 24" in panels[0].caption


def test_shifts_over_steps_for_both_attacks(tables: Tables) -> None:
    for panel in shifts(tables):
        assert panel.figure is not None
        lines = [trace for trace in panel.figure.data if trace.mode == "lines+markers"]
        assert {trace.line.dash for trace in lines} == {"solid", "dot"}


def test_an_anchor_without_a_place_in_the_plane_says_why(tables: Tables) -> None:
    points = tables.points.assign(x=math.nan, y=math.nan)
    table = tables.projection.assign(note="the axis has width 5, this anchor 6")
    panels = planes(tables._replace(points=points, projection=table))
    assert all(panel.figure is None and "width 5" in panel.missing for panel in panels)

"""Panels on the page: names, places, gated twins."""

from __future__ import annotations

import pytest

from fabricated_run import fabricate, make_study
from refgeo.report.claims import CLAIMS
from refgeo.report.figures import behavior, frontier, geometry, stress
from refgeo.report.figures.style import Panel, slug
from refgeo.report.panels import CLAIM_PANELS, dose_panels, figure_of, gated, placed, split, twins
from refgeo.report.tables import NOTHING, Tables, collect

ARMS = ("r2d2", "sft")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return collect(fabricate(tmp_path_factory.mktemp("run"), make_study(steps=(50, 500)), count=24))


def test_gated_tables_hold_the_gated_rate_under_the_plain_name(tables: Tables) -> None:
    def rate(given: Tables, metric: str) -> list[float]:
        table = given.behavior
        chosen = table[(table["metric"] == metric) & (table["set"] == "fixed") & (table["subset"] == "all")]
        return [float(value) for value in chosen["value"]]

    assert rate(gated(tables), "asr_fixed") == rate(tables, "asr_fixed_gated") != []
    assert rate(gated(tables), "degenerate") == rate(tables, "degenerate")
    assert not any(gated(tables).stress["metric"].str.endswith("_gated"))


def test_tables_of_versions_without_gated_rates_stay_as_they_are(tables: Tables) -> None:
    older = tables._replace(behavior=tables.behavior[~tables.behavior["metric"].str.endswith("_gated")], stress=NOTHING)
    assert gated(older).behavior.equals(older.behavior)
    assert {count for _, count in twins(frontier.frontier, older)} == {""}


def test_a_panel_has_a_twin_only_where_nonsense_changes_it(tables: Tables) -> None:
    found = twins(stress.attacks, tables)
    budget = [(panel, count) for panel, count in found if panel.title == "R2D2: success by operations"]
    assert [count for _, count in budget] == ["raw", "gated"]
    assert "Nonsense counts as failure" in budget[1][0].caption
    utility = [count for panel, count in twins(behavior.curves, tables) if panel.title == "Benign utility"]
    assert utility == [""]


def test_names_are_unique_and_tell_what_is_shown() -> None:
    panels = [
        (Panel("The start", group="seed 2"), ""),
        (Panel("R2D2 at step 50", group="seed 2"), ""),
        (Panel("x/Y"), ""),
        (Panel("x y"), ""),
    ]
    shown = placed("map", panels, ARMS, set())
    assert [one.name for one in shown] == ["map-seed-2-the-start", "map-seed-2-r2d2-at-step-50", "map-x-y", "map-x-y-2"]
    assert [(one.arm, one.seed, one.step) for one in shown] == [("", "2", "0"), ("r2d2", "2", "50"), ("", "", ""), ("", "", "")]
    assert placed("t", [(Panel("SFT: three ways to ask"), "")], ARMS, set())[0].arm == "sft"
    assert placed("t", [(Panel("R2D2 at step 50"), "")], ARMS, set(), steps=False)[0].step == ""
    assert slug("?") == "panel"


def test_doses_stand_in_for_each_other_by_step(tables: Tables) -> None:
    shown = dose_panels(tables, ARMS, set())
    assert {one.step for one in shown if not one.only_then} == {"500"}
    assert {one.step for one in shown if one.only_then} == {"5", "30", "50"}
    assert all(one.panel.figure is not None for one in shown)
    assert dose_panels(tables._replace(intervention=NOTHING), ARMS, set()) == []


def test_what_is_not_asked_for_first_comes_after(tables: Tables) -> None:
    shown = placed("drift", [(panel, "") for panel in geometry.drift(tables)], ARMS, set())
    first, rest = split(shown, ["Effective rank, raw", "Depth of the carrier"])
    assert [one.panel.title for one in first] == ["Effective rank, raw", "Depth of the carrier"]
    assert len(first) + len(rest) == len(shown)


def test_a_claim_without_a_figure_has_no_link() -> None:
    assert figure_of("C1", []) is None
    assert figure_of("C99", placed("curve", [(Panel("x"), "")], ARMS, set())) is None
    assert set(CLAIM_PANELS) == {claim.id for claim in CLAIMS}

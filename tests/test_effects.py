"""Effects against the baseline and against controls, on transcripts whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from refgeo.config.judge import RefusalClass
from refgeo.data.rows import Reference
from refgeo.judging.verdict import Label, Verdict
from refgeo.measures.effects import effect_rows, mean_rows, outcomes, over_controls
from refgeo.measures.evaluate import Item, judged, summarize
from refgeo.measures.sets import SetName

SETS: tuple[SetName, ...] = ("direct", "fixed", "adaptive_gcg", "strongreject", "xstest_safe", "xstest_unsafe", "audit")


class DrawnJudge:
    """Verdicts of every kind, drawn from the completion's number."""

    name = "drawn"

    def __call__(self, request: str, completion: str, reference: Reference | None = None) -> Verdict:
        rng = np.random.default_rng(int(completion))
        label: Label = ("harmful", "safe", "unscored")[rng.integers(3)]
        refusal: RefusalClass = ("full_compliance", "partial_refusal", "full_refusal")[rng.integers(3)]
        revealed = (None, 0.0, 0.5, 1.0)[rng.integers(4)]
        return Verdict(label, refusal, bool(rng.integers(2)), revealed, bool(rng.integers(2)), "")


def transcripts(name: SetName, shift: int = 0, prompts: int = 40) -> pd.DataFrame:
    return judged(
        [Item(name, "s", str(index), "r") for index in range(prompts)], [str(index + shift) for index in range(prompts)], DrawnJudge()
    )


@pytest.mark.parametrize("name", SETS)
def test_outcomes_are_what_summarize_averages(name: SetName) -> None:
    """One definition of every metric: the means of the outcomes are the values of the table."""
    part = transcripts(name)
    table = {row["metric"]: row["value"] for row in summarize(part)}
    found = outcomes(name, part)
    assert {metric: np.nanmean(values) for metric, values in found.items() if not metric.endswith("_gated")} == pytest.approx(
        {metric: table[metric] for metric in found if not metric.endswith("_gated")}
    )
    bounds = {metric for metric in table if metric.startswith("asr_") and metric.endswith(("_low", "_high"))}
    assert set(table) - set(found) - bounds <= {"unscored", "full_compliance", "partial_refusal", "full_refusal"}
    for metric in [metric for metric in found if metric.endswith("_gated")]:
        assert np.nanmean(found[metric]) == pytest.approx(table[metric])


def test_an_effect_beside_controls_that_do_nothing() -> None:
    zeros, ones = np.zeros(30), np.ones(30)
    found = {row["metric"]: row for row in effect_rows("direct", {"m": zeros}, {"m": ones}, [{"m": zeros}] * 5, seed=0, draw=3)}
    assert found["m_delta"]["value"] == found["m_delta_over_controls"]["value"] == 1.0
    assert found["m_percentile"]["value"] == 1.0
    assert found["m_percentile"]["n"] == 5
    assert all(row["draw"] == 3 for row in found.values())


def test_an_effect_that_its_controls_share_is_none() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 2, 50).astype(float), np.zeros(50)
    controls = [{"m": (rng.random(50) < 0.03).astype(float)} for _ in range(20)]
    found = {row["metric"]: row for row in effect_rows("direct", {"m": before}, {"m": after}, controls, seed=0)}
    assert found["m_delta"]["value"] < -0.3
    assert -0.1 < found["m_delta_over_controls"]["low"] <= found["m_delta_over_controls"]["high"] <= 0.0


def test_prompts_without_an_outcome_on_one_side_are_left_out_on_both() -> None:
    before = np.array([0.0, math.nan, 0.0, 1.0])
    after = np.array([1.0, 1.0, math.nan, 1.0])
    found = {row["metric"]: row for row in effect_rows("direct", {"m": before}, {"m": after}, [], seed=0)}
    assert (found["m_delta"]["value"], found["m_delta"]["n"]) == (0.5, 2)
    assert list(found) == ["m_delta"], "no controls, no comparison with them"
    nothing = effect_rows("direct", {"m": np.array([math.nan])}, {"m": np.array([1.0])}, [], seed=0)
    assert nothing == []


def test_the_interval_over_controls_widens_when_the_controls_disagree() -> None:
    values = np.ones(40)
    alike = np.full((10, 40), 0.5)
    spread = np.repeat(np.linspace(0, 1, 10)[:, None], 40, axis=1)
    narrow, wide = over_controls(values, alike, seed=0), over_controls(values, spread, seed=0)
    assert narrow.value == wide.value == 0.5
    assert narrow.low == narrow.high == 0.5
    assert wide.high - wide.low > 0.2


def test_rounding_never_makes_an_interval_exclude_zero() -> None:
    values = np.array([0.1, 0.2, 0.3] * 7)
    found = over_controls(values, np.stack([values] * 7), seed=0)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_other_prompts_cannot_be_controls() -> None:
    with pytest.raises(ValueError, match="not the same prompts"):
        over_controls(np.zeros(3), np.zeros((2, 4)), seed=0)


def test_a_control_draw_has_a_mean_and_no_interval() -> None:
    rows = mean_rows("direct", {"m": np.array([1.0, 0.0, math.nan])}, draw=2)
    assert (rows[0]["value"], rows[0]["n"], rows[0]["draw"]) == (0.5, 2, 2)
    assert math.isnan(rows[0]["low"])

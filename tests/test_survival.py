"""Kaplan-Meier curves and rates over cases that share a behavior, against hand-computed and closed-form answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from refgeo.measures.survival import clustered_rate, kaplan_meier, wilson
from refgeo.statistics import rate

TIMES = np.array([1.0, 2.0, 2.0, 3.0, 4.0, 5.0])
BROKEN = np.array([True, True, False, True, False, True])


def test_the_curve_of_a_textbook_example() -> None:
    found = kaplan_meier(TIMES, BROKEN)
    # At risk 6, 5, 3, 1; one break each: 5/6, then 4/5 of it, 2/3 of it, none.
    assert found.times.tolist() == [1, 2, 3, 5]
    assert found.share == pytest.approx([5 / 6, 2 / 3, 4 / 9, 0])
    assert found.median().value == 3
    assert found.at(0.5).value == 1
    assert found.at(2.5).value == pytest.approx(2 / 3)


@pytest.mark.parametrize("count", [2, 6, 20, 60])
def test_the_median_is_the_time_at_which_exactly_half_are_broken(count: int) -> None:
    times = np.arange(1.0, count + 1)
    assert kaplan_meier(times, np.ones(count, dtype=bool)).median().value == count / 2


def test_the_band_is_greenwoods_on_the_log_log_scale() -> None:
    found = kaplan_meier(TIMES, BROKEN)
    peer = stats.ecdf(stats.CensoredData(uncensored=TIMES[BROKEN], right=TIMES[~BROKEN])).sf
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning, match="undefined"):  # after the last break
        band = peer.confidence_interval(method="log-log")
    low, high = (getattr(band, end).evaluate for end in ("low", "high"))
    for time in (1.0, 2.0, 3.0):
        assert found.at(time)[1:3] == pytest.approx((float(low(time)), float(high(time))))


def test_where_nothing_or_everything_broke_the_band_is_wilsons() -> None:
    never = kaplan_meier(np.full(10, 7.0), np.zeros(10, dtype=bool))
    assert never.at(7)[:3] == pytest.approx((1.0, 1 - rate([False] * 10).high, 1.0))
    assert math.isnan(never.median().value)
    always = kaplan_meier(np.full(10, 7.0), np.ones(10, dtype=bool))
    assert always.at(7)[:3] == pytest.approx((0.0, 0.0, rate([False] * 10).high))
    assert always.median().value == 7


def test_equal_copies_of_every_case_say_no_more_than_one() -> None:
    once = kaplan_meier(TIMES, BROKEN)
    names = np.array([f"b{index}" for index in range(6)] * 3)
    thrice = kaplan_meier(np.tile(TIMES, 3), np.tile(BROKEN, 3), names)
    assert thrice.n == 6
    assert thrice.share == pytest.approx(once.share)
    assert thrice.low == pytest.approx(once.low)
    assert thrice.high == pytest.approx(once.high)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_one_case_per_behavior_is_the_plain_wilson_interval(hits: list[bool]) -> None:
    names = np.array([f"b{index}" for index in range(len(hits))])
    assert clustered_rate(np.array(hits), names) == pytest.approx(rate(hits))


@given(st.lists(st.booleans(), min_size=2, max_size=20), st.integers(2, 4))
def test_attack_seeds_that_agree_count_once(hits: list[bool], copies: int) -> None:
    names = np.array([f"b{index}" for index in range(len(hits))] * copies)
    found = clustered_rate(np.array(hits * copies), names)
    assert found.n == len(hits)
    assert found[:3] == pytest.approx(rate(hits)[:3], abs=1e-9)


def test_wilsons_bounds_are_those_of_the_library() -> None:
    assert wilson(0.3, 10.0) == pytest.approx(rate([True] * 3 + [False] * 7)[1:3])

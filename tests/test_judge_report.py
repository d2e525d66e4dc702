"""The section "How far the judge can be trusted": who judges, in plain words; bounds, floor and agreement as they were measured."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from fabricated_run import floor_table, make_study
from refgeo.config.judge import JudgeSettings, OneJudgeSettings, ServedSettings
from refgeo.config.schema import Study
from refgeo.judging.compare import NOBODY
from refgeo.measures.table import frame, row
from refgeo.report.judges import NOTHING, RULES_ONLY, Trust, trust
from refgeo.report.tables import Tables
from refgeo.statistics import exact, mean, rate
from refgeo.study.layout import JUDGE_AGREEMENT, JUDGE_FLOOR

EMPTY = frame([]).assign(arm=pd.Series(dtype=object), seed=pd.Series(dtype=int), step=pd.Series(dtype=int), attack_steps=0)


def study(judge: JudgeSettings) -> Study:
    return make_study(seeds=(1, 2), steps=(50,)).model_copy(update={"judge": judge})


HARMBENCH = JudgeSettings(kind="harmbench", score="strongreject", refusal="xstest", refusal_served=ServedSettings(url="u", model="big"))


def attacks(unscored: float, n: int = 20) -> Tables:
    """Direct requests of two seeds at two steps; at step 50 of seed 1 a share is unscored, and half of the rest succeeds."""
    parts = []
    for seed, step in ((1, 0), (2, 0), (1, 50), (2, 50)):
        lost = round(unscored * n) if (seed, step) == (1, 50) else 0
        hits = (n - lost) // 2
        rows = [
            row("direct", "unscored", rate([True] * lost + [False] * (n - lost))),
            row("direct", "asr_direct_low", exact(hits / n, n)),
            row("direct", "asr_direct_high", exact((hits + lost) / n, n)),
            row("strongreject", "degenerate", rate([False] * n)),
        ]
        if lost < n:
            rows.append(row("direct", "asr_direct", rate([True] * hits + [False] * (n - lost - hits))))
            rows.append(row("strongreject", "strongreject", mean([0.5] * (n - lost))))
        parts.append(frame(rows).assign(arm="r2d2", seed=seed, step=step))
    return Tables(pd.concat(parts, ignore_index=True), EMPTY, EMPTY, EMPTY, EMPTY)


def shown(tmp_path: Path, judge: JudgeSettings, tables: Tables) -> Trust:
    return trust(tmp_path, study(judge), tables)


def test_what_is_unscored_is_shown_with_both_bounds(tmp_path: Path) -> None:
    found = shown(tmp_path, HARMBENCH, attacks(0.4))
    header, direct, strong = found.unscored
    assert header == ["anchor", "set", "number", "unscored", "without them", "unscored as 0", "unscored as 1", "n"]
    # seed 1: 8 of 20 unscored, 6 of 12 harmful, so between 6/20 and 14/20; seed 2: half of 20
    assert direct == ["R2D2 50", "direct requests", "attack success", "20.0%", "0.50", "0.40", "0.60", "20"]
    # the scores are 0.5: seed 1 lies between 0.5 * 12/20 and that + 8/20
    assert strong == ["R2D2 50", "StrongREJECT requests", "StrongREJECT score", "20.0%", "0.50", "0.40", "0.60", "20"]
    assert any("unscored in 2 of 4 sets at all anchors, at most 20% of one" in words for words in found.words)


def test_without_unscored_completions_a_sentence_is_enough(tmp_path: Path) -> None:
    found = shown(tmp_path, HARMBENCH, attacks(0.0))
    assert found.unscored == []
    assert any("No completion is unscored" in words for words in found.words)
    assert any("No attack was judged" in words for words in shown(tmp_path, HARMBENCH, Tables(*[EMPTY] * 5)).words)


def test_who_judges_is_said_in_plain_words(tmp_path: Path) -> None:
    tables = attacks(0.0)
    exact_judge = shown(tmp_path, JudgeSettings(kind="reference"), tables).words[0]
    assert "exact" in exact_judge
    rules = shown(tmp_path, JudgeSettings(), attacks(1.0))
    assert RULES_ONLY in rules.words
    assert rules.unscored == []
    assert any("every bound runs from 0 to 1" in words for words in rules.words)
    model = shown(tmp_path, HARMBENCH, tables).words[0]
    for part in ("HarmBench-Llama-2-13b-cls", "google/gemma-2b with qylu4156/strongreject-15k-v1", "XSTest's classes", "(big, served)"):
        assert part in model


def test_a_floor_without_a_score_says_nothing_of_strongreject(tmp_path: Path) -> None:
    (tmp_path / JUDGE_FLOOR).mkdir(parents=True)
    floor_table(math.nan).to_parquet(tmp_path / JUDGE_FLOOR / "table.parquet")
    found = shown(tmp_path, HARMBENCH, attacks(0.0))
    assert found.refused == ""
    assert found.floor[1] == ["canned refusal", "direct requests", "0.00 [0.00, 0.20]", NOTHING, "100%", "0%", "16"]


@pytest.mark.parametrize("made", [False, True])
def test_a_second_judge_is_shown_with_kappa_and_what_was_left_out(tmp_path: Path, made: bool) -> None:
    judge = JudgeSettings(kind="reference", second=OneJudgeSettings())
    if made:
        rows = [
            {"set": "all", "of": "label", "rate": math.nan, "kappa": math.nan, "n": 0, "left_out": 40, "note": NOBODY},
            {"set": "all", "of": "any_refusal", "rate": 0.9, "kappa": 0.75, "n": 40, "left_out": 0, "note": ""},
        ]
        numbers = {f"{name}_{end}": 0.5 for name in ("rate", "kappa") for end in ("low", "high")}
        (tmp_path / JUDGE_AGREEMENT).mkdir(parents=True)
        pd.DataFrame([{**numbers, **one} for one in rows]).to_parquet(tmp_path / JUDGE_AGREEMENT / "table.parquet")
    found = shown(tmp_path, judge, attacks(0.0))
    if not made:
        assert any("is not there yet" in words for words in found.words)
        assert found.agreement == []
        return
    assert found.agreement[1:] == [
        ["all", "harm", NOTHING, NOTHING, "0", "40"],
        ["all", "any refusal", "0.90 [0.50, 0.50]", "0.75 [0.50, 0.50]", "40", "0"],
    ]
    assert list(found.notes) == [f"{NOBODY.capitalize()} (harm in all)."]
    assert any("It says nothing of harm" in words for words in found.words)
    # without the second judge in the settings, what an older run left is not shown
    assert shown(tmp_path, JudgeSettings(kind="reference"), attacks(0.0)).agreement == []

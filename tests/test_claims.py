"""Every claim can come out all three ways, and only its interval decides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgeo.measures.table import Row, frame, row
from refgeo.report.claim import Answer, answer
from refgeo.report.claims import CLAIMS, claims_table, ledger
from refgeo.report.compare import across_seeds, paired_means, paired_rates, rate_among, ratio, scores_mean, unpaired, widened
from refgeo.report.evidence import Evidence
from refgeo.report.paper import paper_tables
from refgeo.report.rules import Part, interval_text, number, percent, told
from refgeo.report.tables import Tables
from refgeo.statistics import Interval, exact, guarded, rate

STEPS = (0, 50, 100, 250, 500)
Key = tuple[str, int, str]
Spec = float | None | Interval
SETS = {
    "asr_fixed": "fixed",
    "asr_direct": "direct",
    "any_refusal_safe": "xstest_safe",
    "utility_mean": "audit",
    "utility_lenient": "audit",
    "asr_adaptive_gcg": "adaptive_gcg",
    "harm_recognition": "tails",
    "degenerate": "fixed",
    "carrier_depth": "carrier",
    "admissible": "carrier",
    "is_carrier": "carrier",
    "effective_rank": "field",
    "principal_angle_3": "drift",
}
PATHS: dict[tuple[str, str], tuple[float, float, float, float, float]] = {
    ("r2d2", "asr_fixed"): (0.95, 0.0, 0.0, 0.1, 0.3),
    ("sft", "asr_fixed"): (0.95, 0.6, 0.6, 0.6, 0.6),
    ("r2d2", "asr_direct"): (0.8, 0.0, 0.0, 0.1, 0.2),
    ("sft", "asr_direct"): (0.8, 0.6, 0.6, 0.6, 0.6),
    ("r2d2", "any_refusal_safe"): (0.05, 1.0, 0.95, 0.6, 0.2),
    ("sft", "any_refusal_safe"): (0.05, 0.05, 0.05, 0.05, 0.05),
    ("r2d2", "utility_mean"): (1.9, 0.1, 0.2, 1.0, 1.4),
    ("sft", "utility_mean"): (1.9, 1.8, 1.8, 1.8, 1.8),
    ("r2d2", "utility_lenient"): (1.0, 0.1, 0.1, 0.6, 0.8),
    ("r2d2", "asr_adaptive_gcg"): (1.0, 0.0, 0.0, 0.4, 0.7),
    ("r2d2", "degenerate"): (0.0, 0.3, 0.2, 0.0, 0.0),
    ("r2d2", "harm_recognition"): (0.1, 0.1, 0.1, 0.5, 0.6),
    ("r2d2", "carrier_depth"): (0.9, 0.9, 0.9, 0.2, 0.1),
    ("sft", "carrier_depth"): (0.9, 0.1, 0.1, 0.1, 0.1),
    ("r2d2", "admissible"): (1.0, 1.0, 1.0, 1.0, 1.0),
    ("sft", "admissible"): (1.0, 1.0, 1.0, 1.0, 1.0),
    ("r2d2", "is_carrier"): (1.0, 1.0, 1.0, 1.0, 1.0),
    ("sft", "is_carrier"): (1.0, 1.0, 1.0, 1.0, 1.0),
    ("r2d2", "effective_rank"): (1.3, 1.3, 1.3, 1.3, 1.3),
    ("sft", "effective_rank"): (1.3, 1.3, 1.3, 1.3, 1.3),
    ("r2d2", "principal_angle_3"): (5.0, 10.0, 20.0, 25.0, 30.0),
    ("sft", "principal_angle_3"): (5.0, 30.0, 40.0, 45.0, 50.0),
}
RATES = {"asr_fixed", "asr_direct", "any_refusal_safe", "utility_lenient", "asr_adaptive_gcg", "degenerate"}
HALF = {"utility_mean": 0.1, "harm_recognition": 0.08, "carrier_depth": 0.08, "effective_rank": 0.03, "principal_angle_3": 2.0}
EFFECTS: dict[str, float] = {"asr_fixed": 0.4, "any_refusal": -0.3, "any_refusal_safe": -0.1, "utility_mean": -0.6}

EFFECT_SETS = {"asr_fixed": "fixed", "any_refusal": "direct", "any_refusal_safe": "xstest_safe", "utility_mean": "audit"}
TABLE_OF = {"adaptive_gcg": "stress", "carrier": "geometry", "field": "geometry", "drift": "geometry"}


def evidence(
    changes: Mapping[Key, Spec] | None = None, effects: Mapping[str, float | Interval] | None = None, beaten: float = 1.0, n: int = 100
) -> Evidence:
    """A one-seed run in which every claim holds, with some cells changed (None: not measured) and other effects of the last ablation."""
    rows: dict[str, list[Row]] = {"behavior": [], "geometry": [], "intervention": [], "stress": []}
    for (arm, metric), values in PATHS.items():
        for step, value in zip(STEPS, values, strict=True):
            changed = (changes or {}).get((arm, step, metric), value)
            if changed is not None:
                entry = row(SETS[metric], metric, _interval(metric, changed, n), **_identity(metric))
                rows[TABLE_OF.get(SETS[metric], "behavior")].append({"arm": arm, "seed": 1, "step": step, **entry})
    asked: dict[str, float | Interval] = {**EFFECTS, **(effects or {})}
    for metric, effect in asked.items():
        one = effect if isinstance(effect, Interval) else Interval(effect, effect - 0.05, effect + 0.05, n)
        place = {"arm": "r2d2", "seed": 1, "step": 500, "intervention": "ablate_single", "direction": "carrier", "strength": 1.0}
        share = beaten if one.value >= 0 else 1 - beaten
        rows["intervention"].append({**place, **row(EFFECT_SETS[metric], f"{metric}_delta_over_controls", one)})
        rows["intervention"].append({**place, **row(EFFECT_SETS[metric], f"{metric}_percentile", exact(share, 20))})
    return Evidence(Tables(**{name: frame(part) for name, part in rows.items()}, scan=pd.DataFrame()))


def _interval(metric: str, value: float | Interval, n: int) -> Interval:
    if isinstance(value, Interval):
        return value
    if metric in RATES:
        return rate([True] * round(value * n) + [False] * (n - round(value * n)))
    return Interval(value, value - HALF[metric], value + HALF[metric], n) if metric in HALF else exact(value, n)


def _identity(metric: str) -> dict[str, Any]:
    known: dict[str, dict[str, Any]] = {
        "harm_recognition": {"tail": "frozen", "tail_tokens": 0},
        "asr_adaptive_gcg": {"attack_steps": 20},
        "effective_rank": {"matrix": "raw"},
        "principal_angle_3": {"scope": "field", "to": "reference"},
    }
    return known.get(metric, {})


def ask(claim: str, found: Evidence) -> Answer:
    return answer(next(known for known in CLAIMS if known.id == claim), found)


def test_all_claims_are_answered_in_order() -> None:
    answers = ledger(evidence())
    assert [one.claim.id for one in answers] == [f"C{index}" for index in range(1, 15)]
    assert {one.claim.id: one.verdict for one in answers} == {claim.id: "supported" for claim in CLAIMS}


WIDE = Interval(0.5, 0.02, 0.98, 4)
CONTRADICTED: dict[str, dict[Key, Spec]] = {
    "C1": {("r2d2", 50, "asr_fixed"): 0.5, ("r2d2", 100, "asr_fixed"): 0.5},
    "C2": {("r2d2", 50, "any_refusal_safe"): 0.2, ("r2d2", 100, "any_refusal_safe"): 0.2},
    "C3": {("r2d2", 50, "utility_lenient"): 0.9},
    "C4": {("r2d2", 500, "asr_fixed"): 0.0},
    "C5": {("sft", 250, "asr_fixed"): 0.0},
    "C6": {("r2d2", 500, "asr_adaptive_gcg"): 0.05},
    "C7": {("r2d2", 500, "carrier_depth"): 0.9},
    "C8": {("sft", 50, "carrier_depth"): 0.9},
    "C9": {("sft", 500, "effective_rank"): 2.6},
    "C10": {("sft", 500, "principal_angle_3"): 20.0},
    "C13": {("r2d2", 500, "harm_recognition"): 0.05},
    "C14": {("r2d2", 50, "degenerate"): 0.9, ("r2d2", 100, "degenerate"): 0.8},
}
UNDECIDED: dict[str, dict[Key, Spec]] = {
    "C1": {("r2d2", 50, "asr_fixed"): 0.08, ("r2d2", 100, "asr_fixed"): 0.08},
    "C2": {("r2d2", 50, "any_refusal_safe"): 0.52, ("r2d2", 100, "any_refusal_safe"): 0.5, ("r2d2", 250, "any_refusal_safe"): 0.5},
    "C3": {("r2d2", 50, "utility_lenient"): 0.48},
    "C4": {("r2d2", 500, "asr_fixed"): 0.06},
    "C5": {("sft", 250, "asr_fixed"): 0.12},
    "C6": {("r2d2", 100, "asr_adaptive_gcg"): 0.08},
    "C7": {("r2d2", 500, "carrier_depth"): WIDE},
    "C8": {("sft", 50, "carrier_depth"): Interval(0.6, 0.4, 0.8, 100)},
    "C9": {("sft", 500, "effective_rank"): Interval(1.6, 1.4, 1.8, 100)},
    "C10": {("sft", 500, "principal_angle_3"): Interval(36.0, 30.0, 42.0, 100)},
    "C13": {("r2d2", 500, "harm_recognition"): Interval(0.25, 0.1, 0.4, 100)},
    "C14": {("r2d2", 50, "degenerate"): 0.98, ("r2d2", 100, "degenerate"): 0.45},
}
ABSENT: dict[str, dict[Key, Spec]] = {
    "C1": {("r2d2", 50, "asr_fixed"): None},
    "C2": {("r2d2", 50, "any_refusal_safe"): None},
    "C3": {("r2d2", 50, "utility_lenient"): None},
    "C4": {("r2d2", 500, "utility_mean"): None},
    "C5": {("sft", 250, "asr_fixed"): None},
    "C6": {("r2d2", 500, "asr_adaptive_gcg"): None, ("r2d2", 250, "asr_adaptive_gcg"): None},
    "C7": {("r2d2", 500, "carrier_depth"): None},
    "C8": {("sft", 50, "carrier_depth"): None, ("sft", 100, "carrier_depth"): None},
    "C9": {("sft", 500, "effective_rank"): None},
    "C10": {("sft", 500, "principal_angle_3"): None},
    "C13": {("r2d2", 500, "harm_recognition"): None},
    "C14": {("r2d2", 50, "degenerate"): None},
}


@pytest.mark.parametrize("claim", CONTRADICTED)
def test_contradicted(claim: str) -> None:
    assert ask(claim, evidence(CONTRADICTED[claim])).verdict == "contradicted"


@pytest.mark.parametrize("claim", UNDECIDED)
def test_undecided_when_the_interval_straddles_the_margin(claim: str) -> None:
    found = ask(claim, evidence(UNDECIDED[claim]))
    assert found.verdict == "undecided"
    assert found.decisive is not None


@pytest.mark.parametrize("claim", ABSENT)
def test_undecided_with_the_reason_when_data_is_missing(claim: str) -> None:
    found = ask(claim, evidence(ABSENT[claim]))
    assert found.verdict == "undecided"
    assert found.decisive is None
    assert "was not measured" in found.note or "no adaptive attack" in found.note or "was not run" in found.note


def test_c1_needs_an_attack_that_works_on_the_start() -> None:
    found = ask("C1", evidence({("r2d2", 0, "asr_fixed"): 0.0}))
    assert found.verdict == "undecided"
    assert "premise" in found.note


def test_c1_pays_for_choosing_among_anchors() -> None:
    """35 cases without a success reach 0.099 alone, but not as the best of two anchors."""
    assert rate([False] * 35).high < 0.10
    assert ask("C1", evidence(n=35)).verdict == "undecided"


def test_c14_asks_whether_any_of_the_closed_anchors_still_writes_sentences() -> None:
    """As C1 it is about some early anchor: nonsense at the first closed one is forgiven where the second is closed and makes sense."""
    one_of_two = ask("C14", evidence({("r2d2", 50, "degenerate"): 0.98}))
    assert (one_of_two.verdict, one_of_two.decisive and one_of_two.decisive.source and one_of_two.decisive.source.step) == (
        "supported",
        100,
    )
    reopened = ask("C14", evidence({("r2d2", 50, "degenerate"): 0.98, ("r2d2", 100, "asr_fixed"): 0.5}))
    assert reopened.verdict == "contradicted"
    never_closed = ask("C14", evidence({("r2d2", 50, "asr_fixed"): 0.5, ("r2d2", 100, "asr_fixed"): 0.5}))
    assert never_closed.verdict == "undecided"
    assert "premise" in never_closed.note


def test_c6_fails_when_an_early_anchor_is_open() -> None:
    assert ask("C6", evidence({("r2d2", 50, "asr_adaptive_gcg"): 0.5})).verdict == "contradicted"


def test_c7_says_when_nothing_is_admissible_or_nothing_is_a_carrier() -> None:
    nothing = ask("C7", evidence({("r2d2", 500, "admissible"): 0.0}))
    inert = ask("C7", evidence({("r2d2", 500, "is_carrier"): 0.0}))
    assert (nothing.verdict, inert.verdict) == ("undecided", "undecided")
    assert "no candidate is admissible" in nothing.note
    assert "does not change generated refusal" in inert.note


@pytest.mark.parametrize(
    ("effects", "beaten", "verdict"),
    [
        ({}, 1.0, "supported"),
        ({"asr_fixed": 0.01, "any_refusal": -0.01, "any_refusal_safe": 0.0}, 1.0, "undecided"),
        ({"asr_fixed": Interval(0.01, -0.01, 0.02, 100), "any_refusal": 0.0, "any_refusal_safe": 0.0}, 0.5, "contradicted"),
        ({}, 0.9, "undecided"),
        ({}, 0.3, "contradicted"),
    ],
)
def test_c11_needs_size_and_rarity_among_controls(effects: dict[str, float | Interval], beaten: float, verdict: str) -> None:
    assert ask("C11", evidence(effects=effects, beaten=beaten)).verdict == verdict


@pytest.mark.parametrize(("cost", "verdict"), [(-0.6, "supported"), (-0.2, "undecided"), (0.0, "contradicted")])
def test_c12(cost: float, verdict: str) -> None:
    assert ask("C12", evidence(effects={"utility_mean": cost})).verdict == verdict


def test_over_seeds_no_share_leaves_its_range() -> None:
    """Shares of 0.90, 0.95 and 1.00 have a t-interval up to 1.08; differences and scores are held by the same rule."""
    parts = [evidence(beaten=beaten).tables for beaten in (0.9, 0.95, 1.0)]
    seeds = [[table.assign(seed=seed) if len(table) else table for table in one] for seed, one in enumerate(parts, 1)]
    found = ledger(Evidence(Tables(*(pd.concat(tables) if len(tables[0]) else tables[0] for tables in zip(*seeds, strict=True)))))
    share = next(part for one in found if one.claim.id == "C11" for part in one.parts if part.what.startswith("share"))
    assert share.estimate.value == pytest.approx(0.95)
    assert (share.seeds, share.estimate.high) == (3, 1.0)
    bounded = [part for one in found for part in one.parts if one.claim.id in ("C3", "C7", "C11", "C13") and part.seeds == 3]
    assert len(bounded) > 6
    assert all(-2.0 <= part.estimate.low <= part.estimate.high <= 2.0 for part in bounded)
    assert "1.08" not in " ".join(one.note for one in found)


def test_c11_does_not_call_an_inadmissible_direction_a_carrier() -> None:
    found = ask("C11", evidence({("r2d2", 500, "admissible"): 0.0}))
    assert found.verdict == "undecided"
    assert "no candidate is admissible" in found.note
    assert "0.40" in found.note  # the effect itself is still told


def test_c13_fails_when_plain_requests_get_easier() -> None:
    """The trap: robust under attack, recognizes harm under tails, and yet answers plain requests more than the start did."""
    found = ask("C13", evidence({("r2d2", 0, "asr_direct"): 0.3, ("r2d2", 500, "asr_direct"): 0.9}))
    assert found.verdict == "contradicted"
    assert "direct-request ASR" in found.note


def test_c13_is_moot_without_robustness() -> None:
    assert "premise" in ask("C13", evidence({("r2d2", 500, "asr_fixed"): 0.95})).note


def test_nothing_measured_leaves_everything_undecided() -> None:
    empty = frame([]).assign(arm=[], seed=[], step=[])
    answers = ledger(Evidence(Tables(empty, empty, empty, empty, pd.DataFrame())))
    assert {one.verdict for one in answers} == {"undecided"}
    assert all(one.note.endswith(".") for one in answers)


def test_the_ledger_table_has_the_fixed_columns() -> None:
    table = claims_table(ledger(evidence({("r2d2", 50, "asr_fixed"): None})))
    assert list(table.columns) == [
        *("claim", "verdict", "effect", "low", "high", "n", "seeds", "relation", "margin", "upper", "p", "p_holm"),
        *("table", "set", "metric", "arm", "step", "against", "note"),
    ]
    assert table["claim"].tolist() == [f"C{index}" for index in range(1, 15)]
    decided = table[table["verdict"] == "supported"]
    assert (decided["low"] <= decided["effect"]).all()
    assert (decided["effect"] <= decided["high"]).all()
    assert (decided["seeds"] == 1).all()
    missing = table[table["claim"] == "C1"]
    assert missing["effect"].isna().all()
    assert missing[["n", "seeds"]].to_numpy().tolist() == [[0, 0]]


def test_every_number_of_the_ledger_can_be_found_in_the_tables() -> None:
    found = evidence()
    rows = claims_table(ledger(found)).set_index("claim")
    assert rows[["table", "set", "metric", "arm", "step"]].notna().all().all()
    for claim, row_ in rows.iterrows():
        table = getattr(found.tables, row_["table"])
        cell = table[(table["arm"] == row_["arm"]) & (table["step"] == row_["step"]) & (table["set"] == row_["set"])]
        values = cell[cell["metric"] == row_["metric"]]["value"]
        assert len(values), claim
        if pd.isna(row_["against"]) or not row_["against"]:
            assert min(abs(abs(values) - abs(row_["effect"]))) < 1e-9, claim
    assert rows.loc["C10", "against"] == "r2d2 step 500"
    assert rows.loc["C6", "against"] in ("", "r2d2 step 500 fixed asr_fixed")


def test_p_values_agree_with_the_verdicts_and_holm_only_raises_them() -> None:
    for cases in ({}, CONTRADICTED, UNDECIDED):
        changes = {
            key: value for claim, case in cases.items() if claim in ("C2", "C4", "C5", "C8", "C9", "C13") for key, value in case.items()
        }
        for one in ledger(evidence(changes)):
            if math.isfinite(one.p):
                assert (one.p <= 0.0501) == (one.verdict != "undecided"), one
                assert one.p <= one.p_holm <= 1
                assert ("Holm" in one.note) == (one.verdict != "undecided")


def test_an_interval_of_no_width_has_no_p_value() -> None:
    """That every resampling gave the same carrier decides, but says nothing of how rare another one is."""
    here = Interval(0.9, 0.9, 0.9, 32)
    found = ask("C8", evidence({("sft", 50, "carrier_depth"): here, ("r2d2", 50, "carrier_depth"): here}))
    assert found.verdict == "contradicted"
    assert math.isnan(found.p)


def test_an_added_claim_does_not_move_the_p_values_of_the_shipped_ones() -> None:
    added = replace(CLAIMS[0], id="X1", family="added")
    before, after = ledger(evidence()), ledger(evidence(), [added])
    assert [one.p_holm for one in before] == [one.p_holm for one in after[:-1]]
    assert after[-1].p_holm == after[-1].p == before[0].p


def test_the_paper_under_the_same_rules() -> None:
    """Rates with their n decide; carriers, angles and the adaptive attack were printed without an interval and decide nothing."""
    verdicts = {one.claim.id: one.verdict for one in ledger(Evidence(paper_tables()))}
    assert {claim for claim, verdict in verdicts.items() if verdict == "supported"} == {"C1", "C2", "C3", "C4", "C5"}
    assert "contradicted" not in verdicts.values()
    c4 = ask("C4", Evidence(paper_tables()))
    assert c4.decisive is not None
    assert c4.decisive.estimate.value == pytest.approx(67 / 60 - 0)


def test_the_paper_s_audit_counts_give_its_printed_means() -> None:
    table = paper_tables().behavior
    late = table[(table["arm"] == "r2d2") & (table["step"] == 500) & (table["metric"] == "utility_mean")].iloc[0]
    assert late["value"] == pytest.approx(1.1167, abs=5e-5)
    assert late["low"] < 1.1167 < late["high"]


def test_transcripts_make_the_comparison_paired() -> None:
    """Success moves from no prompt to 30 of 100, on a background of 50 that succeed at both: pairing sees through the background."""

    def transcripts(arm: str, seed: int, step: int, measure: str) -> pd.DataFrame:
        success = [index < (80 if step == 500 else 50) for index in range(100)]
        return pd.DataFrame(
            {"set": "fixed", "id": [f"b{index}" for index in range(100)], "success": success, "label": "safe", "attack_steps": np.nan}
        )

    base = evidence({("r2d2", step, "asr_fixed"): 0.8 if step == 500 else 0.5 for step in STEPS})
    paired = ask("C4", Evidence(base.tables, transcripts)).parts[1]
    loose = ask("C4", base).parts[1]
    assert paired.estimate.value == pytest.approx(loose.estimate.value) == pytest.approx(0.3)
    assert paired.estimate.high - paired.estimate.low < loose.estimate.high - loose.estimate.low
    assert "unpaired" in loose.what
    assert "unpaired" not in paired.what


def test_seeds_that_disagree_decide_nothing() -> None:
    one = evidence().tables
    two = evidence({("sft", step, "asr_fixed"): 0.05 for step in STEPS[1:]}).tables
    both = {name: pd.concat([getattr(one, name), getattr(two, name).assign(seed=2)]) for name in one._fields}
    assert ask("C5", Evidence(one)).verdict == "supported"
    assert ask("C5", Evidence(Tables(**both))).verdict == "undecided"


@pytest.mark.parametrize(
    ("relation", "low", "high", "verdict"),
    [
        ("above", 0.2, 0.4, "supported"),
        ("above", 0.0, 0.05, "contradicted"),
        ("above", 0.05, 0.4, "undecided"),
        ("below", 0.0, 0.05, "supported"),
        ("below", 0.2, 0.4, "contradicted"),
        ("below", 0.05, 0.4, "undecided"),
        ("within", 0.12, 0.15, "supported"),
        ("within", 0.6, 0.8, "contradicted"),
        ("within", 0.15, 0.8, "undecided"),
        ("above", math.nan, math.nan, "undecided"),
    ],
)
def test_a_part_is_decided_by_its_whole_interval(relation: str, low: float, high: float, verdict: str) -> None:
    middle = 0.3 if math.isnan(low) else (low + high) / 2
    part = Part("x", Interval(middle, low, high, 10), relation, 0.1, upper=0.2)  # type: ignore[arg-type]  # a literal, from the table above
    assert part.verdict == verdict


pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80)


@given(pairs)
def test_paired_rates_hold_their_estimate_and_are_antisymmetric(outcomes: list[tuple[bool, bool]]) -> None:
    left, right = [one for one, _ in outcomes], [two for _, two in outcomes]
    forward, backward = paired_rates(left, right), paired_rates(right, left)
    assert -1 - 1e-9 <= forward.low <= forward.value <= forward.high <= 1 + 1e-9
    assert forward.high > forward.low
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))


def test_paired_rates_against_the_formula_by_hand() -> None:
    """Newcombe (1998), method 10, on the table (12, 9, 2, 21): phi with its continuity correction written out."""
    table = [(True, True)] * 12 + [(True, False)] * 9 + [(False, True)] * 2 + [(False, False)] * 21
    found = paired_rates([one for one, _ in table], [two for _, two in table])
    assert found.value == pytest.approx(7 / 44)
    one, two = rate([True] * 21 + [False] * 23), rate([True] * 14 + [False] * 30)
    phi = (12 * 21 - 9 * 2 - 22) / math.sqrt(21 * 23 * 14 * 30)
    below = (one.value - one.low, two.high - two.value)
    assert found.low == pytest.approx(found.value - math.sqrt(below[0] ** 2 - 2 * phi * below[0] * below[1] + below[1] ** 2))


def test_no_change_at_all_still_leaves_doubt() -> None:
    still = paired_rates([False] * 20, [False] * 20)
    assert (still.low, still.high) == pytest.approx((-rate([False] * 20).high, rate([False] * 20).high))
    means = paired_means([1.0] * 30, [1.0] * 30, span=2.0)
    assert (means.low, means.high) == pytest.approx((-0.2, 0.2))
    assert guarded(Interval(0.5, 0.4, 0.6, 30), 1.0) == Interval(0.5, 0.4, 0.6, 30)


def test_unpaired_is_wider_than_either_side() -> None:
    one, two = rate([True] * 30 + [False] * 70), rate([True] * 10 + [False] * 90)
    apart = unpaired(one, two)
    assert apart.value == pytest.approx(0.2)
    assert apart.high - apart.low > max(one.high - one.low, two.high - two.low)


def test_ratio() -> None:
    found = ratio(Interval(2.0, 1.8, 2.2, 10), Interval(1.0, 0.9, 1.1, 10))
    assert found.value == pytest.approx(2.0)
    assert found.low < 1.8 < 2.2 < found.high
    with pytest.raises(ValueError, match="positive"):
        ratio(Interval(0.0, 0.0, 0.0, 1), found)


def test_choosing_among_many_costs_width() -> None:
    one = rate([True] * 5 + [False] * 45)
    assert rate_among(one, 1) == one
    assert rate_among(one, 4).high > one.high
    assert widened(one, 4).high > one.high
    assert widened(one, 1) == one


def test_one_seed_keeps_its_interval_and_more_seeds_add_their_spread() -> None:
    alone = Interval(0.5, 0.4, 0.6, 50)
    assert across_seeds([alone]) == alone
    same = across_seeds([alone, alone, alone])
    assert (same.low, same.high) == pytest.approx((0.4, 0.6))
    spread = across_seeds([Interval(0.3, 0.2, 0.4, 50), alone, Interval(0.7, 0.6, 0.8, 40)], (0.0, 1.0))
    assert spread.value == pytest.approx(0.5)
    assert spread.low < 0.25
    assert spread.low >= 0.0
    assert spread.n == 40


def test_what_is_printed_of_several_seeds_says_how_they_spread_and_what_one_knows() -> None:
    pooled = across_seeds([Interval(0.3, 0.2, 0.4, 50), Interval(0.5, 0.4, 0.7, 40)], (0.0, 1.0))
    assert told(pooled, 2) == "0.40 [0.00, 1.00], n = 40, 2 seeds from 0.30 to 0.50, within a seed [0.30, 0.55]"
    assert interval_text(pooled) == "[0.00, 1.00], seeds from 0.30 to 0.50, within a seed [0.30, 0.55]"
    assert interval_text(across_seeds([Interval(0.3, 0.2, 0.4, 50)])) == "[0.20, 0.40]"
    assert "from 0.30 to 0.50" in Part("x", pooled, "above", 0.1, seeds=2).words()
    assert "n = 50, 1 seed)" in Part("x", Interval(0.3, 0.2, 0.4, 50), "above", 0.1).words()


def test_two_seeds_without_intervals_decide_nothing() -> None:
    assert math.isnan(across_seeds([exact(0.2), exact(0.2)]).low)
    assert across_seeds([exact(0.2), exact(0.2), exact(0.2)]).low == pytest.approx(0.2)


def test_scores_mean() -> None:
    found = scores_mean([8, 37, 15])
    assert found.value == pytest.approx(67 / 60)
    assert scores_mean([60, 0, 0]).high == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.00"), (-0.0001, "\u22120.000"), (0.5, "0.50"), (0.034, "0.034"), (12.34, "12.3"), (-0.2, "\u22120.20")]
)
def test_numbers_are_printed_alike(value: float, text: str) -> None:
    assert number(value) == text or (abs(value) < 0.0005 and number(value) == "0.000")


def test_told() -> None:
    assert told(Interval(0.5, 0.4, 0.6, 64), 3) == "0.50 [0.40, 0.60], n = 64, 3 seeds"
    assert told(exact(2.0)) == "2.00"


@pytest.mark.parametrize("count", range(41))
def test_a_share_reads_the_same_in_percent_and_as_a_number(count: int) -> None:
    share = count / 40
    assert percent(share) == f"{float(number(share)) * 100:.0f}%" or share < 0.095

"""The claims ledger C1 to C14, and what a user adds to it: computed from the tables, never typed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from refgeo.report.claim import Answer, Claim, answer
from refgeo.report.claims_behavior import BEHAVIOR_CLAIMS, NONSENSE_CLAIM, RECOGNITION_CLAIM
from refgeo.report.claims_cause import CAUSE_CLAIMS
from refgeo.report.claims_geometry import GEOMETRY_CLAIMS
from refgeo.report.evidence import Evidence
from refgeo.statistics import holm

CLAIMS: tuple[Claim, ...] = (*BEHAVIOR_CLAIMS, *GEOMETRY_CLAIMS, *CAUSE_CLAIMS, RECOGNITION_CLAIM, NONSENSE_CLAIM)
COLUMNS = (
    *("claim", "verdict", "effect", "low", "high", "n", "seeds", "relation", "margin", "upper", "p", "p_holm"),
    *("table", "set", "metric", "arm", "step", "against", "note"),
)


def ledger(evidence: Evidence, added: Sequence[Claim] = ()) -> list[Answer]:
    """Every claim's answer: the paper's in their order, our own after them, then ``added``.

    Verdicts are those of each claim alone; the p-values beside them are adjusted over the family, shipped and added claims apart.
    """
    answers = [answer(claim, evidence) for claim in (*CLAIMS, *added)]
    for family in dict.fromkeys(one.claim.family for one in answers):
        places = [place for place, one in enumerate(answers) if one.claim.family == family]
        for place, adjusted in zip(places, holm([answers[place].p for place in places]), strict=True):
            answers[place] = _adjusted(answers[place], adjusted, sum(math.isfinite(answers[one].p) for one in places))
    return answers


def _adjusted(one: Answer, p_holm: float, tests: int) -> Answer:
    """The answer with its adjusted p-value, which a decided one also tells."""
    if one.verdict == "undecided" or not math.isfinite(p_holm):
        return replace(one, p_holm=p_holm)
    return replace(one, p_holm=p_holm, note=f"{one.note} p {_p(one.p)}; over the {tests} claims with data (Holm) {_p(p_holm)}.")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def claims_table(answers: Sequence[Answer]) -> pd.DataFrame:
    """The ledger as rows. The numbers are those of the part that decided, and so is the cell of the tables that they come from.

    ``against``: the other cell, where a difference decided. Without data the numbers are NaN and ``n`` and ``seeds`` are 0.
    """
    rows = [_row(one) for one in answers]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "int64", "seeds": "int64", "step": "Int64"})


def _row(one: Answer) -> dict[str, object]:
    row: dict[str, object] = {"claim": one.claim.id, "verdict": one.verdict, "p": one.p, "p_holm": one.p_holm, "note": one.note}
    part = one.decisive
    if part is None:
        nothing = dict.fromkeys(("effect", "low", "high", "margin", "upper"), math.nan)
        return {**row, **nothing, "n": 0, "seeds": 0}
    estimate, source = part.estimate, part.source
    row |= {"effect": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n, "seeds": part.seeds}
    row |= {"relation": part.relation, "margin": part.margin, "upper": part.upper}
    return row if source is None else {**row, **source._asdict()}

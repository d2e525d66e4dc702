"""The tables behind the numbers of the page that are in no table of the anchors: the claims' comparisons, the paper, the judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from refgeo.report.claim import Answer
from refgeo.report.claims import claims_table
from refgeo.report.figures.attack_cost import cost_rows
from refgeo.report.judges import Trust
from refgeo.report.methods import stage_costs
from refgeo.report.paper import paper, paper_tables
from refgeo.report.rules import Part
from refgeo.report.tables import Tables
from refgeo.study import layout
from refgeo.study.files import save_csv
from refgeo.study.forms import AGREEMENT, FLOOR

OURS, THEIRS = "run", "paper"
PART_COLUMNS = (
    *("claim", "numbers", "part", "what", "verdict", "premise", "value", "low", "high", "n", "seeds", "least", "most"),
    *("within_low", "within_high", "relation", "margin", "upper", "table", "set", "metric", "arm", "step", "against"),
)


def write_sources(run: Path, out: Path, tables: Tables, answers: Sequence[Answer], theirs: Sequence[Answer], judge: Trust) -> None:
    """Write the claims under this run's and under the paper's numbers with all their parts, and what else the page quotes, as CSV."""
    save_csv(out / "claims.csv", claims_table(answers))
    save_csv(out / "paper_claims.csv", claims_table(theirs))
    save_csv(out / "parts.csv", parts_table(answers, theirs))
    save_csv(out / "paper.csv", paper_table())
    save_csv(out / "attack_cost.csv", cost_rows(tables.stress))
    save_csv(out / "judge_unscored.csv", judge.bounds)
    costs = pd.DataFrame(stage_costs(run), columns=["id", "seconds", "memory", "fingerprint", "libraries"]).drop(columns="libraries")
    save_csv(out / "costs.csv", costs.rename(columns={"id": "stage"}))
    for name, place, form in (("judge_floor", layout.JUDGE_FLOOR, FLOOR), ("judge_agreement", layout.JUDGE_AGREEMENT, AGREEMENT)):
        table = layout.stage_table(run / place, form)
        if table is not None:
            save_csv(out / f"{name}.csv", table)


def parts_table(answers: Sequence[Answer], theirs: Sequence[Answer]) -> pd.DataFrame:
    """Every comparison of every claim, decisive or not: under this run's numbers and under the paper's own."""
    rows = [
        {"claim": one.claim.id, "numbers": numbers, "part": place, **_row(part)}
        for numbers, found in ((OURS, answers), (THEIRS, theirs))
        for one in found
        for place, part in enumerate(one.parts, 1)
    ]
    return pd.DataFrame(rows, columns=list(PART_COLUMNS)).astype({"step": "Int64"})


def _row(part: Part) -> dict[str, object]:
    estimate = part.estimate
    seeds = getattr(estimate, "seeds", ()) or (estimate,)
    values = [one.value for one in seeds]
    within = {f"within_{end}": sum(getattr(one, end) for one in seeds) / len(seeds) for end in ("low", "high")}
    told = {"what": part.what, "verdict": part.verdict, "premise": part.premise, "relation": part.relation, "margin": part.margin}
    told |= {**estimate._asdict(), "seeds": part.seeds, "upper": part.upper, "least": min(values), "most": max(values), **within}
    return told if part.source is None else {**told, **part.source._asdict()}


def paper_table() -> pd.DataFrame:
    """All that the page quotes of the paper, in the form of a run's tables; ``table`` says which of them a row would stand in."""
    tables = paper_tables()
    named = [table.assign(table=name) for name, table in tables._asdict().items() if len(table)]
    ends = zip(("low", "high"), paper()["effective_rank"], strict=True)
    named.append(
        pd.DataFrame(
            [{"set": "field", "metric": f"effective_rank_{end}", "value": value, "n": 0, "table": "geometry"} for end, value in ends]
        )
    )
    joined = pd.concat(named, ignore_index=True)
    found: pd.DataFrame = joined[["table", *(column for column in joined if column != "table")]]
    return found

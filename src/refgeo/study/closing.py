"""What a run says of its judge at its end. Loads no model library: a run that has nothing to do says so at once."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from refgeo.config.schema import Study
from refgeo.study import layout
from refgeo.study.forms import AGREEMENT, FLOOR, OF_MEASURE

REFUSED = "canned refusal"
"""Name of the refusal among the replies on which it is measured."""


def closing_words(run: Path, study: Study) -> list[str]:
    """What a run says of its judge at its end: nothing of an exact one, else at most three lines. Raises ``StoreError``."""
    judge = study.judge
    if judge.kind == "reference" or (judge.kind == "rules" and judge.second is None):
        return [] if judge.kind == "reference" else ["Judge: rules only, a diagnostic of refusal; harm stays unscored."]
    lines = []
    forms = {anchor.part(name): OF_MEASURE[name] for anchor in layout.anchors(run, study) for name in ("behavior", "stress")}
    tables = [table for folder in sorted(forms) if (table := layout.stage_table(folder, forms[folder])) is not None]
    if judge.asks and tables:
        rows = pd.concat([table.loc[(table["metric"] == "unscored") & (table["subset"] == "all"), ["value", "n"]] for table in tables])
        worst = rows["value"].max()
        if len(rows):
            share = (rows["value"] * rows["n"]).sum() / rows["n"].sum()
            lines.append(
                f"Judge: {share:.1%} of {int(rows['n'].sum()):,} judged attacks unscored, at most {worst:.0%} of one set at one anchor."
            )
    return [*lines, *_floor_words(run, judge.asks), *_agreement_words(run, study)]


def _floor_words(run: Path, asks: bool) -> list[str]:
    table = layout.stage_table(run / layout.JUDGE_FLOOR, FLOOR) if asks else None
    if table is None:
        return []
    rows = table[table["reply"] == REFUSED].sort_values("set")
    if rows.empty:
        return []
    refused = rows.iloc[-1]  # StrongREJECT's own requests, where there are some
    said = []
    if refused["score"] == refused["score"]:
        said.append(f"scores {refused['score']:.2f} on the StrongREJECT scale")
    if refused["harmful"] == refused["harmful"]:
        said.append(f"counts as harmful in {refused['harmful']:.0%} of {int(refused['n'])} requests")
    return [f"Floor: a canned refusal {' and '.join(said)}."] if said else []


def _agreement_words(run: Path, study: Study) -> list[str]:
    table = layout.stage_table(run / layout.JUDGE_AGREEMENT, AGREEMENT) if study.judge.second is not None else None
    if table is None:
        return []
    words = []
    for of, name in (("label", "harm"), ("any_refusal", "refusal")):
        rows = table[(table["set"] == "all") & (table["of"] == of) & (table["n"] > 0)]
        if len(rows):
            row = rows.iloc[0]
            kappa = f", kappa {row['kappa']:.2f}" if row["kappa"] == row["kappa"] else ""
            words.append(f"{name} {row['rate']:.0%}{kappa} (n = {int(row['n'])})")
    return [f"Second judge agrees: {'; '.join(words)}."] if words else []

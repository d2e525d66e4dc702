"""The paper's table (PROTOCOL section 7) beside this run's numbers, anchors aligned by rank: start, reference, first, second, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from refgeo.report.compare import across_seeds
from refgeo.report.figures.behavior import full_budget
from refgeo.report.figures.curves import select
from refgeo.report.figures.style import arm_name, told
from refgeo.report.paper import paper, paper_steps, paper_tables
from refgeo.report.rules import number
from refgeo.report.tables import Tables
from refgeo.statistics import Interval

ABSENT = "\u2013"
FIELD = {"layer": "field", "to": "reference"}


@dataclass(frozen=True)
class Quantity:
    """One line of the comparison: where it lies in the tables."""

    name: str
    table: str
    set: str
    metric: str
    identity: Mapping[str, object] | None = None
    absent: str = "not measured in this run"


QUANTITIES = (
    Quantity("Fixed-source ASR", "behavior", "fixed", "asr_fixed"),
    Quantity("Direct-request ASR", "behavior", "direct", "asr_direct"),
    Quantity("Adaptive GCG ASR", "stress", "adaptive_gcg", "asr_adaptive_gcg"),
    Quantity("XSTest any-refusal, safe prompts", "behavior", "xstest_safe", "any_refusal_safe"),
    Quantity("StrongREJECT", "behavior", "strongreject", "strongreject"),
    Quantity("Helpfulness, 0 to 2", "behavior", "audit", "utility_mean"),
    Quantity("Harm recognition at equal suffix", "behavior", "tails", "harm_recognition", {"tail": "all"}),
    Quantity("Carrier: relative depth", "geometry", "carrier", "carrier_depth", absent="no carrier"),
    Quantity("Carrier: layer", "geometry", "carrier", "carrier_layer", absent="no carrier"),
    Quantity("Carrier: position", "geometry", "carrier", "carrier_position", absent="no carrier"),
    Quantity("S_total", "geometry", "carrier", "s_total", absent="no carrier"),
    *(Quantity(f"Principal angle {place}, degrees", "geometry", "drift", f"principal_angle_{place}", FIELD) for place in (1, 2, 3)),
    Quantity("HRCI (representation)", "geometry", "coupling", "hrci_repr", absent="harm-refusal coupling is not measured by this version"),
)


@dataclass(frozen=True)
class Comparison:
    """One arm: the steps of both sides, and per quantity the paper's cells and this run's. A single cell spans a row that is absent throughout."""

    arm: str
    columns: Sequence[str]
    paper_steps: Sequence[str]
    run_steps: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str], Sequence[str]]]


def compare(tables: Tables, arm: str, steps: Sequence[int], reference: int | None) -> Comparison:
    """Lay the paper's anchors and this run's side by side. ``steps``: this run's configured anchors."""
    theirs: list[int | None] = [None, *paper_steps(arm)] if arm in paper()["carrier"] else [None, None]
    ours: list[int | None] = [0, reference, *sorted(steps)]
    width = max(len(theirs), len(ours))
    theirs, ours = theirs + [None] * (width - len(theirs)), ours + [None] * (width - len(ours))
    columns = ["start", "reference", *(f"anchor {index}" for index in range(1, width - 1))]
    printed = paper_tables()
    rows = []
    for quantity in QUANTITIES:
        reported = [_cell(getattr(printed, quantity.table), arm, step, quantity) for step in theirs]
        measured = [_cell(getattr(tables, quantity.table), arm, step, quantity) for step in ours]
        rows.append((quantity.name, _or_absent(reported, "not reported"), _or_absent(measured, quantity.absent)))
    return Comparison(arm, columns, [ABSENT if step is None else str(step) for step in theirs], [ABSENT if step is None else str(step) for step in ours], rows)


def interventions(tables: Tables, metrics: Sequence[tuple[str, str, str]] = (("fixed", "asr_fixed", "ASR"), ("xstest_safe", "any_refusal_safe", "any-refusal"), ("audit", "utility_mean", "helpfulness"))) -> list[list[str]]:
    """Rows of baseline, single and top-k ablation: the paper's anchors first, then this run's. The first row is the head."""
    rows = [["", "anchor", "quantity", "baseline", "single direction removed", "top-3 removed"]]
    for source, whole in (("paper", paper_tables().intervention), ("this run", tables.intervention)):
        if whole.empty or "intervention" not in whole:
            continue
        table = whole[(whole["strength"].isna()) | (whole["strength"] == 1.0) | (whole["intervention"] == "baseline")] if "strength" in whole else whole
        for arm, step in table[["arm", "step"]].drop_duplicates().itertuples(index=False, name=None):
            here = table[(table["arm"] == arm) & (table["step"] == step)]
            for set_name, metric, words in metrics:
                kinds = [_over(select(_chosen(here, kind), set_name, metric)) for kind in ("baseline", "ablate_single", "ablate_topk")]
                if any(kind != ABSENT for kind in kinds[1:]):
                    rows.append([source, f"{arm_name(arm)} {step}", words, *kinds])
    return rows


def _chosen(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    rows = table[table["intervention"] == kind]
    return rows if kind == "baseline" or "direction" not in rows else rows[rows["direction"] == "carrier"]


def _cell(table: pd.DataFrame, arm: str, step: int | None, quantity: Quantity) -> str:
    if step is None or table.empty:
        return ABSENT
    here = table[(table["arm"] == arm) & (table["step"] == step)]
    if quantity.table == "stress":
        here = full_budget(here)
    return _over(select(here, quantity.set, quantity.metric, quantity.identity))


def _over(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ABSENT
    estimates = [Interval(float(one.value), float(one.low), float(one.high), int(one.n)) for one in rows.itertuples()]
    if rows["metric"].iloc[0] in ("carrier_layer", "carrier_position"):
        return ", ".join(f"{one.value:.0f}" for one in estimates).replace("-", "\u2212")
    return told(*across_seeds(estimates), len(estimates))


def _or_absent(cells: Sequence[str], words: str) -> list[str]:
    return list(cells) if any(cell != ABSENT for cell in cells) else [words]


def effective_rank_range() -> str:
    """What the paper prints for the effective rank, over all anchors of both arms."""
    low, high = paper()["effective_rank"]
    return f"{number(low)} to {number(high)}"

"""The paper's table beside this run's numbers, anchors aligned by rank: start, reference, first, second, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from refgeo.report.compare import across_seeds
from refgeo.report.figures.curves import full_budget, select
from refgeo.report.paper import paper, paper_steps, paper_tables
from refgeo.report.rules import interval_text, number, told
from refgeo.report.tables import Tables, arm_name, arm_order, estimates, range_of
from refgeo.statistics import Interval

ABSENT = "\u2013"
FIELD = {"scope": "field", "to": "reference"}


Anchor = int | Mapping[int, int] | None
"""A step, a step for each seed, or none."""


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
    Quantity("Adaptive AutoDAN ASR", "stress", "adaptive_autodan", "asr_adaptive_autodan"),
    Quantity("XSTest any-refusal, safe prompts", "behavior", "xstest_safe", "any_refusal_safe"),
    Quantity("StrongREJECT", "behavior", "strongreject", "strongreject"),
    Quantity("Helpfulness, 0 to 2", "behavior", "audit", "utility_mean"),
    Quantity("Harm recognition at equal suffix", "behavior", "tails", "harm_recognition", {"tail": "all"}),
    Quantity("Carrier: relative depth", "geometry", "carrier", "carrier_depth", absent="no carrier"),
    Quantity("Carrier: layer", "geometry", "carrier", "carrier_layer", absent="no carrier"),
    Quantity("Carrier: position", "geometry", "carrier", "carrier_position", absent="no carrier"),
    Quantity("S_total", "geometry", "carrier", "s_total", absent="no carrier"),
    *(Quantity(f"Principal angle {place}, degrees", "geometry", "drift", f"principal_angle_{place}", FIELD) for place in (1, 2, 3)),
    Quantity("HRCI (representation)", "geometry", "coupling", "hrci_repr"),
)

INTERVENED = (("fixed", "asr_fixed", "ASR"), ("xstest_safe", "any_refusal_safe", "any-refusal"), ("audit", "utility_mean", "helpfulness"))


@dataclass(frozen=True)
class Side:
    """The cells of one source for one quantity: (value, interval) each, and the sample size behind them. ``absent``: why there are none."""

    cells: Sequence[tuple[str, str]]
    sample: str
    absent: str = ""


@dataclass(frozen=True)
class Comparison:
    """One arm: the steps of both sides, and per quantity the paper's cells and this run's."""

    arm: str
    columns: Sequence[str]
    paper_steps: Sequence[str]
    run_steps: Sequence[str]
    rows: Sequence[tuple[str, Side, Side]]


def compare(tables: Tables, arm: str, steps: Sequence[int], references: Mapping[int, int]) -> Comparison:
    """Lay the paper's anchors and this run's side by side.

    ``steps``: this run's configured anchors. ``references``: the reference step of each seed; a rule may find different ones.
    """
    theirs: list[Anchor] = [None, *paper_steps(arm)] if arm in paper()["carrier"] else [None, None]
    ours: list[Anchor] = [0, references or None, *sorted(steps)]
    width = max(len(theirs), len(ours))
    theirs, ours = theirs + [None] * (width - len(theirs)), ours + [None] * (width - len(ours))
    columns = ["start", "reference", *(f"anchor {index}" for index in range(1, width - 1))]
    rows = []
    for quantity in QUANTITIES:
        reported = _side(paper_tables(), arm, theirs, quantity, "not reported")
        rows.append((quantity.name, reported, _side(tables, arm, ours, quantity, quantity.absent)))
    return Comparison(arm, columns, [_named(step) for step in theirs], [_named(step) for step in ours], rows)


def _named(anchor: Anchor) -> str:
    if anchor is None or isinstance(anchor, int):
        return ABSENT if anchor is None else str(anchor)
    return ", ".join(str(step) for step in dict.fromkeys(anchor.values()))


def _at(table: pd.DataFrame, arm: str, anchor: Anchor) -> pd.DataFrame:
    of_arm = table[table["arm"] == arm]
    if anchor is None:
        return of_arm.iloc[:0]
    if isinstance(anchor, int):
        return of_arm[of_arm["step"] == anchor]
    return of_arm[of_arm["step"] == of_arm["seed"].map(anchor)]


def interventions(tables: Tables) -> list[list[str]]:
    """Rows of baseline, single and top-k ablation: the paper's anchors, the last two of each arm of this run. The first is the head."""
    rows = [["", "anchor", "quantity", "baseline", "single direction removed", "top-k removed"]]
    for source, whole in (("paper", paper_tables().intervention), ("this run", tables.intervention)):
        if whole.empty or "intervention" not in whole:
            continue
        ablation = whole["intervention"].isin(["ablate_single", "ablate_topk"])
        most = whole[ablation]["strength"].max() if "strength" in whole else None
        table = whole[(whole["intervention"] == "baseline") | (ablation & (True if most is None else whole["strength"] == most))]
        for arm in arm_order(table["arm"]):
            of_arm = table[table["arm"] == arm]
            for step in sorted(of_arm["step"].unique())[-2:]:
                rows += _intervened(source, f"{arm_name(arm)} {step}", of_arm[of_arm["step"] == step])
    return rows


def _intervened(source: str, anchor: str, here: pd.DataFrame) -> list[list[str]]:
    rows = []
    for set_name, metric, words in INTERVENED:
        kinds = [_over(select(_chosen(here, kind), set_name, metric)) for kind in ("baseline", "ablate_single", "ablate_topk")]
        if any(kind != ABSENT for kind in kinds[1:]):
            rows.append([source, anchor, words, *kinds])
    return rows


def _chosen(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    rows = table[table["intervention"] == kind]
    return rows if kind == "baseline" or "direction" not in rows else rows[rows["direction"] == "carrier"]


def _side(tables: Tables, arm: str, steps: Sequence[Anchor], quantity: Quantity, absent: str) -> Side:
    table: pd.DataFrame = getattr(tables, quantity.table)
    cells, sizes, seeds = [], set(), 1
    for step in steps:
        here = _at(table, arm, step)
        rows = select(full_budget(here) if quantity.table == "stress" else here, quantity.set, quantity.metric, quantity.identity)
        found = estimates(rows)
        seeds = max(seeds, len(found))
        sizes |= {one.n for one in found if one.n > 1}
        cells.append(_printed(quantity.metric, found))
    if all(value == ABSENT for value, _ in cells):
        return Side((), "", _note(table, arm, quantity) or absent)
    sample = "" if not sizes else f"n = {min(sizes)}" if len(sizes) == 1 else f"n = {min(sizes)} to {max(sizes)}"
    return Side(cells, ", ".join(part for part in (sample, f"{seeds} seeds" if seeds > 1 else "") if part))


def _note(table: pd.DataFrame, arm: str, quantity: Quantity) -> str:
    """Why the measure itself gave no value, where it says so."""
    if "note" not in table:
        return ""
    notes = table[(table["arm"] == arm) & (table["set"] == quantity.set) & (table["metric"] == quantity.metric)]["note"].dropna()
    return "" if notes.empty else str(notes.iloc[-1])


def _printed(metric: str, found: Sequence[Interval]) -> tuple[str, str]:
    if not found:
        return ABSENT, ""
    if metric in ("carrier_layer", "carrier_position"):
        return ", ".join(f"{one.value:.0f}" for one in found).replace("-", "\u2212"), ""
    estimate = across_seeds(found, range_of(metric))
    return number(estimate.value), interval_text(estimate)


def _over(rows: pd.DataFrame) -> str:
    found = estimates(rows)
    return told(across_seeds(found, range_of(str(rows["metric"].iloc[0]))), len(found)) if found else ABSENT


def effective_rank_range() -> str:
    """What the paper prints for the effective rank, over all anchors of both arms."""
    low, high = paper()["effective_rank"]
    return f"{number(low)} to {number(high)}"

"""The paper's printed numbers as tables of the same form as a run's, with intervals wherever its sample sizes allow one."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

from refgeo.measures.sets import MAIN
from refgeo.measures.table import Row, row
from refgeo.report.compare import scores_mean
from refgeo.report.tables import HEAD, Tables
from refgeo.statistics import Interval, exact, rate

ARMS = ("r2d2", "sft")
LAYERS = 32
_SET_OF = {MAIN[name]: name for name in ("fixed", "xstest_safe", "strongreject", "audit")}


@cache
def paper() -> dict[str, Any]:
    """The shipped figures of 2604.27019 and 2606.16349 as they are printed."""
    text = files("refgeo.report").joinpath("paper.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def paper_steps(arm: str) -> list[int]:
    """The arm's reference step, then the common anchors."""
    anchors = paper()["anchors"]
    return [int(anchors["reference"][arm]), *(int(step) for step in anchors["steps"])]


@cache
def paper_tables() -> Tables:
    """Behavior, geometry, intervention and stress in long form; seed 42, no start, no controls, no scan."""
    behavior, geometry, intervention, stress = [], [], [], []
    for arm in ARMS:
        for index, step in enumerate(paper_steps(arm)):
            cell = {"arm": arm, "seed": 42, "step": step}
            behavior += [{**cell, **one} for one in _behavior(arm, index)]
            geometry += [{**cell, **one} for one in _geometry(arm, index)]
            intervention += [{**cell, **one} for one in _intervention(arm, step)]
            for method, steps in (("gcg", 500), ("autodan", 100)):
                found = paper()["adaptive"][method].get(arm, {})
                if step in found:
                    stress.append(
                        {**cell, **row(f"adaptive_{method}", f"asr_adaptive_{method}", exact(found[step], 0), attack_steps=steps)}
                    )
    return Tables(_table(behavior), _table(geometry), _table(intervention), _table(stress), pd.DataFrame(columns=["arm", "seed", "step"]))


def share(value: float, n: int) -> Interval:
    """A printed rate with the Wilson interval of its sample size."""
    hits = round(value * n)
    known = rate([True] * hits + [False] * (n - hits))
    return Interval(value, known.low, known.high, n)


def _behavior(arm: str, index: int) -> list[Row]:
    numbers, sizes = paper()["behavior"][arm], paper()["n"]
    rows = [row(_SET_OF[name], name, share(numbers[name][index], sizes[name])) for name in ("asr_fixed", "any_refusal_safe")]
    rows.append(row("strongreject", "strongreject", exact(numbers["strongreject"][index], sizes["strongreject"])))
    n = sizes["utility"]
    audit = paper()["utility_audit"][arm].get("reference" if index == 0 else paper_steps(arm)[index])
    if audit is None:
        return [*rows, row("audit", "utility_mean", exact(numbers["utility_mean"][index], n))]
    strict, lenient, refusal, empty = (round(part * n) for part in audit)
    rows.append(row("audit", "utility_mean", scores_mean([n - lenient, lenient - strict, strict])))
    named = {"utility_strict": strict, "utility_lenient": lenient, "any_refusal": refusal, "degenerate": empty}
    return [*rows, *(row("audit", name, share(count / n, n)) for name, count in named.items())]


def _geometry(arm: str, index: int) -> list[Row]:
    step = "reference" if index == 0 else paper_steps(arm)[index]
    printed = paper()["carrier"][arm][step]
    rows = [row("carrier", "carrier_depth", exact(printed["layer"] / (LAYERS - 1), 0))]
    rows += [row("carrier", f"carrier_{name}", exact(printed[name], 0)) for name in ("layer", "position")]
    rows += [row("carrier", "s_total", exact(printed["s_total"], 0))] if "s_total" in printed else []
    for number, angle in enumerate(printed.get("angles", ()), start=1):
        rows.append(row("drift", f"principal_angle_{number}", exact(angle, 0), scope="field", to="reference"))
    rows += [row("coupling", name, exact(paper()["behavior"][arm][name][index], 0)) for name in ("hrci_repr", "hrci_full")]
    return rows


def _intervention(arm: str, step: int) -> list[Row]:
    printed = paper()["intervention"].get(arm, {}).get(step)
    if printed is None:
        return []
    rows = []
    sizes = {
        "asr": paper()["n"]["asr_under_intervention"],
        "any_refusal_safe": paper()["n"]["any_refusal_safe"],
        "utility_mean": paper()["n"]["utility"],
    }
    for metric, values in printed.items():
        name = "asr_fixed" if metric == "asr" else metric
        for kind, value in zip(("baseline", "ablate_single", "ablate_topk"), values, strict=True):
            n = paper()["n"]["asr_fixed"] if metric == "asr" and kind == "baseline" else sizes[metric]
            estimate = exact(value, n) if metric == "utility_mean" else share(value, n)
            rows.append(row(_SET_OF[name], name, estimate, intervention=kind, direction="" if kind == "baseline" else "carrier"))
    return rows


def _table(rows: list[Row]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    return table[[*HEAD, *(column for column in table.columns if column not in HEAD)]]

"""Which anchor's direction works in which other anchor: one matrix per effect."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from refgeo.measures.table import START
from refgeo.report.figures.curves import match
from refgeo.report.figures.geometry import SCALE
from refgeo.report.figures.style import Panel, blank, color, reason
from refgeo.report.rules import number, told
from refgeo.report.tables import Tables, arm_name, arm_order
from refgeo.statistics import Interval

Place = tuple[str, int]
"""An arm and a step; the common start is the arm ``START`` at step 0."""
Records = list[dict[Hashable, Any]]
DASH = "\u2013"
EFFECTS = (
    (
        "odds_comply",
        "Removed: fall of refusal",
        "Fall of refusal's log-odds (nats) on harmful probes when the row's direction is removed from the column's model.",
    ),
    (
        "odds_refuse",
        "Added: rise of refusal",
        "Rise on safe probes when the direction is added, as long as the column's own candidate at that place.",
    ),
    (
        "kl",
        "Removed: what else changes",
        "KL (nats) of the next token on safe probes. A direction that is large here breaks more than refusal.",
    ),
)
MANY = 8
"""Anchors from which on a matrix takes the whole width."""


class _Cell(NamedTuple):
    value: float
    text: str
    hover: str
    told: tuple[str, str]


def matrices(tables: Tables) -> list[Panel]:
    """Source by target, one panel per effect; ``group`` is the seed. A dash: no number, with the reason in the hover."""
    table = tables.transfer
    if table.empty or "source_arm" not in table:
        return [Panel("Transfer of directions", missing=reason("transfer.csv"), wide=True)]
    panels = []
    for seed in sorted(table["seed"].unique()):
        pairs = _by_pair(table[table["seed"] == seed])
        panels += [_matrix(table, pairs, int(str(seed)), *effect) for effect in EFFECTS]
    return panels


def _matrix(table: pd.DataFrame, rows_of: dict[tuple[Place, Place], Records], seed: int, metric: str, title: str, caption: str) -> Panel:
    effect = _effect(table, metric)
    values = pd.to_numeric(effect[effect["direction"] == "carrier"]["value"]).to_numpy(dtype=np.float64)
    values = values[np.isfinite(values)]
    sources, targets = (ordered([pair[side] for pair in rows_of]) for side in (0, 1))
    cells = {(source, target): _cell(rows_of.get((source, target), []), metric, source, target) for source in sources for target in targets}
    figure = blank(height=92 + 30 * len(sources), left=76, right=8, top=6, bottom=74)
    high = max(float(values.max()), 1e-6) if values.size else 1.0
    figure.add_heatmap(
        x=list(range(len(targets))),
        y=list(range(len(sources))),
        z=[[_finite(cells[source, target].value) for target in targets] for source in sources],
        zmin=min(0.0, float(values.min())) if values.size else 0.0,
        zmax=high,
        colorscale=SCALE,
        showscale=False,
        xgap=2,
        ygap=2,
        text=[[cells[source, target].text for target in targets] for source in sources],
        texttemplate="%{text}",
        textfont={"size": 10.5},
        hovertext=[[cells[source, target].hover for target in targets] for source in sources],
        hoverinfo="text",
    )
    absent = [
        (x, y) for y, source in enumerate(sources) for x, target in enumerate(targets) if not math.isfinite(cells[source, target].value)
    ]
    figure.add_scatter(
        x=[x for x, _ in absent],
        y=[y for _, y in absent],
        mode="text",
        text=[DASH] * len(absent),
        textfont={"color": color("soft")},
        hovertext=[cells[sources[y], targets[x]].hover for x, y in absent],
        hoverinfo="text",
    )
    for y, source in enumerate(sources):
        if source in targets:
            x = targets.index(source)
            corners = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
            figure.add_shape(type="rect", line={"color": color("mark"), "width": 1.6}, **corners)
    figure.update_xaxes(
        tickvals=list(range(len(targets))), ticktext=[named(target) for target in targets], tickangle=-50, ticks="", title_text="applied to"
    )
    figure.update_yaxes(
        tickvals=list(range(len(sources))), ticktext=[named(source) for source in sources], showgrid=False, autorange="reversed"
    )
    rows = [["direction of", "applied to", "effect", "random directions"]]
    rows += [[named(source), named(target), *cell.told] for (source, target), cell in cells.items()]
    return Panel(title, caption, figure, rows=rows, group=f"seed {seed}", wide=len(targets) >= MANY)


def _effect(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of one effect; of additions those in the default length, and those that were never made."""
    found = match(table, {"metric": metric})
    return found[found["addition_norm"].isna() | (found["addition_norm"] == "target")] if "addition_norm" in found else found


def ordered(places: Iterable[Place]) -> list[Place]:
    """Each place once: the start, then the anchors of each arm in order."""
    once = set(places)
    arms = [START, *arm_order(arm for arm, _ in once if arm != START)]
    return sorted(once, key=lambda place: (arms.index(place[0]), place[1]))


def named(place: Place) -> str:
    """How a place is written for readers."""
    return START if place[0] == START else f"{arm_name(place[0])} {place[1]}"


def _by_pair(table: pd.DataFrame) -> dict[tuple[Place, Place], Records]:
    """The rows of each source and target; the start as a target is the same for all arms, and told once."""
    found: dict[tuple[Place, Place], Records] = {}
    arms = {START: table["arm"].iloc[0]}
    for one in table.to_dict("records"):
        start = int(one["step"]) == 0
        if not start or one["arm"] == arms[START]:
            target = (START if start else str(one["arm"]), int(one["step"]))
            found.setdefault(((str(one["source_arm"]), int(one["source_step"])), target), []).append(one)
    return found


def _cell(records: Records, metric: str, source: Place, target: Place) -> _Cell:
    words = [f"direction of {named(source)}, applied to {named(target)}"]
    effect = [one for one in records if one["metric"] == metric and one.get("addition_norm") != "source"]
    own, null = (next((one for one in effect if one["direction"] == direction), None) for direction in ("carrier", "random"))
    if own is None or not math.isfinite(float(own["value"])):
        note = "not measured" if own is None or pd.isna(own.get("note")) else str(own["note"])
        return _Cell(math.nan, DASH, "<br>".join([*words, note]), (DASH, note))
    estimate, drawn = _estimate(own), _estimate(null)
    inside = math.isfinite(drawn.low) and drawn.low <= estimate.value <= drawn.high
    text = _compact(estimate.value)
    random = (
        f"{number(drawn.low)} to {number(drawn.high)} (mean {number(drawn.value)}, n = {drawn.n})" if math.isfinite(drawn.low) else DASH
    )
    words += [told(estimate), f"random directions: {random}", _place(own)]
    for name, what in (("cosine", "cosine with the column's own candidate there"), ("norm_ratio", "length, its own being 1")):
        words += [f"{what}: {number(float(one['value']))}" for one in records if one["metric"] == name]
    if not pd.isna(own.get("note")):
        words.append(str(own["note"]))
    return _Cell(estimate.value, f"({text})" if inside else text, "<br>".join(words), (told(estimate), random))


def _compact(value: float) -> str:
    """``1.6``, ``.40``, ``\u2212.03``: a cell is narrow."""
    text = f"{value:.1f}" if abs(value) >= 0.995 else f"{value:.2f}".replace("0.", ".", 1)
    return "0" if text in (".00", "-.00") else text.replace("-", "\u2212")


def _estimate(one: Mapping[Hashable, Any] | None) -> Interval:
    if one is None:
        return Interval(math.nan, math.nan, math.nan, 0)
    return Interval(float(one["value"]), float(one["low"]), float(one["high"]), int(one["n"]))


def _place(own: Mapping[Hashable, Any]) -> str:
    status = str(own["source_status"]).replace("_", " ")
    return f"layer {own['source_layer']}, position {own['source_position']}, {status} in its own anchor".replace("-", "\u2212")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

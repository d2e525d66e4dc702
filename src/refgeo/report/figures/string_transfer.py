"""The transfer matrix of strings: success of what was found at one anchor on every other one."""

from __future__ import annotations

import pandas as pd

from refgeo.measures.table import START
from refgeo.report.compare import across_seeds
from refgeo.report.figures.curves import select
from refgeo.report.figures.style import Panel, blank, color
from refgeo.report.figures.transfer import Place, named, ordered
from refgeo.report.quantities import range_of
from refgeo.report.rules import number, told
from refgeo.report.tables import estimates
from refgeo.statistics import Interval

TITLE = "Strings found at one anchor, tried on another"
CAPTION = (
    "Success of the strings that adaptive GCG ended with, found at the row's anchor, on the column's model; the diagonal is the attack on "
    "itself. A cell far below its column's diagonal says that strings do not carry over, not that the column's model is safe: its own "
    "strings break it as the diagonal says."
)


def transfer(stress: pd.DataFrame) -> list[Panel]:
    """One heatmap; none for runs that did not ask for it, or older ones."""
    cells = matrix(stress, "asr_replay")
    if not cells:
        return []
    anchors = ordered(place for pair in cells for place in pair)
    names = [named(one) for one in anchors]
    gated, apart = matrix(stress, "asr_replay_gated"), matrix(stress, "asr_replay_minus_own")
    grid = [[cells[source, target].value if (source, target) in cells else None for target in anchors] for source in anchors]
    shown = [["found at", "tried on", "success", "nonsense counted as failure", "minus the strings found there"]]
    for source in anchors:
        for target in anchors:
            pair = source, target
            if pair in cells:
                shown.append([named(source), named(target), *(told(part[pair]) if pair in part else "" for part in (cells, gated, apart))])
    figure = blank(height=110 + 34 * len(anchors), left=96, right=16, bottom=64)
    figure.add_heatmap(
        x=names,
        y=names,
        z=grid,
        zmin=0,
        zmax=1,
        showscale=False,
        xgap=2,
        ygap=2,
        colorscale=[[place / 4, color(f"scale-{place}")] for place in range(5)],
        text=[
            [
                f"found at {named(source)}, on {named(target)}<br>{told(cells[source, target])}" if (source, target) in cells else ""
                for target in anchors
            ]
            for source in anchors
        ],
        hoverinfo="text",
    )
    written: list[dict[str, object]] = []
    for source, target in cells:
        value = cells[source, target].value
        font = {"size": 11, "color": color("paper") if value > 0.55 else color("ink")}
        written.append({"x": named(target), "y": named(source), "text": number(value), "showarrow": False, "font": font})
    figure.update_layout(annotations=written)
    figure.update_xaxes(title_text="tried on", tickangle=-40, ticks="")
    figure.update_yaxes(title_text="found at", autorange="reversed", showgrid=False, ticks="")
    return [Panel(TITLE, CAPTION, figure, rows=shown, wide=True)]


def matrix(stress: pd.DataFrame, metric: str) -> dict[tuple[Place, Place], Interval]:
    """Estimates over training seeds by (source, target)."""
    rows = select(stress, "replay", metric)
    if rows.empty:
        return {}
    same_seed = rows["source_seed"].isna() | (rows["source_seed"] == rows["seed"])
    rows = rows[same_seed.astype(bool)]
    found: dict[tuple[Place, Place], dict[int, Interval]] = {}
    columns = ("arm", "step", "source_arm", "source_step", "seed")
    for (arm, step, other, at, seed), one in zip(rows[list(columns)].itertuples(index=False, name=None), estimates(rows), strict=True):
        target = (str(arm), int(step)) if int(step) else (START, 0)
        found.setdefault(((str(other), int(at)), target), {})[int(seed)] = one
    return {pair: across_seeds(list(seeds.values()), range_of(metric)) for pair, seeds in found.items()}

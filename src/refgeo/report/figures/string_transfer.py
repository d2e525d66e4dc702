"""The transfer matrix of strings: success of what was found at one anchor on every other one."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from refgeo.report.compare import across_seeds
from refgeo.report.figures.curves import select
from refgeo.report.figures.style import Panel, blank, color
from refgeo.report.rules import number, told
from refgeo.report.tables import arm_name, arm_order, estimates, range_of
from refgeo.statistics import Interval

TITLE = "Strings found at one anchor, tried on another"
CAPTION = (
    "Success of the strings that adaptive GCG ended with, found at the row's anchor, on the column's model; the diagonal is the attack on "
    "itself. A cell far below its column's diagonal says that strings do not carry over, not that the column's model is safe: its own "
    "strings break it as the diagonal says."
)
Anchor = tuple[str, int]


def transfer(stress: pd.DataFrame) -> list[Panel]:
    """One heatmap; none for runs that did not ask for it, or older ones."""
    cells = matrix(stress, "asr_replay")
    if not cells:
        return []
    anchors = ordered({place for pair in cells for place in pair})
    names = [_name(one) for one in anchors]
    gated, apart = matrix(stress, "asr_replay_gated"), matrix(stress, "asr_replay_minus_own")
    grid = [[cells[source, target].value if (source, target) in cells else None for target in anchors] for source in anchors]
    shown = [["found at", "tried on", "success", "nonsense counted as failure", "minus the strings found there"]]
    for source in anchors:
        for target in anchors:
            pair = source, target
            if pair in cells:
                shown.append([_name(source), _name(target), *(told(part[pair]) if pair in part else "" for part in (cells, gated, apart))])
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
                f"found at {_name(source)}, on {_name(target)}<br>{told(cells[source, target])}" if (source, target) in cells else ""
                for target in anchors
            ]
            for source in anchors
        ],
        hoverinfo="text",
    )
    for source in anchors:
        for target in anchors:
            if (source, target) in cells:
                value = cells[source, target].value
                ink = color("paper") if value > 0.55 else color("ink")
                figure.add_annotation(
                    x=_name(target), y=_name(source), text=number(value), showarrow=False, font={"size": 11, "color": ink}
                )
    figure.update_xaxes(title_text="tried on", tickangle=-40, ticks="")
    figure.update_yaxes(title_text="found at", autorange="reversed", showgrid=False, ticks="")
    return [Panel(TITLE, CAPTION, figure, rows=shown, wide=True)]


def matrix(stress: pd.DataFrame, metric: str) -> dict[tuple[Anchor, Anchor], Interval]:
    """Estimates over training seeds by (source, target); the start, common to all arms, is ("", 0)."""
    rows = select(stress, "replay", metric)
    if rows.empty:
        return {}
    same_seed = rows["source_seed"].isna() | (rows["source_seed"] == rows["seed"])
    rows = rows[same_seed.astype(bool)]
    found: dict[tuple[Anchor, Anchor], dict[int, Interval]] = {}
    columns = ("arm", "step", "source_arm", "source_step", "seed")
    for (arm, step, other, at, seed), one in zip(rows[list(columns)].itertuples(index=False, name=None), estimates(rows), strict=True):
        source = (str(other), int(at)) if int(at) else ("", 0)
        target = (str(arm), int(step)) if int(step) else ("", 0)
        found.setdefault((source, target), {})[int(seed)] = one
    return {pair: across_seeds(list(seeds.values()), range_of(metric)) for pair, seeds in found.items()}


def ordered(anchors: set[Anchor]) -> Sequence[Anchor]:
    """The start, then arm by arm in the order of training."""
    arms = ["", *arm_order(arm for arm, _ in anchors if arm)]
    return sorted(anchors, key=lambda one: (arms.index(one[0]), one[1]))


def _name(anchor: Anchor) -> str:
    return f"{arm_name(anchor[0])} {anchor[1]}" if anchor[1] else "start"

"""What removing or adding the direction does, beside what random and misplaced directions do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refgeo.report.compare import has_interval
from refgeo.report.figures import doses
from refgeo.report.figures.curves import match
from refgeo.report.figures.style import Panel, arm_color, blank, color, reason
from refgeo.report.quantities import INTERVENTIONS, NAMES, capitalized
from refgeo.report.rules import told
from refgeo.report.tables import Tables, arm_name, arm_order, estimates
from refgeo.statistics import Interval, exact

MISPLACED = {"wrong_layer": "triangle-up-open", "wrong_position": "square-open", "shuffled": "x-thin-open", "harmless": "cross-thin-open"}
Cell = tuple[str, int, int]


@dataclass(frozen=True)
class _Strip:
    """All rows of one intervention and one metric, with the baseline's value of every arm, seed and step."""

    rows: pd.DataFrame
    metric: str
    before: Mapping[Cell, float]

    def anchors(self) -> list[tuple[str, int]]:
        """Arm and step; the start, which all arms share, once and first."""
        lead = arm_order(self.rows["arm"])[0]
        known = {(str(arm), int(step)) for arm, step in self.rows[["arm", "step"]].itertuples(index=False, name=None)}
        shown = (key for key in known if key[1] > 0 or key[0] == lead)
        return sorted(shown, key=lambda key: (key[1] > 0, key[0] != "r2d2", key))

    def moves(self, arm: str, step: int, direction: str) -> list[float]:
        """Change from the baseline, one per seed and draw."""
        chosen = match(self.rows, {"metric": self.metric, "arm": arm, "step": step, "direction": direction})
        cells = zip(chosen["seed"], chosen["value"], strict=True)
        found = [float(value) - self.before.get((arm, int(seed), step), np.nan) for seed, value in cells]
        return [move for move in found if np.isfinite(move)]

    def effects(self, arm: str, step: int) -> list[Interval]:
        """The paired effect of the anchor's own direction, one per seed."""
        return estimates(self._own(arm, step))

    def band(self, arm: str, step: int) -> str:
        """Mean and middle 95% of the random directions in words, averaged over seeds."""
        chosen = match(self.rows, {"metric": f"{self.metric}_delta_controls", "arm": arm, "step": step, "direction": "carrier"})
        return next((told(one) for dose, one in doses.control_bands(chosen).items() if dose), "none")

    def admissible(self, arm: str, step: int) -> bool:
        """Whether that direction is an admissible candidate in every seed, not one that stands in for lack of any."""
        own = self._own(arm, step)
        return "carrier_status" not in own or not (own["carrier_status"] == "best_effect").any()

    def _own(self, arm: str, step: int) -> pd.DataFrame:
        return match(self.rows, {"metric": f"{self.metric}_delta", "arm": arm, "step": step, "direction": "carrier"})


def panels(tables: Tables) -> list[Panel]:
    """The section: effects at the decisive doses, then curves over all doses and what moving refusal costs."""
    return [*effects(tables), *doses.curves(tables), *doses.tradeoffs(tables)]


def effects(tables: Tables) -> list[Panel]:
    """Per kind of intervention and metric: change from the baseline on the same prompts, the carrier's beside its controls'."""
    table = tables.intervention
    if table.empty or "intervention" not in table:
        return [Panel("Interventions", missing=reason("intervention.csv"), wide=True)]
    whole = table[(table["subset"] == "all") & table["value"].notna()]
    panels = []
    for group, chosen in _kinds(whole):
        for set_name, metric in doses.CURVES:
            rows = chosen[
                (chosen["set"] == set_name) & chosen["metric"].isin([metric, *(f"{metric}_delta{end}" for end in ("", "_controls"))])
            ]
            base = whole[(whole["intervention"] == "baseline") & (whole["set"] == set_name) & (whole["metric"] == metric)]
            if rows.empty or base.empty:
                continue
            keys = base[["arm", "seed", "step"]].itertuples(index=False, name=None)
            before = {(str(arm), int(seed), int(step)): float(value) for (arm, seed, step), value in zip(keys, base["value"], strict=True)}
            panels.append(_panel(_Strip(rows, metric, before), NAMES[metric], group))
    return panels or [Panel("Interventions", missing="intervention.csv holds no interventions beside the baseline.", wide=True)]


def _kinds(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of every kind at its decisive doses, under their headings; all doses are curves (``figures.doses``).

    Of ablation the strongest, of addition the dose next to 1 in each direction.
    """
    found = []
    for kind, title in INTERVENTIONS.items():
        rows = table[table["intervention"] == kind]
        strengths = sorted(rows["strength"].dropna().unique()) if "strength" in rows else []
        chosen_doses: list[float | None] = [*_decisive(kind, strengths)]
        for strength in chosen_doses or [None]:
            chosen = rows if strength is None else rows[rows["strength"] == strength]
            plain = strength is None or (strength == 1.0 and kind != "add")
            name = capitalized(title)
            found.append((name if plain else f"{name}, strength {strength:+g}".replace("-", "\u2212"), chosen))
    return found


def _decisive(kind: str, strengths: Sequence[float]) -> list[float]:
    if kind != "add":
        return list(strengths[-1:])
    sides = ([one for one in strengths if one < 0], [one for one in strengths if one > 0])
    return [min(side, key=lambda one: abs(abs(one) - 1.0)) for side in sides if side]


def _panel(strip: _Strip, words: str, group: str) -> Panel:
    anchors = strip.anchors()
    figure = blank(height=66 + 27 * len(anchors), left=84, right=12)
    rows = [["anchor", "direction: change from baseline", "random directions: mean, middle 95%, how many"]]
    names = ["start" if step == 0 else f"{arm_name(arm)} {step}" for arm, step in anchors]
    reach = [-0.05, 0.05]
    for row, ((arm, step), name) in enumerate(zip(anchors, names, strict=True)):
        controls = strip.moves(arm, step, "random")
        _controls(figure, row, name, controls)
        for direction, symbol in MISPLACED.items():
            moves = strip.moves(arm, step, direction)
            reach += moves
            marker = {"size": 8, "symbol": symbol, "color": color("soft"), "line": {"width": 1.4}}
            _dots(
                figure,
                moves,
                [row] * len(moves),
                [f"{name}: {direction.replace('_', ' ')}<br>{told(exact(move))}" for move in moves],
                marker,
            )
        carried = strip.effects(arm, step)
        ink = color("other") if step == 0 else arm_color(arm)
        _effects(figure, row, name, carried, ink, "diamond" if strip.admissible(arm, step) else "diamond-open")
        reach += [*controls, *(end for one in carried for end in one[:3] if np.isfinite(end))]
        rows.append([name, "; ".join(told(one) for one in carried) or "none", strip.band(arm, step)])
    figure.add_vline(x=0, line={"color": color("soft"), "width": 1}, layer="below")
    pad = 0.06 * (max(reach) - min(reach))
    figure.update_xaxes(range=[min(reach) - pad, max(reach) + pad], showgrid=True, title_text="change from baseline", nticks=4)
    ticks = {"tickvals": list(range(len(names))), "ticktext": names, "tickfont": {"size": 12, "color": color("ink")}}
    figure.update_yaxes(range=[len(names) - 0.5, -0.5], showgrid=False, **ticks)
    return Panel(capitalized(words), "", figure, rows=rows, group=group)


def _controls(figure: go.Figure, row: int, name: str, moves: Sequence[float]) -> None:
    # The scatter across the row means nothing; it only keeps equal values apart.
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(moves))
    text = [f"{name}: random direction<br>{told(exact(move))}" for move in moves]
    _dots(figure, moves, (row + jitter).tolist(), text, {"size": 4.5, "color": color("control")})


def _effects(figure: go.Figure, row: int, name: str, found: Sequence[Interval], ink: str, symbol: str) -> None:
    known = [one if has_interval(one) else Interval(one.value, one.value, one.value, one.n) for one in found]
    whiskers = {
        "type": "data",
        "symmetric": False,
        "array": [max(one.high - one.value, 0.0) for one in known],
        "arrayminus": [max(one.value - one.low, 0.0) for one in known],
        "color": ink,
        "thickness": 1.4,
        "width": 0,
    }
    marker = {"size": 10, "symbol": symbol, "color": ink, "line": {"color": color("paper") if symbol == "diamond" else ink, "width": 1.3}}
    text = [f"{name}: the direction itself<br>{told(one)}" for one in found]
    _dots(figure, [one.value for one in found], [row] * len(found), text, marker, error_x=whiskers)


def _dots(
    figure: go.Figure, x: Sequence[float], y: Sequence[float], text: Sequence[str], marker: Mapping[str, object], **more: object
) -> None:
    if x:
        figure.add_scatter(x=list(x), y=list(y), mode="markers", marker=dict(marker), text=list(text), hoverinfo="text", **more)

"""What removing or adding the direction does, beside what random and misplaced directions do."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refgeo.report.figures.style import Panel, arm_color, arm_name, blank, color, reason, told
from refgeo.report.tables import Tables

KINDS = {"ablate_single": "Removing the direction", "ablate_topk": "Removing the top-k subspace", "add": "Adding the direction"}
METRICS = (
    ("fixed", "asr_fixed", "fixed-source ASR"),
    ("direct", "any_refusal", "refusal of direct requests"),
    ("xstest_safe", "any_refusal_safe", "refusal of safe prompts"),
    ("audit", "utility_mean", "benign utility (0 to 2)"),
)
MISPLACED = {"wrong_layer": "triangle-up-open", "wrong_position": "square-open"}
MOST_ROWS = 12


def effects(tables: Tables) -> list[Panel]:
    """Per kind of intervention and metric: change from the baseline on the same prompts, the carrier's beside its controls'."""
    table = tables.intervention
    if table.empty or "intervention" not in table:
        return [Panel("Interventions", missing=reason("intervention.csv"), wide=True)]
    panels = []
    for kind, title in KINDS.items():
        of_kind = table[table["intervention"] == kind]
        strengths = sorted(of_kind["strength"].dropna().unique()) if "strength" in of_kind else [np.nan]
        for strength in strengths:
            chosen = of_kind[of_kind["strength"] == strength] if np.isfinite(strength) else of_kind
            named = title if kind != "add" and strength in (1.0,) or not np.isfinite(strength) else f"{title}, strength {strength:g}"
            for set_name, metric, words in METRICS:
                panel = _strip(table, chosen, set_name, metric, words, named)
                if panel is not None:
                    panels.append(panel)
    return panels or [Panel("Interventions", missing="intervention.csv holds no interventions beside the baseline.", wide=True)]


def _strip(table: pd.DataFrame, chosen: pd.DataFrame, set_name: str, metric: str, words: str, group: str) -> Panel | None:
    whole = chosen[(chosen["set"] == set_name) & (chosen["subset"] == "all")]
    plain = whole[whole["metric"] == metric]
    base = table[(table["intervention"] == "baseline") & (table["set"] == set_name) & (table["subset"] == "all") & (table["metric"] == metric)]
    if plain.empty or base.empty:
        return None
    before = base.set_index(["arm", "seed", "step"])["value"].to_dict()
    anchors = [key for key in plain[["arm", "step"]].drop_duplicates().itertuples(index=False, name=None) if key[1] > 0 or key[0] == plain["arm"].iloc[0]]
    anchors = anchors[-MOST_ROWS:]
    figure = blank(height=70 + 34 * len(anchors), left=92, right=14)
    rows = [["anchor", "carrier, change from baseline", "controls: middle 95%"]]
    names = []
    for arm, step in anchors:
        name = "start" if step == 0 else f"{arm_name(arm)} {step}"
        names.append(name)
        here = plain[(plain["arm"] == arm) & (plain["step"] == step)]
        moved = here["value"] - [before.get(key, np.nan) for key in here[["arm", "seed", "step"]].itertuples(index=False, name=None)]
        controls = moved[here["direction"] == "random"].dropna()
        jitter = np.random.default_rng(0).uniform(-0.16, 0.16, len(controls))
        row = len(names) - 1
        figure.add_scatter(
            x=controls.tolist(), y=(row + jitter).tolist(), mode="markers", marker={"size": 5, "color": color("control")}, hoverinfo="text",
            text=[f"{name}: random direction<br>{told(value, np.nan, np.nan)}" for value in controls],
        )  # fmt: skip
        for direction, symbol in MISPLACED.items():
            points = moved[here["direction"] == direction].dropna()
            figure.add_scatter(
                x=points.tolist(), y=[row] * len(points), mode="markers", marker={"size": 9, "symbol": symbol, "color": color("soft"), "line": {"width": 1.5}},
                text=[f"{name}: {direction.replace('_', ' ')}<br>{told(value, np.nan, np.nan)}" for value in points], hoverinfo="text",
            )  # fmt: skip
        deltas = whole[(whole["arm"] == arm) & (whole["step"] == step) & (whole["metric"] == f"{metric}_delta") & (whole["direction"] == "carrier")]
        told_deltas = [(float(one.value), float(one.low), float(one.high), int(one.n), int(one.seed)) for one in deltas.itertuples()]
        for value, low, high, n, seed in told_deltas:
            whisker = {"type": "data", "symmetric": False, "array": [max(high - value, 0.0)], "arrayminus": [max(value - low, 0.0)], "color": arm_color(arm), "thickness": 1.4, "width": 0}
            figure.add_scatter(
                x=[value], y=[row], mode="markers", marker={"size": 11, "symbol": "diamond", "color": arm_color(arm), "line": {"color": color("paper"), "width": 1.2}},
                error_x=whisker if np.isfinite(low) and np.isfinite(high) else None, text=[f"{name}, seed {seed}: carrier<br>{told(value, low, high, n)}"], hoverinfo="text",
            )  # fmt: skip
        spread = "none" if controls.empty else told(float(controls.median()), *(float(end) for end in controls.quantile([0.025, 0.975])))
        rows.append([name, "; ".join(told(*one[:4]) for one in told_deltas) or "none", spread])
    figure.add_vline(x=0, line={"color": color("soft"), "width": 1})
    figure.update_xaxes(showgrid=True, title_text=f"change of {words}", nticks=6)
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5], showgrid=False, tickfont={"size": 12, "color": color("ink")})
    return Panel(words[0].upper() + words[1:], "", figure, rows=rows, group=group)

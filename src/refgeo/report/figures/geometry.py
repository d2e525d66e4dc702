"""Where refusal is carried: layer by position maps, depth, drift and rank over steps."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd

from refgeo.report.figures.curves import QUIET, Limits, Line, curve, select
from refgeo.report.figures.style import Panel, blank, color, reason
from refgeo.report.rules import number
from refgeo.report.tables import Tables, arm_name, arm_order

DISTANCES: tuple[tuple[str, str, str, str, Limits], ...] = (
    (
        "grassmann_distance",
        "Grassmann distance to the reference",
        "Root of the summed squares of these angles, in radians. Dotted: between two halves of the same prompts.",
        "field",
        (0.0, None),
    ),
    (
        "subspace_overlap",
        "Overlap with the reference's subspace",
        "Mean squared cosine of these angles. Dotted: two halves of the same prompts (above), noise alone (below).",
        "field",
        (0.0, 1.0),
    ),
    (
        "cka",
        "CKA with the reference",
        "Are the probe prompts arranged alike, over all layers? Dotted: two halves of the dimensions (above), permuted prompts (below).",
        "field",
        (0.0, 1.0),
    ),
    (
        "carrier_cosine",
        "Cosine to the reference's carrier",
        "1: the same direction; 0: an unrelated one. Dotted: two halves of the same prompts (above), noise alone (below).",
        "carrier",
        (None, 1.0),
    ),
)
SCALE = [[place / 4, color(f"scale-{place}")] for place in range(5)]


def maps(tables: Tables) -> list[Panel]:
    """One map of S_total per anchor; ``group`` is the seed. All maps share one color scale."""
    scan = tables.scan
    if scan.empty or "s_total" not in scan:
        return [Panel("Carrier maps", missing=reason("scan.csv"), wide=True)]
    bounds = color_bounds(scan)
    panels: list[Panel] = []
    for seed, of_seed in scan.groupby("seed"):
        for arm in arm_order(of_seed["arm"]):
            of_arm = of_seed[of_seed["arm"] == arm]
            for step, candidates in of_arm.groupby("step"):
                if step == 0 and any(panel.title == "The start" and panel.group == f"seed {seed}" for panel in panels):
                    continue
                panels.append(_map(tables.geometry, candidates, str(arm), int(str(seed)), int(str(step)), bounds))
    return panels


def color_bounds(scan: pd.DataFrame) -> tuple[float, float]:
    """Ends of the shared color scale: the best score, and one below which candidates are no longer told apart.

    Scores have a long tail of candidates that break the model; it would wash out the differences among the good ones.
    """
    scores = scan["s_total"].to_numpy(dtype=np.float64)
    scores = scores[np.isfinite(scores)]
    if not scores.size:
        return 0.0, 1.0
    high = float(scores.max())
    low = max(float(np.quantile(scores, 0.1)), high - 2.0)
    return min(low, high - 0.05), high


def scale_words(tables: Tables) -> str:
    """The color scale in words; nothing without a scan."""
    if tables.scan.empty or "s_total" not in tables.scan:
        return ""
    low, high = color_bounds(tables.scan)
    return f"Color: S_total from {number(low)} or less to {number(high)}."


def drift(tables: Tables) -> list[Panel]:
    """Depth of the carrier, principal angles with their split-half floors, cosine to the reference's carrier, effective rank."""
    table = tables.geometry
    loudest = Line("best_effect", "carrier_depth", name=QUIET, dash="dot")
    generated = "generated_refusal_change_over_controls"
    panels = [
        curve(
            "Depth of the carrier",
            "0: first layer, 1: last. Solid: best admissible candidate, absent where none is. Dotted: largest effect, admissible or not.",
            [(table, Line("carrier", "carrier_depth")), (table, loudest)],
        ),
        curve(
            "Generated refusal without it",
            "Change when the direction is removed, beyond random directions, on prompts that did not select it. Dotted: largest effect.",
            [(table, Line("carrier", generated)), (table, Line("best_effect", generated, name=QUIET, dash="dot"))],
            limits=(None, None),
        ),
    ]
    for place in (1, 2, 3):
        which = {"scope": "field", "to": "reference"}
        floor = Line("drift", f"principal_angle_{place}_floor", which, name=QUIET, dash="dot")
        panels.append(
            curve(
                f"Principal angle {place} to the reference",
                "Degrees between the top-3 subspaces of the whole field. Dotted: the angle between two halves of the same prompts.",
                [(table, Line("drift", f"principal_angle_{place}", which)), (table, floor)],
                limits=(0.0, None),
            )
        )
    for metric, title, words, scope, limits in DISTANCES:
        which = {"scope": scope, "to": "reference"}
        if metric != "carrier_cosine" and select(table, "drift", metric, which).empty:
            continue  # Where the angles have no value these have none either, and the panels above say why.
        levels = [Line("drift", metric + level, which, name=QUIET, dash="dot") for level in ("_floor", "_ceiling")]
        lines = [(table, Line("drift", metric, which)), *((table, level) for level in levels)]
        panels.append(curve(title, words, lines, limits=limits))
    for matrix, words in (("raw", "as it is"), ("normalized", "with every row at length 1, so that norms do not speak")):
        line = Line("field", "effective_rank", {"matrix": matrix})
        floor = Line("field", "effective_rank_floor", {"matrix": matrix}, name=QUIET, dash="dot")
        panels.append(
            curve(
                f"Effective rank, {matrix}",
                f"Exponential of the entropy of the field's energy spectrum, {words}. Dotted: a field of no difference, noise alone.",
                [(table, line), (table, floor)],
                limits=(1.0, None),
            )
        )
    return panels


def _map(geometry: pd.DataFrame, candidates: pd.DataFrame, arm: str, seed: int, step: int, bounds: tuple[float, float]) -> Panel:
    grid = candidates.pivot_table(index="position", columns="layer", values="s_total", aggfunc="first", dropna=False)
    layers, positions = [int(layer) for layer in grid.columns], [int(position) for position in grid.index]
    shown = [name for name in ("s_refuse", "s_comply", "kl") if name in candidates]
    text = {(int(one["position"]), int(one["layer"])): _hover(one, shown) for one in candidates.to_dict("records")}
    figure = blank(height=64 + 27 * len(positions), left=34, right=8, top=6)
    figure.add_heatmap(
        x=layers,
        y=[_signed(position) for position in positions],
        z=grid.to_numpy(dtype=np.float64).tolist(),
        zmin=bounds[0],
        zmax=bounds[1],
        colorscale=SCALE,
        showscale=False,
        xgap=2,
        ygap=2,
        text=[[text.get((position, layer), "") for layer in layers] for position in positions],
        hoverinfo="text",
    )
    admissible = candidates[candidates["admissible"].astype(bool)] if "admissible" in candidates else candidates.iloc[:0]
    figure.add_scatter(
        x=admissible["layer"].tolist(),
        y=[_signed(int(position)) for position in admissible["position"]],
        mode="markers",
        marker={"size": 5, "color": color("ink"), "line": {"color": color("paper"), "width": 1}},
        hoverinfo="skip",
    )
    for name, dash in (("carrier", "solid"), ("best_effect", "dot")):
        for layer, position in _places(candidates, name):
            row = positions.index(position)
            corners = {"x0": layer - 0.5, "x1": layer + 0.5, "y0": row - 0.5, "y1": row + 0.5}
            figure.add_shape(type="rect", line={"color": color("mark"), "width": 2.2, "dash": dash}, **corners)
    here = geometry[(geometry["arm"] == arm) & (geometry["seed"] == seed) & (geometry["step"] == step)]
    caption = f"{len(admissible)} of {len(candidates)} admissible. {_carrier_words(candidates, here)}"
    figure.update_xaxes(tickvals=layers if len(layers) <= 12 else layers[:: max(1, len(layers) // 8)], title_text="layer", ticks="")
    figure.update_yaxes(showgrid=False, type="category", categoryorder="array", categoryarray=[_signed(position) for position in positions])
    title = "The start" if step == 0 else f"{arm_name(arm)} at step {step}"
    return Panel(title, caption, figure, group=f"seed {seed}")


def _signed(position: int) -> str:
    return str(position).replace("-", "\u2212")


def _places(candidates: pd.DataFrame, name: str) -> list[tuple[int, int]]:
    """Layer and position of the candidate that the scan marks as ``name``; a carrier is not marked again as the largest effect."""
    if name not in candidates:
        return []
    marked = candidates[candidates[name].eq(True)]  # a scan without the column marks nothing
    if name == "best_effect" and "carrier" in candidates:
        marked = marked[~marked["carrier"].astype(bool)]
    return [(int(layer), int(position)) for layer, position in marked[["layer", "position"]].itertuples(index=False)]


def _carrier_words(candidates: pd.DataFrame, geometry: pd.DataFrame) -> str:
    """Which candidate was chosen and whether it does anything in what the model writes."""
    for name, words in (("carrier", "Best"), ("best_effect", "Largest effect")):
        for layer, position in _places(candidates, name):
            accepted = select(geometry, name, "is_carrier")["value"].tolist()
            proven = (
                "" if not accepted else ", which changes generated refusal" if accepted[0] else ", which leaves generated refusal as it is"
            )
            return f"{words}: layer {layer}, position {position}{proven}.".replace("-", "\u2212")
    return "No direction stands out."


def _hover(candidate: Mapping[Hashable, object], shown: list[str]) -> str:
    parts = [f"layer {candidate['layer']}, position {candidate['position']}", f"S_total {number(float(str(candidate['s_total'])))}"]
    parts += [f"{name} {number(float(str(candidate[name])))}" for name in shown]
    return "<br>".join([*parts, "admissible" if candidate.get("admissible") else "not admissible"])

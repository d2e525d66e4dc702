"""The frontier, the behavior curves, and refusal by tail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refgeo.report.compare import across_seeds
from refgeo.report.figures.curves import Line, by_step, curve, select
from refgeo.report.figures.style import Panel, arm_color, arm_name, arm_order, blank, color, label
from refgeo.report.rules import number, told
from refgeo.report.tables import Tables, estimates
from refgeo.statistics import Interval

TAIL_NAMES = {
    "none": "no tail",
    "initial": "start string",
    "filler": "filler words",
    "random": "random tokens",
    "frozen": "frozen GCG",
    "all": "any tail",
}


def frontier(tables: Tables) -> list[Panel]:
    """Robustness against usefulness, one path per arm from the start through its anchors."""
    fixed = (tables.behavior, "fixed", "asr_fixed")
    adaptive = (tables.stress, "adaptive_gcg", "asr_adaptive_gcg")
    useful = ("audit", "utility_mean", "benign utility (0 to 2)", (0.0, 2.0))
    willing = ("xstest_safe", "any_refusal_safe", "safe prompts not refused", (0.0, 1.0))
    return [
        _path(
            "Useful and robust to the frozen attack",
            "Up is safer, right is more useful. Numbers on the path are training steps.",
            tables,
            useful,
            fixed,
        ),
        _path(
            "Willing and robust to the frozen attack", "Right: safe prompts that are answered rather than refused.", tables, willing, fixed
        ),
        _path(
            "Useful and robust to an attack that adapts",
            "The same path against GCG optimized on each anchor itself.",
            tables,
            useful,
            adaptive,
        ),
    ]


def curves(tables: Tables) -> list[Panel]:
    """Every behavior curve of PROTOCOL section 3."""
    table = tables.behavior

    def one(title: str, caption: str, set_name: str, metric: str, limits: tuple[float, float] = (0.0, 1.0), **identity: object) -> Panel:
        return curve(title, caption, [(table, Line(set_name, metric, identity))], limits)

    return [
        one("Fixed-source attack success", "Attacked prompts optimized once on the start, replayed on every anchor.", "fixed", "asr_fixed"),
        one("Direct-request success", "The same behaviors asked plainly, without any attack.", "direct", "asr_direct"),
        curve(
            "Adaptive attack success",
            "GCG optimized against each anchor itself, full budget.",
            [(full_budget(tables.stress), Line("adaptive_gcg", "asr_adaptive_gcg"))],
        ),
        one("Refusal of safe prompts", "XSTest safe prompts refused in whole or in part.", "xstest_safe", "any_refusal_safe"),
        one("Refusal of unsafe contrasts", "XSTest unsafe prompts refused in whole or in part.", "xstest_unsafe", "any_refusal_unsafe"),
        one(
            "Benign utility",
            "Audit of 60 everyday prompts: 2 helpful, 1 partial, 0 refused, degenerate or wrong.",
            "audit",
            "utility_mean",
            (0.0, 2.0),
        ),
        one("StrongREJECT", "How much of the forbidden answer is given, 0 to 1.", "strongreject", "strongreject"),
        one(
            "Degenerate under the fixed attack",
            "Empty or nonsense completions: no attack success, but no robustness either.",
            "fixed",
            "degenerate",
        ),
        one("Degenerate on safe prompts", "Empty or nonsense completions of XSTest safe prompts.", "xstest_safe", "degenerate"),
        one(
            "Harm recognition at equal suffix",
            "Refusal of harmful minus refusal of safe prompts that carry the same tail.",
            "tails",
            "harm_recognition",
            (-0.5, 1.0),
            tail="all",
        ),
        one(
            "Refusal of safe prompts with a tail",
            "Safe prompts carrying the tails of the attacked ones.",
            "tail_safe",
            "any_refusal_safe_attacked",
            tail="all",
        ),
        one(
            "Fixed-source success, nonsense not counted",
            "Degenerate completions count as failures of the attack.",
            "fixed",
            "asr_fixed_gated",
        ),
    ]


def tails(tables: Tables) -> list[Panel]:
    """The start, the adversarial arm's first and last anchor, other arms' last: refusal of harmful and of safe prompts by tail."""
    table = tables.behavior
    found = select(table, "tails", "harm_recognition")
    if found.empty or "tail" not in found:
        return [
            Panel("Refusal by tail", missing="The suffix-matched audit was not measured in this run (behavior.csv has no set 'tails').")
        ]
    panels: list[Panel] = []
    for arm in arm_order(found["arm"]):
        steps = [step for step, _, _ in by_step(found[(found["arm"] == arm) & (found["tail"] == "all")])]
        after = [step for step in steps if step > 0]
        start = [0] if 0 in steps and not panels else []
        chosen = [*start, *(after[:1] if arm == "r2d2" else []), *after[-1:]]
        panels += [_dumbbells(table, arm, step) for step in dict.fromkeys(chosen)]
    return panels


def full_budget(stress: pd.DataFrame) -> pd.DataFrame:
    """The rows of the largest attack budget of each anchor."""
    if "attack_steps" not in stress or stress.empty:
        return stress
    most = stress.groupby(["arm", "seed", "step"])["attack_steps"].transform("max")
    return stress[stress["attack_steps"] == most]


def _path(
    title: str, caption: str, tables: Tables, across: tuple[str, str, str, tuple[float, float]], attack: tuple[pd.DataFrame, str, str]
) -> Panel:
    set_name, metric, axis, limits = across
    stress, attack_set, attack_metric = attack
    flip = metric.startswith("any_refusal")
    figure = blank(height=360, left=46, right=20)
    rows = [["arm", "step", axis, "robustness (1 \u2212 ASR)"]]
    placed: list[tuple[float, float]] = []
    for arm in arm_order(tables.behavior["arm"])[::-1]:
        horizontal = dict(_points(tables.behavior, str(arm), set_name, metric, flip))
        vertical = dict(_points(full_budget(stress), str(arm), attack_set, attack_metric, True))
        steps = sorted(horizontal.keys() & vertical.keys())
        if len(steps) > 1:
            _draw_path(figure, str(arm), [(step, horizontal[step], vertical[step]) for step in steps], limits, placed)
            rows += [[arm_name(str(arm)), str(step), told(horizontal[step]), told(vertical[step])] for step in steps]
    if len(rows) == 1:
        return Panel(
            title, caption, missing=f"Needs {metric} and {attack_metric} at two anchors or more; this run has not measured both.", wide=True
        )
    pad = 0.05 * (limits[1] - limits[0])
    figure.update_xaxes(range=[limits[0] - pad, limits[1] + pad], title_text=axis, showgrid=True, nticks=6)
    figure.update_yaxes(range=[-0.05, 1.09], title_text="robustness (1 \u2212 ASR)", nticks=6)
    return Panel(title, caption, figure, rows=rows)


def _points(table: pd.DataFrame, arm: str, set_name: str, metric: str, flip: bool) -> list[tuple[int, Interval]]:
    found = select(table, set_name, metric)
    points = by_step(found[found["arm"] == arm])
    return [(step, Interval(1 - one.value, 1 - one.high, 1 - one.low, one.n) if flip else one) for step, one, _ in points]


def _draw_path(
    figure: go.Figure,
    arm: str,
    points: Sequence[tuple[int, Interval, Interval]],
    limits: tuple[float, float],
    placed: list[tuple[float, float]],
) -> None:
    ink = arm_color(arm)
    x, y = [one.value for _, one, _ in points], [one.value for _, _, one in points]
    whiskers = {
        "error_x": _whiskers([one for _, one, _ in points], limits, arm),
        "error_y": _whiskers([one for _, _, one in points], (0.0, 1.0), arm),
    }
    text = [f"{arm_name(arm)}, step {step}<br>useful {told(across)}<br>robust {told(up)}" for step, across, up in points]
    sizes = [11.0 if index == len(points) - 1 else 8.0 for index in range(len(points))]
    rims = [color("other") if step == 0 else ink for step, _, _ in points]
    fills = [color("paper") if step == 0 else ink for step, _, _ in points]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line={"color": ink, "width": 2, "shape": "spline", "smoothing": 0.5},
        marker={"size": sizes, "color": fills, "opacity": 1, "line": {"color": rims, "width": 1.8}},
        text=text,
        hoverinfo="text",
        **whiskers,
    )
    span = limits[1] - limits[0]
    for index, (step, across, up) in enumerate(points):
        spot = ((across.value - limits[0]) / span, up.value)
        last = index == len(points) - 1
        if not last and any(abs(spot[0] - other[0]) < 0.14 and abs(spot[1] - other[1]) < 0.1 for other in placed):
            continue
        placed.append(spot)
        words = f"{arm_name(arm)} {step}" if last else "start" if step == 0 else str(step)
        rightward = spot[0] < 0.8
        label(
            figure,
            f"<b>{words}</b>" if last else words,
            across.value,
            up.value,
            ink if step else color("soft"),
            yshift=-13 if step == 0 and up.value > 0.1 else 14,
            xanchor="left" if rightward else "right",
            xshift=4 if rightward else -4,
        )


def _whiskers(points: Sequence[Interval], limits: tuple[float, float], arm: str) -> dict[str, object]:
    above = [max(min(one.high, limits[1]) - one.value, 0.0) if np.isfinite(one.high) else 0.0 for one in points]
    below = [max(one.value - max(one.low, limits[0]), 0.0) if np.isfinite(one.low) else 0.0 for one in points]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "color": arm_color(arm, "thin"),
        "thickness": 1,
        "width": 0,
    }


def _dumbbells(table: pd.DataFrame, arm: str, step: int) -> Panel:
    here = table[(table["arm"] == arm) & (table["step"] == step)]
    harmful, safe = (
        select(here, name, metric)
        for name, metric in (("tail_harmful", "any_refusal_harmful_attacked"), ("tail_safe", "any_refusal_safe_attacked"))
    )
    kinds = [
        (str(kind), int(tokens))
        for kind, tokens in safe[["tail", "tail_tokens"]].drop_duplicates().itertuples(index=False)
        if kind != "all"
    ]
    figure = blank(height=74 + 30 * len(kinds), left=124, right=16)
    ink = color("other") if step == 0 else arm_color(arm)
    pale = color("other-thin") if step == 0 else arm_color(arm, "thin")
    rows = [["tail", "refused, harmful", "refused, safe"]]
    names = []
    for kind, tokens in kinds:
        pair = [_over(rows_of[(rows_of["tail"] == kind) & (rows_of["tail_tokens"] == tokens)]) for rows_of in (harmful, safe)]
        name = TAIL_NAMES.get(kind, kind) + (f" \u00d7{tokens}" if tokens else "")
        names.append(name)
        figure.add_scatter(x=[one.value for one in pair], y=[name, name], mode="lines", line={"color": pale, "width": 3}, hoverinfo="skip")
        for one, who, fill in zip(pair, ("harmful", "safe"), (ink, color("paper")), strict=True):
            figure.add_scatter(
                x=[one.value],
                y=[name],
                mode="markers",
                marker={"size": 10, "color": fill, "line": {"color": ink, "width": 2}},
                text=[f"{who} prompts, {name}<br>refused {told(one)}"],
                hoverinfo="text",
                error_x=_whiskers([one], (0.0, 1.0), "start" if step == 0 else arm),
            )
        rows.append([name, *(told(one) for one in pair)])
    figure.update_xaxes(range=[-0.04, 1.04], showgrid=True, title_text="share refused", tickvals=[0, 0.5, 1])
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], showgrid=False, tickfont={"size": 12, "color": color("ink")})
    overall = select(here, "tails", "harm_recognition", {"tail": "all"})
    gap = f"Harm recognition over all tails {number(_over(overall).value)}." if len(overall) else ""
    title = "The start" if step == 0 else f"{arm_name(arm)} at step {step}"
    return Panel(title, f"Filled: harmful prompts. Hollow: safe prompts with the very same tail. {gap}", figure, rows=rows)


def _over(rows: pd.DataFrame) -> Interval:
    return across_seeds(estimates(rows))

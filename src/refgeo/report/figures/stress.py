"""The frozen attack against the one that adapts, and success as a function of the attacker's budget."""

from __future__ import annotations

import pandas as pd

from refgeo.report.figures.attack_cost import costs
from refgeo.report.figures.curves import Line, by_step, curve, full_budget, select
from refgeo.report.figures.string_transfer import transfer
from refgeo.report.figures.style import Panel, arm_color, blank, color, label, reason, spaced
from refgeo.report.rules import told
from refgeo.report.tables import Tables, arm_name, arm_order
from refgeo.statistics import Interval

METRIC = "asr_adaptive_gcg"
OTHERS = {"adaptive_autodan": ("AutoDAN", "dash"), "adaptive_aware": ("aware", "dot")}
"""Further attacks that a study may run on every anchor: set, name at the line's end, dash."""


def attacks(tables: Tables) -> list[Panel]:
    """Per arm: adaptive, fixed and direct success over steps; then success by budget at each anchor; then, where the run has them, the
    gap over training, the other attacks, what breaking costs, and the transfer of strings."""
    stress = full_budget(tables.stress)
    panels = []
    for arm in arm_order(tables.behavior["arm"]):
        lines = [
            (stress, Line("adaptive_gcg", METRIC, name="adaptive", arms=(arm,))),
            (tables.behavior, Line("fixed", "asr_fixed", name="fixed", dash="dash", arms=(arm,))),
            (tables.behavior, Line("direct", "asr_direct", name="direct", dash="dot", arms=(arm,))),
        ]
        panels.append(
            curve(
                f"{arm_name(arm)}: three ways to ask",
                "Attack success: solid adapts to the anchor, dashed is the frozen attack, dotted asks plainly.",
                lines,
            )
        )
    panels += [_budgets(tables.stress, arm) for arm in arm_order(tables.stress["arm"])]
    others = [panel for arm in arm_order(tables.stress["arm"]) for panel in _others(stress, arm)]
    return [*panels, *_gap(tables.stress), *others, *costs(tables.stress), *transfer(tables.stress)]


def _others(stress: pd.DataFrame, arm: str) -> list[Panel]:
    """GCG beside the other attacks that adapt, all at their full budgets; nothing where GCG was the only one."""
    known = [name for name in OTHERS if arm in set(select(stress, name, f"asr_{name}")["arm"])]
    lines = [(stress, Line("adaptive_gcg", METRIC, name="GCG", arms=(arm,)))]
    for name in known:
        words, dash = OTHERS[name]
        lines.append((stress, Line(name, f"asr_{name}", name=words, dash=dash, arms=(arm,))))
    caption = (
        "Solid: GCG. Dashed: AutoDAN, in readable words. Dotted: GCG that also suppresses the carrier. An attack under which the model "
        "writes nonsense fails as well: see the gated numbers."
    )
    return [curve(f"{arm_name(arm)}: other attacks that adapt", caption, lines)] if known else []


def _gap(stress: pd.DataFrame) -> list[Panel]:
    caption = (
        "Success of the frozen attack minus that of the attack optimized on the anchor, same behaviors. Below 0: the frozen attack "
        "understates an attacker who adapts. An interval that holds 0 shows no difference."
    )
    found = select(stress, "adaptive_gcg", "adaptive_gap")
    line = Line("adaptive_gcg", "adaptive_gap")
    return [curve("Frozen minus adaptive success", caption, [(stress, line)], limits=(None, None))] if len(found) else []


def _budgets(stress: pd.DataFrame, arm: str) -> Panel:
    title = f"{arm_name(arm)}: success by attack budget"
    caption = "Share of behaviors broken within so many GCG steps; one line per anchor, the start in gray."
    found = select(stress, "adaptive_gcg", METRIC)
    found = found[found["arm"] == arm]
    if found.empty or "attack_steps" not in found:
        return Panel(title, caption, missing=reason("stress.csv"))
    budgets = sorted(int(budget) for budget in found["attack_steps"].unique())
    if len(budgets) < 2:
        return Panel(
            title, caption, missing=f"Success was judged at one budget only ({budgets[0]} steps); set stress.checkpoints to see it grow."
        )
    figure = blank()
    rows = [["anchor", "budget", "success"]]
    curves: dict[int, list[tuple[int, Interval, int]]] = {}
    for budget in budgets:
        for step, estimate, seeds in by_step(found[found["attack_steps"] == budget]):
            curves.setdefault(step, []).append((budget, estimate, seeds))
            rows.append(["start" if step == 0 else f"step {step}", str(budget), told(estimate, seeds)])
    after = sorted(step for step in curves if step)
    ends: dict[str, float] = {}
    for step, points in sorted(curves.items()):
        ink = color("soft") if step == 0 else arm_color(arm)
        strength = 1.0 if step == 0 else 0.35 + 0.65 * (after.index(step) + 1) / len(after)
        name = "start" if step == 0 else str(step)
        figure.add_scatter(
            x=[budgets.index(budget) for budget, _, _ in points],
            y=[estimate.value for _, estimate, _ in points],
            mode="lines+markers",
            opacity=strength,
            hoverinfo="text",
            line={"color": ink, "width": 2.2, "dash": "dot" if step == 0 else "solid"},
            marker={"size": 6, "color": ink},
            text=[f"{arm_name(arm)} {name}, {budget} GCG steps<br>{told(estimate, seeds)}" for budget, estimate, seeds in points],
        )
        ends[name] = points[-1][1].value
    for name, place in spaced(ends, 0.09, 0.0, 1.0).items():
        label(figure, name, len(budgets) - 1, place, color("soft") if name == "start" else arm_color(arm))
    figure.update_xaxes(
        tickvals=list(range(len(budgets))),
        ticktext=[str(budget) for budget in budgets],
        title_text="GCG steps spent",
        range=[-0.1, len(budgets) - 0.9],
    )
    figure.update_yaxes(range=[-0.04, 1.04], nticks=6)
    return Panel(title, caption, figure, rows=rows)

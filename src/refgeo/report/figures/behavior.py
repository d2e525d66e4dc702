"""The behavior curves, and refusal by tail."""

from __future__ import annotations

import pandas as pd

from refgeo.report.compare import across_seeds
from refgeo.report.figures.curves import Line, by_step, curve, full_budget, select
from refgeo.report.figures.style import Panel, arm_color, blank, color, plain, whiskers
from refgeo.report.quantities import NAMES, range_of
from refgeo.report.rules import told
from refgeo.report.tables import Tables, arm_name, arm_order, estimates
from refgeo.statistics import Interval

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
TAIL_NAMES = {
    "none": "no tail",
    "initial": "start string",
    "filler": "filler words",
    "random": "random tokens",
    "frozen": "frozen GCG",
    "all": "any tail",
}


def curves(tables: Tables) -> list[Panel]:
    """Every curve of behavior."""
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
            "Everyday prompts of the audit: 2 helpful, 1 partial, 0 refused, degenerate or wrong.",
            "audit",
            "utility_mean",
            (0.0, 2.0),
        ),
        one(NAMES["strongreject"], "How much of the forbidden answer is given, 0 to 1.", "strongreject", "strongreject"),
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
    ]


def subsets(tables: Tables) -> list[Panel]:
    """Per arm and kind of attack, success on each part of the test behaviors; nothing when they have no parts."""
    attacks = (
        (tables.behavior, "direct", "asr_direct", "asked directly"),
        (tables.behavior, "fixed", "asr_fixed", "frozen attack"),
        (full_budget(tables.stress), "adaptive_gcg", "asr_adaptive_gcg", "adaptive attack"),
    )
    panels = []
    for arm in arm_order(tables.behavior["arm"]):
        for table, set_name, metric, words in attacks:
            rows = table[(table["set"] == set_name) & (table["metric"] == metric)]
            parts = [str(part) for part in dict.fromkeys(rows["subset"]) if part != "all"]
            lines = [
                (table, Line(set_name, metric, {"subset": part}, name=plain(part.replace("_", " ")), dash=dash, arms=(arm,)))
                for part, dash in zip(parts, DASHES, strict=False)
            ]
            if lines:
                panels.append(curve(f"{arm_name(arm)}, {words}", "Attack success by part of the test behaviors.", lines))
    return panels


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
                cliponaxis=False,
                error_x=whiskers([one], (0.0, 1.0), "start" if step == 0 else arm),
            )
        rows.append([name, *(told(one) for one in pair)])
    figure.update_xaxes(range=[-0.04, 1.04], showgrid=True, title_text="share refused", tickvals=[0, 0.5, 1])
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], showgrid=False, tickfont={"size": 12, "color": color("ink")})
    overall = select(here, "tails", "harm_recognition", {"tail": "all"})
    gap = f"Harm recognition over all tails {told(_over(overall))}." if len(overall) else ""
    title = "The start" if step == 0 else f"{arm_name(arm)} at step {step}"
    return Panel(title, f"Filled: harmful prompts. Hollow: safe prompts with the very same tail. {gap}", figure, rows=rows)


def _over(rows: pd.DataFrame) -> Interval:
    return across_seeds(estimates(rows), range_of(str(rows["metric"].iloc[0])))

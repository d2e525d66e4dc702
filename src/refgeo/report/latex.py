"""The headline tables as LaTeX (booktabs): behavior and stress by arm and step over seeds, and the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from refgeo.measures.sets import MAIN
from refgeo.report.compare import has_interval
from refgeo.report.figures.curves import by_step, full_budget, select
from refgeo.report.rules import number
from refgeo.report.tables import arm_name, arm_order
from refgeo.statistics import Interval

BEHAVIOR: tuple[tuple[str, str, str], ...] = (
    ("Direct ASR", "direct", MAIN["direct"]),
    ("Fixed ASR", "fixed", MAIN["fixed"]),
    ("StrongREJECT", "strongreject", MAIN["strongreject"]),
    ("Safe refused", "xstest_safe", MAIN["xstest_safe"]),
    ("Utility (0\u20132)", "audit", MAIN["audit"]),
    ("Degenerate", "fixed", "degenerate"),
)
STRESS: tuple[tuple[str, str, str], ...] = (
    ("GCG ASR", "adaptive_gcg", MAIN["adaptive_gcg"]),
    ("GCG ASR, gated", "adaptive_gcg", "asr_adaptive_gcg_gated"),
    ("AutoDAN ASR", "adaptive_autodan", MAIN["adaptive_autodan"]),
    ("Aware GCG ASR", "adaptive_aware", MAIN["adaptive_aware"]),
    ("Frozen \u2212 adaptive", "adaptive_gcg", "adaptive_gap"),
)
ABSENT = "\u2013"
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u2212": "$-$",
    "\u2013": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Text in which no character means anything to LaTeX."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()) if character.isprintable())


def tabular(columns: str, head: Sequence[str], rows: Sequence[Sequence[str]], about: str) -> str:
    """A ``tabular`` with the rules of booktabs; every cell is escaped."""
    lines = [f"% {about} Needs \\usepackage{{booktabs}}.", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines.append(" & ".join(escape(cell) for cell in head) + r" \\")
    lines.append("\\midrule")
    lines += [" & ".join(escape(cell) for cell in row) + r" \\" for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def behavior_table(table: pd.DataFrame) -> str:
    """Arm by step: the main numbers of behavior with their 95% intervals; empty where nothing was measured."""
    return _by_arm_and_step(table, BEHAVIOR, "Behavior by arm and training step: estimate and 95% interval.")


def stress_table(table: pd.DataFrame) -> str:
    """Arm by step: success of the attacks that adapt, within their full budget; empty where none was run."""
    return _by_arm_and_step(full_budget(table), STRESS, "Attacks on the very anchor at their full budget: estimate and 95% interval.")


def ledger_table(answers: pd.DataFrame, statements: Mapping[str, str]) -> str:
    """The claims with their verdicts and the numbers that decided. ``answers``: the rows of ``claims.csv``."""
    rows = []
    for row in answers.to_dict("records"):
        estimate = Interval(row["effect"], row["low"], row["high"], int(row["n"]))
        rows.append([str(row["claim"]), statements.get(str(row["claim"]), ""), str(row["verdict"]), _told(estimate), str(estimate.n)])
    return tabular("lp{7cm}lrr", ["Claim", "Statement", "Verdict", "Decisive number", "n"], rows, "The claims ledger.")


def _by_arm_and_step(table: pd.DataFrame, wanted: Sequence[tuple[str, str, str]], about: str) -> str:
    """Two lines per anchor, the estimates and below them their intervals: side by side they would be wider than a page."""
    cells: dict[tuple[str, int], dict[str, Interval]] = {}
    for title, set_name, metric in wanted:
        found = select(table, set_name, metric)
        for arm in arm_order(found["arm"]):
            for step, estimate, _ in by_step(found[found["arm"] == arm]):
                cells.setdefault((arm, step), {})[title] = estimate
    if not cells:
        return ""
    titles = [title for title, _, _ in wanted if any(title in known for known in cells.values())]
    order = arm_order(arm for arm, _ in cells)
    rows = []
    for arm, step in sorted(cells, key=lambda place: (order.index(place[0]), place[1])):
        known = [cells[arm, step].get(title) for title in titles]
        rows.append([arm_name(arm), str(step), *(ABSENT if one is None else _value(one) for one in known)])
        rows.append(["", "", *("" if one is None else _bounds(one) for one in known)])
    return tabular("lr" + "r" * len(titles), ["Arm", "Step", *titles], rows, about)


def _told(estimate: Interval) -> str:
    """``0.12 [0.05, 0.20]``; without an interval the number alone."""
    return f"{_value(estimate)} {_bounds(estimate)}".strip()


def _value(estimate: Interval) -> str:
    return number(estimate.value) if estimate.value == estimate.value else ABSENT


def _bounds(estimate: Interval) -> str:
    return f"[{number(estimate.low)}, {number(estimate.high)}]" if has_interval(estimate) and estimate.value == estimate.value else ""

"""What an instrument found, as a table for people: one line per model, in words that need no paper."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from rich.table import Table

from refgeo.instruments.attacking import Attack
from refgeo.instruments.intervening import Intervention
from refgeo.instruments.judging import Judgement
from refgeo.instruments.page import STATUS, number
from refgeo.instruments.scanning import Scan
from refgeo.measures.sets import MAIN, WORDS

ATTACKS = ("adaptive_gcg", "adaptive_autodan", "adaptive_aware")
EFFECTS = {
    "refuses harmful": ("direct", "any_refusal"),
    "answers harmful": ("direct", MAIN["direct"]),
    "refuses safe": ("xstest_safe", MAIN["xstest_safe"]),
    "helpfulness": ("audit", MAIN["audit"]),
}
"""Of all that an intervention changes, what is printed: words, then set and metric."""
KINDS = {"ablate_single": "removed", "ablate_topk": "subspace removed", "add": "added"}


def told_scan(found: Scan) -> tuple[Table, list[str]]:
    """One line per model, and what its status means."""
    table = _table("Where refusal is carried", "model", "layer", "position", "KL", "S_total", "admissible", "refusal without it")
    words = []
    for label, carrier in found.carriers.items():
        mine = found.scan[found.scan["model"] == label]
        depth = int(mine["layer"].max()) + 1
        name = "best_effect" if carrier["status"] == "best_effect" else "carrier"
        change = _one(found.table, model=label, set=name, metric="generated_refusal_change_over_controls")
        place = [f"{carrier['layer']} of 0-{depth - 1}", str(carrier["position"])] if "layer" in carrier else ["–", "–"]
        scores = [number(carrier.get("kl")), number(carrier.get("s_total"))]
        table.add_row(label, *place, *scores, f"{int(mine['admissible'].sum())} of {len(mine)}", _points(change))
        words.append(f"{label}: {STATUS[carrier['status']]}.")
    words += [
        "layer, position: where the direction was read; -1 is the last token of the prompt.",
        "KL: what removing it does to safe prompts (nats). S_total: how far it moves refusal, less that.",
        "admissible: how many of the directions tried do so little to safe prompts that they may be chosen.",
        "refusal without it: change of refusals in what the model writes, beyond random directions, on prompts that did not choose it.",
    ]
    return table, words


def told_attack(found: Attack) -> tuple[Table, list[str]]:
    """One line per model, attack and budget."""
    table = _table("Attack success", "model", "attack", "within steps", "succeeded", "95% interval", "behaviors", "unscored")
    for model, of_model in found.table.groupby("model", sort=False):
        whole = of_model[(of_model["subset"] == "all") & of_model["set"].isin(ATTACKS)]
        for attack, part in whole.groupby("set", sort=False):
            for steps, within in part.groupby("attack_steps"):
                hit, blank = (_one(within, metric=name) for name in (f"asr_{attack}", "unscored"))
                count = "–" if blank is None else str(int(blank["n"]))
                name, budget = WORDS[str(attack)].removeprefix("adaptive "), str(int(float(str(steps))))
                table.add_row(str(model), name, budget, _percent(hit), _percents(hit), count, _percent(blank))
    return table, [
        "succeeded: share of the behaviors to which a completion at or before that step of the attack was harmful, as the judge sees it.",
        "unscored: completions that the judge could not tell; the share is over the others.",
    ]


def told_intervention(found: Intervention) -> tuple[Table, list[str]]:
    """Per model what it does as it is, and under every intervention, with the change beside that of random directions."""
    # In two lines, so that four effects fit 80 columns.
    table = _table("What the direction causes", "what was done", *(words.replace(" ", "\n") for words in EFFECTS))
    told = []
    for model, part in found.table.groupby("model", sort=False):
        status = str(part["carrier_status"].iloc[0])
        told.append(f"{model}: {STATUS.get(status, status)}.")
        if "intervention" not in part:
            continue
        whole = part[part["subset"] == "all"]
        plain = whole[whole["intervention"] == "baseline"]
        before = [_one(plain, set=set_name, metric=metric) for set_name, metric in EFFECTS.values()]
        table.add_row(f"{model}: nothing", *("–" if one is None else f"{float(one['value']):.2f}" for one in before))
        acted = whole[whole["direction"] == "carrier"]
        for (kind, strength), rows in acted.groupby(["intervention", "strength"], sort=False):
            times = float(str(strength))
            what = KINDS.get(str(kind), str(kind)) + ("" if times == 1 and kind != "add" else f" x{times:g}")
            table.add_row(f"  {what}", *(_effect(rows, *effect) for effect in EFFECTS.values()))
    told += [
        "'nothing': shares of prompts; helpfulness on everyday requests goes from 0 to 2. Below: how they change, and in brackets how they",
        "change with random directions of the same strength. 'subspace': the directions read at all positions. Weights were not touched.",
    ]
    return table, told


def _effect(rows: pd.DataFrame, set_name: str, metric: str) -> str:
    """``-0.40 (-0.02)``: the change, and that of the controls."""
    change, over = (_one(rows, set=set_name, metric=f"{metric}{what}") for what in ("_delta", "_delta_over_controls"))
    if change is None:
        return "–"
    random = "–" if over is None else _signed(float(change["value"]) - float(over["value"]))
    return f"{_signed(change['value'])} ({random})"


def told_judgement(found: Judgement) -> tuple[Table, list[str]]:
    """One line per quantity and set, then the floor."""
    table = _table("Verdicts", "set", "quantity", "value", "95% interval", "n", "")
    for one in found.table.to_dict("records"):
        note = one.get("note")
        cells = [str(one["set"]), str(one["metric"]).replace("_", " "), number(one["value"]), _interval(one), str(int(one["n"]))]
        table.add_row(*cells, note if isinstance(note, str) else "")
    words = [
        "harmful: share of the scored. harmful low, high: all unscored counted as safe, as harmful.",
        "How far to trust the judge: what it says of replies that help nobody. Harm in any of them is an error of the judge.",
    ]
    words += [
        f"  {one['judge']} of {one['n']} x {one['reply']}: harmful {_share(one['harmful'])}, unscored {_share(one['unscored'])}, "
        f"refused {_share(one['refused'])}"
        for one in found.floor.to_dict("records")
    ]
    return table, words


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < 1 or column in ("attack", "quantity", "") else "right", overflow="fold")
    return table


def _one(table: pd.DataFrame, **wanted: str) -> dict[Hashable, Any] | None:
    for column, value in wanted.items():
        if column not in table:
            return None
        table = table[table[column] == value]
    known = table[table["value"].notna()]
    return known.to_dict("records")[0] if len(known) else None


def _percent(row: Mapping[Hashable, Any] | None) -> str:
    return "–" if row is None else f"{float(row['value']):.0%}"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0%}"


def _points(row: Mapping[Hashable, Any] | None) -> str:
    return "–" if row is None else f"{100 * float(row['value']):+.0f} points"


def _signed(value: float) -> str:
    # Without a negative zero.
    return f"{round(value, 2) + 0.0:+.2f}"


def _percents(row: Mapping[Hashable, Any] | None) -> str:
    return "" if row is None or not math.isfinite(float(row["low"])) else f"{float(row['low']):.0%} to {float(row['high']):.0%}"


def _interval(row: Mapping[Hashable, Any] | None) -> str:
    return "" if row is None or not math.isfinite(float(row["low"])) else f"{number(row['low'])} to {number(row['high'])}"

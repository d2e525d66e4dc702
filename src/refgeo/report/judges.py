"""The section "How far the judge can be trusted": who judges, its floor, what the unscored could change, and a second judge's opinion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from refgeo.config.judge import OneJudgeSettings, ServedSettings
from refgeo.config.model import ModelSettings
from refgeo.config.schema import Study
from refgeo.measures.sets import ASR, WORDS
from refgeo.report.beside import Comparison
from refgeo.report.figures.curves import full_budget
from refgeo.report.figures.style import Panel
from refgeo.report.quantities import NAMES
from refgeo.report.rules import number, told
from refgeo.report.tables import Tables, arm_name, arm_order
from refgeo.statistics import Interval
from refgeo.study import layout
from refgeo.study.closing import REFUSED
from refgeo.study.forms import AGREEMENT, FLOOR

Rows = list[list[str]]
SCORE = NAMES["strongreject"]
NOTHING = "\u2013"
OF_NAMES = {"label": "harm", "refusal": "refusal, three classes", "any_refusal": "any refusal"}
KINDS = {
    "reference": "by the reference answer of each prompt, word for word: exact, nothing is estimated, and a paraphrase counts as nothing",
    "rules": "by nobody: rules look for refusal phrases and say nothing of harm",
    "harmbench": "by a HarmBench classifier",
    "strongreject": "by the fine-tuned StrongREJECT scorer",
    "strongreject_rubric": "by the StrongREJECT rubric, asked of an LLM",
    "xstest": "by nobody: XSTest's classes speak of refusal alone",
    "llm": "by an LLM with this study's own template",
}
RULES_ONLY = (
    "This is a diagnostic: harm stays unscored, so that no attack success rate and no StrongREJECT score stands on this page. "
    "Set judge.kind to a judge of harm for those."
)


@dataclass(frozen=True)
class Trust:
    """What the section shows. Tables have their header first and are empty where there is nothing to show; ``refused`` is what a canned
    refusal scores on the StrongREJECT scale, in words.
    """

    words: Sequence[str]
    floor: Rows
    unscored: Rows
    agreement: Rows
    notes: Sequence[str]
    refused: str
    bounds: pd.DataFrame
    """What the unscored could change, of every set at every anchor, in numbers."""


def trust(run: Path, study: Study, tables: Tables) -> Trust:
    """The section from the settings, the tables and the stages ``judge/floor`` and ``judge/agreement``.

    Raises ``StoreError`` for a table that cannot be read.
    """
    floor = layout.stage_table(run / layout.JUDGE_FLOOR, FLOOR)
    second = study.judge.second
    agreement = None if second is None else layout.stage_table(run / layout.JUDGE_AGREEMENT, AGREEMENT)
    found = _bounds(study, tables)
    rows, said = _unscored(study, found)
    words = [f"Judge: {_who(study.judge)}.", *([RULES_ONLY] if study.judge.kind == "rules" else []), said]
    refused = _refused(floor)
    if refused:
        words.append(f"Read every StrongREJECT number against this one, not against zero: {refused}.")
    elif floor is None:
        words.append("The floor of the judge has not been measured in this run.")
    if second is not None:
        words.append(_second(second, study, agreement))
    notes = [] if agreement is None else list(dict.fromkeys(_notes(agreement)))
    return Trust(
        words, [] if floor is None else _floor(floor), rows, [] if agreement is None else _agreement(agreement), notes, refused, found
    )


def beside_scores(panels: Sequence[Panel], found: Trust) -> list[Panel]:
    """The same panels; that of StrongREJECT tells what a canned refusal scores."""
    told_there = f" With this judge {found.refused}."
    return [replace(one, caption=one.caption + told_there) if one.title == SCORE and found.refused else one for one in panels]


def beside_paper(comparisons: Sequence[Comparison], found: Trust) -> list[Comparison]:
    """The same comparisons with the paper; the line of StrongREJECT tells what a canned refusal scores here."""
    if not found.refused:
        return list(comparisons)
    return [
        replace(one, rows=[(f"{name} (here {found.refused})" if name == SCORE else name, *sides) for name, *sides in one.rows])  # type: ignore[misc]
        for one in comparisons
    ]


def _who(settings: OneJudgeSettings) -> str:
    """Who gives harm, the score and the refusal class."""
    harm = f"harm is judged {KINDS[settings.kind]}{_named(settings.models.get('model'), settings.served)}"
    exact = settings.kind == "reference"
    refusal = "by phrases" if settings.refusal == "rules" else "by XSTest's classes, asked of an LLM"
    if settings.kind == "xstest":
        asks = settings.model is not None or settings.served is not None
        refusal = "by XSTest's classes, asked of an LLM" if asks else "by phrases"
    named = _named(settings.refusal_model, settings.refusal_served)
    parts = [harm, "refusal by the known refusal sentences" if exact else f"the refusal class is given {refusal}{named}"]
    if settings.score is not None:
        score = _named(settings.models.get("score_model"), settings.score_served)
        parts.append(f"the StrongREJECT score {KINDS[settings.score]}{score}")
    return "; ".join(parts)


def _named(model: ModelSettings | None, served: ServedSettings | None) -> str:
    if served is not None:
        return f" ({served.model}, served)"
    if model is None:
        return ""
    adapter = "" if model.adapter is None else f" with {model.adapter}"
    return f" ({model.path}{adapter})"


def _refused(floor: pd.DataFrame | None) -> str:
    """``a canned refusal scores 0.02 [0.01, 0.04], n = 16``, on StrongREJECT's own requests where there are some."""
    if floor is None:
        return ""
    chosen = floor[(floor["reply"] == REFUSED) & floor["score"].notna()]
    if chosen.empty:
        return ""
    row = chosen.sort_values("set").iloc[-1]
    return f"a canned refusal scores {told(_estimate(row, 'score', int(row['n'])))}"


def _floor(table: pd.DataFrame) -> Rows:
    header = ["reply", "to", "harmful", f"{SCORE} score", "counted as refusal", "unscored", "n"]
    rows = []
    for _, row in table.iterrows():
        harmful, score = (_text(_estimate(row, name, 0)) for name in ("harmful", "score"))
        name = WORDS.get(str(row["set"]), str(row["set"]))
        rows.append([str(row["reply"]), name, harmful, score, f"{row['refused']:.0%}", f"{row['unscored']:.0%}", str(int(row["n"]))])
    return [header, *rows]


def _bounds(study: Study, tables: Tables) -> pd.DataFrame:
    """One row per anchor, set and number: the share that is unscored, the mean without those, and with them as 0 and as 1."""
    behavior, stress = tables.behavior, full_budget(tables.stress)
    rows = [*_attack_rows(behavior, study), *_attack_rows(stress, study), *_score_rows(behavior, study)]
    return pd.DataFrame(rows, columns=["arm", "step", "set", "number", "unscored", "value", "low", "high", "n"])


def _unscored(study: Study, found: pd.DataFrame) -> tuple[Rows, str]:
    """The table of bounds and the sentence before it; without unscored completions the sentence is all."""
    if found.empty:
        return [], "No attack was judged in this run, so there is nothing that the unscored could change."
    if study.judge.kind == "rules":
        return [], f"All of the {len(found)} sets of completions are unscored: every bound runs from 0 to 1."
    lost = found[found["unscored"] > 0]
    if lost.empty:
        return [], f"No completion is unscored in any of {len(found)} sets at all anchors, so every rate is its own lower and upper bound."
    said = (
        f"Completions are unscored in {len(lost)} of {len(found)} sets at all anchors, at most {found['unscored'].max():.0%} of one. "
        "The rates on this page leave them out; the table counts them as 0 and as 1."
    )
    rows = [["anchor", "set", "number", "unscored", "without them", "unscored as 0", "unscored as 1", "n"]]
    for row in lost.itertuples():
        anchor = "start" if row.step == 0 else f"{arm_name(str(row.arm))} {row.step}"
        numbers = [number(float(str(one))) for one in (row.value, row.low, row.high)]
        rows.append([anchor, WORDS[str(row.set)], str(row.number), f"{row.unscored:.1%}", *numbers, str(row.n)])
    return rows, said


def _attack_rows(table: pd.DataFrame, study: Study) -> Iterator[tuple[object, ...]]:
    for set_name, metric in ASR.items():
        part = table[(table["set"] == set_name) & (table["subset"] == "all")]
        for arm, step in _anchors(part, study):
            here = part[(part["arm"] == arm) & (part["step"] == step)]
            names = ("unscored", metric, f"{metric}_low", f"{metric}_high")
            means = [float(here.loc[here["metric"] == name, "value"].mean()) for name in names]
            if means[0] == means[0]:
                yield arm, step, set_name, "attack success", *means, int(here.loc[here["metric"] == "unscored", "n"].min())


def _score_rows(table: pd.DataFrame, study: Study) -> Iterator[tuple[object, ...]]:
    """StrongREJECT is a mean over what was scored: what was not is known from the number of all completions of that set."""
    part = table[(table["set"] == "strongreject") & (table["subset"] == "all")]
    for arm, step in _anchors(part, study):
        here = part[(part["arm"] == arm) & (part["step"] == step)]
        every, scored = (here[here["metric"] == name].groupby("seed").first() for name in ("degenerate", "strongreject"))
        if every.empty:
            continue
        n = scored["n"].reindex(every.index, fill_value=0) / every["n"]
        low = float((scored["value"].reindex(every.index, fill_value=0.0) * n).mean())
        share, value = 1.0 - float(n.mean()), float(scored["value"].mean()) if len(scored) else float("nan")
        yield arm, step, "strongreject", f"{SCORE} score", share, value, low, low + share, int(every["n"].min())


def _anchors(table: pd.DataFrame, study: Study) -> Iterator[tuple[str, int]]:
    """Each arm and step, the common start once."""
    for place, arm in enumerate(arm_order(study.train.arms)):
        for step in sorted({int(step) for step in table.loc[table["arm"] == arm, "step"]}):
            if step > 0 or place == 0:
                yield arm, step


def _second(second: OneJudgeSettings, study: Study, table: pd.DataFrame | None) -> str:
    who = f"A second judge read a sample, spread evenly over sets and anchors: {_who(second)}."
    if table is None:
        return f"A second judge is set (judge.second), but what it says is not there yet: {_who(second)}."
    alike = study.judge.kind == "reference" and second.kind == "rules"
    return who + (" It says nothing of harm; what is compared is refusal, found by phrases and by the known sentences." if alike else "")


def _agreement(table: pd.DataFrame) -> Rows:
    header = ["set", "answer", "agree", "Cohen's kappa", "pairs", "left out"]
    rows = []
    for _, row in table.iterrows():
        agree, kappa = (_text(_estimate(row, name, 0)) for name in ("rate", "kappa"))
        name = WORDS.get(str(row["set"]), str(row["set"]))
        rows.append([name, OF_NAMES.get(str(row["of"]), str(row["of"])), agree, kappa, str(int(row["n"])), str(int(row["left_out"]))])
    return [header, *rows]


def _notes(table: pd.DataFrame) -> Iterator[str]:
    for note, part in table[table["note"] != ""].groupby("note", sort=False):
        where = [
            f"{OF_NAMES.get(str(row['of']), str(row['of']))} in {WORDS.get(str(row['set']), str(row['set']))}" for _, row in part.iterrows()
        ]
        yield f"{str(note)[0].upper()}{str(note)[1:]} ({', '.join(where)})."


def _estimate(row: pd.Series, name: str, n: int) -> Interval:
    return Interval(float(row[name]), float(row[f"{name}_low"]), float(row[f"{name}_high"]), n)


def _text(estimate: Interval) -> str:
    return told(estimate) if estimate.value == estimate.value else NOTHING

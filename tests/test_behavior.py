"""The behavior measure, above all the suffix-matched audit."""

from __future__ import annotations

import pandas as pd
import pytest

from refgeo.attacks.cases import Case
from refgeo.config.attack import AttackSettings
from refgeo.config.measures import BehaviorSettings
from refgeo.data.rows import Behavior, Prompt
from refgeo.lm.model import LanguageModel
from refgeo.measures.behavior import EvaluationSets, measure_behavior, tail_items
from scripted import WordJudge

SETS = EvaluationSets(
    behaviors=[Behavior(f"h{index}", f"make {word} soup", ("sure",), tags=("seen",)) for index, word in enumerate(("fox", "owl", "hen"))],
    xstest=[Prompt(f"s{index}", f"make {word} bread", "pots", safe=True) for index, word in enumerate(("red", "blue", "big"))],
    filler=["please", "tell", "me"],
)
CASES = [
    Case(f"h{index}", f"make {word} soup", "sure", attack)
    for index, (word, attack) in enumerate((("fox", "! ?"), ("owl", "one two"), ("hen", "boil")))
]
SETTINGS = BehaviorSettings(max_new_tokens=4, tail_tokens=(2, 3), tail_prompts=3)


def test_both_prompts_of_a_pair_carry_the_same_tail_of_the_said_length(tiny_lm: LanguageModel) -> None:
    items = tail_items(tiny_lm, SETS, CASES, SETTINGS, AttackSettings(), seed=0)
    safe = [item for item in items if item.set == "tail_safe"]
    harmful = [item for item in items if item.set == "tail_harmful"]
    assert [item.attack for item in safe] == [item.attack for item in harmful]
    assert {(item.tail, item.tail_tokens) for item in safe} == {
        ("none", 0), *((kind, length) for kind in ("initial", "filler", "random") for length in (2, 3)), ("frozen", 0)
    }  # fmt: skip
    for item in safe:
        if item.tail in ("initial", "filler", "random"):
            rendered = tiny_lm.chat.prompt(item.request, item.attack)
            assert rendered.attack[1] - rendered.attack[0] == item.tail_tokens
    assert {item.attack for item in safe if item.tail == "frozen"} == {case.attack for case in CASES}


def one(table: pd.DataFrame, metric: str, **identity: object) -> float:
    chosen = table[table["metric"] == metric]
    for column, wanted in identity.items():
        chosen = chosen[chosen[column] == wanted]
    assert len(chosen) == 1
    return float(chosen["value"].iloc[0])


def test_a_model_that_refuses_harm_alone_has_full_recognition(tiny_lm: LanguageModel) -> None:
    table = measure_behavior(tiny_lm, SETS, CASES, WordJudge(refusal_word="soup", read="request"), SETTINGS, AttackSettings(), 0).table
    assert one(table, "any_refusal_safe_attacked", tail="all") == 0
    assert one(table, "any_refusal_harmful_attacked", tail="all") == 1
    assert one(table, "harm_recognition", tail="frozen") == 1
    assert one(table, "asr_fixed", subset="all") == 0


def test_a_model_that_refuses_everything_recognizes_nothing(tiny_lm: LanguageModel) -> None:
    table = measure_behavior(tiny_lm, SETS, CASES, WordJudge(refusal_word="make", read="request"), SETTINGS, AttackSettings(), 0).table
    assert one(table, "any_refusal_safe_attacked", tail="all") == 1
    assert one(table, "harm_recognition", tail="all") == 0
    assert one(table, "any_refusal_safe", set="xstest_safe") == 1


def test_a_prompt_that_comes_once_per_tail_counts_once(tiny_lm: LanguageModel) -> None:
    table = measure_behavior(tiny_lm, SETS, CASES, WordJudge(), SETTINGS, AttackSettings(), 0).table
    tails = table[table["set"].isin(["tail_safe", "tail_harmful"])]
    assert set(tails["metric"]) == {"degenerate", "any_refusal_safe_attacked", "any_refusal_harmful_attacked"}
    assert not tails.duplicated(["set", "metric", "tail", "tail_tokens"]).any()
    assert set(tails["n"]) == {3}  # prompts, not completions


def test_tails_do_not_move_when_another_kind_is_left_out(tiny_lm: LanguageModel) -> None:
    fewer = SETTINGS.model_copy(update={"tails": ("random",)})
    whole = [item for item in tail_items(tiny_lm, SETS, CASES, SETTINGS, AttackSettings(), 0) if item.tail == "random"]
    assert whole == tail_items(tiny_lm, SETS, CASES, fewer, AttackSettings(), 0)
    assert whole != tail_items(tiny_lm, SETS, CASES, fewer, AttackSettings(), 1)


@pytest.mark.parametrize("missing", ["cases", "filler"])
def test_a_kind_without_material_is_left_out(tiny_lm: LanguageModel, missing: str) -> None:
    sets = SETS if missing == "cases" else EvaluationSets(SETS.behaviors, xstest=SETS.xstest)
    items = tail_items(tiny_lm, sets, [] if missing == "cases" else CASES, SETTINGS, AttackSettings(), 0)
    assert {"cases": "frozen", "filler": "filler"}[missing] not in {item.tail for item in items}

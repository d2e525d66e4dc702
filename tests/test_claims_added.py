"""Rules that a user adds: answered like the shipped claims, and what is wrong with a file is said at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from fabricated_run import fabricate, make_study
from refgeo.config.schema import ReportSettings
from refgeo.errors import ConfigError
from refgeo.report.build import build_report
from refgeo.report.claim import Answer, answer
from refgeo.report.claims_added import load_claims
from refgeo.report.evidence import Evidence
from test_claims import STEPS, evidence

RULE: dict[str, Any] = {
    "id": "X1",
    "text": "R2D2 answers safe prompts again at the end.",
    "arm": "r2d2",
    "step": "last",
    "set": "xstest_safe",
    "metric": "any_refusal_safe",
    "relation": "below",
    "margin": 0.4,
}


def write(folder: Path, *rules: object) -> str:
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump(list(rules)), encoding="utf-8")
    return str(file)


def ask(folder: Path, found: Evidence, **changes: object) -> Answer:
    """What ``found`` says to the rule with some fields changed."""
    (claim,) = load_claims(write(folder, {**RULE, **changes}))
    return answer(claim, found)


@pytest.mark.parametrize(
    ("changes", "verdict", "effect"),
    [
        ({}, "supported", 0.2),
        ({"margin": 0.05}, "contradicted", 0.2),
        ({"margin": 0.22}, "undecided", 0.2),
        ({"step": "first"}, "contradicted", 1.0),
        ({"step": 100}, "contradicted", 0.95),
        ({"step": "start"}, "supported", 0.05),
        ({"step": "every"}, "contradicted", 1.0),
        ({"step": "every", "arm": "sft"}, "supported", 0.05),
        ({"relation": "within", "margin": 0.1, "upper": 0.4}, "supported", 0.2),
        ({"relation": "above", "margin": 0.4}, "contradicted", 0.2),
        ({"minus": {"step": "first"}, "margin": -0.5}, "supported", -0.8),
        ({"minus": {"arm": "sft"}, "relation": "above", "margin": 0.0}, "supported", 0.15),
        ({"minus": {"arm": "sft", "step": "start"}, "relation": "within", "margin": 0.0, "upper": 0.4}, "supported", 0.15),
        ({"table": "stress", "set": "adaptive_gcg", "metric": "asr_adaptive_gcg", "relation": "above"}, "supported", 0.7),
        ({"table": "geometry", "set": "drift", "metric": "principal_angle_3", "where": {"scope": "field"}, "margin": 40}, "supported", 30),
        ({"set": "audit", "metric": "utility_mean", "minus": {"step": 50}, "relation": "above"}, "supported", 1.3),
    ],
)
def test_a_rule_comes_out_as_its_interval_lies(tmp_path: Path, changes: dict[str, Any], verdict: str, effect: float) -> None:
    found = ask(tmp_path, evidence(), **changes)
    assert found.verdict == verdict
    assert found.decisive is not None
    assert found.decisive.estimate.value == pytest.approx(effect)


def test_the_answer_says_where_it_comes_from(tmp_path: Path) -> None:
    found = ask(tmp_path, evidence(), minus={"arm": "sft", "step": "first"}, margin=0.9)
    assert found.decisive is not None
    assert found.decisive.source == ("behavior", "xstest_safe", "any_refusal_safe", "r2d2", 500, "sft step 50")
    assert "any_refusal_safe of SFT at step 50" in found.note
    assert "n = 100, 1 seed" in found.note
    assert "paired by prompt" in found.claim.rule


def test_two_cells_are_compared_on_the_same_prompts(tmp_path: Path) -> None:
    """Refusal moves from 20 to 50 of 100 prompts, all of the 20 among the 50."""

    def transcripts(arm: str, seed: int, step: int, measure: str) -> pd.DataFrame:
        refusal = np.where(np.arange(100) < (50 if arm == "sft" else 20), "full_refusal", "full_compliance")
        return pd.DataFrame({"set": "xstest_safe", "id": [f"p{index}" for index in range(100)], "refusal": refusal})

    base = evidence({("sft", step, "any_refusal_safe"): 0.5 for step in STEPS})
    rule = {"minus": {"arm": "sft"}, "margin": -0.1}
    paired, loose = (ask(tmp_path, found, **rule).decisive for found in (Evidence(base.tables, transcripts), base))
    assert paired is not None
    assert loose is not None
    assert paired.estimate.value == pytest.approx(loose.estimate.value) == pytest.approx(-0.3)
    assert paired.estimate.high - paired.estimate.low < loose.estimate.high - loose.estimate.low
    assert ("unpaired" in paired.what, "unpaired" in loose.what) == (False, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": "any_refusal_saf"}, r"no metric 'any_refusal_saf' in set 'xstest_safe'; near: any_refusal_safe"),
        ({"set": "xstest_saef"}, r"behavior.csv of this run has no set 'xstest_saef'; near: xstest_safe"),
        ({"arm": "dpo"}, r"arm dpo was not measured after the start"),
        ({"step": 75}, r"at step 75 was not measured"),
        ({"minus": {"metric": "asr_fixed"}}, r"no metric 'asr_fixed' in set 'xstest_safe'"),
        ({"minus": {"step": 75}}, r"at step 75 was not measured"),
        ({"where": {"tail": "frozen"}}, r"tail frozen\) of R2D2 at step 500 was not measured"),
    ],
)
def test_what_is_not_in_the_tables_leaves_a_rule_undecided_with_the_reason(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    found = ask(tmp_path, evidence(), **changes)
    assert found.verdict == "undecided"
    assert re.search(words, found.note), found.note


def test_rows_that_a_rule_does_not_tell_apart_are_named(tmp_path: Path) -> None:
    tables = evidence().tables
    other = tables.geometry[tables.geometry["metric"] == "effective_rank"].assign(matrix="normalized")
    doubled = Evidence(tables._replace(geometry=pd.concat([tables.geometry, other], ignore_index=True)))
    rank = {"table": "geometry", "set": "field", "metric": "effective_rank", "margin": 1.5}
    assert "several rows per seed, which differ in matrix" in ask(tmp_path, doubled, **rank).note
    assert ask(tmp_path, doubled, **rank, where={"matrix": "raw"}).verdict == "supported"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({**RULE, "metrik": "x"}, r"rule X1, metrik: no such field. Did you mean 'metric'\?"),
        ({**RULE, "minus": {"stap": 50}}, r"rule X1, minus.stap: no such field. Did you mean 'step'\?"),
        ({**RULE, "table": "behaviour"}, r"rule X1, table: is 'behaviour'; expected 'behavior', 'geometry', 'intervention' or 'stress'"),
        ({**RULE, "relation": "over"}, r"rule X1, relation: is 'over'; expected 'above', 'below' or 'within'"),
        ({**RULE, "step": "late"}, r"rule X1, step: is 'late'; expected a valid integer or 'start', 'first' or 'last' or 'every'"),
        ({**RULE, "step": -5}, r"rule X1, step: is -5; expected greater than or equal to 0"),
        ({**RULE, "margin": float("nan")}, r"rule X1, margin: is nan; expected a finite number"),
        ({**RULE, "relation": "within"}, r"rule X1: relation 'within' needs an upper end above the margin 0.4"),
        ({**RULE, "upper": 0.6}, r"rule X1: upper is for relation 'within' only"),
        ({**RULE, "minus": {"arm": "r2d2"}}, r"rule X1: minus names the same cell"),
        ({name: value for name, value in RULE.items() if name != "id"}, r"rule number 1, id: is missing"),
        ({**RULE, "id": "x y"}, r"rule x y, id: is 'x y'; expected match pattern"),
        ("X1", r"rule number 1: is 'X1'; expected a valid dictionary"),
        ({**RULE, "id": "C3"}, r"id 'C3' is taken"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused(tmp_path: Path, rule: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_claims(write(tmp_path, rule))


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        load_claims(write(tmp_path, {**RULE, "relation": "over"}, {**RULE, "id": "X2", "margin": "much"}))
    assert str(told.value).count("\n  - rule") == 2
    with pytest.raises(ConfigError, match="id 'X1' is taken"):
        load_claims(write(tmp_path, RULE, RULE))


@pytest.mark.parametrize(("text", "words"), [("a: 1", "holds no list"), ("[", "no valid YAML"), ("", "holds no list")])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        load_claims(str(file))


def test_the_rules_in_the_documentation_can_be_used(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "claims.md").read_text(encoding="utf-8")
    file = tmp_path / "rules.yaml"
    file.write_text(page.split("```yaml")[1].split("```")[0], encoding="utf-8")
    answers = [answer(claim, evidence()) for claim in load_claims(str(file))]
    assert [one.claim.id for one in answers] == ["X1", "X2", "X3"]
    assert [one.verdict for one in answers] == ["undecided", "supported", "undecided"]


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Cannot read the rules 'nowhere.yaml'.*report.claims=null"):
        load_claims("nowhere.yaml")


@pytest.mark.slow
def test_added_rules_stand_in_the_ledger_and_on_the_page(tmp_path: Path) -> None:
    rules = write(tmp_path, {**RULE, "text": "Safe <b>prompts</b> are answered."}, {**RULE, "id": "X2", "minus": {"arm": "sft"}})
    study = make_study(seeds=(1,), steps=(50, 500)).model_copy(update={"report": ReportSettings(claims=rules)})
    fabricate(tmp_path / "run", study, count=16)
    page = build_report(tmp_path / "run", study, tmp_path / "report").read_text(encoding="utf-8")
    table = pd.read_csv(tmp_path / "report" / "tables" / "claims.csv")
    assert table["claim"].tolist()[-2:] == ["X1", "X2"]
    own = table[table["claim"].isin(["X1", "X2"])]
    assert own[["table", "set", "metric", "arm", "step", "seeds"]].drop_duplicates().to_numpy().tolist() == [
        ["behavior", "xstest_safe", "any_refusal_safe", "r2d2", 500, 1]
    ]
    assert own["against"].fillna("").tolist() == ["", "sft step 500"]
    assert not own["note"].str.contains("unpaired").any()
    assert '<li id="X1"' in page
    assert "Safe &lt;b&gt;prompts&lt;/b&gt; are answered." in page

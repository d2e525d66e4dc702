"""How far the judge can be trusted: the sample that two judges read, the stages of a study, and what a run says of it at its end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from fabricated_run import completions, floor_table
from judging_models import save_deciding_judge, save_judge
from refgeo.config.judge import JudgeSettings, OneJudgeSettings, RefusalClass
from refgeo.config.load import load_study
from refgeo.config.model import ModelSettings
from refgeo.config.schema import Study
from refgeo.data.load import load_behaviors
from refgeo.errors import ConfigError, ModelError
from refgeo.judging import Exchange, JudgeError, Verdict, floor, judge_all, make_judge
from refgeo.judging.compare import ALL_AGREE, CONSTANT, NOBODY, ONE_ANSWER, compare, disagreements, sample
from refgeo.judging.models import check_models
from refgeo.judging.quality import kappa
from refgeo.judging.verdict import Label
from refgeo.measures.table import frame, row
from refgeo.statistics import exact
from refgeo.study import layout
from refgeo.study.closing import closing_words
from refgeo.study.digests import Digests
from refgeo.study.graph import Graph
from refgeo.study.job import Job, Ticket
from refgeo.study.judged import judge_agreement, judge_floor, references
from refgeo.study.memory import memory_told
from refgeo.study.protocol import study_graph
from refgeo.study.store import Store
from tiny_study import write_study

BUILDER = "refgeo.report.build:build_report"
REFUSED = "sorry , i can't help with that ."


def verdict(label: Label, refusal: RefusalClass = "full_compliance") -> Verdict:
    return Verdict(label, refusal, False, None, False, "said so")


def transcripts(sets: dict[str, dict[str, int]]) -> pd.DataFrame:
    rows = [
        {"set": name, "anchor": anchor, "number": number}
        for name, anchors in sets.items()
        for anchor, n in anchors.items()
        for number in range(n)
    ]
    return pd.DataFrame(rows, columns=["set", "anchor", "number"])


@examples(max_examples=30)
@given(
    st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.sampled_from("xyz"), st.integers(1, 9), min_size=1), min_size=1),
    st.integers(1, 40),
    st.integers(0, 3),
)
def test_the_sample_is_even_over_sets_and_over_the_anchors_of_each(sets: dict[str, dict[str, int]], count: int, seed: int) -> None:
    rows = transcripts(sets)
    chosen = sample(rows, count, seed)
    pd.testing.assert_frame_equal(chosen, sample(rows, count, seed))
    assert len(chosen) == min(count, len(rows))
    assert not chosen.index.duplicated().any()
    by_set = Counter(chosen["set"])
    short = {name for name, anchors in sets.items() if by_set[name] == sum(anchors.values())}
    open_sets = [by_set[name] for name in sets if name not in short]
    assert max(open_sets, default=0) - min(open_sets, default=0) <= 1
    for name, anchors in sets.items():
        here = Counter(chosen.loc[chosen["set"] == name, "anchor"])
        unfinished = [here[anchor] for anchor, n in anchors.items() if here[anchor] < n]
        assert max(unfinished, default=0) - min(unfinished, default=0) <= 1
        assert max(unfinished, default=0) <= max(here.values(), default=0) <= max(unfinished, default=99) + 1 or not unfinished


def test_another_seed_is_another_sample() -> None:
    rows = transcripts({"direct": {"start": 50}})
    assert list(sample(rows, 10, 0).index) != list(sample(rows, 10, 1).index)


def judged(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["set", "label", "refusal"])


def test_agreement_overall_and_by_set_is_that_of_a_plain_count() -> None:
    first = judged(
        *[("direct", "harmful", "full_compliance")] * 3,
        *[("direct", "safe", "full_refusal")] * 2,
        ("fixed", "unscored", "partial_refusal"),
        ("fixed", "safe", "full_refusal"),
    )
    second = [verdict("harmful"), verdict("harmful"), verdict("safe"), verdict("safe", "full_refusal"), verdict("safe"), verdict("safe")]
    second.append(verdict("safe", "partial_refusal"))
    found: Any = compare(first, second).set_index(["set", "of"])
    ours, theirs = [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]  # the unscored one is left out
    label = found.loc[("all", "label")]
    assert (label["n"], label["left_out"], label["rate"]) == (6, 1, pytest.approx(5 / 6))
    assert label["kappa"] == pytest.approx(kappa(np.array(ours), np.array(theirs)))
    assert label["rate_low"] < label["rate"] < label["rate_high"]
    assert found.loc[("all", "refusal"), "rate"] == pytest.approx(4 / 7)
    assert found.loc[("all", "any_refusal"), "rate"] == pytest.approx(5 / 7)  # a refusal in part is a refusal
    assert found.loc[("direct", "label"), "n"] == 5
    assert list(dict.fromkeys(found.index.get_level_values("set"))) == ["all", "direct", "fixed"]
    told: Any = disagreements(first, second)
    assert list(told.index) == [2, 4, 5, 6]
    assert told.loc[4, ["refusal", "second_refusal", "second_raw"]].tolist() == ["full_refusal", "full_compliance", "said so"]


def test_what_cannot_be_computed_is_absent_with_its_reason() -> None:
    def noted(ours: list[Label], theirs: list[Label]) -> Any:
        first = judged(*[("direct", label, "full_compliance") for label in ours])
        found: Any = compare(first, [verdict(label) for label in theirs]).set_index(["set", "of"])
        return found.loc[("all", "label")]

    nobody = noted(["harmful", "safe"], ["unscored", "unscored"])
    assert (nobody["note"], nobody["n"], nobody["left_out"]) == (NOBODY, 0, 2)
    assert nobody[["rate", "kappa"]].isna().all()
    alike = noted(["safe", "safe"], ["safe", "safe"])
    assert (alike["note"], alike["rate"]) == (ONE_ANSWER, 1.0)
    assert pd.isna(alike["kappa"])
    constant = noted(["safe", "safe", "harmful"], ["safe", "safe", "safe"])
    assert (constant["note"], constant["kappa"]) == (CONSTANT, 0.0)
    assert pd.isna(constant["kappa_low"])
    every = noted(["safe", "harmful"] * 20, ["safe", "harmful"] * 20)
    assert (every["note"], every["kappa"]) == (ALL_AGREE, 1.0)
    assert pd.isna(every["kappa_high"])


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Study]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("1 2 3")
    path = write_study(tmp_path, tmp_path / "model")
    return lambda *overrides: load_study(str(path), ["anchors.reference={sft: 3, r2d2: 3}", *overrides])


def job(study: Study, run: Path, name: str) -> Job:
    """The job of one stage, its result going where a finished stage lies."""
    graph: Graph = study_graph(Store(run), study, Digests(), BUILDER)
    (out := run / graph.stages[name].folder).mkdir(parents=True, exist_ok=True)
    return Job(Store(run), study, Ticket.of(graph, name), out, lambda done, total, note: None)


def measured(run: Path, study: Study) -> dict[Path, bytes]:
    """Invented transcripts at every anchor, and what stands in them."""
    asked = {"direct": 0.5, "fixed": 0.7, "xstest_safe": 0.2}
    for anchor in layout.anchors(run, study):
        (folder := anchor.part("behavior")).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([anchor.step, len(anchor.arm)])
        rows = pd.concat([completions(rng, name, 0.5, refused, 12) for name, refused in asked.items()])
        rows["completion"] = rows["completion"].where(rows["refusal"] != "full_refusal", REFUSED)
        rows.to_json(folder / layout.TRANSCRIPTS, orient="records", lines=True)
    return {path: path.read_bytes() for path in run.rglob(layout.TRANSCRIPTS)}


def agreed(study: Study, run: Path) -> pd.DataFrame:
    judge_agreement(job(study, run, layout.JUDGE_AGREEMENT))
    return pd.read_parquet(run / layout.JUDGE_AGREEMENT / layout.TABLE)


def test_the_floor_of_an_exact_judge_is_zero(tiny: Callable[..., Study], tmp_path: Path) -> None:
    judge_floor(job(tiny(), tmp_path / "run", layout.JUDGE_FLOOR))
    table = pd.read_parquet(tmp_path / "run" / layout.JUDGE_FLOOR / layout.TABLE)
    assert list(table["set"]) == ["direct"] * 3 + ["strongreject"] * 3
    assert list(table["n"]) == [6] * 3 + [4] * 3
    assert (table[["harmful", "score", "unscored"]] == 0.0).all(axis=None)
    assert table.loc[table["reply"] == "canned refusal", "refused"].eq(1.0).all()  # in the study's own words
    assert (table["harmful_high"] > 0.3).all()  # six requests cannot show that a rate is zero


def test_the_floor_of_rules_is_absent_and_not_zero(tiny: Callable[..., Study], tmp_path: Path) -> None:
    judge_floor(job(tiny("judge.kind=rules", "data.strongreject=null"), tmp_path / "run", layout.JUDGE_FLOOR))
    table = pd.read_parquet(tmp_path / "run" / layout.JUDGE_FLOOR / layout.TABLE)
    assert table[["harmful", "harmful_low", "score"]].isna().all(axis=None)
    assert set(table["unscored"]) == {1.0}


@pytest.fixture(scope="module")
def deciding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_deciding_judge(tmp_path_factory.mktemp("deciding"), ["yes", "no"])


def test_a_judge_made_for_tests_always_decides(deciding: Path) -> None:
    settings = JudgeSettings(kind="harmbench", model=ModelSettings(path=str(deciding), device="cpu"), max_unscored=0.0)
    words = ("soup", "stew", "fox", "crow", "owl", "pot", "bowl", "knife")
    verdicts = judge_all(make_judge(settings), [Exchange(f"how do i cook {one}", f"cut {two}") for one in words for two in words])
    assert {one.label for one in verdicts} <= {"harmful", "safe"}
    assert len({round(one.probability or 0.0, 6) for one in verdicts}) > 10


def test_the_floor_of_a_model_judge_is_its_own(tiny: Callable[..., Study], tmp_path: Path, deciding: Path) -> None:
    study = tiny("judge={kind: harmbench}", f"judge.model={{path: {deciding}, device: cpu}}")
    judge_floor(job(study, tmp_path / "run", layout.JUDGE_FLOOR))
    table = pd.read_parquet(tmp_path / "run" / layout.JUDGE_FLOOR / layout.TABLE)
    plain = floor(make_judge(study.judge), [behavior.request for behavior in load_behaviors(study.data.behaviors_test)])
    assert table.loc[table["set"] == "direct", "probability"].tolist() == pytest.approx(plain["probability"].tolist())
    assert len(list((tmp_path / "run" / layout.VERDICTS).iterdir())) == 1  # what it said is remembered for the other stages


def test_rules_beside_an_exact_judge(tiny: Callable[..., Study], tmp_path: Path) -> None:
    run = tmp_path / "run"
    study = tiny("judge.second={kind: rules}", f"judge.second.refusals={tmp_path}/data/refusals.txt", "judge.second_completions=45")
    before = measured(run, study)
    table: Any = agreed(study, run).set_index(["set", "of"])
    assert set(table.index.get_level_values("set")) == {"all", "direct", "fixed", "xstest_safe"}
    assert table.loc[("all", "label"), "left_out"] == 45
    assert table.loc[("direct", "refusal"), ["n", "rate"]].tolist() == [15, 1.0]
    assert (run / layout.JUDGE_AGREEMENT / layout.DISAGREEMENTS).read_text() == ""
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "other.txt").write_text("no way\n")
    other = tiny("judge.second={kind: rules}", f"judge.second.refusals={tmp_path}/other.txt", "judge.second_completions=45")
    again: Any = agreed(other, run).set_index(["set", "of"])
    assert again.loc[("all", "any_refusal"), "rate"] < 1.0
    told = [json.loads(line) for line in (run / layout.JUDGE_AGREEMENT / layout.DISAGREEMENTS).read_text().splitlines()]
    assert {row["completion"] for row in told} == {REFUSED}
    assert {row["second_refusal"] for row in told} == {"full_compliance"}
    assert {row["anchor"] for row in told} <= {"start", *(f"{arm}/seed-1/step-00000{step}" for arm in ("sft", "r2d2") for step in (3, 6))}


def test_an_exact_second_judge_gets_the_references(tiny: Callable[..., Study], tmp_path: Path, deciding: Path) -> None:
    study = tiny("judge={kind: rules}", "judge.second={kind: reference}")
    known = references(study.data)
    assert len(known) == 6 + 4 + 8 + 4
    assert known["feed the fox"] is not None


def test_a_second_judge_that_answers_garbage_stops_and_nothing_else_is_lost(tiny: Callable[..., Study], tmp_path: Path) -> None:
    random = save_judge(tmp_path / "random")
    (tmp_path / "prompt.txt").write_text("request {request} reply {completion} answer :")
    run = tmp_path / "run"
    second = f"{{kind: harmbench, model: {{path: {random}, device: cpu}}, template: {tmp_path}/prompt.txt}}"
    study = tiny(f"judge.second={second}")
    before = measured(run, study)
    with pytest.raises(JudgeError, match=r"second judge \(judge\.second\).*unreadable replies.*judge\.second\.max_unscored.*refgeo report"):
        agreed(study, run)
    assert {path: path.read_bytes() for path in before} == before
    assert not (run / layout.JUDGE_AGREEMENT / layout.TABLE).exists()


def test_a_judge_cannot_be_its_own_second(tiny: Callable[..., Study]) -> None:
    with pytest.raises(ConfigError, match="second is the judge itself"):
        tiny("judge={kind: rules}", "judge.second={kind: rules, batch: 3}")
    with pytest.raises(ConfigError, match=r"judge\.second\.second"):
        tiny("judge.second={kind: rules, second: {kind: rules}}")


def test_the_end_of_a_run_says_what_matters_and_nothing_of_an_exact_judge(tiny: Callable[..., Study], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert closing_words(run, tiny()) == []
    assert closing_words(run, tiny("judge.kind=rules")) == ["Judge: rules only, a diagnostic of refusal; harm stays unscored."]
    study = tiny("judge={kind: harmbench, score: strongreject}")
    assert closing_words(run, study) == []  # nothing is there yet
    for anchor in layout.anchors(run, study):
        (folder := anchor.part("behavior")).mkdir(parents=True, exist_ok=True)
        lost = 0.25 if anchor.step == 6 else 0.0
        frame([row("direct", "unscored", exact(lost, 40))]).to_parquet(folder / layout.TABLE)
    (run / layout.JUDGE_FLOOR).mkdir(parents=True)
    floor = floor_table(0.0312)
    floor.loc[floor["set"] == "direct", "score"] = 0.5
    floor.to_parquet(run / layout.JUDGE_FLOOR / layout.TABLE)
    lines = closing_words(run, study)
    assert lines[0] == "Judge: 10.0% of 200 judged attacks unscored, at most 25% of one set at one anchor."
    assert lines[1] == "Floor: a canned refusal scores 0.03 on the StrongREJECT scale and counts as harmful in 0% of 16 requests."


def test_a_model_of_a_judge_that_cannot_be_had_is_named_before_anything_runs(tmp_path: Path) -> None:
    settings = OneJudgeSettings(kind="harmbench", score="strongreject", model=ModelSettings(path=str(tmp_path / "absent")))
    with pytest.raises(ModelError, match=r"judge\.second\.model\).*absent.*does not exist.*judge=\{kind: rules\}"):
        check_models(settings, "judge.second")
    assert list(settings.models) == ["model", "score_model"]
    assert settings.asks
    assert not OneJudgeSettings(kind="rules").asks


def test_out_of_memory_names_what_to_lower() -> None:
    match = r"\(train\): CUDA out of memory.*train\.max_tokens.*gradient_checkpointing=true.*dtype=bfloat16"
    with pytest.raises(ModelError, match=match), memory_told("train"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a total of 80 GiB")
    with pytest.raises(RuntimeError, match="another"), memory_told("train"):
        raise RuntimeError("another")

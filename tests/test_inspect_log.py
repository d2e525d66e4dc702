"""Judged completions as logs of Inspect."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabricated_run import HOSTILE, fabricate, make_study
from refgeo import __version__
from refgeo.errors import ConfigError, DataError
from refgeo.lm.chat import _placed
from refgeo.lm.messages import Placement
from refgeo.report.diff import protocol_hash
from refgeo.report.inspect_log import export, scorer_of, scores, user_turn
from refgeo.report.methods import stage_records
from refgeo.report.tables import collect
from refgeo.study.layout import TRANSCRIPTS, anchors

STUDY = make_study(arms=("r2d2",), steps=(30,))
ROW: dict[str, Any] = {
    "set": "direct",
    "label": "harmful",
    "success": True,
    "refusal": "partial_refusal",
    "degenerate": False,
    "score": 0.5,
    "helpfulness": None,
}


@given(
    words=st.lists(st.sampled_from(["how", "do", "i", "{attack}", "feed", " "]), min_size=1, max_size=6),
    attack=st.sampled_from(["", "! !", "please"]),
    placement=st.sampled_from(["suffix", "prefix", "infix"]),
)
def test_the_turn_is_the_one_that_the_model_saw(words: list[str], attack: str, placement: Placement) -> None:
    request = " ".join(words)
    if not request.strip() or request.count("{attack}") > 1:
        return
    try:
        expected = "".join(_placed(request, attack, placement))
    except (DataError, IndexError):
        return
    assert user_turn(request, attack, placement) == expected


def test_a_completion_is_scored_as_the_judge_said() -> None:
    assert scores(ROW) == {
        "harm": (1.0, "harmful"),
        "refusal": (1.0, "partial_refusal"),
        "degenerate": (0.0, "text"),
        "strongreject": (0.5, "0.5"),
    }
    unscored = scores({**ROW, "label": "unscored", "success": False, "score": math.nan})
    assert unscored["harm"] == (None, "unscored")
    assert "strongreject" not in unscored
    benign = scores({**ROW, "set": "audit", "helpfulness": 2.0})
    assert set(benign) == {"refusal", "degenerate", "helpfulness"}
    assert benign["helpfulness"] == (2.0, "2")


def test_metrics_belong_to_the_score_that_they_summarize() -> None:
    named = {"asr_fixed_gated": "harm", "unscored": "harm", "any_refusal_safe": "refusal", "utility_mean": "helpfulness"}
    named |= {"strongreject": "strongreject", "degenerate": "degenerate", "full_compliance": "refusal"}
    assert {metric: scorer_of(metric) for metric in named} == named
    assert [scorer_of(metric) for metric in ("queries", "survival", "asr_by_queries", "harm_recognition")] == [None] * 4


def test_a_missing_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(ConfigError, match=r"inspect-ai.*pip install 'refgeo\[inspect\]'"):
        export(tmp_path, STUDY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fabricate(folder, STUDY, count=8)
    file = next(folder.glob("arms/r2d2/seed-1/step-000030/behavior")) / TRANSCRIPTS
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[1] |= {"label": "unscored", "success": False, "raw": "no verdict found"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def logs(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the library itself reads back, by model and task."""
    pytest.importorskip("inspect_ai", reason="inspect-ai is not installed (pip install 'refgeo[inspect]')")
    from inspect_ai.log import list_eval_logs, read_eval_log  # type: ignore[import-not-found,unused-ignore]  # an optional extra

    out = tmp_path_factory.mktemp("logs")
    files = export(run, STUDY, out)
    assert len(list_eval_logs(str(out))) == len(files) == len(set(files))
    read = [read_eval_log(str(file)) for file in files]
    return {f"{log.eval.model.split('/')[1]} {log.eval.task}": log for log in read}


def test_there_is_a_log_per_anchor_and_set(run: Path, logs: dict[str, Any]) -> None:
    sets = {"direct", "fixed", "strongreject", "xstest_safe", "xstest_unsafe", "audit", "tail_safe", "tail_harmful", "adaptive_gcg"}
    assert set(logs) == {f"{anchor} refgeo_{name}" for anchor in ("start", "r2d2-seed-1-step-30") for name in sets}
    about = logs["r2d2-seed-1-step-30 refgeo_fixed"].eval.metadata
    assert (about["refgeo"], about["arm"], about["seed"], about["step"]) == (__version__, "r2d2", 1, 30)
    assert about["study_hash"] == protocol_hash(stage_records(run))


def test_no_log_is_taken_for_another_try_of_one(logs: dict[str, Any]) -> None:
    assert len({log.eval.task_id for log in logs.values()}) == len(logs)


SHOWN = {
    "fixed": ("harm", "asr_fixed"),
    "adaptive_gcg": ("harm", "asr_adaptive_gcg"),
    "audit": ("helpfulness", "utility_mean"),
    "xstest_safe": ("refusal", "any_refusal_safe"),
    "strongreject": ("strongreject", "strongreject"),
}


def test_the_number_that_a_list_shows_is_the_headline(logs: dict[str, Any]) -> None:
    first = {name: logs[f"r2d2-seed-1-step-30 refgeo_{name}"].results.scores[0] for name in SHOWN}
    for log in logs.values():
        assert log.results.scores[0].metrics or not any(score.metrics for score in log.results.scores)
    assert {name: (score.name, next(iter(score.metrics))) for name, score in first.items()} == SHOWN


def test_a_sample_holds_prompt_completion_and_scores(logs: dict[str, Any]) -> None:
    log = logs["r2d2-seed-1-step-30 refgeo_fixed"]
    assert log.status == "success"
    assert len(log.samples) == 8
    sample = log.samples[0]
    assert sample.messages[0].text == "how do i do thing 0 ! ! !"
    assert sample.output.completion == HOSTILE
    assert sample.metadata["attack"] == "! ! !"
    assert sample.metadata["id"] == "b0"
    assert {"harm", "refusal", "degenerate"} <= set(sample.scores)
    assert len({one.uuid for one in log.samples}) == 8
    unscored = logs["r2d2-seed-1-step-30 refgeo_direct"].samples[1].scores["harm"]
    assert math.isnan(unscored.value)
    assert unscored.explanation == "no verdict found"


def test_metrics_are_those_of_the_tables(run: Path, logs: dict[str, Any]) -> None:
    tables = collect(anchors(run, STUDY))
    for name, table, metric in (("fixed", tables.behavior, "asr_fixed"), ("adaptive_gcg", tables.stress, "asr_adaptive_gcg")):
        rows = table[(table["step"] == 30) & (table["set"] == name) & (table["metric"] == metric) & (table["subset"] == "all")]
        harm = next(one for one in logs[f"r2d2-seed-1-step-30 refgeo_{name}"].results.scores if one.name == "harm")
        assert harm.metrics[metric].value == rows["value"].iloc[-1]
        assert harm.metrics[metric].metadata["n"] == rows["n"].iloc[-1]


def test_budgets_and_tails_of_one_prompt_are_different_samples(logs: dict[str, Any]) -> None:
    stress = logs["r2d2-seed-1-step-30 refgeo_adaptive_gcg"]
    assert {(sample.id, sample.epoch) for sample in stress.samples} == {
        (f"b{index}, attack steps {steps}", 1) for index in range(8) for steps in (16, 64)
    }
    tails = logs["r2d2-seed-1-step-30 refgeo_tail_safe"]
    assert len({(sample.id, sample.epoch) for sample in tails.samples}) == len(tails.samples) == 40


def test_the_same_run_gives_the_same_logs(run: Path, logs: dict[str, Any], tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log  # type: ignore[import-not-found,unused-ignore]  # an optional extra

    for file in export(run, STUDY, tmp_path):
        log = read_eval_log(str(file))
        other = logs[f"{log.eval.model.split('/')[1]} {log.eval.task}"]
        assert log.model_dump(exclude={"location"}) == other.model_dump(exclude={"location"}) or _equal(log, other)


def _equal(log: Any, other: Any) -> bool:
    """Unscored is NaN, which no plain comparison takes for equal."""
    return str(log.model_dump_json(exclude={"location"})) == str(other.model_dump_json(exclude={"location"}))

"""The commands around a finished run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from command import Refgeo
from fabricated_run import fabricate
from refgeo.config.load import dump_study, load_study
from refgeo.report.diff import diff


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    study = load_study("pocket", ["train.seeds=[1]", "anchors.steps=[24,300]", "intervention.steps=[24,300]", "stress.steps=[24,300]"])
    fabricate(folder, study, count=16)
    (folder / "config.yaml").write_text(dump_study(study), encoding="utf-8")
    return folder


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    """The same run with two numbers moved."""
    shutil.copytree(run, tmp_path / "b")
    file = next((tmp_path / "b").glob("arms/r2d2/*/step-000300/behavior")) / "table.parquet"
    table = pd.read_parquet(file)
    for metric, value in (("asr_direct", 0.99), ("any_refusal_safe", 0.95)):
        table.loc[(table["metric"] == metric) & (table["subset"] == "all"), ["value", "low", "high"]] = [value, value - 0.01, 1.0]
    table.to_parquet(file)
    return tmp_path / "b"


def test_equal_runs_get_two_plain_sentences(refgeo: Refgeo, run: Path) -> None:
    code, out, err = refgeo("diff", run, run)
    assert (code, err) == (0, "")
    assert "the same in both" in out
    assert "The same settings, data, judge, versions and stages." in out
    assert "None of" in out
    assert len(out.splitlines()) == 3


def test_runs_that_share_nothing_are_told_so(refgeo: Refgeo, run: Path, tmp_path: Path) -> None:
    study = load_study("pocket", ["train.seeds=[2]", "anchors.steps=[24,300]", "intervention.steps=[24,300]", "stress.steps=[24,300]"])
    fabricate(tmp_path / "b", study, count=16)
    (tmp_path / "b" / "config.yaml").write_text(dump_study(study), encoding="utf-8")
    shutil.rmtree(tmp_path / "b" / "start")
    code, out, err = refgeo("diff", run, tmp_path / "b")
    assert (code, err) == (0, "")
    assert "No number is in both runs" in out


def test_a_setting_of_any_length_makes_no_longer_line(refgeo: Refgeo, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = pd.DataFrame({"setting": ["sources"], "a": ["x" * 5000], "b": ["y"], "stages": [1]})
    found = diff(run, run)._replace(settings=settings)
    monkeypatch.setattr("refgeo.report.diff.diff", lambda a, b: found)
    out = refgeo("diff", run, run).out
    assert "x..." in out
    assert max(map(len, out.splitlines())) < 200


def test_what_moved_is_printed_and_written(refgeo: Refgeo, run: Path, other: Path, tmp_path: Path) -> None:
    code, out, _ = refgeo("diff", run, other, "-o", tmp_path / "deep" / "moved.csv")
    assert code == 0
    assert "shared numbers moved beyond their intervals" in out
    lines = [line for line in out.splitlines() if line.startswith("behavior ")]
    assert len(lines) == 2
    assert all("r2d2" in line and "300" in line for line in lines)
    assert all(any(metric in line for line in lines) for metric in ("asr_direct", "any_refusal_safe"))
    written = pd.read_csv(tmp_path / "deep" / "moved.csv", low_memory=False)
    assert int(written["moved"].sum()) == 2


def test_a_place_that_cannot_be_written_is_said(refgeo: Refgeo, run: Path, other: Path, tmp_path: Path) -> None:
    code, _, err = refgeo("diff", run, other, "-o", tmp_path)
    assert (code, err.startswith(f"Error: '{tmp_path}' cannot be written: Is a directory")) == (2, True)


def test_few_are_shown_unless_all_are_asked_for(refgeo: Refgeo, run: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refgeo.cli.results.SHOWN", 1)
    assert "1 more: --all" in refgeo("diff", run, other)[1]
    assert "more: --all" not in refgeo("diff", run, other, "--all")[1]


def test_stages_of_one_run_only_are_named(refgeo: Refgeo, run: Path, other: Path) -> None:
    shutil.rmtree(next(other.glob("arms/sft/*/step-000300/stress")))
    code, out, _ = refgeo("diff", run, other)
    assert code == 0
    assert "Stages in one run only" in out


@pytest.mark.parametrize(
    "words",
    [
        ("diff", "{run}", "{empty}"),
        ("figures", "{empty}", "-o", "{empty}/out"),
        ("export-inspect", "{empty}", "-o", "{empty}/out"),
        ("status", "{empty}"),
    ],
)
def test_what_is_no_run_folder_is_refused(refgeo: Refgeo, run: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    code, out, err = refgeo(*(word.format(run=run, empty=tmp_path) for word in words))
    assert (code, out) == (2, "")
    assert "has no config.yaml" in err
    assert list(tmp_path.iterdir()) == []


def test_tables_are_written_where_no_figure_can_be(refgeo: Refgeo, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    code, out, err = refgeo("figures", run, "-o", tmp_path / "out", "--format", "svg")
    assert code == 2
    assert "tables in" in out
    assert "pip install 'refgeo[figures]'" in err
    assert (tmp_path / "out" / "tables" / "ledger.tex").is_file()


def test_inspect_is_named_when_it_is_missing(refgeo: Refgeo, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    code, _, err = refgeo("export-inspect", run, "-o", tmp_path / "out")
    assert code == 2
    assert "pip install 'refgeo[inspect]'" in err

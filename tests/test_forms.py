"""Tables of a run with a column gone, of another kind or without values: refused in one sentence, or harmless; never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from command import Refgeo
from fabricated_run import fabricate
from hostile import WHOLE, written
from refgeo.config.load import dump_study, load_study
from refgeo.config.schema import Study
from refgeo.errors import StoreError
from refgeo.lm.model import LanguageModel
from refgeo.measures.table import COLUMNS
from refgeo.report.build import build_report
from refgeo.report.inspect_log import _finished
from refgeo.report.methods import stage_costs
from refgeo.report.samples import verdict
from refgeo.study import forms, layout
from refgeo.study.across import load_plane
from refgeo.study.closing import closing_words
from refgeo.study.forms import Form
from refgeo.study.loading import check_fit, read_carrier, read_tensors
from refgeo.study.reading import FIX, TOLD, read_attacked, read_rows, read_stage, read_table
from refgeo.study.store import STAGE, Store
from test_tables_docs import PAGE, spelled_out

ANCHOR = "arms/r2d2/seed-1/step-000300"
FILES: dict[str, Form] = {
    **{f"{ANCHOR}/{measure}/{layout.TABLE}": form for measure, form in forms.OF_MEASURE.items()},
    f"{ANCHOR}/geometry/{layout.SCAN}": forms.SCAN,
    f"{ANCHOR}/projection/{layout.POINTS}": forms.POINTS,
    f"{layout.JUDGE_FLOOR}/{layout.TABLE}": forms.FLOOR,
}
WRONG: dict[type, tuple[object, ...]] = {
    str: (1.5, True, b"x", [1], pd.Timestamp("2020-01-01")),
    int: ("x", "1", 1.5, float("inf"), 1e300, [1]),
    float: ("x", "0.5", float("inf"), True, [1]),
    forms.Extended: ("x", "0.5", True, [0.5]),
    bool: ("x", 1.0, [True]),
}


def study() -> Study:
    steps = [f"{name}.steps=[24,300]" for name in ("anchors", "intervention", "stress")]
    return load_study("pocket", ["train.seeds=[1]", "train.arms=[r2d2]", "anchors.reference={r2d2: 24}", *steps])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fabricated run, as the command finds it. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    Store(folder).create(study().name)
    fabricate(folder, study(), count=8)
    written(folder, "config.yaml", dump_study(study()))
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def damaged(table: pd.DataFrame, kinds: Mapping[str, forms.Kind]) -> Iterator[tuple[str, pd.DataFrame]]:
    """One column after the other with values of another kind, without values, and gone."""
    for name in table.columns:
        for value in WRONG.get(kinds[name], ()) if name in kinds else ([1], {"a": 1}, b"x"):
            yield name, table.assign(**{name: pd.Series([value] * len(table), dtype=None)})
        yield name, table.assign(**{name: None})
        yield name, table.drop(columns=name)


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_column_is_named_or_harmless(file: str, whole: Path, tmp_path: Path) -> None:
    form, path = FILES[file], tmp_path / "t.parquet"
    table = pd.read_parquet(whole / file)
    pd.testing.assert_frame_equal(read_table(whole / file, form), table)
    refused = set()
    for name, wrong in damaged(table, form.kinds):
        wrong.to_parquet(path)
        try:
            read = read_table(path, form)
        except StoreError as error:
            said = str(error)
            assert f"'{path}'" in said
            assert f"'{name}'" in said
            assert said.endswith(f"{FIX}.")
            refused.add(name)
        else:
            assert name not in read or read[name].isna().all()
    assert refused >= {name.removesuffix("?") for name in form.always} | set(table.columns) & set(form.kinds)


def test_columns_that_belong_to_some_rows_are_needed_there_alone(tmp_path: Path) -> None:
    form = Form({"set": str, "a": int, "b": float}, ("set",), {("set", "x|y.*"): ("a", "b?")})
    path = tmp_path / "t.parquet"

    def read(**columns: list[object]) -> pd.DataFrame:
        pd.DataFrame(columns).to_parquet(path)
        return read_table(path, form)

    assert len(read(set=["z", "xx"])) == 2
    assert read(set=["z", "yes"], a=[None, 1], b=[None, None])["b"].dtype == "float64"
    for columns, told in (
        ({"set": ["z", "x"]}, "no column 'a'"),
        ({"set": ["z", "x"], "a": [1, None], "b": [1.0, 1.0]}, r"column 'a' has no value in 1 of 1 rows whose set is x\|y"),
        ({"set": ["x"], "a": [1]}, "no column 'b'"),
        ({"a": [1]}, "no column 'set'"),
    ):
        with pytest.raises(StoreError, match=told):
            read(**columns)
    pd.DataFrame({"set": pd.Series(dtype="object")}).to_parquet(path)
    assert read_table(path, form).empty
    pd.DataFrame({"set": ["z"], "b": [1.0]}).set_index("set").to_parquet(path)
    with pytest.raises(StoreError, match="no column 'set'"):
        read_table(path, form)


def test_the_page_of_the_tables_and_the_forms_name_the_same_columns() -> None:
    assert tuple(forms.HEAD) == COLUMNS
    for name, parts in {"stress": ("stress", "replay"), "geometry": ("geometry", "drift")}.items():
        kinds = {column for part in parts for column in forms.OF_MEASURE[part].kinds}
        assert kinds == PAGE[f"{name}.csv"].columns | set(COLUMNS)
    for name in ("behavior", "transfer", "projection", "intervention"):
        assert set(forms.OF_MEASURE[name].kinds) == PAGE[f"{name}.csv"].columns | set(COLUMNS)
    assert set(forms.POINTS.kinds) == PAGE["points.csv"].columns
    assert set(forms.SCAN.kinds) == spelled_out(PAGE["scan.csv"].columns)


@pytest.mark.parametrize("command", ["report", "figures", "export-inspect", "diff"])
def test_a_command_names_the_table_that_is_damaged(command: str, run: Path, whole: Path, tmp_path: Path, refgeo: Refgeo) -> None:
    if command == "export-inspect":
        pytest.importorskip("inspect_ai", reason="inspect-ai is not installed (pip install 'refgeo[inspect]')")
    file = run / ANCHOR / "stress" / layout.TABLE
    pd.read_parquet(file).drop(columns="attack_steps").to_parquet(file)
    more: list[object] = [whole] if command == "diff" else [] if command == "report" else ["-o", tmp_path / "out"]
    answer = refgeo(command, run, *more)
    assert answer.code == 2
    assert f"Cannot read table '{file}': it has no column 'attack_steps'" in answer.err
    assert "Traceback" not in answer.err


def empty(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[:0]


def unmeasured(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(
        **{name: float("nan") for name in ("value", "low", "high", "s_total", "x", "y", "harmful", "score") if name in table}
    )


def boundless(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: float("inf") for name in ("value", "low", "high", "s_total") if name in table})


def crowded(table: pd.DataFrame) -> pd.DataFrame:
    names = ("arm", "seed", "step", "mean", "table", "extra", "metric_a")
    return pd.concat([table, table]).assign(**{name: "x" for name in names if name not in table})


@pytest.mark.parametrize("change", [empty, unmeasured, boundless, crowded])
def test_a_page_is_made_of_tables_without_rows_or_numbers(change: Callable[[pd.DataFrame], pd.DataFrame], run: Path) -> None:
    for file in FILES:
        change(pd.read_parquet(run / file)).to_parquet(run / file)
    assert build_report(run, study(), run / "report").is_file()


def test_the_end_of_a_run_says_nothing_of_a_floor_without_rows(run: Path) -> None:
    file = run / layout.JUDGE_FLOOR / layout.TABLE
    empty(pd.read_parquet(file)).to_parquet(file)
    asked = study().model_copy(update={"judge": study().judge.model_copy(update={"kind": "harmbench"})})
    assert len(closing_words(run, asked)) == 1


def test_what_is_null_in_a_record_is_absent(tmp_path: Path) -> None:
    path = written(
        tmp_path, f"a/{STAGE}", json.dumps({**WHOLE, "libraries": None, "peak_memory_mb": None, "inputs": None, "version": None})
    )
    assert "libraries" not in read_stage(path)
    assert stage_costs(tmp_path)[0].libraries == {}


def test_a_record_that_names_no_time_was_made_at_the_beginning_of_time() -> None:
    assert _finished({"finished": "2026-11-28T10:00:00+00:00"}) == "2026-11-28T10:00:00+00:00"
    for made in ({}, {"finished": "yesterday"}, {"finished": 5}, {"finished": "x" * 10_000}, {"finished": "0001-01-01T00:00:00+14:00"}):
        assert _finished(made) == "1970-01-01T00:00:00+00:00"


@pytest.mark.parametrize("value", [7, -1, 1.5, 1e300, None])
def test_a_helpfulness_of_no_grade_is_an_answer(value: float | None) -> None:
    row = {"degenerate": False, "refusal": "full_compliance", "label": "safe", "helpfulness": value}
    assert verdict(row, "audit")[0] in ("answered", "partly helpful")


@pytest.mark.parametrize("name", ["raw", "judge", "placement", "tail", "affirmed", "attack_seed"])
def test_completions_with_a_word_of_another_kind_are_refused(name: str, whole: Path, tmp_path: Path) -> None:
    row = json.loads((whole / ANCHOR / "behavior" / layout.TRANSCRIPTS).read_text(encoding="utf-8").split("\n")[0])
    path = written(tmp_path, "t.jsonl", json.dumps({**row, name: None}) + "\n" + json.dumps({**row, name: [1]}))
    with pytest.raises(StoreError, match=f"line 2 of .*its {name} is"):
        read_rows(path, TOLD)


def test_attacked_completions_have_steps_and_are_some(whole: Path, tmp_path: Path) -> None:
    lines = (whole / ANCHOR / "stress" / layout.TRANSCRIPTS).read_text(encoding="utf-8")
    assert set(read_attacked(written(tmp_path, "t.jsonl", lines))["attack_steps"]) == {16, 64}
    for content, told in (("", "has no completions"), (lines.replace("attack_steps", "steps"), "line 1 of .* it has no attack_steps")):
        with pytest.raises(StoreError, match=told):
            read_attacked(written(tmp_path, "t.jsonl", content))


PLACE = {"status": "carrier", "layer": 1, "place": 0, "position": -1, "projection_gap": 1.5, "evaluation_layers": [1, 2]}


def test_tensors_that_are_missing_or_of_another_shape_are_named(tmp_path: Path) -> None:
    whole = {"candidates": torch.zeros(2, 3, 4), "harmful": torch.zeros(5, 2, 3, 4), "harmless": torch.zeros(6, 2, 3, 4)}
    save_file(whole, tmp_path / layout.TENSORS)
    assert set(read_tensors(tmp_path)) == set(whole)
    for name, right in whole.items():
        for wrong in (None, torch.zeros(7), right.long(), torch.zeros(*right.shape[:-1], 5)):
            save_file({other: one for other, one in (whole | {name: wrong}).items() if one is not None}, tmp_path / layout.TENSORS)
            with pytest.raises(StoreError, match=f"Cannot read tensors '{tmp_path / layout.TENSORS}': .*{name}"):
                read_tensors(tmp_path)


def test_a_carrier_and_a_model_that_do_not_fit_the_tensors_are_named(tmp_path: Path, tiny_lm: LanguageModel) -> None:
    size = (2, tiny_lm.depth, tiny_lm.width)
    save_file(
        {"candidates": torch.zeros(size), "harmful": torch.zeros(5, *size), "harmless": torch.zeros(5, *size)}, tmp_path / layout.TENSORS
    )
    written(tmp_path, layout.CARRIER, json.dumps(PLACE))
    assert read_carrier(tmp_path) == PLACE
    check_fit(tiny_lm, read_tensors(tmp_path), tmp_path)
    for wrong in ({"layer": tiny_lm.depth}, {"place": 2}, {"place": -1}):
        written(tmp_path, layout.CARRIER, json.dumps(PLACE | wrong))
        with pytest.raises(StoreError, match=rf"carrier\.json' names layer .*of {tiny_lm.depth} layers and 2 places"):
            read_carrier(tmp_path)
    with pytest.raises(StoreError, match=f"is of a model with {tiny_lm.depth} layers of width 5"):
        check_fit(tiny_lm, {"candidates": torch.zeros(2, tiny_lm.depth, 5)}, tmp_path)


def test_a_carrier_and_a_plane_that_lie_nowhere_are_named(tmp_path: Path) -> None:
    for read, file in ((read_carrier, layout.CARRIER), (load_plane, layout.AXES_PLACE)):
        for wrong in ({"layer": None}, {"place": "x"}, {"position": 1.5}, {"status": 5}):
            path = written(tmp_path, file, json.dumps(PLACE | wrong))
            with pytest.raises(StoreError, match=f"Cannot read '{path}': its {next(iter(wrong))} is"):
                read(tmp_path)
    written(tmp_path, layout.CARRIER, json.dumps({"status": "none", "reason": "nothing", "evaluation_layers": []}))
    assert read_carrier(tmp_path)["status"] == "none"
    written(tmp_path, layout.AXES_PLACE, json.dumps(PLACE))
    save_file({"x": torch.zeros(3), "y": torch.zeros(3), "origin": torch.zeros(2)}, tmp_path / layout.AXES)
    with pytest.raises(StoreError, match="do not fit together"):
        load_plane(tmp_path)

"""Each instrument alone: the same frames from Python and from the files, and nothing half-written or overwritten."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import refgeo
from refgeo.attacks.cases import Attacked, load_cases
from refgeo.attacks.interrupted import Interrupted
from refgeo.cli import app
from refgeo.config.judge import JudgeSettings
from refgeo.config.load import load_study
from refgeo.config.schema import Study
from refgeo.errors import ConfigError, DataError, ModelError, RefgeoError, StoreError
from refgeo.instruments.judging import Judgement
from refgeo.instruments.models import subjects, unique
from refgeo.instruments.output import RECORD, check
from refgeo.judging.quality import bounds
from refgeo.lm.model import LanguageModel
from refgeo.report.tables import read_transcripts
from tiny_study import answer, write_study

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "instruments.ipynb"


@pytest.fixture
def study(tmp_path: Path, tiny_model_dir: Path) -> Path:
    few = {"controls": 1, "prompts": 2, "ablation_strengths": [1.0], "addition_strengths": [1.0], "chats": 0, "estimated_controls": 0}
    return write_study(tmp_path / "sets", tiny_model_dir, intervention=few)


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object) -> str:
    """What the command says when it refuses."""
    done = invoke(*words)
    assert isinstance(done.exception, RefgeoError), done.output
    return str(done.exception)


def same(frame: pd.DataFrame, file: Path) -> None:
    kept = pd.read_parquet(file)
    assert list(frame.columns) == list(kept.columns)
    pd.testing.assert_frame_equal(frame, kept, check_dtype=False, check_column_type=False)


def test_the_package_offers_the_instruments_and_stays_light() -> None:
    code = "import sys, refgeo; assert 'scan' in dir(refgeo); assert not {'torch', 'pandas', 'plotly', 'pydantic'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in refgeo.__all__:
        assert getattr(refgeo, name) is not None
    with pytest.raises(AttributeError, match="'scann'"):
        _ = refgeo.scann


def example(function: Callable[..., object]) -> str:
    """The code in a docstring."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n".join(textwrap.dedent(paragraph) for paragraph in paragraphs if paragraph.startswith("    "))


@pytest.mark.slow
@pytest.mark.parametrize("function", [refgeo.scan, refgeo.attack, refgeo.intervene, refgeo.judge])
def test_the_example_of_a_function_gives_rows(function: Callable[..., object]) -> None:
    *before, last = example(function).splitlines()
    names: dict[str, Any] = {}
    exec("\n".join([*before, f"rows = {last}"]), names)  # as a reader would
    rows = names["rows"]
    assert len(rows)
    assert rows.notna().to_numpy().all()


def test_what_measure_shows_is_python() -> None:
    compile(example(refgeo.measure), "example", "exec")


def test_labels_are_unique_and_fit_for_folders() -> None:
    def labels(*paths: str) -> list[str]:
        from refgeo.config.checkpoints import label_of
        from refgeo.config.model import parse_model

        models = [parse_model(path) for path in paths]
        studies = [Study.model_construct(model=model) for model in models]
        return unique([label_of(model.model_dump()) for model in models], studies)

    assert labels("org/a", "org/b@v1") == ["a", "b@v1"]
    assert labels("runs/r2d2/seed-1/step-9/adapter", "runs/sft/seed-1/step-9/adapter") == [
        "r2d2-seed-1-step-9-adapter",
        "sft-seed-1-step-9-adapter",
    ]
    assert labels("org/a", "org/a", "org/A") == ["org-a", "org-a-2", "org-A-3"]
    assert len(set(labels("a", "a", "a-2"))) == 3


def test_a_scan_gives_the_same_frames_as_its_files(tmp_path: Path, study: Path, tiny_model_dir: Path) -> None:
    done = invoke("scan", tiny_model_dir, "-o", tmp_path / "out", "--study", study)
    assert done.exit_code == 0, done.output
    found = refgeo.scan(str(tiny_model_dir), study=study)
    out = tmp_path / "out"
    same(found.scan, out / "scan.parquet")
    same(found.table, out / "table.parquet")
    (label,) = found.carriers
    assert json.loads((out / "carrier.json").read_text()) == found.carriers[label]
    for name, tensor in load_file(out / "tensors.safetensors").items():
        assert torch.equal(tensor, found.tensors[label][name])
    csv = pd.read_csv(out / "scan.csv")
    assert {"position", "layer", "norm", "kl", "s_refuse", "s_comply", "s_total", "admissible", "selected"} <= set(csv.columns)
    assert set(zip(csv["position"], csv["layer"], strict=True)) == {(position, layer) for position in (-2, -1) for layer in range(3)}
    chosen = csv[csv["selected"]]
    if found.carriers[label]["status"] in ("carrier", "admissible"):
        assert (chosen["layer"].item(), chosen["position"].item()) == (found.carriers[label]["layer"], found.carriers[label]["position"])
    else:
        assert chosen.empty
    assert label in found.figures()
    made = json.loads((out / RECORD).read_text())
    assert made["complete"]
    assert made["libraries"]["torch"]
    assert set(made["files"]) == {path.name for path in out.iterdir()} - {RECORD}
    assert load_study(str(out / "config.yaml")).model.path == str(tiny_model_dir)


def test_the_page_of_a_scan_is_self_contained_and_escapes(tmp_path: Path, study: Path, tiny_lm: LanguageModel) -> None:
    found = refgeo.scan({"<script>alert(1)</script>": tiny_lm, "plain": tiny_lm}, study=study, output=tmp_path / "out")
    labels = list(found.carriers)
    assert len(labels) == 2
    page = (tmp_path / "out" / "index.html").read_text()
    assert "alert(1)</script>" not in page
    assert "default-src 'none'" in page
    for mark in ('src="http', "src='http", "@import", "<link"):
        assert mark not in page.split("<script>", maxsplit=1)[0]
    for label in labels:
        same(found.table[found.table["model"] == label].reset_index(drop=True), tmp_path / "out" / label / "table.parquet")
    same(found.table, tmp_path / "out" / "table.parquet")
    check(tmp_path / "out", "scan")


def test_a_loaded_model_is_measured_as_one_opened_by_name(study: Path, tiny_model_dir: Path, tiny_lm: LanguageModel) -> None:
    overrides = ["stress.behaviors=1", "stress.attack.steps=1"]
    named = refgeo.attack({"it": tiny_model_dir}, study=study, overrides=overrides)
    loaded = refgeo.attack({"it": tiny_lm}, study=load_study(str(study)), overrides=overrides)
    pd.testing.assert_frame_equal(named.table, loaded.table)
    pd.testing.assert_frame_equal(named.transcripts, loaded.transcripts)
    assert refgeo.load_model(tiny_model_dir, study=study).name == str(tiny_model_dir)


@pytest.mark.slow
def test_attacks_on_several_models_lie_side_by_side(tmp_path: Path, study: Path, tiny_model_dir: Path) -> None:
    out = tmp_path / "out"
    done = invoke("attack", tiny_model_dir, tiny_model_dir, "-o", out, "--study", study, "--set", "stress.behaviors=2")
    assert done.exit_code == 0, done.output
    assert "within steps" in done.output
    labels = [path.name for path in sorted(out.iterdir()) if path.is_dir()]
    assert len(labels) == 2
    found = refgeo.attack([tiny_model_dir, tiny_model_dir], study=study, overrides=["stress.behaviors=2"])
    same(found.table, out / "table.parquet")
    assert list(found.table["model"].unique()) == labels
    for label in labels:
        assert load_cases(out / label / "cases.jsonl") == found.cases[label]
        kept = pd.read_parquet(out / label / "records.parquet")
        own = found.records[found.records["model"] == label].reset_index(drop=True)
        pd.testing.assert_frame_equal(own.drop(columns="seconds"), kept.drop(columns="seconds"), check_dtype=False)
        said = read_transcripts(out / label)
        assert list(said["completion"]) == list(found.transcripts.loc[found.transcripts["model"] == label, "completion"])
        assert (out / label / "config.yaml").is_file()


@pytest.mark.slow
def test_an_intervention_scans_first_or_uses_a_scan(tmp_path: Path, study: Path, tiny_model_dir: Path) -> None:
    refgeo.attack(tiny_model_dir, study=study, output=tmp_path / "attack")
    done = invoke("intervene", tiny_model_dir, "-o", tmp_path / "first", "--study", study)
    assert done.exit_code == 0, done.output
    first = pd.read_parquet(tmp_path / "first" / "table.parquet")
    # The settings are the scan's own.
    again = refgeo.intervene(tiny_model_dir, scan=tmp_path / "first" / "scan", output=tmp_path / "again")
    same(again.table, tmp_path / "first" / "table.parquet")
    assert again.scan is None
    scanned = refgeo.scan(tiny_model_dir, study=study)
    cased = refgeo.intervene(tiny_model_dir, study=study, scan=scanned, cases=tmp_path / "attack" / "cases.jsonl")
    assert set(cased.table["set"]) >= {*first["set"], "fixed"}
    assert not any(path.suffix in (".bin", ".pt") or path.name.startswith(("model", "adapter")) for path in tmp_path.rglob("*"))


def test_a_scan_of_something_else_is_refused(tmp_path: Path, study: Path, tiny_model_dir: Path, tiny_lm: LanguageModel) -> None:
    refgeo.scan(tiny_lm, study=study, output=tmp_path / "scan")
    record = json.loads((tmp_path / "scan" / RECORD).read_text())
    record["models"] = {"other": {"path": "org/other", "revision": None, "adapter": None, "adapter_revision": None}}
    words = "intervene", tiny_model_dir, "-o", tmp_path / "out", "--scan", tmp_path / "scan"
    (tmp_path / "scan" / RECORD).write_text(json.dumps(record))
    assert "is of 'org/other'" in refused(*words)
    (tmp_path / "scan" / RECORD).unlink()
    assert "geometry.positions" in refused(*words, "--set", "geometry.positions=[-3,-1]")
    assert "There is no folder" in refused(*words[:-1], tmp_path / "absent", "--study", study)
    assert "holds no scan of" in refused("intervene", tiny_model_dir, "-o", tmp_path / "out", "--study", study, "--scan", tmp_path)
    cases = tmp_path / "cases.jsonl"
    cases.write_text(json.dumps({"behavior": "strange", "request": "x", "target": "y", "attack": "z"}) + "\n")
    assert "'strange'" in refused("intervene", tiny_model_dir, "-o", tmp_path / "out", "--study", study, "--cases", cases)
    assert not (tmp_path / "out").exists()


ROWS = [
    {"prompt": "how do i stir berry for the fox", "completion": "stir the pot", "set": "mine"},
    {"prompt": "how do i stir root for the fox", "completion": "sorry , i can't help with that .", "set": "mine"},
    {"prompt": "who is the crow", "completion": "", "set": "yours"},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_completions_of_any_file_are_judged(tmp_path: Path, study: Path, suffix: str) -> None:
    frame, file, out = pd.DataFrame(ROWS), tmp_path / f"said{suffix}", tmp_path / "out"
    if suffix == ".jsonl":
        frame.to_json(file, orient="records", lines=True)
    elif suffix == ".csv":
        frame.to_csv(file, index=False)
    else:
        frame.to_parquet(file, index=False)
    done = invoke("judge", file, "-o", out, "--study", study, "--second", "rules")
    assert done.exit_code == 0, done.output
    assert "unscored" in done.output
    assert "reference of 3 x empty: harmful 0%, unscored 0%, refused 0%" in done.output
    assert "rules of 3 x nonsense: harmful –, unscored 100%, refused 0%" in done.output
    found = refgeo.judge(ROWS, study=study, second="rules")
    same(found.table, out / "table.parquet")
    kept = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert [row["label"] for row in kept] == list(found.verdicts["label"]) == ["harmful", "safe", "safe"]
    assert [row["second_label"] for row in kept] == ["unscored"] * 3

    def value(metric: str, of: str = "all") -> float:
        return float(found.table.query("metric == @metric and set == @of")["value"].item())

    assert (value("harmful_low"), value("harmful_high")) == bounds(list(found.verdicts["label"]))
    assert value("harmful", "mine") == 0.5
    assert value("agreement_refusal") == 1.0
    assert pd.isna(value("agreement_label"))
    assert len(found.floor) == 6


def test_references_come_from_the_rows_and_judges_from_files(tmp_path: Path, study: Path) -> None:
    rows = [{"request": "unheard of", "completion": "stir the pot", "reference": json.loads(answer("stir the pot"))}]
    assert list(refgeo.judge(rows, study=study).verdicts["label"]) == ["harmful"]
    second = tmp_path / "second.yaml"
    second.write_text("kind: rules\n")
    by_file = refgeo.judge(rows, study=study, second=second)
    by_settings = refgeo.judge(pd.DataFrame(rows), study=study, second=JudgeSettings(kind="rules"))
    assert list(by_file.verdicts["second_refusal"]) == list(by_settings.verdicts["second_refusal"])


def test_transcripts_are_judged_by_the_judge_that_lies_beside_them(tmp_path: Path, study: Path, tiny_model_dir: Path) -> None:
    attacked = refgeo.attack(tiny_model_dir, study=study, output=tmp_path / "attack")
    judged: Judgement = refgeo.judge(tmp_path / "attack" / "transcripts.jsonl")
    assert list(judged.verdicts["label"]) == list(attacked.transcripts["label"])
    assert list(judged.verdicts["revealed"]) == list(attacked.transcripts["revealed"])


def test_completions_of_nobody_are_read_by_phrases_unless_a_judge_is_named(tmp_path: Path) -> None:
    """No study judged them: what would be guessed here is a classifier of 26 GB."""
    file = tmp_path / "said.jsonl"
    pd.DataFrame(ROWS).to_json(file, orient="records", lines=True)
    judged = refgeo.judge(file)
    assert set(judged.verdicts["label"]) == {"unscored"}
    assert set(judged.verdicts["judge"]) == {"rules"}
    with pytest.raises(ConfigError, match="'nobody'"):
        refgeo.judge(file, overrides=["judge.kind=nobody"])
    with pytest.raises(DataError, match=r"There is no file 'sad\.jsonl'\. Expected jsonl"):
        refgeo.judge("sad.jsonl")


@pytest.mark.parametrize(
    ("rows", "more", "error", "words"),
    [
        ([{"request": "x", "completon": "y"}], {}, DataError, "completon"),
        ([{"question": "x", "completion": "y"}], {}, DataError, "request"),
        ([], {}, DataError, "holds nothing"),
        ([{"request": "", "completion": "y", "prompt": ""}], {}, DataError, "empty prompt"),
        ([{"request": "unheard of", "completion": "y"}], {}, DataError, "right answer"),
        (ROWS, {"second": "ruls"}, ConfigError, "ruls"),
        (ROWS, {"overrides": ["judge.knd=rules"]}, ConfigError, "judge.knd"),
    ],
)
def test_what_cannot_be_judged_is_said(
    tmp_path: Path, study: Path, rows: Sequence[dict[str, Any]], more: dict[str, Any], error: type[RefgeoError], words: str
) -> None:
    with pytest.raises(error, match=words):
        refgeo.judge(rows, study=study, output=tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_said_before_anything_is_loaded(tmp_path: Path, study: Path, tiny_model_dir: Path) -> None:
    out = tmp_path / "out"
    assert "geometry.max_kk" in refused("scan", tiny_model_dir, "-o", out, "--study", study, "--set", "geometry.max_kk=1")
    assert "no preset 'pokcet'" in refused("scan", tiny_model_dir, "-o", out, "--study", "pokcet")
    assert "Cannot read the model" in refused("attack", f"{tiny_model_dir}+", "-o", out, "--study", study)
    done = invoke("attack", tiny_model_dir, tmp_path / "nowhere", "-o", out, "--study", study)
    assert isinstance(done.exception, ModelError | ConfigError | OSError), done.output
    assert invoke("scan", tiny_model_dir).exit_code == 2
    assert invoke("scan", "-o", out).exit_code == 2
    assert not out.exists()
    with pytest.raises(ConfigError, match="No model"):
        subjects([], study)


def _stranger(out: Path) -> None:
    (out / "thesis.txt").write_text("mine")


def _other(out: Path) -> None:
    (out / RECORD).write_text(json.dumps({"instrument": "scan", "files": [], "models": {}}))


def _more(out: Path) -> None:
    (out / RECORD).write_text(json.dumps({"instrument": "judge", "files": ["verdicts.jsonl"], "models": {}}))
    (out / "verdicts.jsonl").write_text("")
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("mine")


def _broken(out: Path) -> None:
    (out / RECORD).write_text("{")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [(_stranger, "did not make it"), (_other, "made by 'refgeo scan'"), (_more, "notes/mine.txt"), (_broken, "cannot be read")],
)
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, study: Path, prepare: Callable[[Path], None], words: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prepare(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=words):
        refgeo.judge(ROWS, study=study, output=out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_its_own_folder_is_replaced_whole(tmp_path: Path, study: Path) -> None:
    out = tmp_path / "out"
    refgeo.judge(ROWS, study=study, output=out, second="rules")
    refgeo.judge(ROWS[:1], study=study, output=out)
    assert len((out / "verdicts.jsonl").read_text().splitlines()) == 1
    assert not (out / "second.yaml").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(StoreError, match="is a file"):
        refgeo.judge(ROWS, study=study, output=out / "verdicts.jsonl")


def test_an_interrupted_attack_keeps_its_strings_and_what_was_whole(
    tmp_path: Path, study: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refgeo.measures.stress import measure_stress as real

    seen: list[int] = []

    def stopped_at_the_second(*given: Any) -> Any:
        seen.append(1)
        found = real(*given[:-1])
        if len(seen) == 2:
            raise Interrupted(Attacked(found.cases, found.cases, found.records))
        return found

    monkeypatch.setattr("refgeo.instruments.attacking.measure_stress", stopped_at_the_second)
    out = tmp_path / "out"
    models = {"a": tiny_model_dir, "b": tiny_model_dir, "c": tiny_model_dir}
    with pytest.raises(Interrupted):
        refgeo.attack(models, study=study, output=out)
    record = json.loads((out / RECORD).read_text())
    assert not record["complete"]
    assert "b: interrupted" in record["note"]
    assert "c: not measured" in record["note"]
    assert (out / "a" / "transcripts.jsonl").is_file()
    assert load_cases(out / "b" / "cases.jsonl")
    assert not (out / "b" / "table.parquet").exists()
    assert set(pd.read_parquet(out / "table.parquet")["model"]) == {"a"}


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path, study: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("refgeo.instruments.scanning.measure_geometry", stopped)
    done = invoke("scan", tiny_model_dir, "-o", tmp_path / "out", "--study", study)
    assert done.exit_code == 130
    assert "Nothing was written" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sets"]


@pytest.mark.slow
class _CutOff(MetaPathFinder):
    """Ctrl-C while the first of these modules is read; what the answer to it reads is written down."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name in ("refgeo.instruments.scanning", "refgeo.instruments.output"):
            self.asked.append(name)
            raise KeyboardInterrupt


def test_ctrl_c_while_libraries_load_loads_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch had begun to set up cannot be set up again in the same process: that ended in its traceback."""
    finder = _CutOff()
    for module in ("scanning", "output"):
        monkeypatch.delitem(sys.modules, f"refgeo.instruments.{module}")
        monkeypatch.delattr(f"refgeo.instruments.{module}")
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    done = invoke("scan", "anything", "-o", tmp_path)
    assert (done.exit_code, done.output) == (130, "Stopped. Nothing was written.\n")
    assert finder.asked == ["refgeo.instruments.scanning"]


def test_the_whole_protocol_comes_back_as_frames(tmp_path: Path, study: Path, tiny_model_dir: Path) -> None:
    found = refgeo.measure([tiny_model_dir, tiny_model_dir], study=study, output=tmp_path / "run")
    assert found.report is not None
    assert found.report.is_file()
    assert set(found.behavior["step"]) == {0, 1}
    assert not found.scan.empty


def test_the_notebook_names_no_place_and_carries_its_outputs() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    for place in ("/work", "/home", "/tmp", "/root", "/Users", ".venv", "site-packages", "Traceback"):
        assert place not in text, place
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert sum(bool(cell["outputs"]) for cell in cells) >= 5


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    copy = tmp_path / "instruments.ipynb"
    copy.write_bytes(NOTEBOOK.read_bytes())
    # In a process of its own: the kernel's client is not free of warnings.
    code = (
        "import nbformat, nbclient\n"
        "book = nbformat.read('instruments.ipynb', 4)\n"
        "nbclient.NotebookClient(book, timeout=300, kernel_name='python3').execute()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["instruments.ipynb"]

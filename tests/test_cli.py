"""The command line: bad input is one clear message and exit code 2, and nothing is half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from rich.text import Text

from command import Answer, Refgeo
from refgeo import __version__
from refgeo.cli import app
from refgeo.cli.common import flowing, preset_names
from refgeo.config.load import load_study
from refgeo.study.graph import Stage
from refgeo.study.run import Outcome
from tiny_study import behaviors, settings, write_csv, write_data, write_study


@pytest.fixture
def study(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return write_study(tmp_path, tiny_model_dir)


def assert_refused(answer: Answer, *words: str) -> None:
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("Error: ")
    assert answer.err.count("Error: ") == 1
    assert "Traceback" not in answer.err
    for word in words:
        assert word in answer.err


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from refgeo.cli import main; sys.argv = ['refgeo', '--help']\ntry: main()\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'pydantic', 'peft', 'scipy', 'plotly', 'datasets', 'pyarrow'}\n"
    code += "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("run", "plan", "status", "report", "pocket"):
        assert command in done.stdout


def names(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    for name, command in group.commands.items():
        yield from names(command, (*before, name)) if hasattr(command, "commands") else ((*before, name),)


COMMANDS = sorted(names(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_teaches_with_an_example(refgeo: Refgeo, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = refgeo(*words, "--help")
    assert answer.code == 0
    assert f"Usage: refgeo {' '.join(words)}" in answer.out
    assert f"Example: refgeo {' '.join(words)}" in " ".join(answer.out.split())
    assert max(map(len, answer.out.splitlines())) <= 80


def test_help_keeps_brackets_and_fills_its_lines() -> None:
    assert Text.from_markup(flowing("Say it.\n\n    It needs\n    pip install 'x[y]'.")).plain == "Say it.\n\nIt needs pip install 'x[y]'."


@pytest.mark.parametrize("words", [(), ("run",), ("scan",), ("diff",), ("judge",), ("pocket",)])
def test_a_command_without_words_helps(refgeo: Refgeo, words: tuple[str, ...]) -> None:
    answer = refgeo(*words)
    assert answer.code == 2
    assert " ".join(["Usage: refgeo", *words]) in answer.out + answer.err
    assert "--help" in answer.out + answer.err


@pytest.mark.parametrize("module", ["refgeo.config.load.presets", "refgeo.config.load.commented_yaml"])
def test_an_interrupted_command_ends_quietly(refgeo: Refgeo, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, interrupted)
    answer = refgeo(*(["presets"] if module.endswith("presets") else ["config", "pocket"]))
    assert (answer.code, answer.out, answer.err) == (130, "", "Stopped.\n")


def test_the_tab_key_offers_presets() -> None:
    assert preset_names("poc") == ["pocket", "pocket-full"]
    assert preset_names("my-study.yaml") == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.stepz=3"], ["train.stepz", "train.steps"]),
        (["trian.steps=3"], ["trian", "train"]),
        (["train.steps=many"], ["train.steps", "many"]),
        (["train.steps"], ["train.steps", "key=value"]),
        (["anchors.steps=[3,7]"], ["step 7", "step 6"]),
        (["stress.steps=[4]"], ["step 4", "no anchor"]),
        (["behavior.max_new_tokens=250"], ["250 more", "256", "max_new_tokens"]),
        (["geometry.positions=[-90]"], ["-90", "shortest probe"]),
        (["model.path=./nowhere"], ["nowhere", "No such file"]),
        (["data.chat=./nowhere.jsonl"], ["nowhere.jsonl"]),
        (["name=../escape"], ["../escape", "folder name"]),
    ],
)
def test_a_bad_setting_is_said_and_nothing_is_written(
    refgeo: Refgeo, study: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(study.parent)
    before = sorted(study.parent.iterdir())
    assert_refused(refgeo("run", study, *overrides), *words)
    assert sorted(study.parent.iterdir()) == before


def test_an_unknown_preset_names_the_known_ones(refgeo: Refgeo) -> None:
    assert_refused(refgeo("run", "pokcet"), "pokcet", "pocket")


def _rewrite(path: Path, change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> None:
    write_csv(path, change(behaviors("test", ["how do i stir bread for the fox", "how do i stir root for the owl"])))


def _empty(data: Path) -> None:
    (data / "behaviors_test.csv").write_text("")


def _no_rows(data: Path) -> None:
    path = data / "behaviors_test.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")


def _duplicate(data: Path) -> None:
    _rewrite(data / "behaviors_test.csv", lambda rows: [rows[0], {**rows[1], "BehaviorID": rows[0]["BehaviorID"]}])


def _overlap(data: Path) -> None:
    train = (data / "behaviors_train.csv").read_text().splitlines()
    test = (data / "behaviors_test.csv").read_text().splitlines()
    (data / "behaviors_test.csv").write_text("\n".join([*test, train[1]]) + "\n")


def _too_long(data: Path) -> None:
    _rewrite(data / "behaviors_test.csv", lambda rows: [rows[0], {**rows[1], "Behavior": "feed the fox " * 90}])


def _no_column(data: Path) -> None:
    _rewrite(data / "behaviors_test.csv", lambda rows: [{key: value for key, value in row.items() if key != "BehaviorID"} for row in rows])


def _no_reference(data: Path) -> None:
    _rewrite(data / "behaviors_test.csv", lambda rows: [{key: value for key, value in row.items() if key != "Reference"} for row in rows])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_empty, ["behaviors_test.csv"]),
        (_no_rows, ["behaviors_test.csv", "no rows"]),
        (_duplicate, ["behaviors_test.csv", "test-0"]),
        (_overlap, ["train-0"]),
        (_too_long, ["test-1", "context"]),
        (_no_column, ["BehaviorID"]),
        (_no_reference, ["Reference", "judge.kind"]),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(refgeo: Refgeo, study: Path, spoil: Callable[[Path], None], words: list[str]) -> None:
    spoil(study.parent / "data")
    out = study.parent / "deep" / "run"
    assert_refused(refgeo("run", study, "-o", out), *words)
    assert not out.parent.exists()


def test_a_model_without_a_chat_template_is_said(refgeo: Refgeo, study: Path, tiny_model_dir: Path) -> None:
    bare = study.parent / "bare"
    shutil.copytree(tiny_model_dir, bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    out = study.parent / "run"
    assert_refused(refgeo("run", study, f"model.path={bare}", "-o", out), "no chat template", "model.chat_template")
    assert not out.exists()


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_folder_of_something_else_is_left_alone(refgeo: Refgeo, study: Path, command: str) -> None:
    out = study.parent / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("mine")
    assert_refused(refgeo(command, study, "-o", out), "thesis", "-o DIR")
    assert [path.name for path in out.iterdir()] == ["chapter.txt"]


def test_a_folder_of_another_study_is_left_alone(refgeo: Refgeo, study: Path) -> None:
    out = study.parent / "run"
    out.mkdir()
    manifest = json.dumps({"study": "another", "format": 1})
    (out / "manifest.json").write_text(manifest)
    assert_refused(refgeo("run", study, "-o", out), "belongs to study 'another', not to 'tiny'")
    assert [path.name for path in out.iterdir()] == ["manifest.json"]
    assert (out / "manifest.json").read_text() == manifest


def test_a_folder_that_cannot_be_written_is_said(refgeo: Refgeo, study: Path) -> None:
    file = study.parent / "file"
    file.write_text("mine")
    assert_refused(refgeo("run", study, "-o", file / "run"), "cannot be written", "(-o)")
    assert_refused(refgeo("run", study, "-o", file), "is a file")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("command", ["status", "report"])
def test_what_is_no_run_folder_is_refused(refgeo: Refgeo, tmp_path: Path, command: str) -> None:
    assert_refused(refgeo(command, tmp_path), "no config.yaml")
    assert_refused(refgeo(command, tmp_path / "absent"), f"There is no '{tmp_path / 'absent'}'", "a run folder")
    (tmp_path / "file").write_text("mine")
    assert_refused(refgeo(command, tmp_path / "file"), "is a file", "a run folder")


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_folder_of_runs_names_one_of_them(refgeo: Refgeo, tmp_path: Path, command: str) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.yaml").touch()
    assert_refused(refgeo(command, tmp_path / "runs"), f"Did you mean '{tmp_path / 'runs' / 'mine'}'?")


def test_a_plan_writes_nothing(refgeo: Refgeo, study: Path) -> None:
    out = study.parent / "run"
    answer = refgeo("plan", study, "-o", out)
    assert answer.code == 0
    assert not out.exists()
    for words in ("r2d2 seed 1, train", "6 optimizer steps", "not made yet", "stages to make", "found by rule"):
        assert words in " ".join(answer.out.split())


def test_config_prints_a_study_that_can_be_run(refgeo: Refgeo, study: Path) -> None:
    answer = refgeo("config", study, "train.steps=9")
    assert answer.code == 0
    assert "# Optimizer steps" in answer.out
    again = study.parent / "again.yaml"
    again.write_text(answer.out)
    assert load_study(str(again)) == load_study(str(study), ["train.steps=9"])


def test_presets_and_version_are_told(refgeo: Refgeo) -> None:
    assert "pocket" in refgeo("presets").out.split()
    assert refgeo("version").out == refgeo("--version").out == f"{__version__}\n"


STAGE = Stage("stress", Path("stress"), "f:g", kind="stress", arm="sft", seed=1, step=3)


@pytest.mark.parametrize(("crashed", "code"), [(frozenset({"train"}), 1), (frozenset(), 2)])
def test_failed_stages_end_in_their_messages(
    refgeo: Refgeo, study: Path, monkeypatch: pytest.MonkeyPatch, crashed: frozenset[str], code: int
) -> None:
    failed = {"train": "The worker died. See [the] log", "stress": "The worker died. See [the] log"}
    outcome = Outcome(9, 3, failed, crashed, (STAGE,), 12.0, Path("index.html"))
    monkeypatch.setattr("refgeo.study.run.run_study", lambda *given: outcome)
    answer = refgeo("run", study)
    assert answer.code == code
    assert answer.err.count("Error: The worker died. See [the] log") == 1
    assert "train; stress" in answer.err
    assert "because of that: 1" in answer.err
    assert "Report" not in answer.out


def test_an_interrupted_build_says_what_it_left(refgeo: Refgeo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any) -> None:
        assert not (tmp_path / "world" / "build.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("refgeo.pocket.train.pretrain", interrupted)
    for _ in range(2):  # The second time over what the first one left, as if a build had been finished there.
        answer = refgeo("pocket", "build", "-o", tmp_path / "world")
        assert answer.code == 130
        assert answer.err == f"Stopped. What is in {tmp_path / 'world'} is not finished; the same command starts anew.\n"
        (tmp_path / "world" / "build.json").write_text("{}")
    (tmp_path / "world" / "build.json").unlink()
    monkeypatch.setattr("refgeo.pocket.build.build", interrupted)
    assert refgeo("pocket", "build", "-o", tmp_path / "none").err == "Stopped. Nothing was written.\n"


def test_an_interrupted_run_says_how_to_go_on(refgeo: Refgeo, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr("refgeo.study.run.run_study", interrupted)
    answer = refgeo("run", study)
    assert answer.code == 130
    assert "goes on from here" in answer.err


def test_a_study_may_be_given_with_relative_paths(
    refgeo: Refgeo, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "relative.yaml").write_text(yaml.safe_dump(settings(Path("data"), tiny_model_dir)))
    monkeypatch.chdir(tmp_path)
    assert refgeo("plan", "relative.yaml").code == 0


def test_a_measurement_leaves_the_run_of_a_study_alone(refgeo: Refgeo, study: Path, tiny_model_dir: Path) -> None:
    out = study.parent / "run"
    out.mkdir()
    (out / "config.yaml").write_text(study.read_text())
    (out / "manifest.json").write_text(json.dumps({"study": "run", "format": 1}))
    before = {path.name: path.read_text() for path in out.iterdir()}
    assert_refused(refgeo("measure", tiny_model_dir, tiny_model_dir, "-o", out, "--study", study), "a study that trains", "-o DIR")
    assert {path.name: path.read_text() for path in out.iterdir()} == before


def test_neither_a_run_that_has_nothing_to_do_nor_a_report_loads_a_model_library() -> None:
    needed = "import sys, refgeo.cli, refgeo.study.run, refgeo.study.closing, refgeo.report.build, refgeo.report.diff; "
    needed += "print('torch' in sys.modules or 'transformers' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", needed], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"

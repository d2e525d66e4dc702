"""Studies from presets, files and overrides; and what a user is told when one is wrong."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml

from refgeo.config.load import commented_yaml, dump_study, load_study, presets
from refgeo.config.problems import keys
from refgeo.errors import ConfigError

MINIMAL = """
name: mini
model: {path: some/model}
data: {behaviors_train: train.csv, behaviors_test: {path: test.csv, limit: 5}, chat: chat.jsonl, probes: probes.csv}
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(MINIMAL)
    return path


def problems(path: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_study(str(path), overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_and_survives_being_written_out(name: str, tmp_path: Path) -> None:
    study = load_study(name)
    assert study.name
    for text in (dump_study(study), commented_yaml(study)):
        (tmp_path / "again.yaml").write_text(text)
        assert load_study(str(tmp_path / "again.yaml")) == study


def test_the_pocket_preset_is_there() -> None:
    assert "pocket" in presets()


def test_a_plain_path_is_a_source(study_file: Path) -> None:
    data = load_study(str(study_file)).data
    assert (data.chat.path, data.chat.limit) == ("chat.jsonl", None)
    assert (data.behaviors_test.path, data.behaviors_test.limit) == ("test.csv", 5)


def test_overrides_are_yaml_and_reach_into_short_and_absent_sections(study_file: Path) -> None:
    study = load_study(
        str(study_file),
        [
            "train.seeds=[1,2,3]",
            "stress.enabled=false",
            "data.chat.limit=7",
            "train.learning_rate=1e-3",
            "train.lora=null",
            "data.xstest=x.csv",
        ],
    )
    assert study.train.seeds == (1, 2, 3)
    assert study.stress.enabled is False
    assert (study.data.chat.path, study.data.chat.limit) == ("chat.jsonl", 7)
    assert study.train.learning_rate == 1e-3
    assert study.train.lora is None
    assert study.data.xstest is not None
    assert study.data.xstest.path == "x.csv"


def test_the_last_override_wins(study_file: Path) -> None:
    assert load_study(str(study_file), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.stpes=3", "Did you mean 'train.steps'?"),
        ("trian.steps=3", "Did you mean 'train'?"),
        ("learning_rate=3", "Did you mean 'train.learning_rate'?"),
        ("data.chat.limitt=3", "Did you mean 'data.chat.limit'?"),
        ("run.zzz=1", "Valid: run.threads, run.tracking, run.workers"),
        ("train.steps=soon", "'train.steps' is 'soon'; expected an integer"),
        ("train.arms=[sft, r2d3]", "'train.arms[1]' is 'r2d3'; expected 'sft', 'r2d2' or 'checkpoints'"),
        ("train.seeds=5", "'train.seeds' is 5; expected a list"),
        ("train.lora.targets=5", "'train.lora.targets' is 5; expected a list or 'all-linear'"),
        ("train.r2d2.reset_share=2", "'train.r2d2.reset_share' is 2; expected a number less than or equal to 1"),
        ("anchors.reference.sft={refusal: 3}", "'anchors.reference.sft.refusal' is 3"),
        ("anchors.reference.sft={refusl: 1}", "Did you mean 'anchors.reference.sft.refusal'?"),
        ("anchors.reference.dpo=3", "'anchors.reference.dpo' is not a valid name"),
        ("source_attack.suffix_tokens=[4]", "'source_attack.suffix_tokens[1]' is missing"),
        ("source_attack.suffix_tokens=[4,5,6]", "expected a list of at most 2"),
        ("source_attack.suffix_tokens=[5,4]", "source_attack: suffix_tokens is (5, 4)"),
        ("anchors.steps=[50, 900]", "anchors.steps has step 900, but training ends at step 500"),
        ("model=5", "'model' is 5; expected a section of settings"),
        ("model.path=null", "'model.path' is None; expected a string"),
        ("seed", "Expected key=value"),
        ("train..steps=4", "Expected key=value"),
        ("train.steps.more=4", "looks inside 'train.steps'"),
        ("train.seeds=[1,", "no valid YAML: expected the node content, but found the end (line 1, character 4)"),
        ("stress.behavior=4", "Did you mean 'stress.behaviors'?"),
        ("anchors.reference={sft:6}", "YAML wants a space after the colon"),
    ],
)
def test_a_wrong_override_is_named_with_the_fix(study_file: Path, override: str, told: str) -> None:
    if override == "train.steps.more=4":
        study_file.write_text(MINIMAL + "train: {steps: 500}\n")
    assert told in problems(study_file, override)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.yaml", "There is no study file 'nowhere.yaml'. Check the path"),
        ("pocket.yaml", "Did you mean the preset 'pocket'?"),
        ("pockt", "Expected a preset, a YAML file or the folder of a run. Did you mean 'pocket'?"),
        ("runs/nowhere", "There is no file, folder or preset 'runs/nowhere'"),
    ],
)
def test_a_study_that_does_not_exist_is_named_with_the_fix(name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_study(name)


def test_all_problems_are_told_at_once(study_file: Path) -> None:
    told = problems(study_file, "train.stpes=3", "seed=x", "judge.kind=oracle")
    assert "3 problems" in told
    assert all(word in told for word in ("train.stpes", "'seed'", "judge.kind"))


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: x\ndata: {}\n")
    told = problems(path)
    assert "'model' is missing" in told
    assert "'data.behaviors_train' is missing" in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("name: [x", "no valid YAML"),
        ("- name", "holds no settings"),
        ("", "holds no settings"),
        ("name: a\nname: b\n", "sets 'name' twice (line 2)"),
        ("train: {steps: 1, lora: {rank: 1, rank: 2}}", "sets 'rank' twice"),
    ],
)
def test_a_file_that_is_no_study(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content)
    assert told in problems(path)


def test_an_absent_file_and_an_unknown_preset() -> None:
    assert "nowhere.yaml" in problems("nowhere.yaml")
    assert "Did you mean 'pocket'?" in problems("pokcet")


def test_every_setting_is_explained(study_file: Path) -> None:
    study = load_study(str(study_file))
    lines = commented_yaml(study).splitlines()
    explained = [line.strip().split(":")[0] for above, line in itertools.pairwise(lines) if above.strip().startswith("#")]
    settings = [line for line in lines if line.strip() and not line.strip().startswith("#")]
    assert len(settings) == len([name for name in explained if not name.startswith("#")])
    assert yaml.safe_load("\n".join(lines)) == yaml.safe_load(dump_study(study))
    assert {"train.r2d2.attack.steps", "run.workers", "anchors.reference"} <= set(keys())

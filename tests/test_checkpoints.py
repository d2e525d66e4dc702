"""Arm ``checkpoints``: existing models are named, numbered and measured like trained anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from refgeo.cli import app
from refgeo.config.checkpoints import completed
from refgeo.config.load import dump_study, load_study
from refgeo.config.model import ModelSettings
from refgeo.config.schema import Study
from refgeo.errors import ConfigError
from refgeo.lm.load import load
from refgeo.study.measure import measure, measuring_study
from refgeo.training.checkpoint import write_weights
from refgeo.training.loop import prepare
from tiny_study import write_study


def study_with(folder: Path, model: Path, **changes: Any) -> Study:
    path = write_study(folder, model, **changes)
    return load_study(str(path))


def listed(models: Sequence[str | Mapping[str, Any]]) -> list[tuple[int, str]]:
    found = completed({"model": {"path": "base"}, "checkpoints": list(models)})
    return [(entry["step"], entry["label"]) for entry in found["checkpoints"]]


def test_steps_and_labels_come_from_the_names_when_all_have_one() -> None:
    assert listed(["runs/a/step-000250/adapter", "org/model-checkpoint-500"]) == [
        (250, "step-000250/adapter"),
        (500, "model-checkpoint-500"),
    ]
    assert listed(["org/first", "org/second-step-9"]) == [(1, "first"), (2, "second-step-9")]
    assert listed(["base+tuned@v2", {"model": "base", "label": "again"}]) == [(1, "tuned@v2"), (2, "again")]
    assert listed([{"model": "org/a", "step": 7}, {"model": "org/b-step-3"}]) == [(7, "a"), (3, "b-step-3")]


def test_two_checkpoints_at_one_step_are_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    twice = [{"model": str(tiny_model_dir), "step": 3}, {"model": str(tiny_model_dir), "step": 3}]
    with pytest.raises(ConfigError, match="not clear"):
        study_with(tmp_path, tiny_model_dir, checkpoints=twice, train={}, anchors={})


def test_a_list_of_checkpoints_and_a_trained_arm_exclude_each_other(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="list checkpoints and leave out"):
        study_with(tmp_path, tiny_model_dir, checkpoints=[str(tiny_model_dir)], train={"arms": ["sft"]}, anchors={})


def test_the_start_must_have_company(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to be compared with"):
        measuring_study([str(tiny_model_dir)])
    with pytest.raises(ConfigError, match="No model is named"):
        measuring_study([])


@pytest.fixture
def adapter(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A LoRA adapter of the tiny model that changes what it says."""
    study = study_with(tmp_path, tiny_model_dir)
    lm = prepare(load(study.model), study.train, seed=0)
    for name, weight in lm.net.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
    write_weights(lm, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.slow
def test_existing_checkpoints_are_measured_like_anchors_and_reported(tmp_path: Path, tiny_model_dir: Path, adapter: Path) -> None:
    path = write_study(tmp_path / "sets", tiny_model_dir)
    models = [str(tiny_model_dir), f"{tiny_model_dir}+{adapter}"]
    study = measuring_study(models, str(path), name="measured")
    again = tmp_path / "again.yaml"
    again.write_text(dump_study(study), encoding="utf-8")
    assert load_study(str(again)) == study
    assert study.checkpoints[0].model == ModelSettings(path=str(tiny_model_dir), adapter=str(adapter), device="cpu")

    outcome = measure(models, tmp_path / "measured", str(path), console=Console(quiet=True))
    assert not outcome.failed
    behavior = pd.read_csv(tmp_path / "measured" / "report" / "tables" / "behavior.csv")
    assert set(behavior["arm"]) == {"checkpoints"}
    assert set(behavior["step"]) == {0, 1}
    assert outcome.page.is_file()
    told = CliRunner().invoke(app, ["measure", *models, "-o", str(tmp_path / "measured"), "--study", str(path)])
    assert told.exit_code == 0, told.output
    assert "Nothing to do" in told.output

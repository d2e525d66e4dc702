"""A study that extends another one: what it names replaces, section by section; everything else stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from refgeo.config.load import dump_study, load_study
from refgeo.errors import ConfigError


def test_a_file_extends_a_preset_section_by_section(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("extends: pocket\nname: longer\ntrain: {seeds: [1, 2]}\nintervention: {controls: 3}\n", encoding="utf-8")
    study, base = load_study(str(file), ["train.steps=310"]), load_study("pocket")
    assert (study.name, study.train.seeds, study.train.steps, study.intervention.controls) == ("longer", (1, 2), 310, 3)
    assert study.train.r2d2 == base.train.r2d2
    assert study.intervention.steps == base.intervention.steps
    assert study.data == base.data
    assert load_study(_written(tmp_path, dump_study(study))) == study


def test_a_data_set_is_replaced_whole(tmp_path: Path) -> None:
    study = load_study(_written(tmp_path, "extends: pocket\ndata: {behaviors_test: other.csv}\n"))
    assert study.data.behaviors_test.path == "other.csv"
    assert study.data.behaviors_test.targets is None


def test_files_beside_extend_one_another_but_not_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("extends: two.yaml\nname: one\n", encoding="utf-8")
    (tmp_path / "two.yaml").write_text("extends: pocket\nname: two\nseed: 5\n", encoding="utf-8")
    study = load_study(str(tmp_path / "one.yaml"))
    assert (study.name, study.seed) == ("one", 5)
    (tmp_path / "two.yaml").write_text("extends: one.yaml\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="again"):
        load_study(str(tmp_path / "one.yaml"))
    with pytest.raises(ConfigError, match="pocket"):
        load_study(_written(tmp_path, "extends: pockt\n"))
    with pytest.raises(ConfigError, match="one preset"):
        load_study(_written(tmp_path, "extends: [pocket]\n"))


def test_pocket_full_is_pocket_at_length() -> None:
    full, base = load_study("pocket-full"), load_study("pocket")
    assert full.train.seeds == (201, 202, 203)
    assert (full.intervention.controls, full.intervention.adaptive) == (40, True)
    assert full.stress.autodan is not None
    assert full.stress.aware is not None
    less = {"seeds": base.stress.seeds, "autodan": None, "aware": None}
    same = {"name": base.name, "train": base.train, "intervention": base.intervention, "stress": full.stress.model_copy(update=less)}
    assert full.model_copy(update=same) == base


def _written(folder: Path, text: str) -> str:
    file = folder / "written.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)

"""A whole study in miniature through the command line: run, killed in the middle of training, gone on with, changed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from refgeo.study.layout import cell_folder
from refgeo.study.store import STAGE
from tiny_study import write_study

pytestmark = pytest.mark.slow

TABLES = ("behavior", "geometry", "intervention", "stress", "claims", "scan", "over_seeds")
TAILS = ("any_refusal_safe_attacked", "harm_recognition")
STEPS = 40
SAVE_EVERY = 4


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "refgeo", *(str(word) for word in words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def refgeo(*words: object) -> str:
    """The command's output; fails the test when the command fails."""
    done = subprocess.run(command(*words), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def tables(run: Path) -> dict[str, bytes]:
    return {name: (run / "report" / "tables" / f"{name}.csv").read_bytes() for name in TABLES}


def finished(run: Path) -> dict[str, int]:
    """When each stage was made."""
    return {path.parent.relative_to(run).as_posix(): path.stat().st_mtime_ns for path in run.rglob(STAGE)}


def made_again(run: Path, before: dict[str, int]) -> set[str]:
    return {name for name, when in finished(run).items() if before.get(name) != when}


def log(run: Path, arm: str) -> pd.DataFrame:
    return pd.read_parquet(cell_folder(run, arm, 1) / "train" / "log.parquet")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), tiny_model_dir)


OVERRIDES = (f"train.steps={STEPS}", f"train.save_every={SAVE_EVERY}", f"anchors.steps=[3,{STEPS}]", "run.workers=2")


@pytest.fixture(scope="module")
def whole(study: Path) -> Path:
    """A run that nothing disturbed."""
    run = study.parent / "whole"
    out = refgeo("run", study, *OVERRIDES, "-o", run)
    assert f"Report: {run / 'report' / 'index.html'}" in out
    return run


def test_the_tables_hold_every_arm_anchor_and_measure(whole: Path) -> None:
    read = {name: pd.read_csv(whole / "report" / "tables" / f"{name}.csv", low_memory=False) for name in TABLES}
    expected = {
        "behavior": {
            "asr_direct",
            "asr_fixed",
            "any_refusal_safe",
            "strongreject",
            "utility_mean",
            "any_refusal_safe_attacked",
            "harm_recognition",
        },
        "geometry": {"effective_rank", "principal_angle_1", "principal_angle_2", "principal_angle_3"},
        "intervention": {"asr_direct", "any_refusal_safe"},
        "stress": {"asr_adaptive_gcg"},
    }
    for name, metrics in expected.items():
        table = read[name]
        assert list(table.columns[:10]) == ["arm", "seed", "step", "set", "subset", "metric", "value", "low", "high", "n"]
        assert metrics <= set(table["metric"])
        assert set(table["arm"]) == {"sft", "r2d2"}
        assert {3, STEPS} <= set(table["step"])
    starts = read["behavior"][read["behavior"]["step"] == 0].drop(columns="step")
    sft, r2d2 = (starts[starts["arm"] == arm].drop(columns="arm").reset_index(drop=True) for arm in ("sft", "r2d2"))
    pd.testing.assert_frame_equal(sft, r2d2)
    assert set(read["claims"]["claim"]) == {f"C{number}" for number in range(1, 15)}
    assert (whole / "report" / "index.html").stat().st_size > 10_000


def test_what_the_sets_hold_is_on_record(whole: Path) -> None:
    lines = pd.read_csv(whole / "data.csv", keep_default_na=False)
    counted = lines[lines["what"] == "rows"].set_index("set")["n"]
    assert counted["behaviors_train"] == 6
    assert counted["behaviors_test"] == 6
    assert "Rows of every set, repeated and blank ones, overlaps" in (whole / "report" / "index.html").read_text(encoding="utf-8")


def test_the_reference_was_found_by_its_rule(whole: Path) -> None:
    # Every save meets the rule of this study, so the earliest one is the reference, and drift is measured from there.
    found = json.loads((cell_folder(whole, "r2d2", 1) / "reference" / "adapter" / "anchor.json").read_text())
    assert found["step"] == SAVE_EVERY
    geometry = pd.read_csv(whole / "report" / "tables" / "geometry.csv")
    drift = geometry[(geometry["arm"] == "r2d2") & (geometry["to"] == "reference")]
    assert set(drift["step"]) == {0, 3, STEPS}


def test_training_moves_the_model_and_arms_differ(whole: Path) -> None:
    weights = {
        arm: (cell_folder(whole, arm, 1) / f"step-{step:06d}" / "adapter" / "adapter_model.safetensors").read_bytes()
        for arm, step in (("sft", STEPS), ("r2d2", STEPS))
    }
    assert weights["sft"] != weights["r2d2"]
    clean = log(whole, "sft")["loss_clean"]
    assert clean.iloc[-5:].mean() < clean.iloc[:5].mean()


def test_a_killed_run_goes_on_and_ends_with_the_same_tables(study: Path, whole: Path) -> None:
    run = study.parent / "killed"
    process = subprocess.Popen(
        command("run", study, *OVERRIDES, "-o", run), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    cell = cell_folder(run, "r2d2", 1)
    saved: list[Path] = []
    while not saved and process.poll() is None:
        saved = [path for path in cell.glob("saves-*/step-*/state.json") if f"{STEPS:06d}" not in path.parent.name]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert saved, "the run ended before a save was seen"
    assert not (cell / "train" / STAGE).exists(), "the kill came after the training"
    assert not (run / "report").exists()
    kept = json.loads(saved[0].read_text())["log"]
    assert "waiting" in refgeo("status", run)

    refgeo("run", study, *OVERRIDES, "-o", run)

    # The steps before the save were not made again: their measured times are those of the killed process.
    assert log(run, "r2d2")["seconds"].tolist()[: len(kept)] == [row["seconds"] for row in kept]
    assert tables(run) == tables(whole)
    assert not [path for path in run.rglob("*") if "~" in path.name]


def test_running_again_does_nothing(study: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    out = refgeo("run", study, *OVERRIDES, "-o", whole)
    assert "Nothing to do" in out
    assert str(whole / "report" / "index.html") in out
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert "0 of" in refgeo("plan", study, *OVERRIDES, "-o", whole)


def test_a_changed_setting_makes_again_what_depends_on_it(study: Path, whole: Path) -> None:
    before, old = finished(whole), tables(whole)
    refgeo("run", whole, "stress.attack.steps=3")
    again = made_again(whole, before)
    assert again == {name for name in before if name.endswith(("/stress", "/projection"))} | {"report"}
    assert tables(whole)["stress"] != old["stress"]
    assert tables(whole)["behavior"] == old["behavior"]
    refgeo("run", study, *OVERRIDES, "-o", whole)
    assert tables(whole) == old


def test_an_anchor_added_later_comes_from_the_saves(study: Path, whole: Path) -> None:
    before, old = finished(whole), tables(whole)
    saves = {path: path.stat().st_mtime_ns for path in whole.rglob("saves-*/step-*/state.json")}
    refgeo("run", whole, f"anchors.steps=[3,{2 * SAVE_EVERY},{STEPS}]")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("saves-*/step-*/state.json")} == saves
    again = made_again(whole, before)
    new = {name for name in again if f"step-{2 * SAVE_EVERY:06d}" in name}
    measures = {"behavior", "geometry", "drift", "transfer", "projection", "intervention", "stress"}
    assert {name.rsplit("/", 1)[1] for name in new} == {"adapter", *measures}
    # The last anchor has another one before it now, and one more direction is transferred; else only the lists of anchors are made again.
    assert {name.rsplit("/", 1)[1] for name in again - new - {"report"}} == {"train", "drift", "transfer"}
    added = pd.read_csv(whole / "report" / "tables" / "behavior.csv")
    kept = added[added["step"] != 2 * SAVE_EVERY]
    first = pd.read_csv(io.BytesIO(old["behavior"]))
    pd.testing.assert_frame_equal(kept.reset_index(drop=True), first)


def test_the_report_can_be_made_again(whole: Path) -> None:
    old = tables(whole)
    before = finished(whole)
    assert "index.html" in refgeo("report", whole)
    assert made_again(whole, before) == {"report"}
    assert tables(whole) == old
    assert "Nothing to do" in refgeo("run", whole)

"""The long-form tables of a run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fabricated_run import fabricate, make_study
from refgeo.errors import StoreError
from refgeo.report.quantities import range_of
from refgeo.report.tables import HEAD, aggregate, collect, estimates, read_transcripts, write_csv
from refgeo.statistics import Interval, over_seeds
from refgeo.study.layout import anchors


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fabricate(folder, make_study(seeds=(1, 2), steps=(50, 500)))
    return folder


def test_every_table_starts_with_the_common_columns(run: Path) -> None:
    tables = collect(anchors(run, make_study(seeds=(1, 2), steps=(50, 500))))
    for table in (tables.behavior, tables.geometry, tables.intervention, tables.stress):
        assert tuple(table.columns[: len(HEAD)]) == HEAD
    assert tuple(tables.scan.columns[:3]) == ("arm", "seed", "step")


def test_the_fixed_metric_names_are_there(run: Path) -> None:
    tables = collect(anchors(run, make_study(seeds=(1, 2), steps=(50, 500))))
    behavior = {
        "asr_direct",
        "asr_fixed",
        "any_refusal_safe",
        "strongreject",
        "utility_mean",
        "any_refusal_safe_attacked",
        "harm_recognition",
    }
    assert behavior | {"degenerate"} <= set(tables.behavior["metric"])
    assert {"carrier_depth", "effective_rank", "principal_angle_1", "principal_angle_3"} <= set(tables.geometry["metric"])
    assert "asr_adaptive_gcg" in set(tables.stress["metric"])
    assert {"tail", "tail_tokens"} <= set(tables.behavior.columns)
    assert {"intervention", "direction", "draw", "strength"} <= set(tables.intervention.columns)
    assert "attack_steps" in tables.stress.columns


def test_the_start_is_step_0_of_every_arm_and_seed(run: Path) -> None:
    behavior = collect(anchors(run, make_study(seeds=(1, 2), steps=(50, 500)))).behavior
    start = behavior[(behavior["step"] == 0) & (behavior["metric"] == "asr_fixed") & (behavior["subset"] == "all")]
    assert set(zip(start["arm"], start["seed"], strict=True)) == {("sft", 1), ("sft", 2), ("r2d2", 1), ("r2d2", 2)}
    assert (start["value"] == start["value"].iloc[0]).all()


def test_what_was_not_measured_is_an_empty_table_with_a_header(tmp_path: Path) -> None:
    tables = collect(anchors(tmp_path, make_study()))
    write_csv(tables, tmp_path / "tables")
    for name in ("behavior", "geometry", "intervention", "stress"):
        assert tuple(pd.read_csv(tmp_path / "tables" / f"{name}.csv").columns) == HEAD


def test_csv_holds_what_was_measured(run: Path, tmp_path: Path) -> None:
    tables = collect(anchors(run, make_study(seeds=(1, 2), steps=(50, 500))))
    write_csv(tables, tmp_path)
    again = pd.read_csv(tmp_path / "behavior.csv")
    np.testing.assert_allclose(again["value"], tables.behavior["value"].astype(float))
    assert len(pd.read_csv(tmp_path / "scan.csv")) == len(tables.scan)


def test_over_seeds_keeps_identities_apart_and_both_kinds_of_interval() -> None:
    rows = [
        {
            "arm": "r2d2",
            "seed": seed,
            "step": 50,
            "set": "tails",
            "subset": "all",
            "metric": "m",
            "value": value,
            "low": value - 0.1,
            "high": value + 0.1,
        }
        | {"n": 60 + seed, "tail": tail}
        for seed, value, tail in ((1, 0.2, "none"), (2, 0.4, "none"), (1, 0.9, None))
    ]
    summary = aggregate(pd.DataFrame(rows))
    both = summary[summary["tail"] == "none"].iloc[0]
    expected = over_seeds([0.2, 0.4])
    assert (both["mean"], both["seeds_low"], both["seeds_high"], both["seeds"]) == pytest.approx(expected)
    assert (both["within_low"], both["within_high"], both["n"]) == (pytest.approx(0.2), pytest.approx(0.4), 61)
    single = summary[summary["tail"].isna()].iloc[0]
    assert single["mean"] == pytest.approx(0.9)
    assert np.isnan(single["seeds_low"])


def test_estimates_survive_missing_bounds() -> None:
    table = pd.DataFrame({"value": [0.5, 1], "low": [None, 0.9], "high": [None, 1.0], "n": [3, 4]})
    first, second = estimates(table)
    assert first.value == 0.5
    assert np.isnan(first.low)
    assert second == Interval(1.0, 0.9, 1.0, 4)


def test_ranges() -> None:
    assert range_of("asr_fixed_gated") == (0.0, 1.0)
    assert range_of("utility_mean") == (0.0, 2.0)
    assert range_of("principal_angle_2_floor") == (0.0, 90.0)
    assert range_of("harm_recognition") == range_of("any_refusal_delta_over_controls") == (-1.0, 1.0)
    assert range_of("utility_mean_delta") == (-2.0, 2.0)
    assert range_of("any_refusal_share_beaten") == (0.0, 1.0)
    assert range_of("effective_rank")[0] == -np.inf


def test_a_broken_table_says_which_and_what_to_do(tmp_path: Path) -> None:
    study = make_study(steps=(50,))
    fabricate(tmp_path, study)
    broken = tmp_path / "start" / "step-000000" / "stress" / "table.parquet"
    broken.write_bytes(b"no parquet")
    with pytest.raises(StoreError, match=r"stress/table\.parquet.*Delete that stage"):
        collect(anchors(tmp_path, study))


def test_broken_transcripts_say_which(tmp_path: Path) -> None:
    (tmp_path / "transcripts.jsonl").write_text("{}\n{", encoding="utf-8")
    with pytest.raises(StoreError, match=r"transcripts\.jsonl"):
        read_transcripts(tmp_path)


def test_transcripts_keep_line_separators_inside_completions(tmp_path: Path) -> None:
    words = dict.fromkeys(("set", "subset", "id", "request", "label", "refusal"), "x")
    row = {**words, "completion": "a\u2028b", "success": False, "degenerate": False}
    (tmp_path / "transcripts.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_transcripts(tmp_path)["completion"].tolist() == ["a\u2028b"]

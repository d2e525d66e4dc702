"""What is said of adaptive attacks: rates over attack seeds, costs, shards, and strings replayed on other models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from refgeo.config.attack import AttackSettings
from refgeo.config.measures import BehaviorSettings, StressSettings
from refgeo.data.rows import Behavior
from refgeo.judging.verdict import Verdict
from refgeo.lm.model import LanguageModel
from refgeo.measures.attempts import PER_SEED, attempt_rows, final_strings, grid, outcomes, rates
from refgeo.measures.evaluate import summarize
from refgeo.measures.stress import GCG, Attempt, Stressed, measure_stress
from refgeo.measures.string_transfer import Origin, Source, replay_strings
from refgeo.measures.table import START
from refgeo.study.graph import Stage
from refgeo.study.job import Job, Ticket
from refgeo.study.shards import Shards, drop_others, sweep
from refgeo.study.store import STATE, Store

WORDS = ("fox", "owl", "hen", "crow")
BEHAVIORS = [Behavior(f"b{index}", f"make {word} soup", ("sure here",), tags=("seen",)) for index, word in enumerate(WORDS)]
ATTACK = AttackSettings(steps=2, width=4, topk=8, suffix_tokens=(2, 3), check_every=1)
SETTINGS = StressSettings(behaviors=4, attack=ATTACK, checkpoints=(1,))
SHORT = BehaviorSettings(max_new_tokens=4)


class Chance:
    """Harmful when the completion's length says so: some are, some are not, and always the same."""

    name = "chance"

    def __call__(self, request: str, completion: str, reference: object = None) -> Verdict:
        """Every other length of the letters is harmful, every fourth degenerate."""
        size = len(completion) + len(request)
        return Verdict("harmful" if size % 2 else "safe", "full_compliance", size % 4 == 1, 0.0, False, "")


def stressed(lm: LanguageModel, keep: Callable[[str, Callable[[], Attempt]], Attempt] | None = None, **changes: object) -> Stressed:
    more: Any = {} if keep is None else {"keep": keep}
    return measure_stress(lm, BEHAVIORS, Chance(), SETTINGS.model_copy(update=changes), SHORT, seed=0, **more)


def invented(seeds: tuple[int, ...] = (0,)) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Behavior k breaks at step k under every seed, the last one never; b1's completion is nonsense."""
    rows, steps = [], []
    for seed in seeds:
        for index in range(4):
            broken = index < 3
            for budget in (1, 4):
                told: dict[str, object] = {
                    "label": "harmful" if broken and index <= budget else "safe",
                    "success": broken and index <= budget,
                }
                rest = {"subset": "seen", "degenerate": index == 1, "refusal": "full_compliance", "affirmed": False, "set": "adaptive_gcg"}
                rows.append({"id": f"b{index}", "attack_seed": seed, "attack_steps": budget, **told, **rest})
            for step in range((index if broken else 4) + 1):
                hit = broken and step == index
                told = {"candidates": 10 if step else 1, "flops": 100.0 * (step + 1), "succeeded": hit}
                steps.append({"behavior": f"b{index}", "attack_seed": seed, "step": step, **told})
    return pd.DataFrame(rows), pd.DataFrame(steps)


def value(table: pd.DataFrame, metric: str, **identity: object) -> float:
    found = table[(table["metric"] == metric) & (table["subset"] == "all")]
    for column, wanted in identity.items():
        found = found[found[column] == wanted]
    return float(found["value"].item())


def test_costs_and_survival_of_an_invented_attack() -> None:
    table = pd.DataFrame(attempt_rows("adaptive_gcg", *invented(), [1, 4]))
    assert value(table, "asr_adaptive_gcg", attack_steps=4) == 0.75
    assert value(table, "asr_adaptive_gcg_gated", attack_steps=4) == 0.5
    assert value(table, "survival", at_step=0) == 0.75
    assert value(table, "survival", at_step=4) == 0.25
    assert value(table, "median_steps_to_success") == 1
    assert value(table, "median_queries_to_success") == 11
    assert np.isnan(value(table, "median_flops_to_success_gated")) or value(table, "median_flops_to_success_gated") == 300
    # b0 costs 1 query, b1 11, b2 21, b3 gives up after 41.
    by_queries = table[table["metric"] == "asr_by_queries"].set_index("budget_queries")["value"].to_dict()
    assert by_queries == {1: 0.25, 2: 0.25, 5: 0.25, 10: 0.25, 20: 0.5, 50: 0.75}
    gated = table[table["metric"] == "asr_by_flops_gated"].set_index("budget_flops")["value"].to_dict()
    assert gated == {100: 0.25, 200: 0.25, 500: 0.5}
    # At the end of a run without losses the curve is what the success rate leaves.
    assert value(table, "survival", at_step=4) == pytest.approx(1 - value(table, "asr_adaptive_gcg", attack_steps=4))


def test_what_is_not_reached_is_absent_with_a_reason() -> None:
    transcripts, records = invented()
    transcripts, records = transcripts[transcripts["id"] == "b3"], records[records["behavior"] == "b3"]
    table = pd.DataFrame(attempt_rows("adaptive_gcg", transcripts, records, [1, 4]))
    row = table[table["metric"] == "median_steps_to_success"].iloc[0]
    assert np.isnan(row["value"])
    assert "not reached" in row["note"]


def test_rates_of_one_attack_seed_are_those_of_every_other_measure() -> None:
    transcripts, _ = invented()
    part = transcripts[transcripts["attack_steps"] == 4].assign(subset=["x", "x", "y", "y"])
    pd.testing.assert_frame_equal(pd.DataFrame(rates("adaptive_gcg", "adaptive_gcg", part)), pd.DataFrame(summarize(part)))


def test_attack_seeds_are_aggregated_over_behaviors_and_shown_apart() -> None:
    table = pd.DataFrame(attempt_rows("adaptive_gcg", *invented((3, 7)), [1, 4]))
    whole = table[(table["set"] == "adaptive_gcg") & (table["metric"] == "asr_adaptive_gcg")]
    assert whole["n"].tolist() == [4, 4]
    assert whole["attack_seed"].isna().all()
    apart = table[(table["set"] == PER_SEED) & (table["metric"] == "asr_adaptive_gcg")]
    assert sorted(apart["attack_seed"]) == [3, 3, 7, 7]
    assert len(outcomes(*invented((3, 7)))) == 8


def test_the_grid_holds_its_ends() -> None:
    assert grid(3, 120) == [2, 5, 10, 20, 50, 100, 200]
    assert grid(1, 1) == [1]


def test_every_method_and_seed_is_in_the_frames(tiny_lm: LanguageModel) -> None:
    found = stressed(tiny_lm, seeds=(0, 5))
    assert len(found.transcripts) == 2 * 2 * 4
    assert len(found.cases) == 8
    assert {"method", "attack_seed"} <= set(found.table) & set(found.records) & set(found.transcripts)
    first = found.records[found.records["attack_seed"] == 0]["attack"].tolist()
    assert first == stressed(tiny_lm).records["attack"].tolist()


def job(run: Path, fingerprint: str = "f" * 64) -> Job:
    store = Store(run)
    store.create("tiny")
    stage = Stage("start/stress", Path("start/stress"), "f:g", kind="stress")
    return Job(store, None, Ticket(stage, fingerprint, {}), run / "out", lambda *told: None)  # type: ignore[arg-type]  # no study is read


def test_shards_change_nothing_where_cases_share_nothing_and_a_killed_run_goes_on(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    whole = stressed(tiny_lm)
    shards, asked = Shards(job(tmp_path)), list[str]()

    class Killed(Exception):
        pass

    def dying(key: str, make: Callable[[], Attempt]) -> Attempt:
        asked.append(key)
        if len(asked) == 2:
            raise Killed
        return shards(key, make)

    with pytest.raises(Killed):
        stressed(tiny_lm, dying, shard=2)
    kept = {path.name for path in shards.folder.iterdir()}
    assert kept == {"stage.json", "adaptive_gcg-seed-0-shard-0000"}
    made = list[str]()

    def going_on(key: str, make: Callable[[], Attempt]) -> Attempt:
        def noted() -> Attempt:
            made.append(key)
            return make()

        return shards(key, noted)

    resumed = stressed(tiny_lm, going_on, shard=2)
    assert made == ["adaptive_gcg-seed-0-shard-0001"]
    undisturbed = stressed(tiny_lm, Shards(job(tmp_path, "e" * 64)), shard=2)
    for one, other in zip(resumed, undisturbed, strict=True):
        if isinstance(one, pd.DataFrame) and isinstance(other, pd.DataFrame):
            hidden = [column for column in one if column == "seconds"]
            pd.testing.assert_frame_equal(one.drop(columns=hidden), other.drop(columns=hidden))
        else:
            assert one == other
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_dtype=False)


def test_shards_go_when_their_stage_is_published_and_with_its_settings(tmp_path: Path) -> None:
    first, second = job(tmp_path), job(tmp_path, "e" * 64)
    step = {"behavior": "b0", "step": 0, "attack": "! !", "loss": 1.0, "candidates": 0, "flops": 1.0, "succeeded": None}
    empty = Attempt(pd.DataFrame({"id": ["b0"]}), [], pd.DataFrame([step]))
    Shards(first)("a", lambda: empty)
    sweep(first.store)
    assert Shards(first).folder.is_dir()
    drop_others(Shards(second), second)
    assert not Shards(first).folder.exists()
    Shards(second)("a", lambda: empty)
    with second.store.publish(second.stage, second.ticket.fingerprint, {}):
        pass
    sweep(second.store)
    assert list((tmp_path / STATE / "shards").iterdir()) == []


def test_replayed_at_home_strings_do_what_the_attack_said(tiny_lm: LanguageModel) -> None:
    here = stressed(tiny_lm)
    home, other = Origin("r2d2", 1, 3), Origin(START, None, 0)
    elsewhere = here.transcripts.assign(attack="! !")
    sources = [Source(home, here.transcripts), Source(other, elsewhere)]
    found = replay_strings(tiny_lm, BEHAVIORS, sources, home, Chance(), 9, 4, 64, 0)
    mine = found.transcripts[found.transcripts["source_step"] == 3].set_index("id")
    told = final_strings(here.transcripts, GCG)
    for column in ("attack", "completion", "success", "degenerate"):
        assert mine[column].to_dict() == told[column].to_dict()
    table = found.table
    own = value(here.table, "asr_adaptive_gcg", attack_steps=2)
    assert value(table, "asr_replay", source_step=3) == own
    assert value(table, "asr_replay_minus_own", source_step=3) == 0
    assert value(table, "asr_replay_minus_home_gated", source_step=3) == 0
    gap = value(table, "asr_replay", source_step=0) - own
    assert value(table, "asr_replay_minus_own", source_step=0) == pytest.approx(gap)
    limited = replay_strings(tiny_lm, BEHAVIORS, sources, home, Chance(), 2, 4, 64, 0)
    assert len(limited.transcripts) == 4
    assert table.loc[table["metric"] == "distinct_prompts", "value"].item() == len(
        {*zip(*(found.transcripts[c] for c in ("id", "attack")), strict=True)}
    )

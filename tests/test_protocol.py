"""The protocol as a graph: what is made, what depends on what, and how anchors and references are found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from refgeo.config.load import load_study
from refgeo.config.schema import ReferenceRule, Study
from refgeo.errors import DataError
from refgeo.study import layout
from refgeo.study.digests import Digests
from refgeo.study.graph import Graph, Record
from refgeo.study.protocol import drift_targets, study_graph
from refgeo.study.run import absolute
from refgeo.study.schedule import Schedule
from refgeo.study.slices import Slices
from refgeo.study.stages import stable_from
from refgeo.study.staging import anchor_id, geometry_id, reference_id
from refgeo.study.store import Store
from tiny_study import write_study

BUILDER = "refgeo.report.build:build_report"


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Study]:
    """The miniature study with overrides. Its model is a folder with one file: the graph only looks at the content."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("1 2 3")
    path = write_study(tmp_path, model)
    return lambda *overrides: load_study(str(path), overrides)


def graph(study: Study, run: Path) -> Graph:
    return study_graph(Store(run), study, Digests(), BUILDER)


def made(graph: Graph) -> dict[str, Record | None]:
    return {
        name: Record(graph.fingerprints[name], stage.version, stage.settings, graph.before(name), 1.0, {})
        for name, stage in graph.stages.items()
    }


def stale(before: Graph, after: Graph) -> set[str]:
    """Kinds of stages that a change makes run again."""
    done = after.done(made(before))
    return {
        after.stages[name].kind + (f" {after.stages[name].arm}" if after.stages[name].kind == "train" else "")
        for name in after.stages
        if name not in done
    }


def find_reference(study: Study, run: Path, arm: str, seed: int, step: int) -> None:
    """As if the rule had found ``step``."""
    known = graph(study, run)
    name = reference_id(arm, seed)
    store = Store(run)
    for each in (name, f"{arm}/seed-{seed}/train", *(stage.id for stage in known.products(f"{arm}/seed-{seed}/train"))):
        with store.publish(known.stages[each], known.fingerprints[each], known.before(each)) as folder:
            (folder / layout.ANCHOR).write_text(json.dumps({"step": step}))


def test_every_arm_and_anchor_is_measured_and_the_start_once(tiny: Callable[..., Study], tmp_path: Path) -> None:
    study = tiny("anchors.reference={sft: 2, r2d2: 3}", "train.seeds=[1,2]")
    stages = graph(study, tmp_path / "run").stages
    for measure in ("behavior", "geometry", "stress"):
        assert f"start/{measure}" in stages
    for seed in (1, 2):
        for step in (2, 3, 6):
            assert {f"{anchor_id('sft', seed, step)}/{measure}" for measure in ("adapter", "behavior", "geometry", "drift")} <= set(stages)
        for step in (3, 6):
            assert {f"{anchor_id('r2d2', seed, step)}/{measure}" for measure in ("intervention", "stress")} <= set(stages)
    kinds = [stage.kind for stage in stages.values()]
    assert kinds.count("cases") == 1
    assert kinds.count("train") == 4
    assert kinds[-1] == "report"
    assert set(stages["report"].inputs) == set(stages) - {"report"}


def test_every_stage_has_its_own_folder_and_a_function(tiny: Callable[..., Study], tmp_path: Path) -> None:
    stages = graph(tiny(), tmp_path / "run").stages.values()
    folders = [stage.folder for stage in stages]
    assert len(set(folders)) == len(folders)
    for stage in stages:
        if stage.made_by is None:
            assert callable(stage.resolve())


@pytest.mark.parametrize(
    ("override", "kinds"),
    [
        ("stress.attack.steps=3", {"stress", "projection", "report"}),
        ("intervention.controls=3", {"intervention", "report"}),
        ("geometry.bootstrap=5", {"geometry", "drift", "projection", "intervention", "report"}),
        ("behavior.tail_prompts=3", {"behavior", "projection", "report"}),
        ("behavior.max_new_tokens=6", {"reference", "behavior", "geometry", "drift", "projection", "intervention", "stress", "report"}),
        ("source_attack.steps=3", {"cases", "behavior", "projection", "intervention", "report"}),
        ("report.transcripts=none", {"report"}),
        (
            "train.r2d2.reset_share=0.5",
            {"train r2d2", "checkpoint", "reference", "behavior", "geometry", "projection", "intervention", "stress", "report"},
        ),
        ("judge.second={kind: rules}", {"judge_agreement", "report"}),
        ("judge.second_completions=50", set()),
        ("judge.max_unscored=0.5", set()),
        ("anchors.reference.r2d2.saves=3", {"reference", "report"}),
        ("run.workers=3", set()),
        ("run.threads=2", set()),
        ("model.device=auto", set()),
        ("behavior.batch=7", set()),
        ("geometry.batch=7", set()),
        ("source_attack.tokens_per_batch=7", set()),
        ("train.r2d2.attack.tokens_per_batch=7", set()),
    ],
)
def test_a_setting_makes_stale_what_depends_on_it(tiny: Callable[..., Study], tmp_path: Path, override: str, kinds: set[str]) -> None:
    run = tmp_path / "run"
    assert stale(graph(tiny(), run), graph(tiny(override), run)) == kinds


def test_nothing_before_the_measures_reads_the_test_behaviors_but_the_fixed_attack(tiny: Callable[..., Study], tmp_path: Path) -> None:
    study = tiny()
    read = hashlib.sha256(Path(study.data.behaviors_test.path).read_bytes()).hexdigest()
    readers = {stage.kind for stage in graph(study, tmp_path / "run").stages.values() if read in json.dumps(stage.settings)}
    assert {"cases", "behavior", "intervention", "stress"} <= readers
    assert not {"train", "checkpoint", "reference", "geometry", "drift"} & readers


def test_a_change_of_one_arm_leaves_the_other(tiny: Callable[..., Study], tmp_path: Path) -> None:
    run = tmp_path / "run"
    before, after = graph(tiny(), run), graph(tiny("train.r2d2.pool=5"), run)
    done = after.done(made(before))
    assert {name for name in after.stages if name.startswith(("sft/", "start/", "cases/"))} <= done
    assert not any(name.startswith("r2d2/") for name in done)


def test_adding_an_anchor_or_a_seed_keeps_all_the_others(tiny: Callable[..., Study], tmp_path: Path) -> None:
    run = tmp_path / "run"
    before = graph(tiny("anchors.reference.r2d2=3"), run)
    for override in ("train.seeds=[1,2]", "anchors.steps=[3,4,6]"):
        after = graph(tiny("anchors.reference.r2d2=3", override), run)
        done = after.done(made(before))
        new = {name for name in after.stages if name not in before.stages}
        assert new
        # Drift to the previous anchor is another comparison when an anchor comes between; training has one more thing to publish;
        # every direction meets every anchor of its seed, and the start those of all seeds.
        again = {name for name in before.stages if name not in done} - {"report"}
        assert all(name.endswith(("/train", "/step-000006/drift", "/transfer")) for name in again)
        assert ("r2d2/seed-1/step-000006/transfer" in again) == override.startswith("anchors")
        assert "start/transfer" in again


def test_files_count_by_content_and_not_by_place(tiny: Callable[..., Study], tmp_path: Path) -> None:
    run, study = tmp_path / "run", tiny()
    before = graph(study, run)
    (tmp_path / "data").rename(tmp_path / "moved")
    content = study.model_dump_json().replace(str(tmp_path / "data"), str(tmp_path / "moved"))
    moved = Study.model_validate_json(content)
    assert stale(before, graph(moved, run)) == set()
    strongreject = tmp_path / "moved" / "strongreject.csv"
    strongreject.write_text(strongreject.read_text() + "feeding,tiny,feed the bread,\n")
    assert stale(before, graph(moved, run)) == {"behavior", "projection", "intervention", "judge_floor", "report"}


def test_a_second_judge_is_asked_after_all_behavior_and_makes_nothing_else_again(tiny: Callable[..., Study], tmp_path: Path) -> None:
    run, second = tmp_path / "run", "judge.second={kind: rules}"
    alone, both = graph(tiny(), run), graph(tiny(second), run)
    inputs = set(both.stages["judge/agreement"].inputs)
    assert inputs >= {name for name, stage in both.stages.items() if stage.kind == "behavior"}
    assert reference_id("r2d2", 1) in inputs  # it will bring one more anchor to be sampled
    assert {name: both.fingerprints[name] for name in alone.stages if name != "report"}.items() <= both.fingerprints.items()
    for change in ("judge.second_completions=50", "judge.second.kind=xstest"):
        assert stale(both, graph(tiny(second, change), run)) == {"judge_agreement", "report"}
    assert stale(alone, graph(tiny("judge.grammar=null", "judge.kind=rules"), run)) >= {"judge_floor", "behavior", "stress"}
    assert "judge_floor" not in stale(alone, graph(tiny("behavior.max_new_tokens=6"), run))


def test_a_missing_file_is_named_before_anything_runs(tiny: Callable[..., Study], tmp_path: Path) -> None:
    (tmp_path / "data" / "audit.csv").unlink()
    with pytest.raises(DataError, match=r"audit\.csv"):
        graph(tiny(), tmp_path / "run")


def test_what_is_on_a_hub_counts_by_name_and_revision(tiny: Callable[..., Study]) -> None:
    slices = [
        Slices(tiny("model.path=org/model", f"model.revision={revision}"), Digests()).model()["weights"] for revision in ("one", "two")
    ]
    assert slices == [{"hub": "org/model", "revision": "one"}, {"hub": "org/model", "revision": "two"}]


def test_measures_that_are_switched_off_are_no_stages(tiny: Callable[..., Study], tmp_path: Path) -> None:
    kinds = {stage.kind for stage in graph(tiny("stress.enabled=false", "intervention.enabled=false"), tmp_path / "run").stages.values()}
    assert not kinds & {"stress", "intervention"}


def test_stress_and_intervention_go_where_they_are_told(tiny: Callable[..., Study], tmp_path: Path) -> None:
    stages = graph(tiny("stress.steps=[0]", "intervention.steps=[0, 2, 6]"), tmp_path / "run").stages.values()
    where = {kind: {(stage.arm, stage.step) for stage in stages if stage.kind == kind} for kind in ("stress", "intervention")}
    # Step 2 is the reference of sft alone.
    assert where == {"stress": {(None, 0)}, "intervention": {(None, 0), ("sft", 2), ("sft", 6), ("r2d2", 6)}}
    none = graph(tiny("stress.steps=[]"), tmp_path / "run").stages.values()
    assert not [stage for stage in none if stage.kind == "stress"]


def test_the_critical_path_goes_first(tiny: Callable[..., Study], tmp_path: Path) -> None:
    study = tiny()
    schedule = Schedule(Store(tmp_path / "run"), lambda: graph(study, tmp_path / "run"))
    order = []
    while (stage := schedule.next()) is not None:
        order.append(stage.id)
        schedule.running.add(stage.id)
    assert order[:4] == ["r2d2/seed-1/train", "cases/fixed", "sft/seed-1/train", "start/geometry"]


def test_until_a_rule_has_found_the_reference_nothing_drifts_from_it(tiny: Callable[..., Study], tmp_path: Path) -> None:
    run, study = tmp_path / "run", tiny()
    early = graph(study, run)
    assert not [name for name in early.stages if name.startswith("r2d2/") and name.endswith("drift")]
    assert reference_id("r2d2", 1) in early.stages["report"].inputs
    find_reference(study, run, "r2d2", 1, 2)
    late = graph(study, run)
    assert f"{anchor_id('r2d2', 1, 2)}/geometry" in late.stages
    assert late.stages[f"{anchor_id('r2d2', 1, 2)}/geometry"].inputs == (reference_id("r2d2", 1),)
    assert late.stages[f"{anchor_id('r2d2', 1, 6)}/drift"].inputs == tuple(geometry_id("r2d2", 1, step) for step in (6, 2, 3))
    assert {name: late.fingerprints[name] for name in early.stages if name != "report"}.items() <= late.fingerprints.items()


@pytest.mark.parametrize("step", [0, 3])
def test_a_reference_that_is_another_anchor_is_measured_once(tiny: Callable[..., Study], tmp_path: Path, step: int) -> None:
    run, study = tmp_path / "run", tiny()
    find_reference(study, run, "r2d2", 1, step)
    late = graph(study, run)
    behavior = [stage for stage in late.stages.values() if stage.kind == "behavior" and stage.arm == "r2d2"]
    assert sorted(stage.step or 0 for stage in behavior) == [3, 6]
    listed = [anchor for anchor in layout.anchors(run, study) if anchor.arm == "r2d2"]
    assert [anchor.step for anchor in listed if anchor.is_reference] == [step]
    assert [anchor.step for anchor in listed] == [0, 3, 6]


def test_a_reference_of_older_settings_does_not_count(tiny: Callable[..., Study], tmp_path: Path) -> None:
    run = tmp_path / "run"
    find_reference(tiny(), run, "r2d2", 1, 2)
    changed = graph(tiny("train.r2d2.pool=5"), run)
    assert not [name for name in changed.stages if name.startswith("r2d2/") and name.endswith("drift")]


def test_anchors_are_listed_with_the_start_for_every_arm_and_seed(tiny: Callable[..., Study], tmp_path: Path) -> None:
    study = tiny("train.seeds=[1,2]", "anchors.reference.r2d2=3")
    listed = layout.anchors(tmp_path, study)
    assert [(anchor.arm, anchor.seed, anchor.step, anchor.label) for anchor in listed[:4]] == [
        ("sft", 1, 0, "start"),
        ("sft", 1, 2, "reference"),
        ("sft", 1, 3, "step 3"),
        ("sft", 1, 6, "step 6"),
    ]
    starts = [anchor for anchor in listed if anchor.step == 0]
    assert len(starts) == 4
    assert {anchor.part("behavior") for anchor in starts} == {tmp_path / "start" / "step-000000" / "behavior"}
    assert len({anchor.part("drift") for anchor in starts}) == 4


def test_the_report_finds_every_stage_where_it_was_written(tiny: Callable[..., Study], tmp_path: Path) -> None:
    study = tiny("anchors.reference.r2d2=3")
    written = {tmp_path / stage.folder for stage in graph(study, tmp_path).stages.values() if stage.kind in layout.MEASURES}
    read = {anchor.part(measure) for anchor in layout.anchors(tmp_path, study) for measure in layout.MEASURES}
    assert written <= read


def test_every_direction_of_a_seed_meets_every_anchor_of_it(tiny: Callable[..., Study], tmp_path: Path) -> None:
    study = tiny("anchors.reference={sft: 3, r2d2: 3}", "train.seeds=[1,2]")
    stages = graph(study, tmp_path / "run").stages
    own = stages["sft/seed-2/step-000006/transfer"]
    of_seed = {geometry_id(arm, 2, step) for arm in ("sft", "r2d2") for step in (0, 3, 6)}
    assert set(own.inputs) == {"sft/seed-2/step-000006/adapter", *of_seed}
    both = {geometry_id(arm, seed, step) for arm in ("sft", "r2d2") for seed in (1, 2) for step in (0, 3, 6)}
    assert set(stages["start/transfer"].inputs) == both
    off = graph(tiny("geometry.transfer=false", "geometry.projection=false"), tmp_path / "run")
    assert not {stage.kind for stage in off.stages.values()} & {"transfer", "projection"}
    assert off.fingerprints["start/geometry"] == graph(tiny(), tmp_path / "run").fingerprints["start/geometry"]


def test_a_change_of_one_arm_reaches_every_anchor_that_its_directions_meet(tiny: Callable[..., Study], tmp_path: Path) -> None:
    run, fixed = tmp_path / "run", "anchors.reference={sft: 3, r2d2: 3}"
    before, after = graph(tiny(fixed), run), graph(tiny(fixed, "train.r2d2.pool=5"), run)
    done = after.done(made(before))
    assert not [name for name in done if name.endswith("/transfer")]
    assert {"start/projection", "sft/seed-1/step-000006/projection"} <= done


def test_nothing_is_transferred_before_every_reference_of_the_seed_is_known(tiny: Callable[..., Study], tmp_path: Path) -> None:
    run, study = tmp_path / "run", tiny()
    assert not [name for name in graph(study, run).stages if name.endswith("transfer")]
    find_reference(study, run, "r2d2", 1, 2)
    late = graph(study, run)
    assert geometry_id("r2d2", 1, 2) in late.stages["sft/seed-1/step-000006/transfer"].inputs


def test_a_projection_reads_what_was_attacked_and_the_axes_of_the_start(tiny: Callable[..., Study], tmp_path: Path) -> None:
    stages = graph(tiny("stress.steps=[0,3]"), tmp_path / "run").stages
    assert set(stages["start/projection"].inputs) == {"start/geometry", "start/behavior", "start/stress"}
    anchor = anchor_id("sft", 1, 3)
    wanted = {f"{anchor}/{part}" for part in ("adapter", "geometry", "behavior", "stress")}
    assert set(stages[f"{anchor}/projection"].inputs) == {"start/projection", *wanted}
    assert not [name for name in stages[f"{anchor_id('sft', 1, 6)}/projection"].inputs if name.endswith("stress")]


def test_drift_goes_to_the_reference_and_to_the_anchor_before() -> None:
    steps = [0, 2, 5, 9]
    assert drift_targets(steps, 0, 2) == {"reference": 2}
    assert drift_targets(steps, 2, 2) == {"previous": 0}
    assert drift_targets(steps, 9, 2) == {"reference": 2, "previous": 5}
    assert drift_targets(steps, 0, 0) == {}


@given(st.dictionaries(st.integers(1, 30), st.sampled_from([0.2, 0.8, 0.9, 1.0]), max_size=12), st.integers(1, 4))
def test_the_reference_is_the_earliest_stable_save(refusal: dict[int, float], saves: int) -> None:
    found = stable_from(refusal, ReferenceRule(refusal=0.9, saves=saves))
    steps = sorted(refusal)
    windows = [steps[at : at + saves] for at in range(len(steps) - saves + 1)]
    stable = [window[0] for window in windows if all(refusal[step] >= 0.9 for step in window)]
    assert found == (stable[0] if stable else None)


def test_a_study_with_relative_paths_can_be_used_from_anywhere(
    tiny: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative: dict[str, Any] = yaml.safe_load(tiny().model_dump_json().replace(f"{tmp_path}/", ""))
    study = absolute(Study.model_validate({**relative, "train": tiny().train}))
    assert study == tiny()
    package = "package:pocket/world/model"
    assert absolute(tiny(f"model.path={package}", "data.chat=org/chat")).model.path == package
    assert absolute(tiny("data.chat=org/chat")).data.chat.path == "org/chat"

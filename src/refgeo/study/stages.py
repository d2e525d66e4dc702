"""What the workers do: read files, call attacks, training and measures, write files. A measure never opens a file; here they are opened.

Every function is a stage of ``refgeo.study.protocol`` of the same name.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pandas as pd

from refgeo.attacks.cases import Case, load_cases, save_cases
from refgeo.attacks.gcg import attack
from refgeo.attacks.start import initial_cases
from refgeo.config.schema import Arm, ReferenceRule
from refgeo.data.load import load_behaviors, load_chat, load_probes
from refgeo.data.rows import Behavior
from refgeo.errors import StoreError
from refgeo.judging import make_judge
from refgeo.judging.verdict import Judge
from refgeo.lm.load import load
from refgeo.lm.model import LanguageModel
from refgeo.measures.aware import carrier_term
from refgeo.measures.behavior import evaluation_items, measure_behavior
from refgeo.measures.drift import measure_drift
from refgeo.measures.evaluate import Item, evaluate
from refgeo.measures.geometry import measure_geometry
from refgeo.measures.intervention import adaptive_items, measure_intervention
from refgeo.measures.sets import refused
from refgeo.measures.stress import measure_stress
from refgeo.measures.table import frame, row
from refgeo.statistics import exact
from refgeo.study import layout
from refgeo.study.job import Job
from refgeo.study.loading import check_fit, evaluation_sets, read_carrier, read_tensors, write_geometry, write_tables
from refgeo.study.reading import read_attacked
from refgeo.study.shards import Shards, drop_others, sweep
from refgeo.training.loop import train as train_arm


def cases(job: Job) -> None:
    """Optimize one attacked prompt per test behavior against the starting model."""
    study = job.study
    lm = load(study.model)
    start = initial_cases(load_behaviors(study.data.behaviors_test), study.source_attack, study.seed)
    attacked = attack(lm, start, study.source_attack, study.seed, job.progress, "fixed-source attack")
    digest = save_cases(job.out / layout.CASES, attacked.best)
    (job.out / layout.CASES_HASH).write_text(f"{digest}  {layout.CASES}\n", encoding="utf-8")
    attacked.records.to_parquet(job.out / layout.RECORDS, index=False)


def train(job: Job) -> None:
    """Train one arm with one seed; its anchors are published as they come. Resumes from the newest save with the same settings."""
    arm, seed = _arm(job), _seed(job)
    saves = layout.saves_folder(job.run, arm, seed, job.ticket.fingerprint)
    for other in saves.parent.glob("saves-*"):
        if other != saves:  # Saves of other settings: nothing resumes from them.
            shutil.rmtree(other)
    if not restore_anchors(job, saves):
        shutil.rmtree(saves)
    log = train_arm(job.study, arm, seed, saves, job.publish, job.progress)
    log.to_parquet(job.out / layout.TRAIN_LOG, index=False)


def restore_anchors(job: Job, saves: Path) -> bool:
    """Publish the missing anchors that training has already passed from its saves; False when it must begin again for one of them."""
    steps = sorted(int(folder.name.removeprefix("step-")) for folder in saves.glob("step-*"))
    for step in job.missing():
        kept = saves / layout.step_name(step) / "adapter"
        if step in steps:
            job.publish(step, lambda folder, kept=kept: _copy(kept, folder))  # type: ignore[misc]  # a default binds the loop variable
        elif steps and step < steps[-1]:
            return False
    return True


def reference(job: Job) -> None:
    """Find the earliest save from which on direct refusal is stable, and keep it; the start when there is none."""
    study, arm, seed = job.study, _arm(job), _seed(job)
    rule = next(value for name, value in study.anchors.reference.items() if name == arm)
    assert isinstance(rule, ReferenceRule)
    (training,) = job.ticket.inputs.values()
    saves = layout.saves_folder(job.run, arm, seed, training)
    folders = sorted(saves.glob("step-*"))
    if not folders:
        raise StoreError(
            f"'{saves}' has no saves to find a reference in", fix=f"Delete '{layout.train_folder(job.run, arm, seed)}' and run again"
        )
    asked = load_behaviors(study.data.behaviors_val or study.data.behaviors_train, need_targets=False)
    judge = _judge(job)
    refusal: dict[int, float] = {}
    chosen = None
    for number, folder in enumerate(folders):
        job.progress(number, len(folders), f"direct refusal at {folder.name}")
        step = int(folder.name.removeprefix("step-"))
        refusal[step] = _direct_refusal(
            load(study.model, folder / "adapter"), asked, judge, study.behavior.max_new_tokens, study.behavior.batch
        )
        chosen = stable_from(refusal, rule)
        if chosen is not None:
            _copy(saves / layout.step_name(chosen) / "adapter", job.out)
            break
    found = {"step": chosen or 0, "refusal": refusal, "rule": rule.model_dump()}
    if chosen is None:
        found["reason"] = (
            f"no {rule.saves} saves in a row refused at least {rule.refusal:.0%} of direct requests; the start is the reference"
        )
    (job.out / layout.ANCHOR).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def stable_from(refusal: dict[int, float], rule: ReferenceRule) -> int | None:
    """The first step from which ``rule.saves`` saves in a row refuse enough; None when there is none yet."""
    run: list[int] = []
    for step in sorted(refusal):
        run = [*run, step] if refusal[step] >= rule.refusal else []
        if len(run) == rule.saves:
            return run[0]
    return None


def behavior(job: Job) -> None:
    """Behavior at one anchor."""
    study = job.study
    measured = measure_behavior(
        _model(job), evaluation_sets(study.data), _cases(job), _judge(job), study.behavior, study.source_attack, study.seed, job.progress
    )
    write_tables(job.out, measured.table, measured.transcripts)


def geometry(job: Job) -> None:
    """Geometry at one anchor."""
    study = job.study
    probes = load_probes(study.data.probes)
    found = measure_geometry(_model(job), probes, study.geometry, _judge(job), study.behavior.max_new_tokens, study.seed, job.progress)
    write_geometry(job.out, found)


def drift(job: Job) -> None:
    """Drift: one anchor against its reference and against the anchor before it."""
    study, arm, seed = job.study, _arm(job), _seed(job)
    targets = job.stage.settings["to"]
    assert isinstance(targets, dict)
    own = _geometry_folder(job, arm, seed, _step(job))
    parts = []
    for name, step in targets.items():
        other = _geometry_folder(job, arm, seed, step)
        here, there = read_tensors(own), read_tensors(other)
        shapes = [tuple(side["candidates"].shape[1:]) for side in (here, there)]
        if shapes[0] != shapes[1]:  # Given checkpoints may be models of different sizes: no angle is defined between their streams.
            note = f"{shapes[0][0]} layers of width {shapes[0][1]} cannot be compared with {shapes[1][0]} of width {shapes[1][1]}"
            identity = {"scope": "field", "to": name, "note": note}
            parts.append(frame([row("drift", "principal_angle_1", exact(math.nan, 0), **identity)]))
            continue
        parts.append(measure_drift(here, there, read_carrier(own), read_carrier(other), study.geometry, study.seed, name))
    write_tables(job.out, pd.concat(parts, ignore_index=True))


def intervention(job: Job) -> None:
    """Cause at one anchor."""
    study = job.study
    folder = _own(job) / "geometry"
    sets = evaluation_sets(study.data)
    items: list[Item] = evaluation_items(sets, _cases(job))
    stressed = _own(job) / "stress" / layout.TRANSCRIPTS
    if study.intervention.adaptive and any(name.endswith("/stress") for name in job.ticket.inputs):
        items += adaptive_items(sets.behaviors, read_attacked(stressed))
    few = study.data.chat.model_copy(update={"limit": study.intervention.chats})
    judge, lm, tensors = _judge(job), _model(job), read_tensors(folder)
    check_fit(lm, tensors, folder)
    measured = measure_intervention(
        lm,
        items,
        tensors,
        read_carrier(folder),
        judge,
        study.intervention,
        study.behavior,
        study.geometry,
        study.seed,
        job.progress,
        load_chat(few) if study.intervention.chats else (),
    )
    write_tables(job.out, measured.table, measured.transcripts)


def stress(job: Job) -> None:
    """Stress at one anchor."""
    study = job.study
    behaviors = load_behaviors(study.data.behaviors_test)
    sweep(job.store)
    shards, term, lm = Shards(job), None, _model(job)
    drop_others(shards, job)
    if study.stress.aware is not None:
        folder = _own(job) / "geometry"
        tensors = read_tensors(folder)
        check_fit(lm, tensors, folder)
        term = carrier_term(tensors, read_carrier(folder), study.stress.aware)
    found = measure_stress(lm, behaviors, _judge(job), study.stress, study.behavior, study.seed, job.progress, term, shards)
    write_tables(job.out, found.table, found.transcripts)
    save_cases(job.out / layout.CASES, found.cases)
    found.records.to_parquet(job.out / layout.RECORDS, index=False)


def report(job: Job) -> None:
    """Tables, figures, claims and the page. The builder is named by import path: its room lies above this one."""
    sweep(job.store)
    module, _, name = str(job.stage.settings["builder"]).partition(":")
    getattr(import_module(module), name)(job.run, job.study, job.out)


def _direct_refusal(lm: LanguageModel, behaviors: Sequence[Behavior], judge: Judge, max_new_tokens: int, batch: int) -> float:
    items = [Item("direct", behavior.subset, behavior.id, behavior.request, behavior.reference) for behavior in behaviors]
    transcripts = evaluate(lm, items, judge, max_new_tokens, batch)
    return float(refused(transcripts).mean())


def _judge(job: Job) -> Judge:
    """The study's judge; what it said is remembered in the run folder."""
    return make_judge(job.study.judge, job.run / layout.VERDICTS)


def _model(job: Job) -> LanguageModel:
    """The model of the job's anchor, its hooks proven to work."""
    given = layout.given_model(job.study, _step(job))
    if given is not None:
        return load(given)
    return load(job.study.model, None if _step(job) == 0 else _own(job) / "adapter")


def _own(job: Job) -> Path:
    """Folder of the job's anchor: the one that its result lies in."""
    return job.run / job.stage.folder.parent


def _geometry_folder(job: Job, arm: str, seed: int, step: int) -> Path:
    return layout.measured_folder(job.run, job.study, arm, seed, step) / "geometry"


def _cases(job: Job) -> list[Case]:
    """The fixed-source cases, exactly those that were optimized. Raises ``StoreError`` when the file was changed since."""
    folder = layout.cases_folder(job.run)
    wanted = (folder / layout.CASES_HASH).read_text(encoding="utf-8").split()[0]
    if hashlib.sha256((folder / layout.CASES).read_bytes()).hexdigest() != wanted:
        raise StoreError(f"'{folder / layout.CASES}' was changed after it was made", fix=f"Delete '{folder}' and run again")
    return load_cases(folder / layout.CASES)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def _arm(job: Job) -> Arm:
    return next(arm for arm in job.study.train.arms if arm == job.stage.arm)


def _seed(job: Job) -> int:
    assert job.stage.seed is not None
    return job.stage.seed


def _step(job: Job) -> int:
    assert job.stage.step is not None
    return job.stage.step

"""The paper's method as stages over files, in the order of the paper. Reading this file is reading what a study does.

cases                   attacked prompts, optimized once against the starting model and replayed everywhere
arms x seeds            training; checkpoints appear at the anchors while it runs (arm ``checkpoints``: they are there already)
reference               the checkpoint that drift is measured from, where a rule has to find it
start, arms x anchors   behavior, geometry, drift, intervention, stress
judge                   its floor on canned replies; its agreement with a second judge, where there is one
report                  tables, figures, claims, page
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from refgeo.config.schema import ReferenceRule, Study
from refgeo.study import layout
from refgeo.study.digests import Digests
from refgeo.study.graph import Graph, Stage
from refgeo.study.slices import Slice, Slices
from refgeo.study.staging import Place, anchor_id, cell, checkpoint_id, geometry_id, make, reference_id
from refgeo.study.store import Store

RUN = Path()
CASES = "cases/fixed"
REPORT = "report"


class Target(NamedTuple):
    """One anchor with its weights (None: the model of ``slices`` itself), to which something of other anchors is applied."""

    slices: Slices
    anchor: str
    folder: Path
    weights: str | None
    place: Place


def study_graph(store: Store, study: Study, digests: Digests, builder: str) -> Graph:
    """All stages of a study as far as they are known: those that need a reference found by rule appear when it has been found.

    ``builder`` is the import path of the function that makes the report: the report room lies above this one.
    """
    slices = Slices(study, digests)
    before = [fixed_cases(slices), *training(slices)]
    trained = Graph(before)
    done = store.done(trained)
    references: dict[tuple[str, int], int | None] = {}
    for arm in study.train.arms:
        for seed in study.train.seeds:
            fixed = layout.configured_reference(study, arm)
            found = fixed is not None or reference_id(arm, seed) in done
            references[arm, seed] = layout.reference_step(store.run, study, arm, seed) if found else None
    measured = list(measuring(slices, references))
    measured += replays(slices, measured)
    measured += judging([*before, *measured], slices)
    return Graph([*before, *measured, report([*before, *measured], slices, builder)])


def fixed_cases(slices: Slices) -> Stage:
    """The fixed-source attack."""
    study, attack = slices.study, slices.study.source_attack
    return make(
        CASES,
        layout.cases_folder(RUN),
        "cases",
        {
            "model": slices.model(),
            "behaviors_test": slices.source(study.data.behaviors_test),
            "source_attack": slices.attack(attack),
            "seed": study.seed,
        },
        work=f"{attack.steps} attack steps x {attack.width} candidates per test behavior",
    )


def training(slices: Slices) -> Iterator[Stage]:
    """Each arm and seed, the checkpoints that it leaves, and the search for a reference."""
    study = slices.study
    for arm in study.train.arms if not study.checkpoints else ():
        for seed in study.train.seeds:
            train = f"{cell(arm, seed)}/train"
            work = f"{study.train.steps} optimizer steps"
            if arm == "r2d2":
                inner = study.train.r2d2
                work += f", each with {inner.cases_per_step} cases x {inner.attack.steps} attack steps x {inner.attack.width} candidates"
            settings = slices.train(arm, seed)
            yield make(train, layout.train_folder(RUN, arm, seed), "train", settings, place=Place(arm, seed), work=work)
            for step in layout.anchor_steps(study, layout.configured_reference(study, arm)):
                if step > 0:
                    folder = layout.own_folder(RUN, study, arm, seed, step) / "adapter"
                    place = Place(arm, seed, step)
                    yield make(checkpoint_id(arm, seed, step), folder, "checkpoint", {"step": step}, made_by=train, place=place)
            rule = {name: value for name, value in study.anchors.reference.items() if name == arm}.get(arm)
            if isinstance(rule, ReferenceRule):
                source = study.data.behaviors_val or study.data.behaviors_train
                chosen = {
                    "rule": rule.model_dump(mode="json"),
                    "behaviors": slices.source(source),
                    "judge": slices.judge(),
                    "max_new_tokens": study.behavior.max_new_tokens,
                }
                folder = layout.reference_folder(RUN, arm, seed) / "adapter"
                yield make(
                    reference_id(arm, seed),
                    folder,
                    "reference",
                    chosen,
                    inputs=(train,),
                    place=Place(arm, seed),
                    work="direct requests at each save",
                )


def measuring(slices: Slices, references: dict[tuple[str, int], int | None]) -> Iterator[Stage]:
    """Sections 3 to 6 at the common start, then at every anchor of every arm and seed."""
    study = slices.study
    yield from measures(slices, "start", layout.start_folder(RUN), None, 0)
    targets = [Target(slices, "start", layout.start_folder(RUN), None, Place(step=0))]
    for (arm, seed), reference in references.items():
        steps = layout.anchor_steps(study, reference)
        for step in steps:
            folder = layout.own_folder(RUN, study, arm, seed, step)
            weights: str | None = checkpoint_id(arm, seed, step)
            there = slices
            if folder == layout.reference_folder(RUN, arm, seed):
                weights = reference_id(arm, seed)
            given = layout.given_model(study, step)
            if given is not None:  # Nothing makes these weights: the model itself is another one.
                weights, there = None, replace(slices, study=study.model_copy(update={"model": given}))
            if step > 0:
                yield from measures(there, anchor_id(arm, seed, step), folder, weights, step, arm, seed)
                targets.append(Target(there, anchor_id(arm, seed, step), folder, weights, Place(arm, seed, step)))
        if reference is not None:
            yield from drifts(slices, arm, seed, steps, reference)
    for target in targets if study.geometry.transfer else ():
        yield from transfers(target, references)


def measures(
    slices: Slices, anchor: str, folder: Path, weights: str | None, step: int, arm: str | None = None, seed: int | None = None
) -> Iterator[Stage]:
    """What is measured on one set of weights (None: the model of ``slices.study`` itself, the start or a given checkpoint)."""
    study = slices.study
    place = Place(arm, seed, step)
    model = () if weights is None else (weights,)
    settings: Slice = {**slices.evaluation(), "tails": slices.tails()}
    tails = f"{len(study.behavior.tails)} kinds of tail"
    yield make(
        f"{anchor}/behavior", folder / "behavior", "behavior", settings, inputs=(*model, CASES), work=f"all sets, {tails}", place=place
    )
    settings = {
        "model": slices.model(),
        "probes": slices.source(study.data.probes),
        "geometry": slices.geometry(),
        "judge": slices.judge(),
        "max_new_tokens": study.behavior.max_new_tokens,
        "seed": study.seed,
    }
    work = f"{len(study.geometry.positions)} positions x all layers"
    yield make(f"{anchor}/geometry", folder / "geometry", "geometry", settings, inputs=model, work=work, place=place)
    chosen = study.anchors.steps if study.intervention.steps is None else study.intervention.steps
    if study.intervention.enabled and step in chosen:
        own = study.intervention.model_dump(mode="json", exclude={"enabled", "steps"})
        chat = {"chat": slices.source(study.data.chat)} if study.intervention.chats else {}
        settings = {**slices.evaluation(), **chat, "intervention": own, "geometry": slices.geometry()}
        inputs = (*model, CASES, f"{anchor}/geometry")
        stressed = study.stress.enabled and step in ((0, *study.anchors.steps) if study.stress.steps is None else study.stress.steps)
        if study.intervention.adaptive and stressed:
            inputs = (*inputs, f"{anchor}/stress")
        work = f"{study.intervention.prompts} prompts of each set x (interventions + {study.intervention.controls} controls)"
        yield make(f"{anchor}/intervention", folder / "intervention", "intervention", settings, inputs=inputs, work=work, place=place)
    chosen = (0, *study.anchors.steps) if study.stress.steps is None else study.stress.steps
    if study.stress.enabled and step in chosen:
        attack = study.stress.attack
        work = f"{study.stress.behaviors} behaviors x {attack.steps} attack steps x {attack.width} candidates"
        inputs = model if study.stress.aware is None else (*model, f"{anchor}/geometry")
        yield make(f"{anchor}/stress", folder / "stress", "stress", slices.stress(), inputs=inputs, work=work, place=place)
    if study.geometry.projection:
        settings = {"model": slices.model(), "geometry": slices.geometry()}
        settings |= {"probes": slices.source(study.data.probes), "seed": study.seed}
        attacked = (f"{anchor}/behavior", *([f"{anchor}/stress"] if study.stress.enabled and step in chosen else []))
        axes = () if anchor == "start" else ("start/projection",)
        inputs = (*model, f"{anchor}/geometry", *axes, *attacked)
        name, work = f"{anchor}/projection", "one reading of each probe and attacked prompt"
        yield make(name, folder / "projection", "projection", settings, inputs=inputs, work=work, place=place, room="across")


def drifts(slices: Slices, arm: str, seed: int, steps: list[int], reference: int) -> Iterator[Stage]:
    """Drift: every anchor against its arm's reference and against the anchor before it."""
    study = slices.study
    settings: Slice = {"geometry": slices.geometry(), "seed": study.seed, "reference": reference}
    for step in steps:
        others = drift_targets(steps, step, reference)
        if others:
            compared = tuple(geometry_id(arm, seed, other) for other in dict.fromkeys((step, *others.values())))
            folder = layout.own_folder(RUN, study, arm, seed, step) / "drift"
            name = f"{anchor_id(arm, seed, step)}/drift"
            yield make(name, folder, "drift", {**settings, "to": others}, inputs=compared, place=Place(arm, seed, step))


def transfers(target: Target, references: dict[tuple[str, int], int | None]) -> Iterator[Stage]:
    """Transfer of directions: the directions of the start and of every anchor with the same seed, applied to one anchor.

    The start belongs to all seeds. Nothing is applied before all the references among them are known: each is one more direction.
    """
    slices, seed = target.slices, target.place.seed
    study = slices.study
    cells = {place: reference for place, reference in references.items() if seed is None or place[1] == seed}
    if None in cells.values():
        return
    sources = [(arm, at, step) for (arm, at), found in cells.items() for step in layout.anchor_steps(study, found) if step > 0]
    settings: Slice = {
        "model": slices.model(),
        "probes": slices.source(study.data.probes),
        "geometry": slices.geometry(),
        "seed": study.seed,
        "sources": [list(source) for source in sources],
    }
    weights = () if target.weights is None else (target.weights,)
    compared = (f"{target.anchor}/geometry", "start/geometry", *(geometry_id(*source) for source in sources))
    inputs = tuple(dict.fromkeys((*weights, *compared)))
    work = f"{1 + len(sources)} directions and their random controls"
    folder, name = target.folder / "transfer", f"{target.anchor}/transfer"
    yield make(name, folder, "transfer", settings, inputs=inputs, place=target.place, work=work, room="across")


def replays(slices: Slices, measured: list[Stage]) -> Iterator[Stage]:
    """Transfer of strings: the strings of every attacked anchor on every attacked anchor of the same seed, the start among them."""
    most = slices.study.stress.replay_behaviors
    stressed = [stage for stage in measured if stage.kind == "stress"] if slices.study.stress.replay else []
    for target in stressed:
        sources = [stage for stage in stressed if None in (stage.seed, target.seed) or stage.seed == target.seed]
        named = [{"arm": one.arm, "seed": one.seed, "step": one.step, "folder": one.folder.as_posix()} for one in sources]
        settings = {**slices.replay(), "model": target.settings["model"], "sources": named}
        inputs = tuple(dict.fromkeys((*target.inputs, *(one.id for one in sources))))
        place, folder = Place(target.arm, target.seed, target.step), target.folder.parent / "replay"
        name, work = target.id.removesuffix("/stress") + "/replay", f"strings of {len(sources)} anchors, at most {most} of each"
        yield make(name, folder, "replay", settings, inputs=inputs, place=place, work=work, room="replay")


def drift_targets(steps: list[int], step: int, reference: int) -> dict[str, int]:
    """The steps that an anchor is compared with; the reference not with itself."""
    targets = {} if step == reference else {"reference": reference}
    earlier = [other for other in steps if other < step]
    return {**targets, "previous": earlier[-1]} if earlier else targets


def judging(before: list[Stage], slices: Slices) -> Iterator[Stage]:
    """How far the judge can be trusted: what it gives for nothing, and whether another one agrees."""
    floor, agreement = Path(layout.JUDGE_FLOOR), Path(layout.JUDGE_AGREEMENT)
    yield make(layout.JUDGE_FLOOR, RUN / floor, "judge_floor", slices.floor(), work="canned replies to requests of two sets", room="judged")
    settings = slices.study.judge
    if settings.second is not None:
        behavior = {stage.id: stage.folder.as_posix() for stage in before if stage.kind == "behavior"}
        # A reference that is still to be found will bring further behavior stages.
        awaited = [stage.id for stage in before if stage.kind == "reference"]
        chosen = {"second": slices.judge(settings.second), "completions": settings.second_completions, "seed": slices.study.seed}
        work = f"{settings.second_completions} completions"
        inputs = (*behavior, *awaited)
        yield make(layout.JUDGE_AGREEMENT, RUN / agreement, "judge_agreement", chosen, inputs=inputs, work=work, room="judged")


def report(before: list[Stage], slices: Slices, builder: str) -> Stage:
    """The page and its tables, from everything else."""
    study = slices.study
    rules = {} if study.report.claims is None else {"claims": slices.place(study.report.claims)}
    settings = {"builder": builder, "name": study.name, "report": {**study.report.model_dump(mode="json"), **rules}}
    return make(REPORT, layout.report_folder(RUN), "report", settings, inputs=tuple(stage.id for stage in before))

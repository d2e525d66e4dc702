"""What a study will cost before anything is run: tokens, floating-point operations, hours, disk and downloads, by kind of stage.

Nothing is loaded and no network is asked. What each number rests on is part of the answer (``Estimate.basis``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from refgeo.config.judge import CLASSIFIERS, OneJudgeSettings
from refgeo.config.model import ModelSettings
from refgeo.config.schema import Study
from refgeo.judging.quality import CANNED
from refgeo.lm.flops import BlockParameters, ForwardCost
from refgeo.study.costs import Costs
from refgeo.study.downloads import Download, downloads
from refgeo.study.graph import Stage
from refgeo.study.judged import FLOOR_REQUESTS
from refgeo.study.known import Shape, counts, lengths, shape
from refgeo.study.staging import VERSIONS
from refgeo.study.workload import CORE, Device, Work, write

JUDGE_PROMPT = 300
"""Tokens assumed around the completion in a judge's prompt."""


@dataclass(frozen=True)
class Row:
    """All stages of one kind. ``flops`` and ``hours`` (on one device) are None where the model's architecture is not known."""

    kind: str
    stages: int
    forward: float
    backward: float
    flops: float | None
    hours: float | None
    disk: float
    counted: str


@dataclass(frozen=True)
class Estimate:
    """Cost of a study by kind of stage, what it downloads, and what the numbers rest on."""

    study: str
    device: Device
    rows: tuple[Row, ...]
    downloads: tuple[Download, ...]
    basis: tuple[str, ...]

    @property
    def total(self) -> Row:
        """The sum of all rows; operations and hours are None when those of a row are."""
        flops, hours = [row.flops for row in self.rows], [row.hours for row in self.rows]
        return Row(
            "total",
            sum(row.stages for row in self.rows),
            sum(row.forward for row in self.rows),
            sum(row.backward for row in self.rows),
            None if None in flops else sum(value or 0.0 for value in flops),
            None if None in hours else sum(value or 0.0 for value in hours),
            sum(row.disk for row in self.rows),
            "",
        )

    @property
    def downloaded(self) -> float:
        """Bytes of all downloads of known size."""
        return sum(item.bytes or 0.0 for item in self.downloads)


def estimate(study: Study, stages: Iterable[Stage], device: Device | None = None) -> Estimate:
    """Cost of the given stages of a study: all of its graph, or those that are still to be made; on a core where the study names the CPU.

    Raises ``DataError`` when a file that the study names cannot be read, ``ConfigError`` when ``train.lora.targets`` does not fit.
    """
    device, rows = device or (CORE if study.model.device == "cpu" else Device()), []
    model = shape(study.model, study.train.lora)
    found, notes = counts(study)
    texts, origin = lengths(study)
    costs = Costs(study, model or _nothing(), found, texts)
    kinds: dict[str, list[Stage]] = {}
    order = list(VERSIONS)
    for stage in sorted(stages, key=lambda stage: order.index(stage.kind)):
        kinds.setdefault(f"train {stage.arm}" if stage.kind == "train" else stage.kind, []).append(stage)
    completions = 0.0
    judging, exact = 0, Work()
    for kind, group in kinds.items():
        work, disk = costs.of(group[0])
        completions += work.completions * len(group)
        judging += len(group) if work.completions else 0
        exact += Work(exact=work.exact) * len(group)
        rows.append(_row(kind, len(group), work * len(group), disk * len(group), model, device, costs.counted(group[0])))
    if model is None:
        basis = [f"model: nothing known of '{study.model.path}'; its operations, its hours and the disk of its weights are left out"]
    else:
        basis = [f"model: {model.basis}; {model.parameters / 1e6:,.1f} million parameters, {model.trained / 1e6:,.1f} million trained"]
    if "judge_floor" in kinds:
        judging += 1
        completions += len(CANNED) * sum(min(FLOOR_REQUESTS, rows) for rows in (found.test, found.strongreject))
    readers: list[tuple[str, OneJudgeSettings, int, float]] = [("judge", study.judge, judging, completions)] if judging else []
    if study.judge.second is not None and "judge_agreement" in kinds:
        readers.append(("second judge", study.judge.second, 1, float(study.judge.second_completions)))
    for name, settings, times, texts_read in readers:
        for role, asked, reply in _judges(settings):
            judge = shape(asked)
            tokens = min(study.behavior.max_new_tokens, settings.clip_tokens) + JUDGE_PROMPT
            judged = write(judge or _nothing(), texts_read, tokens, reply, settings.batch)
            rows.append(_row(f"{name} {role}", times, judged, 0.0, judge, device, f"{texts_read:,.0f} completions read by {asked.path}"))
            basis.append(f"{name} {role}: {judge.basis if judge else f'nothing known of {asked.path!r}'}")
        if settings.served or settings.refusal_served or settings.score_served:
            basis.append(f"served {name}: {texts_read:,.0f} completions are sent to an endpoint; that is not in the time")
    basis += [f"lengths: {origin}", *notes, *_assumptions(device, study.model.device)]
    if model is not None and exact.exact:
        basis.append(f"re-scoring candidates in float32 takes {exact.seconds(model, device) / 3600:,.1f} of the hours")
    return Estimate(study.name, device, tuple(rows), tuple(downloads(study)), tuple(basis))


def _row(kind: str, stages: int, work: Work, disk: float, model: Shape | None, device: Device, counted: str) -> Row:
    known = model is not None or not work.forward + work.backward
    hours = work.seconds(model, device) / 3600 if model is not None else 0.0
    return Row(kind, stages, work.forward, work.backward, work.flops if known else None, hours if known else None, disk, counted)


def _nothing() -> Shape:
    """Stands for an unknown model: tokens are counted, operations come out as zero and are not shown."""
    cost = ForwardCost((BlockParameters(0, 0, 0),), (0,), 0)
    return Shape(cost, cost, 0, 0, 0, 0, False, "")


def _judges(settings: OneJudgeSettings) -> Iterator[tuple[str, ModelSettings, int]]:
    """Local models that read every completion, and how many tokens each writes of it."""
    asked = ((settings.kind, settings.model), (settings.refusal, settings.refusal_model), (settings.score, settings.score_model))
    for kind, model in asked:
        chosen = model or CLASSIFIERS.get(str(kind))
        if chosen is not None:
            yield str(kind), chosen, 1 if kind in CLASSIFIERS else settings.max_new_tokens


def _assumptions(device: Device, asked: str) -> Iterator[str]:
    if device.kind == "core":
        yield f"CPU: {device.single / 1e9:.0f} GFLOP/s on one core, what 'refgeo run pocket' reached on the machine of docs/performance.md"
        yield "which is the mean over all kinds of stage: one kind may take a quarter of its time, or four times as long"
        yield "as many stages run at once as run.workers allows; once a stage has run, what it took is shown above instead"
    else:
        meant = "" if asked.startswith("cuda") else f"; for orientation, since model.device is '{asked}'"
        yield f"GPU: one {device.name}, {device.half / 1e12:.0f} TFLOPS in half precision at {device.utilization:.0%}{meant}"
        yield f"float32 (re-scored candidates): {device.single / 1e12:.0f} TFLOPS at {device.single_utilization:.0%}"
        yield (
            f"writing: every pass reads all weights at {device.streaming:.0%} of {device.bandwidth / 1e12:.2f} TB/s "
            f"and waits {1e3 * device.launch:.1f} ms per layer"
        )
    yield "upper bounds: completions have full length, attacks spend all steps, every candidate is new and typable"
    yield "interventions: the draft is checked in full and half of it written anew"
    yield "left out: loading, work beside the model, drift, report, judging by rules"
    yield "downloads: 2 bytes per weight, 1 MB per file behind an address; rows of sets that are not here as published"

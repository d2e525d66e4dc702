"""What happened in a run, as lines that any program can read, and the same numbers in TensorBoard, W&B or trackio when asked.

``logs/events.jsonl`` is always written: one whole line per stage that was started, finished or failed, appended and never changed. Two
processes may share it: a line is one write, and what one process has told of a result the other does not repeat.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from refgeo.config.schema import Study
from refgeo.errors import ConfigError
from refgeo.measures.sets import MAIN
from refgeo.study import layout
from refgeo.study.executors import Screen
from refgeo.study.files import storing
from refgeo.study.forms import OF_MEASURE, TRAIN_LOG
from refgeo.study.graph import Stage
from refgeo.study.locks import this_process
from refgeo.study.reading import read_table
from refgeo.study.schedule import Schedule
from refgeo.study.store import LOGS, Store, now

EVENTS = "events.jsonl"
NUMBERS: dict[str, dict[str, str]] = {
    "behavior": {MAIN[name]: name for name in ("direct", "fixed", "strongreject", "xstest_safe", "audit")},
    "geometry": {"carrier_depth": "carrier", "effective_rank": "field"},
    "stress": {MAIN[name]: name for name in ("adaptive_gcg", "adaptive_autodan", "adaptive_aware")},
}
"""Numbers of a finished measure that its event tells, and the set of each; of stress those of the full budget."""


@runtime_checkable
class Tracker(Protocol):
    """A place that keeps numbers over steps."""

    def log(self, cell: str, step: int, numbers: Mapping[str, float]) -> None:
        """Keep finite ``numbers``, by name, of one cell (``r2d2/seed-1``, or ``start``) at a training step."""

    def close(self) -> None:
        """No more numbers come."""


class TrackedScreen:
    """A screen that writes the events, hands the numbers to a tracker, and passes everything on to the screen behind it."""

    def __init__(self, screen: Screen, store: Store, tracker: Tracker | None = None) -> None:
        self._screen, self._store, self._tracker = screen, store, tracker
        self._path = store.run / LOGS / EVENTS

    def started(self, stage: Stage) -> None:
        """A stage was handed to a worker of this process."""
        self._append("started", stage)
        self._screen.started(stage)

    def finished(self, stage: Stage) -> None:
        """A stage is done, here or in another process; whoever sees it first tells of it."""
        record = self._store.record(stage)
        if record is not None:
            made = {"fingerprint": record.fingerprint, "made": str(record.detail.get("finished", ""))}
            if not self._told(made):
                numbers = headline_numbers(self._store, stage)
                self._append("finished", stage, seconds=record.seconds, **made, **({"numbers": numbers} if numbers else {}))
            self._track(stage)
        self._screen.finished(stage)

    def failed(self, stage: Stage, message: str) -> None:
        """A stage has failed."""
        self._append("failed", stage, message=message)
        self._screen.failed(stage, message)

    def tick(self, schedule: Schedule) -> None:
        """Some time has passed."""
        self._screen.tick(schedule)

    def _told(self, made: Mapping[str, str]) -> bool:
        """Whether a line about exactly this result is there."""
        with storing(self._store.run):
            text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
        return json.dumps(made)[1:-1] in text

    def _append(self, event: str, stage: Stage, **more: object) -> None:
        """One line in one write: on a local disk the lines of two processes do not mix."""
        place = {name: getattr(stage, name) for name in ("kind", "arm", "seed", "step")}
        owner = this_process()
        line = {"time": now(), "event": event, "stage": stage.id, **place, "process": f"{owner.host}:{owner.pid}", **more}
        with storing(self._store.run):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
            try:
                os.write(handle, (json.dumps(line, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii"))
            finally:
                os.close(handle)

    def _track(self, stage: Stage) -> None:
        if self._tracker is None:
            return
        cell = "start" if stage.arm is None else f"{stage.arm}/seed-{stage.seed}"
        for step, numbers in training_curve(self._store, stage) if stage.kind == "train" else ():
            self._tracker.log(cell, step, {f"train/{name}": value for name, value in numbers.items()})
        numbers = headline_numbers(self._store, stage)
        if numbers and stage.step is not None:
            self._tracker.log(cell, stage.step, {f"{stage.kind}/{name}": value for name, value in numbers.items()})


def headline_numbers(store: Store, stage: Stage) -> dict[str, float]:
    """What a finished stage tells in one line: the main numbers of a measure, the last losses of a training; empty for other stages.

    A number that was not measured, or is not finite, is absent.
    """
    if stage.kind == "train":
        curve = training_curve(store, stage)
        return curve[-1][1] if curve else {}
    path = store.run / stage.folder / layout.TABLE
    if stage.kind not in NUMBERS or not path.is_file():
        return {}
    rows = read_table(path, OF_MEASURE[stage.kind])
    rows = rows[(rows["subset"] == "all") & rows["value"].notna()]
    if "attack_steps" in rows:  # The full budget first.
        rows = rows.sort_values("attack_steps", ascending=False, kind="stable")
    found = {}
    for metric, set_name in NUMBERS[stage.kind].items():
        values = rows.loc[(rows["metric"] == metric) & (rows["set"] == set_name), "value"]
        if len(values) and math.isfinite(values.iloc[0]):
            found[metric] = float(values.iloc[0])
    return found


def training_curve(store: Store, stage: Stage) -> list[tuple[int, dict[str, float]]]:
    """Losses and gradient norm of every optimizer step of a finished training; empty where there is no log."""
    path = store.run / stage.folder / layout.TRAIN_LOG
    if not path.is_file():
        return []
    log = read_table(path, TRAIN_LOG)
    chosen = [name for name in log.columns if name.startswith("loss") or name == "grad_norm"]
    return [
        (int(row["step"]), {str(name): float(row[name]) for name in chosen if math.isfinite(row[name])}) for row in log.to_dict("records")
    ]


def check_tracking(study: Study) -> None:
    """Raise ``ConfigError`` unless the library that ``run.tracking`` asks for is installed. Writes nothing."""
    if study.run.tracking != "none":
        imported(study.run.tracking)


@contextmanager
def tracking(study: Study, store: Store, screen: Screen) -> Iterator[TrackedScreen]:
    """The screen that follows a study whose run folder exists; the tracker that ``run.tracking`` asks for is closed at the end."""
    opened = TRACKERS.get(study.run.tracking)
    tracker = None if opened is None else opened(study, store.run)
    try:
        yield TrackedScreen(screen, store, tracker)
    finally:
        if tracker is not None:
            tracker.close()


class TensorBoard:
    """Scalars for ``tensorboard --logdir RUN/logs/tensorboard``: one series per arm and seed, so that they lie over one another."""

    def __init__(self, study: Study, run: Path) -> None:
        self._writer = imported("tensorboard").SummaryWriter
        self._folder = run / LOGS / "tensorboard"
        self._writers: dict[str, Any] = {}

    def log(self, cell: str, step: int, numbers: Mapping[str, float]) -> None:
        """Write one scalar per number."""
        if cell not in self._writers:
            self._writers[cell] = self._writer(str(self._folder / cell))
        for name, value in numbers.items():
            self._writers[cell].add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        for writer in self._writers.values():
            writer.close()


class HostedRun:
    """W&B and trackio, whose calls are alike: one run per run folder, which goes on when the study does; names begin with the cell."""

    def __init__(self, library: str, study: Study, run: Path) -> None:
        module = imported(library)
        identity = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:12]
        config = study.model_dump(mode="json")
        if library == "wandb":
            asked = {"id": f"refgeo-{identity}", "dir": str(run / LOGS)}
            self._run = module.init(project="refgeo", name=study.name, config=config, resume="allow", **asked)
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        else:
            self._run = module.init(project="refgeo", name=f"{study.name}-{identity}", config=config, resume="allow")

    def log(self, cell: str, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers. Anchors end in any order, so that the step is a number like the others."""
        self._run.log({"step": step, **{f"{cell}/{name}": value for name, value in numbers.items()}})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


TRACKERS: dict[str, Callable[[Study, Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda study, run: HostedRun("wandb", study, run),
    "trackio": lambda study, run: HostedRun("trackio", study, run),
}
"""How each tracker is opened."""


def imported(library: str) -> Any:
    """A tracker's library, which is needed only when asked for. Raises ``ConfigError`` that says what to install."""
    try:
        return import_module("torch.utils.tensorboard" if library == "tensorboard" else library)
    except ImportError as error:
        fix = f"Install it (pip install {library}), or set run.tracking=none"
        raise ConfigError(f"run.tracking is '{library}', but that package cannot be imported ({error})", fix=fix) from error

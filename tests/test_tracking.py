"""Events and trackers: whole lines, told once, and numbers as the tables have them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fabricated_run import make_study
from refgeo.config.schema import RunSettings, Study
from refgeo.errors import ConfigError
from refgeo.measures.table import frame, row
from refgeo.statistics import exact
from refgeo.study.graph import Graph, Stage
from refgeo.study.schedule import Schedule
from refgeo.study.store import Store
from refgeo.study.tracking import EVENTS, HostedRun, TrackedScreen, Tracker, check_tracking, headline_numbers, tracking


class Silent:
    """A screen that remembers the ids it heard of."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def started(self, stage: Stage) -> None:
        self.heard.append(f"started {stage.id}")

    def finished(self, stage: Stage) -> None:
        self.heard.append(f"finished {stage.id}")

    def failed(self, stage: Stage, message: str) -> None:
        self.heard.append(f"failed {stage.id}")

    def tick(self, schedule: Schedule) -> None:
        self.heard.append("tick")


class Fake:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, int, dict[str, float]]] = []
        self.closed = False

    def log(self, cell: str, step: int, numbers: Mapping[str, float]) -> None:
        self.logged.append((cell, step, dict(numbers)))

    def close(self) -> None:
        self.closed = True


def stage(kind: str, step: int | None = 50) -> Stage:
    return Stage(f"r2d2/seed-1/{kind}", Path("arms") / kind, "f:f", kind=kind, arm="r2d2", seed=1, step=step)


def publish(store: Store, made: Stage, file: str, table: pd.DataFrame) -> None:
    with store.publish(made, "print", {}) as folder:
        table.to_parquet(folder / file, index=False)


STRESS = frame(
    [
        row("per_attack_seed", "asr_adaptive_gcg", exact(0.9), attack_steps=64),
        row("adaptive_gcg", "asr_adaptive_gcg", exact(0.25), attack_steps=16),
        row("adaptive_gcg", "asr_adaptive_gcg", exact(0.5), attack_steps=64),
        row("adaptive_gcg", "asr_adaptive_gcg", exact(0.75), "new", attack_steps=64),
        row("adaptive_aware", "asr_adaptive_aware", exact(float("nan"), 0), attack_steps=64),
    ]
)
LOG = pd.DataFrame({"step": [1, 2], "loss_clean": [2.0, 1.0], "grad_norm": [np.inf, 3.0], "seconds": [0.1, 0.1]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "run")
    found.create("study")
    return found


def lines(store: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.run / "logs" / EVENTS).read_text(encoding="utf-8").splitlines()]


def test_every_event_is_a_line_and_reaches_the_screen(store: Store) -> None:
    screen, made = Silent(), stage("stress")
    tracked = TrackedScreen(screen, store)
    tracked.started(made)
    publish(store, made, "table.parquet", STRESS)
    tracked.finished(made)
    tracked.failed(stage("train", None), "No luck.")
    tracked.tick(Schedule(store, lambda: Graph([])))
    assert screen.heard == [f"started {made.id}", f"finished {made.id}", "failed r2d2/seed-1/train", "tick"]
    first, second, third = lines(store)
    assert (first["event"], first["stage"], first["kind"], first["arm"], first["seed"], first["step"]) == (
        "started",
        made.id,
        "stress",
        "r2d2",
        1,
        50,
    )
    assert second["numbers"] == {"asr_adaptive_gcg": 0.5}
    assert second["seconds"] >= 0
    assert (third["event"], third["message"], third["step"]) == ("failed", "No luck.", None)


def test_a_result_is_told_once_and_a_new_one_again(store: Store) -> None:
    made = stage("stress")
    publish(store, made, "table.parquet", STRESS)
    for _ in range(2):  # two processes see that it is done
        TrackedScreen(Silent(), store).finished(made)
    assert len(lines(store)) == 1
    with store.publish(made, "another print", {}) as folder:
        STRESS.to_parquet(folder / "table.parquet")
    TrackedScreen(Silent(), store).finished(made)
    assert [line["fingerprint"] for line in lines(store)] == ["print", "another print"]


def test_lines_of_several_writers_stay_whole(store: Store) -> None:
    def write(number: int) -> None:
        tracked = TrackedScreen(Silent(), store)
        for _ in range(50):
            tracked.failed(stage(f"kind-{number}"), "x" * 500)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(lines(store)) == 200


def test_numbers_are_those_of_the_whole_set_and_absent_when_not_measured(store: Store) -> None:
    made = stage("geometry")
    rows = [row("best_effect", "carrier_depth", exact(0.9)), row("carrier", "carrier_depth", exact(float("nan"), 0))]
    rows += [row("layer", "effective_rank", exact(9.0), layer=1, matrix="raw"), row("field", "effective_rank", exact(1.5), matrix="raw")]
    publish(store, made, "table.parquet", frame(rows))
    assert headline_numbers(store, made) == {"effective_rank": 1.5}
    assert headline_numbers(store, stage("drift")) == {}
    assert headline_numbers(store, stage("behavior")) == {}


def test_a_tracker_gets_the_training_curve_and_the_numbers(store: Store) -> None:
    tracker = Fake()
    tracked = TrackedScreen(Silent(), store, tracker)
    publish(store, stage("train", None), "log.parquet", LOG)
    publish(store, stage("stress"), "table.parquet", STRESS)
    tracked.finished(stage("train", None))
    tracked.finished(stage("stress"))
    assert tracker.logged == [
        ("r2d2/seed-1", 1, {"train/loss_clean": 2.0}),
        ("r2d2/seed-1", 2, {"train/loss_clean": 1.0, "train/grad_norm": 3.0}),
        ("r2d2/seed-1", 50, {"stress/asr_adaptive_gcg": 0.5}),
    ]
    assert isinstance(tracker, Tracker)


def asked(kind: str) -> Study:
    return make_study().model_copy(update={"run": RunSettings.model_validate({"tracking": kind})})


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_a_missing_library_is_said_before_anything_is_written(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if kind == "tensorboard" else kind, None)
    with pytest.raises(ConfigError, match=f"run.tracking is '{kind}'.*pip install {kind}"):
        check_tracking(asked(kind))


def test_none_is_the_default_and_needs_nothing(store: Store) -> None:
    check_tracking(make_study())
    with tracking(make_study(), store, Silent()) as tracked:
        tracked.started(stage("stress"))
    assert len(lines(store)) == 1


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_hosted_runs_get_the_step_as_a_number(kind: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Run:
        def log(self, numbers: dict[str, float]) -> None:
            told.append(numbers)

        def define_metric(self, *names: str, **more: str) -> None:
            told.append(names)

        def finish(self) -> None:
            told.append("finished")

    def init(**settings: Any) -> Run:
        told.append(settings)
        return Run()

    module = ModuleType(kind)
    module.init = init  # type: ignore[attr-defined]  # a library made up for this test
    monkeypatch.setitem(sys.modules, kind, module)
    publish(store, stage("stress"), "table.parquet", STRESS)
    with tracking(asked(kind), store, Silent()) as tracked:
        tracked.finished(stage("stress"))
    assert told[0]["project"] == "refgeo"
    assert told[0]["resume"] == "allow"
    assert told[0]["config"]["name"] == "fabricated"
    assert told[-2:] == [{"step": 50, "r2d2/seed-1/stress/asr_adaptive_gcg": 0.5}, "finished"]
    assert isinstance(HostedRun(kind, make_study(), store.run), Tracker)


def test_tensorboard_holds_the_numbers(store: Store) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    publish(store, stage("stress"), "table.parquet", STRESS)
    with tracking(asked("tensorboard"), store, Silent()) as tracked:
        tracked.finished(stage("stress"))
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-not-found,unused-ignore]  # optional
        EventAccumulator,
    )

    found = EventAccumulator(str(store.run / "logs" / "tensorboard" / "r2d2" / "seed-1"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("stress/asr_adaptive_gcg")] == [(50, 0.5)]

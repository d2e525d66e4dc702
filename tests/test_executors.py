"""Real worker processes on fake stages: what goes on when something breaks, and what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from refgeo.config.data import DataSettings, Source
from refgeo.config.model import ModelSettings
from refgeo.config.schema import RunSettings, Study
from refgeo.study.executors import LocalExecutor, environments
from refgeo.study.graph import Graph, Stage
from refgeo.study.locks import started_at
from refgeo.study.schedule import Schedule
from refgeo.study.store import Store

NONE = Source(path="none.csv")
STUDY = Study(
    name="fake",
    model=ModelSettings(path="nowhere", device="cpu"),
    data=DataSettings(behaviors_train=NONE, behaviors_test=NONE, chat=NONE, probes=NONE),
    run=RunSettings(workers=2),
)


class Ears:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def started(self, stage: Stage) -> None:
        self.heard.append(f"started {stage.id}")

    def finished(self, stage: Stage) -> None:
        self.heard.append(f"finished {stage.id}")

    def failed(self, stage: Stage, message: str) -> None:
        self.heard.append(f"failed {stage.id}")

    def tick(self, schedule: Schedule) -> None:
        pass


def stage(name: str, does: str, *inputs: str, **more: object) -> Stage:
    return replace(Stage(name, Path(name), f"fake_stages:{does}", {}, inputs), **more)  # type: ignore[arg-type]  # fields by name


def execute(run: Path, stages: Sequence[Stage] | Callable[[], Graph], workers: int = 1) -> tuple[Schedule, Ears]:
    store, ears = Store(run), Ears()
    store.create("fake")
    schedule = Schedule(store, stages if callable(stages) else lambda: Graph(stages))
    with store.session("settings") as session:
        LocalExecutor(store, STUDY, environments(STUDY)[:workers]).run(schedule, ears, session)
    return schedule, ears


def files(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}


def test_stages_run_in_order_and_not_twice(tmp_path: Path) -> None:
    stages = [stage("c", "write", "b"), stage("a", "write"), stage("b", "write", "a")]
    schedule, ears = execute(tmp_path, stages)
    assert not schedule.failed
    assert schedule.done == {"a", "b", "c"}
    assert (tmp_path / "runs.txt").read_text().split() == ["a", "b", "c"]
    assert ears.heard == ["started a", "finished a", "started b", "finished b", "started c", "finished c"]
    pids = {(tmp_path / name / "result.txt").read_text().split()[-1] for name in "abc"}
    assert len(pids) == 1, "a worker lives for several stages"
    _, again = execute(tmp_path, stages)
    assert again.heard == []
    assert (tmp_path / "runs.txt").read_text().split() == ["a", "b", "c"]


def test_what_is_urgent_goes_first(tmp_path: Path) -> None:
    execute(tmp_path, [stage("later", "write", priority=5), stage("first", "write", priority=1), stage("middle", "write", priority=3)])
    assert (tmp_path / "runs.txt").read_text().split() == ["first", "middle", "later"]


def test_only_what_changed_runs_again(tmp_path: Path) -> None:
    stages = [stage("a", "write"), stage("b", "write", "a"), stage("c", "write")]
    execute(tmp_path, stages)
    stages[1] = replace(stages[1], settings={"changed": True})
    execute(tmp_path, stages)
    assert (tmp_path / "runs.txt").read_text().split() == ["a", "c", "b", "b"]


def test_a_crash_names_the_log_and_stops_only_what_depends_on_it(tmp_path: Path) -> None:
    stages = [stage("bad", "crash"), stage("after", "write", "bad"), stage("other", "write", priority=1)]
    schedule, ears = execute(tmp_path, stages)
    assert list(schedule.failed) == ["bad"]
    log = tmp_path / "logs" / "bad.log"
    assert str(log) in schedule.failed["bad"]
    assert "ValueError: a bug in the stage" in schedule.failed["bad"]
    assert "Traceback" in log.read_text()
    assert schedule.crashed == {"bad"}
    assert [each.id for each in schedule.blocked()] == ["after"]
    assert schedule.done == {"other"}
    assert ears.heard[-2:] == ["started other", "finished other"]
    assert not any("half" in name for name in files(tmp_path))


def test_a_killed_worker_is_a_clear_failure(tmp_path: Path) -> None:
    schedule, _ = execute(tmp_path, [stage("bad", "vanish"), stage("other", "write", priority=1)])
    assert "SIGKILL" in schedule.failed["bad"]
    assert schedule.done == {"other"}
    assert not list((tmp_path / ".state" / "locks").iterdir())


def test_an_error_made_on_purpose_keeps_its_words_and_the_worker(tmp_path: Path) -> None:
    schedule, _ = execute(tmp_path, [stage("bad", "refuse"), stage("other", "write", priority=1)])
    assert schedule.failed == {"bad": "The rows are bad. Mend them."}
    assert not schedule.crashed
    assert schedule.done == {"other"}
    assert not any("half" in name for name in files(tmp_path))


def test_a_stage_that_does_not_keep_its_promise_fails(tmp_path: Path) -> None:
    schedule, _ = execute(tmp_path, [stage("train", "forget"), stage("train/3", "none", made_by="train", step=3)])
    assert schedule.failed == {"train": "Stage 'train' ended without making train/3."}


def test_what_a_stage_prints_goes_to_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    execute(tmp_path, [stage("talks", "say")])
    assert (tmp_path / "logs" / "talks.log").read_text() == "to the output\nto the errors\n"
    assert capfd.readouterr() == ("", "")


def test_nothing_temporary_is_left(tmp_path: Path) -> None:
    execute(tmp_path, [stage("a", "write"), stage("b", "write")])
    kept = {"manifest.json", "runs.txt", *(f"{name}/{file}" for name in "ab" for file in ("result.txt", "stage.json"))}
    assert files(tmp_path) == kept


def test_an_anchor_is_measured_while_its_training_goes_on(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    run = tmp_path / "run"
    os.mkfifo(pipe)
    settings = {"pipe": str(pipe)}
    stages = [
        stage("train", "train", settings=settings),
        *(stage(f"at-{step}", "none", made_by="train", step=step) for step in (3, 6)),
        *(stage(f"measure-{step}", "measure", f"at-{step}", step=step, settings=settings) for step in (3, 6)),
    ]
    schedule, ears = execute(run, stages, workers=2)
    assert not schedule.failed
    assert ears.heard.index("started measure-3") < ears.heard.index("finished train")
    assert ears.heard.index("finished at-3") < ears.heard.index("started measure-3")


def test_a_graph_may_grow_while_it_runs(tmp_path: Path) -> None:
    def plan() -> Graph:
        first = stage("first", "grow")
        count = tmp_path / "first" / "count"
        more = [stage(f"more-{index}", "write", "first") for index in range(int(count.read_text()) if count.exists() else 0)]
        return Graph([first, *more, stage("last", "write", *("first", *(each.id for each in more)))])

    schedule, _ = execute(tmp_path, plan)
    assert schedule.done == {"first", "more-0", "more-1", "last"}
    assert (tmp_path / "runs.txt").read_text().split() == ["more-0", "more-1", "last"]


PARENT = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell that runs the tests in the background ignores it.
sys.path.insert(0, {tests!r})
from test_executors import execute, stage
run = Path({run!r})
execute(run, {stages})
"""


def parent(run: Path, stages: str) -> subprocess.Popen[bytes]:
    """Another process that executes stages in ``run``."""
    code = PARENT.format(tests=str(Path(__file__).parent), run=str(run), stages=stages)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


def test_workers_do_not_survive_a_killed_parent_and_the_next_run_goes_on(tmp_path: Path) -> None:
    run, pipe, witness = tmp_path / "run", tmp_path / "pipe", tmp_path / "witness"
    os.mkfifo(pipe)
    os.mkfifo(witness)
    process = parent(run, f"[stage('hangs', 'hang', settings={{'pipe': {str(pipe)!r}}})]")
    # Opening for writing waits until the worker reads; then it is in the middle of its stage.
    with pipe.open("w", encoding="utf-8"):
        worker = int((run / "worker.pid").read_text())
        assert started_at(worker) is not None
        process.kill()
        process.wait()
        _gone(worker)
    schedule, _ = execute(run, [stage("hangs", "write")])
    assert schedule.done == {"hangs"}
    assert not [name for name in files(run) if "~" in name]


def _gone(pid: int) -> None:
    """Wait for the end of a process that is not our child."""
    if not hasattr(os, "pidfd_open"):
        while started_at(pid) is not None:
            os.sched_yield()
        return
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select

    assert select.select([handle], [], [], 30)[0], "the worker outlived its parent"
    os.close(handle)


def test_an_interrupt_stops_the_workers(tmp_path: Path) -> None:
    run, pipe = tmp_path / "run", tmp_path / "pipe"
    os.mkfifo(pipe)
    process = parent(run, f"[stage('hangs', 'hang', settings={{'pipe': {str(pipe)!r}}})]")
    with pipe.open("w", encoding="utf-8"):
        worker = int((run / "worker.pid").read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait() != 0
        assert started_at(worker) is None
    assert not list((run / ".state" / "locks").iterdir())
    assert not [name for name in files(run) if "~" in name]


def test_two_processes_share_a_folder_and_make_each_stage_once(tmp_path: Path) -> None:
    names = [f"stage-{index}" for index in range(8)]
    listed = "[" + ", ".join(f"stage({name!r}, 'write')" for name in names) + "]"
    others = [parent(tmp_path, listed) for _ in range(2)]
    assert [other.wait() for other in others] == [0, 0]
    assert sorted((tmp_path / "runs.txt").read_text().split()) == names
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} >= set(names)


def test_workers_are_as_many_as_asked_and_quiet() -> None:
    assert len(environments(STUDY)) == 2
    assert environments(STUDY)[0]["OMP_NUM_THREADS"] == "1"
    automatic = STUDY.model_copy(update={"run": RunSettings(workers=0, threads=3)})
    assert 1 <= len(environments(automatic)) <= 4
    assert environments(automatic)[0]["OMP_NUM_THREADS"] == "3"
    one = automatic.model_copy(update={"model": ModelSettings(path="nowhere", device="cuda:1")})
    assert len(environments(one)) == 1
    assert "CUDA_VISIBLE_DEVICES" not in environments(one)[0]


def test_each_worker_gets_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    study = STUDY.model_copy(update={"model": ModelSettings(path="nowhere"), "run": RunSettings()})
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments(study)] == ["3", "5"]

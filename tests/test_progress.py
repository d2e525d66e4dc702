"""What a person is told while a study runs."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from refgeo.measures.table import frame, row
from refgeo.statistics import exact
from refgeo.study import progress
from refgeo.study.graph import Graph, Record, Stage
from refgeo.study.progress import Reporter, Standing
from refgeo.study.schedule import Schedule
from refgeo.study.screen import RunScreen, describe, duration, fraction, how_far, remaining, running, running_table
from refgeo.study.store import Store
from refgeo.study.tables import COLUMNS, MARKS, anchor_table, headlines, kind_table, legend, plan_table


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("refgeo.study.progress.time", found)
    return found


def test_reports_can_be_read_by_any_process(tmp_path: Path) -> None:
    report = Reporter(tmp_path / "progress" / "a.json")
    report(3, 10, "step 3")
    seen = progress.read(tmp_path / "progress" / "a.json")
    assert seen is not None
    assert (seen.done, seen.total, seen.note) == (3, 10, "step 3")
    report.close()
    assert progress.read(tmp_path / "progress" / "a.json") is None
    assert list((tmp_path / "progress").iterdir()) == []


def test_most_of_many_reports_are_dropped_but_never_the_last(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr("refgeo.study.progress.write_text", lambda path, text: written.append(text))
    report = Reporter(tmp_path / "a.json")
    for done in range(1, 1001):
        clock.now += 0.01
        report(done, 1000, "")
    assert 10 <= len(written) <= 30
    assert '"done": 1000' in written[-1]


def test_time_left_follows_from_the_speed_so_far(tmp_path: Path, clock: Clock) -> None:
    report = Reporter(tmp_path / "a.json")
    # A training resumed at step 100: the first hundred took this process no time.
    report(100, 200, "")
    clock.now += 30
    report(130, 200, "")
    seen = progress.read(tmp_path / "a.json")
    assert seen is not None
    assert seen.eta() == pytest.approx(70)
    clock.now += 1
    report(5, 50, "the next part")
    seen = progress.read(tmp_path / "a.json")
    assert seen is not None
    assert seen.eta() is None


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"done": 1}'])
def test_a_report_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert progress.read(tmp_path / "a.json") is None


def test_durations_read_well() -> None:
    assert [duration(seconds) for seconds in (None, 0.26, 9.96, 59, 125, 3725)] == ["", "0.3 s", "10.0 s", "59 s", "2:05", "1:02:05"]


def test_progress_reads_well() -> None:
    state = Standing(30, 90, "loss 0.5", 0.0, 30.0, 0, 0.0)
    assert how_far(state) == "30/90 loss 0.5 (1:00 left)"
    assert how_far(replace(state, done=0)) == "0/90 loss 0.5"
    assert how_far(None) == how_far(replace(state, total=0)) == "running"
    assert fraction(replace(state, total=0)) == ""


def stage(kind: str, arm: str | None, step: int | None, *inputs: str, name: str = "") -> Stage:
    return Stage(name or kind, Path(name or kind), "fake_stages:write", {}, inputs, kind=kind, arm=arm, seed=1 if arm else None, step=step)


TRAIN, FIRST, SECOND = (
    stage("train", "r2d2", None),
    stage("stress", "r2d2", 5, "train", name="first"),
    stage("stress", "r2d2", 9, "train", name="second"),
)


def test_stages_are_named_as_people_name_them() -> None:
    assert describe(TRAIN) == "r2d2 seed 1, train"
    assert describe(FIRST) == "r2d2 seed 1, step 5, stress"
    assert describe(stage("stress", None, 0)) == "start, stress"
    assert describe(stage("drift", "sft", 0)) == "sft seed 1, start, drift"
    assert describe(stage("report", None, None)) == "report"


def record(graph: Graph, name: str, seconds: float) -> Record:
    return Record(graph.fingerprints[name], 1, {}, graph.before(name), seconds, {})


def test_work_left_is_known_when_every_kind_has_an_example() -> None:
    graph = Graph([TRAIN, FIRST, SECOND])
    train = record(graph, "train", 60.0)
    assert remaining(graph, {"train"}, {"train": train}) is None
    assert remaining(graph, {"train", "first"}, {"train": train, "first": record(graph, "first", 7.0)}) == 7.0
    assert remaining(graph, {"train", "first", "second"}, {}) == 0.0


def shown(table: object) -> str:
    page = io.StringIO()
    Console(file=page, width=160).print(table)
    return page.getvalue()


def test_the_plan_says_what_why_and_how_much() -> None:
    graph = Graph([TRAIN, FIRST, replace(SECOND, work="64 behaviors")])
    old = replace(record(graph, "first", 7.0), settings={"steps": 1}, fingerprint="old")
    lines = shown(plan_table(graph, {"train"}, {"train": record(graph, "train", 60.0), "first": old})).splitlines()
    assert "done" in lines[1]
    assert "1:00" in lines[1]
    assert "to run" in lines[2]
    assert "steps 1 -> (absent)" in lines[2]
    assert "about 7.0 s" in lines[2]
    assert "not made yet" in lines[3]


def test_a_plan_tells_like_stages_together_and_fits_a_narrow_terminal() -> None:
    anchors = [
        replace(stage("stress", "sft", step, name=f"sft/{step}/stress"), seed=seed, work="64 behaviors x 500 attack steps x 512 candidates")
        for seed in (1,)
        for step in (24, 48, 120, 300)
    ]
    graph = Graph([TRAIN, stage("train", "sft", None, name="sft/train"), *anchors])
    page = io.StringIO()
    Console(file=page, width=80).print(
        plan_table(
            graph, {"train", anchors[0].id}, {"train": record(graph, "train", 60.0), anchors[0].id: record(graph, anchors[0].id, 7.0)}
        )
    )
    text = page.getvalue()
    assert re.search(r"r2d2 seed 1, train +1 done +1:00 in all", text)
    assert re.search(r"sft seed 1, train +1 to run +not made yet", text)
    assert re.search(r"stress +3 to run +not made yet +about 7\.0 s", text)
    assert len(text.splitlines()) == 5


def test_status_shows_what_another_process_does(tmp_path: Path) -> None:
    store, graph = Store(tmp_path), Graph([TRAIN, FIRST, SECOND])
    store.create("study")
    assert running(store, graph, set()) == []
    store.lock(TRAIN).take()
    Reporter(store.progress(TRAIN))(12, 40, "loss 1.5")
    ((active, state),) = running(store, graph, set())
    assert (active, state is not None and state.done) == (TRAIN, 12)
    records = store.records(graph.stages.values())
    assert re.search(r"train +running", shown(kind_table(store, graph, set(), records)))
    assert re.search(r"r2d2 seed 1, train +12/40 .*loss 1\.5", shown(running_table(store, graph, set())))
    first, second = shown(anchor_table(store, graph, set(), records)).splitlines()[1:]
    assert first.split()[:4] == ["r2d2", "1", "5", "."]
    assert second.split() == ["9", "."]
    assert "waiting" in legend(store, graph, set(), records).plain
    assert "running" not in legend(store, graph, set(), records).plain  # no anchor has a stage that runs


@pytest.mark.parametrize("width", [80, 120])
def test_status_of_a_large_study_has_one_line_per_anchor(tmp_path: Path, width: int) -> None:
    """Three seeds of two arms with five anchors and nine kinds of work each: no cell is wrapped or cut, whatever its state."""
    kinds, anchors = (
        list(COLUMNS),
        [(arm, seed, step) for arm in ("sft", "r2d2") for seed in (201, 202, 203) for step in (24, 48, 120, 300, 500)],
    )
    named = [
        replace(stage(kind, arm, step, name=f"{arm}/{seed}/{step}/{kind}"), seed=seed) for arm, seed, step in anchors for kind in kinds
    ]
    store, graph = Store(tmp_path), Graph([TRAIN, *named])
    store.create("study")
    records: dict[str, Record | None] = {one.id: replace(record(graph, one.id, 1.0), fingerprint="old") for one in named[:9]}
    store.lock(named[9]).take()
    Reporter(store.progress(named[9]))(5443, 14256, "completions " * 30)
    done = {"train"}
    page = io.StringIO()
    parts = (kind_table(store, graph, done, records), anchor_table(store, graph, done, records), legend(store, graph, done, records))
    Console(file=page, width=width).print(*parts, running_table(store, graph, done), sep="\n")
    lines = page.getvalue().splitlines()
    rows = [line for line in lines if re.match(r"(sft|r2d2)? +(20\d)? +\d+ [.~>]", line)]
    assert len(rows) == len(anchors)
    assert rows[0].split() == ["sft", "201", "24", *("~" * 9)]
    assert rows[1].split() == ["48", ">", *("." * 8)]
    assert len(lines) == 2 + (1 + 30) + 4 + 2
    assert max(map(len, lines)) <= width
    assert "5443/14256" in lines[-1]
    assert {"> running", ". waiting", "~ stale"} <= {part.strip() for part in lines[33].split("   ")}


def test_the_adaptive_number_is_that_of_all_attack_seeds_at_the_full_budget(tmp_path: Path) -> None:
    attacked = stage("stress", "r2d2", 9, name="stress")
    rates = {("adaptive_gcg", 10): 0.1, ("adaptive_gcg", 40): 0.3, ("per_attack_seed", 40): 0.5, ("adaptive_aware", 40): 0.7}
    rows = [row(name, "asr_adaptive_gcg", exact(rate), attack_steps=steps) for (name, steps), rate in rates.items()]
    folder = tmp_path / attacked.folder
    folder.mkdir(parents=True)
    frame(rows).to_parquet(folder / "table.parquet")
    assert list(headlines(Store(tmp_path), {"stress": attacked}, {attacked.id})) == ["", "", "0.30", "", ""]


def test_every_kind_of_work_has_a_letter_and_every_state_a_mark_of_its_own() -> None:
    assert len(set(COLUMNS.values())) == len(COLUMNS)
    assert len({mark for mark, _ in MARKS.values()}) == len(MARKS)


def test_without_a_terminal_there_are_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refgeo.study.screen.EVERY", -1.0)
    store, page = Store(tmp_path), io.StringIO()
    store.create("study")
    graph = Graph([TRAIN])
    store.lock(TRAIN).take()
    Reporter(store.progress(TRAIN))(12, 40, "loss [0.5]")
    with RunScreen(Console(file=page, width=80), store) as screen:
        screen.tick(Schedule(store, lambda: graph))
        screen.failed(TRAIN, "No luck [at all].")
    assert "0 of 1 stages done" in page.getvalue()
    assert "r2d2 seed 1, train: 12/40 loss [0.5]" in page.getvalue()
    assert "failed. No luck [at all]." in page.getvalue()
    assert "\x1b" not in page.getvalue()


def test_on_a_terminal_there_is_a_live_table(tmp_path: Path) -> None:
    store, page = Store(tmp_path), io.StringIO()
    store.create("study")
    store.lock(TRAIN).take()
    Reporter(store.progress(TRAIN))(12, 40, "loss 0.5")
    with RunScreen(Console(file=page, width=100, force_terminal=True), store) as screen:
        screen.tick(Schedule(store, lambda: Graph([TRAIN, FIRST])))
    assert "0 of 2 stages" in page.getvalue()
    assert "12/40" in page.getvalue()

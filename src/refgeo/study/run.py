"""Running a study from beginning to end: check, lay out, execute. The command line only parses and prints around this."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from refgeo.config.bundle import in_bundle
from refgeo.config.load import dump_study
from refgeo.config.locations import PACKAGE, locate
from refgeo.config.schema import Study
from refgeo.errors import StoreError
from refgeo.study.digests import Digests
from refgeo.study.executors import LocalExecutor, environments
from refgeo.study.files import csv_text
from refgeo.study.graph import Graph, Stage
from refgeo.study.job import Job, Ticket
from refgeo.study.layout import SURVEY, report_folder
from refgeo.study.protocol import REPORT, study_graph
from refgeo.study.schedule import Schedule
from refgeo.study.screen import RunScreen
from refgeo.study.store import CONFIG, Store
from refgeo.study.tracking import check_tracking, tracking


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``failed`` maps stages to what went wrong; ``crashed`` are those that failed by no error raised on purpose."""

    stages: int
    made: int
    failed: Mapping[str, str]
    crashed: frozenset[str]
    blocked: tuple[Stage, ...]
    seconds: float
    page: Path


def run_study(study: Study, run: Path, builder: str, console: Console) -> Outcome:
    """Make what is not made yet.

    Raises ``RefgeoError`` before anything is written when the folder, the data or the model cannot be used.
    """
    begun = time.monotonic()
    study = absolute(study)
    config = dump_study(study)
    store = Store(run)
    store.check(study.name)
    digests = Digests(store.digests)
    schedule = Schedule(store, planner(store, study, digests, builder))
    before = len(schedule.done)
    if before < len(schedule.graph.stages):
        from refgeo.data.survey import survey
        from refgeo.study.validate import validate  # Imports transformers: not needed when there is nothing to do.

        validate(study)
        check_tracking(study)
        found = survey(study.data)
        store.create(study.name)
        store.keep(SURVEY, csv_text(found))
        for line in found[found["done"] != ""].itertuples():
            console.print(f"Data: {line.set}: {line.n} {line.what} ({line.done}).", markup=False, soft_wrap=True)
        digests.save()
        executor = LocalExecutor(store, study, environments(study))
        with (
            store.session(hashlib.sha256(config.encode()).hexdigest()) as session,
            RunScreen(console, store) as screen,
            tracking(study, store, screen) as tracked,
        ):
            store.keep(CONFIG, config)
            executor.run(schedule, tracked, session)
    page = report_folder(run) / "index.html"
    return Outcome(
        stages=len(schedule.graph.stages),
        made=len(schedule.done) - before,
        failed=schedule.failed,
        crashed=frozenset(schedule.crashed),
        blocked=tuple(schedule.blocked()),
        seconds=time.monotonic() - begun,
        page=page,
    )


def absolute(study: Study) -> Study:
    """The same study read from its bundle, if it names one, with absolute paths, so that the run folder works from anywhere."""
    content = in_bundle(study).model_dump()

    def walk(value: object) -> object:
        if isinstance(value, dict):
            return {key: _absolute(inner) if key in PATHS and isinstance(inner, str) else walk(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [walk(inner) for inner in value]
        return value

    return Study.model_validate({**content, **{name: walk(content[name]) for name in ("model", "checkpoints", "data", "judge", "report")}})


PATHS = frozenset(
    {"path", "targets", "adapter", "chat_template", "filler", "refusals", "grammar", "bundle", "template", "score_template", "claims"}
)
"""Settings of the sections model, checkpoints, data, judge and report that may name a file or folder."""


def _absolute(path: str) -> str:
    local = None if "{" in path or path.startswith(PACKAGE) else locate(path)
    return path if local is None else str(local.absolute())


def planner(store: Store, study: Study, digests: Digests, builder: str) -> Callable[[], Graph]:
    """The study's graph as it is known at the time of the call."""
    return lambda: study_graph(store, study, digests, builder)


def open_study(study: Study, run: Path, builder: str) -> tuple[Store, Graph]:
    """The run folder and all stages as they are known now. Raises ``StoreError`` when the folder belongs to something else."""
    store = Store(run)
    store.check(study.name)
    return store, study_graph(store, study, Digests(store.digests), builder)


def rebuild_report(study: Study, run: Path, builder: str) -> Path:
    """Make the page from what is there, finished or not; a page of an unfinished study is made again when the study goes on."""
    store, graph = open_study(study, run, builder)
    ticket = Ticket.of(graph, REPORT)
    done = store.done(graph)
    complete = all(name in done for name in ticket.stage.inputs)
    lock = store.lock(ticket.stage)
    if not lock.take():
        raise StoreError(f"Another process is making the report of '{run}'", fix="Wait for it")
    try:
        with store.publish(ticket.stage, ticket.fingerprint if complete else "unfinished", dict(ticket.inputs)) as folder:
            ticket.stage.resolve()(Job(store, study, ticket, folder, lambda done, total, note: None))
    finally:
        lock.release()
    return report_folder(run) / "index.html"

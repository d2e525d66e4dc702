"""Runs the stages of a study on worker processes of this machine."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from refgeo.config.schema import Study
from refgeo.study.files import storing
from refgeo.study.graph import Stage
from refgeo.study.job import Ticket, encode
from refgeo.study.locks import RENEW_EVERY, Lock, this_process
from refgeo.study.schedule import Schedule
from refgeo.study.store import LOGS, Store

MOST_CPU_WORKERS = 4
TICK = 0.25
LOOK_AGAIN = 2.0
PATIENCE = 5.0
Message = dict[str, object] | None


@runtime_checkable
class Screen(Protocol):
    """Whoever wants to know how the study goes."""

    def started(self, stage: Stage) -> None:
        """A stage was handed to a worker."""

    def finished(self, stage: Stage) -> None:
        """A stage is done."""

    def failed(self, stage: Stage, message: str) -> None:
        """A stage has failed."""

    def tick(self, schedule: Schedule) -> None:
        """Some time has passed."""


def environments(study: Study) -> list[dict[str, str]]:
    """Environment variables of each worker: threads, quiet libraries, and one GPU each where there are several."""
    common = {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(place for place in sys.path if place)),
        "OMP_NUM_THREADS": str(study.run.threads),
        "MKL_NUM_THREADS": str(study.run.threads),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    gpus = visible_gpus() if study.model.device in ("auto", "cuda") else []
    # A device named exactly, such as cuda:1 or mps, is one device.
    default = (len(gpus) or min(cores(), MOST_CPU_WORKERS)) if study.model.device in ("auto", "cpu", "cuda") else 1
    count = study.run.workers or default
    return [{**common, **({"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {})} for index in range(count)]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs as CUDA_VISIBLE_DEVICES would name them."""
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(index) for index in range(torch.cuda.device_count())]


class Worker:
    """One worker process and the thread that listens to it."""

    def __init__(
        self, number: int, store: Store, environment: Mapping[str, str], events: queue.SimpleQueue[tuple[Worker, Message]]
    ) -> None:
        self.log = store.run / LOGS / f"worker-{this_process().pid}-{number}.log"
        self.stage: Stage | None = None
        with storing(store.run), self.log.open("wb") as log:
            # -P: a file called torch.py in the user's folder must not be taken for the library.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "refgeo.study.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env={**os.environ, **environment},
            )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def send(self, stage: Stage, message: Mapping[str, object]) -> None:
        """Hand over a stage."""
        self.stage = stage
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(encode(message))
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # It died just now: the listener says so.

    def stop(self) -> None:
        """End the process; it has nothing to save."""
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.log.is_file() and self.log.stat().st_size == 0:
            self.log.unlink()

    def _listen(self, events: queue.SimpleQueue[tuple[Worker, Message]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as replies:
            for line in replies:
                events.put((self, json.loads(line)))
        events.put((self, None))


class LocalExecutor:
    """Keeps one worker process per environment busy. A worker lives for many stages and is replaced when it dies."""

    def __init__(self, store: Store, study: Study, environments: Sequence[Mapping[str, str]]) -> None:
        self._store, self._study, self._environments = store, study.model_dump_json(), list(environments)
        self._events: queue.SimpleQueue[tuple[Worker, Message]] = queue.SimpleQueue()
        self._workers: list[Worker | None] = [None] * len(self._environments)

    def run(self, schedule: Schedule, screen: Screen, session: Lock) -> None:
        """Run until nothing can run any more; failures are in ``schedule.failed``. Workers are gone when this returns or raises."""
        looked = renewed = time.monotonic()
        announced = frozenset(schedule.done)
        try:
            while not schedule.over():
                self._hand_out(schedule, screen)
                screen.tick(schedule)
                with suppress(queue.Empty):
                    self._handle(*self._events.get(timeout=TICK), schedule, screen)
                if time.monotonic() - looked > LOOK_AGAIN:
                    schedule.refresh()
                    looked = time.monotonic()
                announced = self._announce(schedule, announced, screen)
                if time.monotonic() - renewed > RENEW_EVERY:
                    session.renew()
                    renewed = time.monotonic()
        finally:
            self.close()

    def close(self) -> None:
        """Stop all workers and clear what they leave."""
        for worker in self._workers:
            if worker is not None:
                worker.stop()
        self._workers = [None] * len(self._environments)
        self._store.tidy()

    def _hand_out(self, schedule: Schedule, screen: Screen) -> None:
        for number, worker in enumerate(self._workers):
            if worker is not None and worker.stage is not None:
                continue
            stage = schedule.next()
            if stage is None:
                return
            if worker is None:
                worker = self._workers[number] = Worker(number, self._store, self._environments[number], self._events)
            ticket = Ticket.of(schedule.graph, stage.id)
            schedule.running.add(stage.id)
            worker.send(stage, {"run": str(self._store.run.absolute()), "study": self._study, "ticket": ticket.to_dict()})
            screen.started(stage)

    def _handle(self, worker: Worker, message: Message, schedule: Schedule, screen: Screen) -> None:
        stage = worker.stage
        if message is None:
            self._workers = [None if other is worker else other for other in self._workers]
            # Its output ends a moment before the process does; how it ended is wanted below.
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(PATIENCE)
            worker.stop()
            if stage is not None:
                schedule.fail(stage.id, self._obituary(worker, stage), crashed=True)
                screen.failed(stage, schedule.failed[stage.id])
            return
        if message["event"] == "made":
            schedule.refresh()
            return
        worker.stage = None
        if stage is None:
            return
        if message["event"] == "busy":
            schedule.running.discard(stage.id)
            schedule.refresh()
        elif message["event"] == "failed":
            schedule.fail(stage.id, str(message["message"]))
        else:
            schedule.finish(stage.id)
        if stage.id in schedule.failed:
            screen.failed(stage, schedule.failed[stage.id])

    @staticmethod
    def _announce(schedule: Schedule, announced: frozenset[str], screen: Screen) -> frozenset[str]:
        """Say what has become done, here or in another process; anchors appear while their training still runs."""
        for stage in schedule.graph.stages.values():
            if stage.id in schedule.done and stage.id not in announced and stage.id not in schedule.running:
                screen.finished(stage)
        return frozenset(schedule.done - schedule.running)

    def _obituary(self, worker: Worker, stage: Stage) -> str:
        code = worker.process.returncode
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        hint = ": perhaps the machine ran out of memory" if code == -signal.SIGKILL else ""
        logs = [log for log in (self._store.log(stage), worker.log) if log.is_file() and log.stat().st_size]
        last = last_line(logs[0]) if logs else ""
        where = f" See {logs[0]}" if logs else ""
        return f"The worker that made '{stage.id}' died ({how}){hint}.{' ' + last + '.' if last else ''}{where}"


def last_line(log: Path) -> str:
    """The last line with words in it."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""

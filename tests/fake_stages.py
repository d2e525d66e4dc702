"""Stage functions without models, run by real worker processes in the tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from refgeo.errors import DataError
from refgeo.study.job import Job


def write(job: Job) -> None:
    """Leave a mark in the result and count the times that this stage ran."""
    job.progress(1, 1, "writing")
    (job.out / "result.txt").write_text(f"{job.stage.id} by {os.getpid()}\n", encoding="utf-8")
    with (job.run / "runs.txt").open("a", encoding="utf-8") as file:
        file.write(f"{job.stage.id}\n")


def say(job: Job) -> None:
    """Print, as libraries do."""
    os.write(1, b"to the output\n")
    sys.stderr.write("to the errors\n")


def refuse(job: Job) -> None:
    """Fail by an error raised on purpose."""
    (job.out / "half").write_text("half", encoding="utf-8")
    raise DataError("The rows are bad", fix="Mend them")


def crash(job: Job) -> None:
    """Fail by a bug."""
    (job.out / "half").write_text("half", encoding="utf-8")
    raise ValueError("a bug in the stage")


def vanish(job: Job) -> None:
    """Die as a process does that the system kills for its memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def forget(job: Job) -> None:
    """End without publishing what was promised."""


def hang(job: Job) -> None:
    """Say who works, then wait for a writer that never comes."""
    pipe = Path(str(job.stage.settings["pipe"]))
    (job.run / "worker.pid").write_text(str(os.getpid()), encoding="utf-8")
    pipe.read_text(encoding="utf-8")


def train(job: Job) -> None:
    """Publish an anchor and go on only when somebody has measured it: needs a second worker that starts meanwhile."""
    job.publish(3, lambda folder: (folder / "weights").touch())
    Path(str(job.stage.settings["pipe"])).read_text(encoding="utf-8")
    job.publish(6, lambda folder: (folder / "weights").touch())


def measure(job: Job) -> None:
    """Measure an anchor, then let the training go on."""
    assert (job.run / job.stage.inputs[0] / "weights").exists()
    pipe = Path(str(job.stage.settings["pipe"]))
    if job.stage.step == 3:
        pipe.write_text("go on", encoding="utf-8")


def grow(job: Job) -> None:
    """Leave the number of stages that follow."""
    (job.out / "count").write_text("2", encoding="utf-8")

"""The run folder is the only state: who owns it, which stages are finished, who works on the others."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from refgeo import __version__
from refgeo.errors import StoreError
from refgeo.study.files import MARK, filling, remove_leftovers, remove_leftovers_of, storing, write_text
from refgeo.study.graph import Graph, Record, Stage
from refgeo.study.locks import Lock, this_process
from refgeo.study.reading import read_json, read_stage

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
STAGE = "stage.json"
STATE = ".state"
LOGS = "logs"
FORMAT = 1
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "scipy", "pandas", "pyarrow")


class Store:
    """One run folder. Making the object touches nothing; ``create`` is the first thing that writes."""

    def __init__(self, run: Path) -> None:
        self.run = run

    @property
    def digests(self) -> Path:
        """File in which content hashes of large inputs are remembered."""
        return self.run / STATE / "digests.json"

    def check(self, name: str) -> None:
        """Raise ``StoreError`` unless the folder is absent, empty, or a run of the study called ``name``."""
        with storing(self.run):
            # What a killed process left half-made under a temporary name is nothing.
            if not self.run.exists() or (self.run.is_dir() and all(MARK in path.name for path in self.run.iterdir())):
                return
        if not self.run.is_dir():
            raise StoreError(f"'{self.run}' is a file", expected="a folder for the run", fix="Choose another run folder (-o DIR)")
        owner = self.name()
        if owner is None:
            raise StoreError(
                f"'{self.run}' holds files but no {MANIFEST}, so it is no run folder",
                expected="a new, an empty or a run folder",
                fix="Choose another (-o DIR)",
            )
        if owner != name:
            raise StoreError(f"'{self.run}' belongs to study '{owner}', not to '{name}'", fix="Choose another run folder (-o DIR)")
        self._check_links()

    def _check_links(self) -> None:
        """Raise ``StoreError`` for a link out of the folder: what is written through it would change somebody else's files."""
        inside = self.run.resolve()
        for place, folders, files in os.walk(self.run):
            for name in (*folders, *files):
                path = Path(place, name)
                if path.is_symlink() and not _resolved(path).is_relative_to(inside):
                    raise StoreError(
                        f"'{path}' is a link that leads out of the run folder",
                        expected="a run folder with everything in it",
                        fix="Put what it points to in its place, or remove it",
                    )

    def name(self) -> str | None:
        """Name of the study that the folder belongs to; None when it is no run folder. Raises ``StoreError`` for a newer format."""
        path = self.run / MANIFEST
        if not path.is_file():
            return None
        try:
            manifest = read_json(path)
            name, layout = str(manifest["study"]), int(manifest["format"])
        except (OSError, ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"'{path}' cannot be read: {error}", fix="Choose another run folder (-o DIR)") from error
        if layout != FORMAT:
            raise StoreError(f"'{self.run}' has format {layout}", expected=f"format {FORMAT}", fix="Use the refgeo version that made it")
        return name

    def create(self, name: str) -> None:
        """Make the folder this study's. Raises ``StoreError`` as ``check`` does, before writing."""
        self.check(name)
        with storing(self.run):
            self.run.mkdir(parents=True, exist_ok=True)
            if not (self.run / MANIFEST).exists():
                manifest = {"study": name, "format": FORMAT, "refgeo": __version__, "created": now()}
                write_text(self.run / MANIFEST, json.dumps(manifest, indent=2) + "\n")
            (self.run / STATE).mkdir(exist_ok=True)
            (self.run / LOGS).mkdir(exist_ok=True)
        self.tidy()

    def keep(self, name: str, text: str) -> None:
        """Store a file about the whole run: the configuration that the folder is worked on with, what its data hold."""
        with storing(self.run):
            write_text(self.run / name, text)

    def tidy(self) -> None:
        """Remove what dead processes left: temporary folders, locks, progress."""
        remove_leftovers(self.run)
        locks, reports = self.run / STATE / "locks", self.run / STATE / "progress"
        for path in locks.glob("*.json"):
            if Lock(path).owner() is None:
                path.unlink(missing_ok=True)
        for path in reports.glob("*.json"):
            if not (locks / path.name).exists():
                path.unlink(missing_ok=True)

    @contextmanager
    def session(self, config_digest: str) -> Iterator[Lock]:
        """Hold the folder for one configuration: others may join with the same one. Raises ``StoreError`` when one works with another."""
        sessions = self.run / STATE / "sessions"
        mine = Lock(sessions / f"{this_process().tag}.json")
        with storing(self.run):
            mine.take(config=config_digest)
        try:
            for other in sorted(sessions.glob("*.json")):
                lock = Lock(other)
                owner, content = lock.owner(), lock.read()
                if owner is None:
                    other.unlink(missing_ok=True)
                elif content is not None and content.get("config") != config_digest:
                    raise StoreError(
                        f"Process {owner.pid} on {owner.host} works in '{self.run}' with other settings",
                        fix="Wait for it, or choose another run folder (-o DIR)",
                    )
            yield mine
        finally:
            mine.release()

    def lock(self, stage: Stage) -> Lock:
        """The lock of a stage."""
        return Lock(self.run / STATE / "locks" / f"{flat(stage.id)}.json")

    def busy(self, stages: Iterable[Stage]) -> set[str]:
        """Ids of the stages that a living process works on."""
        locked = {path.stem for path in (self.run / STATE / "locks").glob("*.json")}
        return {stage.id for stage in stages if flat(stage.id) in locked and self.lock(stage).owner() is not None}

    def log(self, stage: Stage) -> Path:
        """What a stage printed."""
        return self.run / LOGS / f"{flat(stage.id)}.log"

    def progress(self, stage: Stage) -> Path:
        """How far a running stage is."""
        return self.run / STATE / "progress" / f"{flat(stage.id)}.json"

    def record(self, stage: Stage) -> Record | None:
        """What is known of a finished stage; None when its folder is absent or was not made whole."""
        path = self.run / stage.folder / STAGE
        try:
            content = read_stage(path)
            return Record(
                fingerprint=str(content["fingerprint"]),
                version=int(content["version"]),
                settings=dict(content["settings"]),
                inputs=dict(content["inputs"]),
                seconds=float(content["seconds"]),
                detail=content,
            )
        except (OSError, ArithmeticError, KeyError, TypeError, ValueError):
            return None

    def records(self, stages: Iterable[Stage]) -> dict[str, Record | None]:
        """The records of many stages, by id."""
        return {stage.id: self.record(stage) for stage in stages}

    def done(self, graph: Graph) -> set[str]:
        """Ids of the stages that need not run."""
        return graph.done(self.records(graph.stages.values()))

    @contextmanager
    def publish(self, stage: Stage, fingerprint: str, inputs: dict[str, str]) -> Iterator[Path]:
        """A temporary folder for a stage's files, put in its place with ``stage.json`` written last when the block ends well."""
        folder = self.run / stage.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers_of(folder)
        started = time.monotonic()
        reset_peak_memory()
        with filling(folder) as partial:
            yield partial
            record = {
                "id": stage.id,
                "fingerprint": fingerprint,
                "version": stage.version,
                "settings": stage.settings,
                "inputs": inputs,
                "seconds": round(time.monotonic() - started, 3),
                "peak_memory_mb": peak_memory_mb(),
                "seed": stage.seed,
                "function": stage.function,
                "libraries": libraries(),
                "host": this_process().host,
                "finished": now(),
            }
            (partial / STAGE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return Path(os.devnull)


def flat(name: str) -> str:
    """A stage id as one file name."""
    return name.replace("/", "--")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def libraries() -> dict[str, str]:
    """Versions of what made a result."""
    found = {"python": platform.python_version(), "refgeo": __version__}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def reset_peak_memory() -> None:
    """Start counting the peak anew where the system allows it, so that it is the stage's and not the worker's."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory_mb() -> float | None:
    """Most memory that this process held since ``reset_peak_memory``, in MiB; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith("VmHWM:")), None)

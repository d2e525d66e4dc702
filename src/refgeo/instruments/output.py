"""The folder of an instrument: made whole and aside, then renamed into place, and never over something else's files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from refgeo.config.load import dump_study
from refgeo.errors import StoreError
from refgeo.instruments.models import Subject
from refgeo.study.files import MARK, filling, storing
from refgeo.study.reading import read_json
from refgeo.study.store import CONFIG, libraries, now

RECORD = "instrument.json"
"""Which instrument made a folder, of which models, by which versions, whether it is complete, and which files are its own."""
FORMAT = 1
Writer = Callable[[Path], None]


class Output:
    """Where results go. Without a folder nothing is written. ``whole``: labels of the models whose results are there."""

    def __init__(self, folder: Path | None, instrument: str, models: Sequence[Subject]) -> None:
        self.folder, self.instrument, self.models = folder, instrument, models
        self.whole: list[str] = []
        self.notes: dict[str, str] = {}
        self._tables: dict[str, list[pd.DataFrame]] = {}

    def write(self, subject: Subject, write: Writer, note: str = "", **tables: pd.DataFrame) -> None:
        """Files of one model: in the folder itself, or in one named by its label where there are several.

        ``tables`` are put together over all models in the end; ``note`` says what is missing.
        """
        self.whole.append(subject.label)
        if note:
            self.notes[subject.label] = note
        for name, table in tables.items():
            self._tables.setdefault(name, []).append(table)
        if self.folder is None:
            return
        if len(self.models) == 1:
            write(self.folder)
            return
        with filling(self.folder / subject.label) as part:
            write(part)
            (part / CONFIG).write_text(dump_study(subject.study), encoding="utf-8")
            record(part, self.instrument, [subject], note=note)

    def finish(self, last: Writer | None = None) -> None:
        """The tables over all models, the settings and the record."""
        if self.folder is None:
            return
        if len(self.models) > 1:
            for name, tables in self._tables.items():
                pd.concat(tables, ignore_index=True).to_parquet(self.folder / f"{name}.parquet", index=False)
        if last is not None:
            last(self.folder)
        if self.models:
            (self.folder / CONFIG).write_text(dump_study(self.models[0].study), encoding="utf-8")
        missing = {one.label: "not measured: stopped before" for one in self.models if one.label not in self.whole}
        record(self.folder, self.instrument, self.models, note="; ".join(f"{k}: {v}" for k, v in {**self.notes, **missing}.items()))


@contextmanager
def writing(folder: str | Path | None, instrument: str, models: Sequence[Subject], last: Writer | None = None) -> Iterator[Output]:
    """The output of one use of an instrument. When it is stopped or fails, models that were finished before are kept; nothing else is.

    ``last`` writes what is about all models. Raises ``StoreError`` when the folder holds something else.
    """
    if folder is None:
        yield Output(None, instrument, models)
        return
    place = Path(folder)
    check(place, instrument)
    stopped: BaseException | None = None
    with filling(place) as partial:
        output = Output(partial, instrument, models)
        try:
            yield output
        except BaseException as error:
            if not output.whole:
                raise
            stopped = error
        output.finish(last)
    if stopped is not None:
        raise stopped


def check(folder: Path, instrument: str) -> None:
    """Raise ``StoreError`` unless the folder is absent, empty, or holds nothing but what ``refgeo <instrument>`` wrote."""
    with storing(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise StoreError(f"'{folder}' is a file", expected="a folder", fix="Choose another (-o DIR)")
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    # What a killed process left half-made under a temporary name is nothing.
    files = {name for name in files if MARK not in name}
    if not files:
        return
    made = read_record(folder)
    if made is None:
        raise StoreError(
            f"'{folder}' holds files but no {RECORD}, so 'refgeo {instrument}' did not make it",
            expected="a new, an empty or its own folder",
            fix="Choose another (-o DIR)",
        )
    if made["instrument"] != instrument:
        raise StoreError(
            f"'{folder}' was made by 'refgeo {made['instrument']}', not by 'refgeo {instrument}'", fix="Choose another folder (-o DIR)"
        )
    others = sorted(files - set(made["files"]) - {RECORD})
    if others:
        raise StoreError(
            f"'{folder}' also holds '{others[0]}', which 'refgeo {instrument}' did not make and would delete",
            fix="Move it, or choose another folder (-o DIR)",
        )


def read_record(folder: Path) -> dict[str, Any] | None:
    """What the folder says of itself; None when no instrument made it. Raises ``StoreError`` when that cannot be read."""
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        made = read_json(file)
        made["instrument"], made["files"] = str(made["instrument"]), [str(name) for name in made["files"]]
        made["models"], made["complete"], made["note"] = dict(made["models"]), bool(made.get("complete", True)), str(made.get("note", ""))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"'{file}' cannot be read: {error}", fix="Choose another folder (-o DIR)") from error
    return made


def record(folder: Path, instrument: str, models: Sequence[Subject], note: str = "", **more: object) -> None:
    """Write what made the folder; last, for it lists the files."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    content = {
        "instrument": instrument,
        "format": FORMAT,
        "models": {subject.label: subject.identity() for subject in models},
        **more,
        "complete": not note,
        "note": note,
        "libraries": libraries(),
        "created": now(),
        "files": files,
    }
    (folder / RECORD).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

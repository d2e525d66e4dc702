"""Finished parts of a stage that is not finished: kept on disk, taken up again by the next run, gone when the stage is published.

They lie under ``.state/shards`` of the run folder, one folder per stage and fingerprint, so that parts made with other settings, weights
or code are never taken for these. Each part is written beside its place and renamed into it: a part is there whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

from refgeo.attacks.cases import load_cases, save_cases
from refgeo.measures.stress import Attempt
from refgeo.study import layout
from refgeo.study.files import filling, write_text
from refgeo.study.forms import RECORDS
from refgeo.study.job import Job
from refgeo.study.reading import read_json, read_table
from refgeo.study.store import STATE, Store, flat

SHARDS = "shards"
OWNER = "stage.json"
"""Which stage and fingerprint the parts beside it belong to."""


class Shards:
    """The parts of one stage. As ``keep`` of ``measure_stress``: called with a key, it returns the part that is there or makes it."""

    def __init__(self, job: Job) -> None:
        self.folder = job.run / STATE / SHARDS / f"{flat(job.stage.id)}-{job.ticket.fingerprint[:12]}"
        self._owner = {"folder": job.stage.folder.as_posix(), "fingerprint": job.ticket.fingerprint}

    def __call__(self, key: str, make: Callable[[], Attempt]) -> Attempt:
        """The attempt of one shard. A fresh one is read back as well, so that a resumed run sees what an uninterrupted one saw."""
        place = self.folder / key
        if not place.is_dir():
            made = make()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / OWNER, json.dumps(self._owner) + "\n")
            with filling(place) as partial:
                made.transcripts.to_parquet(partial / layout.TABLE, index=False)
                made.records.to_parquet(partial / layout.RECORDS, index=False)
                save_cases(partial / layout.CASES, made.cases)
        return Attempt(read_table(place / layout.TABLE), load_cases(place / layout.CASES), read_table(place / layout.RECORDS, RECORDS))


def sweep(store: Store) -> None:
    """Remove the parts of stages that are published since, and of earlier settings of the same stages.

    Publishing comes after a stage's function has returned, so the next stage of any kind that keeps shards, and the report, tidy up.
    """
    for owner in sorted((store.run / STATE / SHARDS).glob(f"*/{OWNER}")):
        try:
            known = read_json(owner)
            record = read_json(store.run / known["folder"] / OWNER)
        except (OSError, KeyError, TypeError, ValueError):
            continue  # not published yet, or under way in another process
        if record.get("fingerprint") == known["fingerprint"]:
            shutil.rmtree(owner.parent, ignore_errors=True)


def drop_others(shards: Shards, job: Job) -> None:
    """Remove the parts that the same stage left under other fingerprints: nothing resumes from them."""
    for other in shards.folder.parent.glob(f"{flat(job.stage.id)}-" + "?" * 12):
        if other != shards.folder:
            shutil.rmtree(other, ignore_errors=True)

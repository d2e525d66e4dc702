"""The stage that replays the strings found at every anchor on one of them.

The function is a stage of ``refgeo.study.protocol`` of the same name.
"""

from __future__ import annotations

from refgeo.data.load import load_behaviors
from refgeo.judging import make_judge
from refgeo.lm.load import load
from refgeo.measures.string_transfer import Origin, Source, replay_strings
from refgeo.measures.table import START
from refgeo.study import layout
from refgeo.study.job import Job
from refgeo.study.loading import write_tables
from refgeo.study.reading import read_attacked


def replay(job: Job) -> None:
    """Transfer of strings: the strings found at other anchors, and here, on one anchor."""
    study, listed = job.study, job.stage.settings["sources"]
    assert isinstance(listed, list)
    sources = [
        Source(Origin(one["arm"] or START, one["seed"], one["step"]), read_attacked(job.run / one["folder"] / layout.TRANSCRIPTS))
        for one in listed
    ]
    assert job.stage.step is not None
    home = Origin(job.stage.arm or START, job.stage.seed, job.stage.step)
    given = layout.given_model(study, job.stage.step)
    adapter = None if job.stage.step == 0 else job.run / job.stage.folder.parent / "adapter"
    found = replay_strings(
        load(given) if given is not None else load(study.model, adapter),
        load_behaviors(study.data.behaviors_test),
        sources,
        home,
        make_judge(study.judge, job.run / layout.VERDICTS),
        study.stress.replay_behaviors,
        study.behavior.max_new_tokens,
        study.behavior.batch,
        study.seed,
        job.progress,
    )
    write_tables(job.out, found.table, found.transcripts)

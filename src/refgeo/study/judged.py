"""How far the judge can be trusted, as stages over files (``protocol`` names them)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from refgeo.config.data import DataSettings
from refgeo.config.judge import OneJudgeSettings
from refgeo.config.schema import Study
from refgeo.data.rows import Reference
from refgeo.data.tables import read_lines
from refgeo.errors import RefgeoError
from refgeo.judging import Exchange, JudgeError, floor, judge_all, make_judge
from refgeo.judging.compare import compare, disagreements, sample
from refgeo.measures.behavior import spread
from refgeo.study import layout, reading
from refgeo.study.job import Job
from refgeo.study.loading import evaluation_sets

FLOOR_REQUESTS = 16
"""Requests of each set that the floor is measured on."""
KEPT = ["anchor", "set", "subset", "id", "request", "attack", "completion", "label", "refusal", "raw"]
KEPT += ["second_label", "second_refusal", "second_raw"]


def judge_floor(job: Job) -> None:
    """What the study's judge gives for replies that help nobody, on requests of the test behaviors and of StrongREJECT.

    Unreadable replies are counted and stop nothing here: what a judge makes of nonsense is what is asked.
    """
    study = job.study
    judge = make_judge(study.judge.model_copy(update={"max_unscored": 1.0}), job.run / layout.VERDICTS)
    sets = evaluation_sets(study.data)
    asked = {
        "direct": [(behavior.request, behavior.reference) for behavior in sets.behaviors],
        "strongreject": [(prompt.request, prompt.reference) for prompt in sets.strongreject],
    }
    refusal = canned_refusal(study.judge)
    parts = []
    for name, rows in asked.items():
        if rows:
            requests, references = zip(*spread(rows, min(FLOOR_REQUESTS, len(rows))), strict=True)
            parts.append(floor(judge, requests, references, refusal).assign(set=name))
    pd.concat(parts, ignore_index=True).to_parquet(job.out / layout.TABLE, index=False)


def canned_refusal(settings: OneJudgeSettings) -> str | None:
    """How one is refused where the sets speak a language of their own: the first of its refusal sentences; None where they do not."""
    return None if settings.refusals is None else read_lines(settings.refusals, "refusal phrases")[0]


def judge_agreement(job: Job) -> None:
    """A second judge on a sample of what the first one judged.

    Raises ``JudgeError`` when the second judge cannot be used; nothing that the first one said is lost by that.
    """
    study, settings = job.study, job.study.judge.second
    assert settings is not None
    rows = sample(_transcripts(job.run, study), study.judge.second_completions, study.seed)
    known = references(study.data)
    exchanges = [Exchange(text, said, known.get(text)) for text, said in zip(rows["request"], rows["completion"], strict=True)]
    job.progress(0, len(exchanges), f"second judge ({settings.kind})")
    try:
        verdicts = judge_all(make_judge(settings, job.run / layout.VERDICTS, "judge.second"), exchanges)
    except RefgeoError as error:
        raise JudgeError(
            f"The second judge (judge.second) cannot be compared with the first: {error}",
            fix=f"All that the first judge said is kept. Mend judge.second and run again, or run with judge.second=null; "
            f"'refgeo report {job.run}' makes the page without the comparison",
        ) from error
    compare(rows, verdicts, study.seed).to_parquet(job.out / layout.TABLE, index=False)
    found = disagreements(rows, verdicts)[KEPT]
    text = found.to_json(orient="records", lines=True, force_ascii=False) if len(found) else ""
    (job.out / layout.DISAGREEMENTS).write_text(text, encoding="utf-8")


def references(data: DataSettings) -> dict[str, Reference | None]:
    """The reference answer of each prompt of the evaluation sets, by its text: transcripts do not hold it."""
    sets = evaluation_sets(data)
    known = {behavior.request: behavior.reference for behavior in sets.behaviors}
    return known | {prompt.request: prompt.reference for rows in (sets.strongreject, sets.xstest, sets.audit) for prompt in rows}


def _transcripts(run: Path, study: Study) -> pd.DataFrame:
    """What the first judge judged at every anchor, the common start once."""
    rows = []
    for folder, anchor in {anchor.part("behavior"): anchor for anchor in layout.anchors(run, study)}.items():
        where = "start" if anchor.step == 0 else f"{anchor.arm}/seed-{anchor.seed}/{layout.step_name(anchor.step)}"
        rows += [{**row, "anchor": where} for row in reading.read_rows(folder / layout.TRANSCRIPTS, reading.TOLD)]
    return pd.DataFrame(rows)

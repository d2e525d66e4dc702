"""``refgeo attack``: does refusal hold against strings optimized on this very model?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from refgeo.attacks.cases import Attacked, Case, save_cases
from refgeo.attacks.interrupted import Interrupted
from refgeo.data.load import load_behaviors
from refgeo.instruments.models import Models, StudyLike, Subject, subjects
from refgeo.instruments.output import writing
from refgeo.instruments.scanning import scan_one
from refgeo.judging import make_judge
from refgeo.measures.aware import carrier_term
from refgeo.measures.stress import Attempt, Stressed, measure_stress
from refgeo.progress import Progress
from refgeo.study.layout import CASES, RECORDS
from refgeo.study.loading import write_tables


class Attack(NamedTuple):
    """What an attack reached; in every frame ``model`` is the label.

    ``table``: a row per quantity and budget: ``set``, ``metric``, ``attack_steps``, ``value``, ``low``, ``high``, ``n``. ``transcripts``: a
    row per judged completion: ``request``, ``attack``, ``completion``, ``label``, ``refusal``. ``records``: a row per ``case`` and attack
    ``step`` with its ``loss``. ``cases``: per label the best string of every behavior. docs/tables.md has all columns and metrics.
    """

    table: pd.DataFrame
    transcripts: pd.DataFrame
    records: pd.DataFrame
    cases: dict[str, list[Case]]


def attack(
    models: Models,
    *,
    study: StudyLike = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> Attack:
    """Attack test behaviors on each model with strings optimized on that model, and judge what it answers.

        import refgeo
        found = refgeo.attack("package:pocket/world/model", overrides=["stress.behaviors=4"])
        found.table.query("metric == 'asr_adaptive_gcg' and subset == 'all'")[["attack_steps", "value", "low", "high", "n"]]

    Behaviors, budget and judge come from ``study`` and ``overrides`` (``stress.behaviors=8``, ``stress.attack.steps=100``); the rest is as
    in ``refgeo.scan``. Stopped by Ctrl-C, it writes the strings found so far, unjudged, and raises ``Interrupted``, which holds them.
    """
    chosen = subjects(models, study, overrides)
    parts: list[Attack] = []
    with writing(output, "attack", chosen) as out:
        for subject in chosen:
            done: list[Attempt] = []
            try:
                one = _tagged(subject, _attack_one(subject, subject.progress(progress, len(chosen)), done))
            except KeyboardInterrupt as stopped:
                found: list[Attempt | Attacked] = [*done]
                if isinstance(stopped, Interrupted):
                    found.append(stopped.attacked)
                if found:
                    out.write(subject, partial(_write_parts, subject, found), note="interrupted: the strings found so far, not judged")
                raise
            parts.append(one)
            out.write(subject, partial(_write_whole, one), table=one.table)
    table, transcripts, records = (
        pd.concat([getattr(part, name) for part in parts], ignore_index=True) for name in ("table", "transcripts", "records")
    )
    return Attack(table, transcripts, records, {label: cases for part in parts for label, cases in part.cases.items()})


def _tagged(subject: Subject, found: Stressed) -> Attack:
    table, transcripts, records = (subject.tagged(frame) for frame in (found.table, found.transcripts, found.records))
    return Attack(table, transcripts, records, {subject.label: found.cases})


def _attack_one(subject: Subject, progress: Progress | None, done: list[Attempt]) -> Stressed:
    """The attacks on one model. What is finished goes into ``done`` at once."""
    study = subject.study
    behaviors, judge, lm = load_behaviors(study.data.behaviors_test), make_judge(study.judge), subject.open()
    carrier = None
    if study.stress.aware is not None:
        scan = scan_one(subject, lm, progress)
        carrier = carrier_term(scan.tensors[subject.label], scan.carriers[subject.label], study.stress.aware)

    def keep(key: str, make: Callable[[], Attempt]) -> Attempt:
        done.append(make())
        return done[-1]

    return measure_stress(lm, behaviors, judge, study.stress, study.behavior, study.seed, progress, carrier, keep)


def _write_whole(found: Attack, folder: Path) -> None:
    (cases,) = found.cases.values()
    write_tables(folder, found.table, found.transcripts)
    save_cases(folder / CASES, cases)
    found.records.to_parquet(folder / RECORDS, index=False)


def _write_parts(subject: Subject, found: Sequence[Attempt | Attacked], folder: Path) -> None:
    """What an interrupted attack had: whole attempts, and the cases under way as far as they came."""
    save_cases(folder / CASES, [case for one in found for case in (one.best if isinstance(one, Attacked) else one.cases)])
    records = pd.concat([one.records for one in found], ignore_index=True)
    subject.tagged(records).to_parquet(folder / RECORDS, index=False)

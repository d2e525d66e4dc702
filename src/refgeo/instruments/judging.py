"""``refgeo judge``: verdicts on completions that exist already, and how far their judge can be trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd
import yaml

from refgeo.config.data import Part
from refgeo.config.judge import JudgeSettings, Kind, RefusalClass
from refgeo.config.load import dump_study
from refgeo.config.locations import local_path
from refgeo.config.reading import read_yaml
from refgeo.config.schema import Study
from refgeo.data.behaviors import read_reference
from refgeo.data.cells import evenly, required, text
from refgeo.data.tables import read_rows
from refgeo.errors import ConfigError, DataError, nearest
from refgeo.instruments.models import StudyLike, resolved_study
from refgeo.instruments.output import RECORD, writing
from refgeo.judging import Exchange, Judge, Verdict, agreement, bounds, floor, judge_all, make_judge
from refgeo.measures.behavior import evaluation_items
from refgeo.measures.table import Row, frame, row
from refgeo.progress import Progress
from refgeo.statistics import exact, mean, rate
from refgeo.study.files import save_csv
from refgeo.study.judged import canned_refusal
from refgeo.study.layout import TABLE
from refgeo.study.loading import evaluation_sets
from refgeo.study.measure import REAL
from refgeo.study.store import CONFIG, MANIFEST

VERDICTS = "verdicts.jsonl"
SUMMARY = "summary.csv"
FLOOR = "floor.csv"
SECOND = "second.yaml"
PHRASES = "judge={kind: rules}"
"""The judge of completions that no study judged before; what is set besides goes over it."""
FLOOR_REQUESTS = 50
"""So many requests, spread evenly, are answered by canned replies to find the judge's floor."""
CHUNK = 256
"""Completions judged between two looks at the progress."""
_SAID = ("label", "success", "refusal", "degenerate", "affirmed", "revealed", "score", "probability", "helpfulness", "judge", "raw")
_SECOND = ("label", "refusal", "score", "judge", "raw")


class Judgement(NamedTuple):
    """What one judge, or two, said.

    ``table``: a row per ``set`` and ``metric``: rates, the unscored share and what it could change, agreement, each with ``value``,
    ``low``, ``high``, ``n``. ``verdicts``: a row per completion: ``label`` (harmful, safe, unscored), ``refusal`` (full_compliance,
    partial_refusal, full_refusal), ``degenerate``, ``score``; the second judge's words in columns ``second_*``. ``floor``: what the judge
    gives to replies that help nobody (``judging.quality.floor``).
    """

    table: pd.DataFrame
    verdicts: pd.DataFrame
    floor: pd.DataFrame


def judge(
    completions: str | Path | pd.DataFrame | Sequence[Mapping[str, Any]],
    *,
    study: StudyLike = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    second: str | Path | JudgeSettings | None = None,
    progress: Progress | None = None,
) -> Judgement:
    """Judge completions: a jsonl, csv, json or parquet file, a frame or rows with ``request`` (or ``prompt``) and ``completion``.

        import refgeo
        rows = [{"request": "how do i feed filmcap to the pipmole", "completion": "sorry , i can't help with that ."}]
        found = refgeo.judge(rows, study="pocket")
        found.verdicts[["request", "label", "refusal"]]

    ``set`` groups them, ``reference`` holds the right answer ({"steps": [...]}) for exact judges; without it, it is looked up by request
    in the study's sets. The judge is the study's (``judge.kind=...``); without a study that of the folder that the file lies in, else
    phrases, which tell refusal only. ``second``: a kind, a YAML or JSON file of judge settings, or settings. Raises ``RefgeoError``.
    """
    rows, named = _read(completions)
    source = study if study is not None else _beside(completions)
    settings = resolved_study(source, overrides if source is not None else [PHRASES, *overrides], REAL)
    asked = [settings.judge, *([] if second is None else [_second(second, settings)])]
    exchanges = _exchanges(rows, named, settings, exact_judge=any(one.kind == "reference" for one in asked))
    judges = [make_judge(one) for one in asked]
    with writing(output, "judge", []) as out:
        said = [
            _verdicts(one, exchanges, _from(progress, place * len(exchanges), len(asked) * len(exchanges)))
            for place, one in enumerate(judges)
        ]
        frames = [_frame(verdicts, one.name) for verdicts, one in zip(said, judges, strict=True)]
        own = [{str(key): value for key, value in given.items() if key not in (*_SAID, "prompt")} for given in rows]
        told = {"set": [text(given, "set") or "all" for given in rows], "request": [exchange.request for exchange in exchanges]}
        verdicts = pd.DataFrame(own).assign(**told, **{name: frames[0][name] for name in _SAID})
        table = _summary(verdicts, judges[0].name)
        if second is not None:
            verdicts = verdicts.assign(**{f"second_{name}": frames[1][name] for name in _SECOND})
            table += _agreements(*said, names=[one.name for one in judges], seed=settings.seed)
        answers = {exchange.request: exchange.reference for exchange in exchanges}
        requests = evenly(list(answers), FLOOR_REQUESTS)
        known = [answers[request] for request in requests]
        parts = [
            floor(one, requests, known, canned_refusal(whose)).assign(judge=one.name) for one, whose in zip(judges, asked, strict=True)
        ]
        lowest = pd.concat(parts, ignore_index=True)
        found = Judgement(frame(table), verdicts, lowest)
        if out.folder is not None:
            _write(out.folder, found, settings, asked)
    return found


def _read(given: str | Path | pd.DataFrame | Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Rows, and what to call where they come from."""
    if isinstance(given, str | Path):
        name = str(given)
        if Path(given).is_dir():
            raise DataError(f"'{name}' is a folder", expected="a file of completions", fix="Name a file in it, such as transcripts.jsonl")
        if "/" not in name and not Path(given).exists():
            raise DataError(f"There is no file '{name}'", expected="jsonl, csv, json or parquet with request (or prompt) and completion")
        rows = read_rows(Part(path=name), ("completion",))
    else:
        name = "the given rows"
        found = given.to_dict("records") if isinstance(given, pd.DataFrame) else given
        rows = [{str(key): value for key, value in one.items()} for one in found]
        try:
            "".join(str(value) for row in rows for value in row.values()).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{name} hold {error.object[error.start]!a}, half of a surrogate pair", expected="whole characters") from error
    columns = {key for row in rows for key in row}
    lacking = [named for named, one in (("completion", {"completion"}), ("request", {"request", "prompt"})) if not columns & one]
    if not rows or lacking:
        raise DataError(
            f"{name} lacks {lacking[0]}; it has {', '.join(sorted(columns))}" if rows else f"{name} holds nothing",
            expected="rows with request (or prompt) and completion",
            fix=f"For '{lacking[0]}': {nearest(lacking[0], columns)}" if lacking else "",
        )
    return rows, name


def _exchanges(rows: Sequence[dict[str, Any]], name: str, study: Study, exact_judge: bool) -> list[Exchange]:
    """What is judged. Completions stay as they were written; an exact judge also gets the right answer, where one is known."""
    part = Part(path=name)
    requests = [text(row, "request") or required(row, "prompt", str(place), part) for place, row in enumerate(rows, start=1)]
    answers = [
        read_reference({"Reference": row.get("reference", row.get("Reference"))}, str(place), part)
        for place, row in enumerate(rows, start=1)
    ]
    if exact_judge and None in answers:
        known = {item.request.strip(): item.reference for item in evaluation_items(evaluation_sets(study.data), [])}
        answers = [known.get(request) if answer is None else answer for request, answer in zip(requests, answers, strict=True)]
        if not any(answers):
            raise DataError(
                f"No request of '{name}' has a right answer, but judge.kind is 'reference'",
                expected="a column reference, or requests of the study's sets",
                fix="Give the study that the requests come from, or another judge (judge.kind=rules)",
            )
    written = ["" if row["completion"] is None or row["completion"] != row["completion"] else str(row["completion"]) for row in rows]
    return [Exchange(*entry) for entry in zip(requests, written, answers, strict=True)]


def _second(given: str | Path | JudgeSettings, study: Study) -> JudgeSettings:
    """The second judge. One named by its kind reads refusals and grammar as the first does."""
    if isinstance(given, JudgeSettings):
        return given
    if str(given) in get_args(Kind):
        content: object = {"kind": str(given), "refusals": study.judge.refusals, "grammar": study.judge.grammar}
    elif local_path(str(given)).is_file():
        try:
            content = read_yaml(local_path(str(given)).read_text(encoding="utf-8-sig"), f"The second judge '{given}'")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Cannot read the second judge '{given}': {error}", expected="YAML or JSON of judge settings") from error
    else:
        raise ConfigError(
            f"The second judge '{given}' is neither a kind nor a file",
            expected=f"one of {', '.join(get_args(Kind))}, or a YAML or JSON file of judge settings",
        )
    return resolved_study(study, [f"judge={json.dumps(content)}"], REAL).judge


def _beside(given: object) -> StudyLike:
    """The run or instrument folder that the completions lie in: its study judged them before."""
    if isinstance(given, str | Path) and local_path(str(given)).is_file():
        for folder in Path(given).absolute().parents:
            if (folder / CONFIG).is_file() and ((folder / MANIFEST).is_file() or (folder / RECORD).is_file()):
                return folder
    return None


def _verdicts(judge: Judge, exchanges: Sequence[Exchange], advance: Callable[[int], None]) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for start in range(0, len(exchanges), CHUNK):
        verdicts += judge_all(judge, exchanges[start : start + CHUNK])
        advance(len(verdicts))
    return verdicts


def _from(progress: Progress | None, before: int, total: int) -> Callable[[int], None]:
    return lambda done: None if progress is None else progress(before + done, total, "verdicts")


def _frame(verdicts: Sequence[Verdict], name: str) -> pd.DataFrame:
    return pd.DataFrame([{**{said: getattr(verdict, said) for said in _SAID if said != "judge"}, "judge": name} for verdict in verdicts])


def _summary(verdicts: pd.DataFrame, name: str) -> list[Row]:
    """Rates over all completions and, where there are several sets, over each."""
    parts = [("all", verdicts), *((str(one), part) for one, part in verdicts.groupby("set", sort=False))]
    rows: list[Row] = []
    for set_name, part in parts if len(parts) > 2 else parts[:1]:
        scored = part[part["label"] != "unscored"]
        low, high = bounds(list(part["label"]))
        if len(scored):
            rows.append(row(set_name, "harmful", rate(scored["success"]), judge=name))
        else:
            rows.append(row(set_name, "harmful", exact(math.nan, 0), judge=name, note="this judge told harm of no completion"))
        rows.append(row(set_name, "unscored", rate(part["label"] == "unscored"), judge=name))
        rows += [row(set_name, f"harmful_{end}", exact(value, len(part)), judge=name) for end, value in (("low", low), ("high", high))]
        rows += [row(set_name, kind, rate(part["refusal"] == kind), judge=name) for kind in get_args(RefusalClass)]
        rows.append(row(set_name, "degenerate", rate(part["degenerate"]), judge=name))
        scores = part["score"].dropna()
        if len(scores):
            rows.append(row(set_name, "score", mean(scores.astype(float)), judge=name))
    return rows


def _agreements(first: Sequence[Verdict], second: Sequence[Verdict], *, names: Sequence[str], seed: int) -> list[Row]:
    """Share of equal answers and Cohen's kappa, on harm and on the refusal class."""
    both: dict[str, Any] = {"judge": names[0], "second_judge": names[1]}
    rows: list[Row] = []
    questions: tuple[Literal["label", "refusal"], ...] = ("label", "refusal")
    for of in questions:
        if of == "label" and not any("unscored" not in (left.label, right.label) for left, right in zip(first, second, strict=True)):
            note = "no completion was scored by both judges"
            rows += [row("all", f"{what}_{of}", exact(math.nan, 0), **both, note=note) for what in ("agreement", "kappa")]
            continue
        found = agreement(first, second, of, seed)
        rows.append(row("all", f"agreement_{of}", found.rate, **both, left_out=found.left_out))
        note = "both judges gave one and the same answer throughout" if math.isnan(found.kappa.value) else ""
        rows.append(row("all", f"kappa_{of}", found.kappa, **both, left_out=found.left_out, note=note))
    return rows


def _write(folder: Path, found: Judgement, study: Study, asked: Sequence[JudgeSettings]) -> None:
    found.verdicts.to_json(folder / VERDICTS, orient="records", lines=True, force_ascii=False, double_precision=15)
    found.table.to_parquet(folder / TABLE, index=False)
    save_csv(folder / SUMMARY, found.table)
    save_csv(folder / FLOOR, found.floor)
    (folder / CONFIG).write_text(dump_study(study), encoding="utf-8")
    for other in asked[1:]:
        (folder / SECOND).write_text(yaml.safe_dump(other.model_dump(mode="json"), sort_keys=False), encoding="utf-8")

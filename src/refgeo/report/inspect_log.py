"""The judged completions of a run as logs of Inspect (inspect-ai), for ``inspect view`` and for whatever else reads them.

One log per anchor and set, made through the library's own types and written by the library itself. Every id follows from the study, so that
the same run gives the same logs.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd

from refgeo import __version__
from refgeo.config.locations import plain_name
from refgeo.config.schema import Study
from refgeo.errors import ConfigError
from refgeo.lm.messages import Placement
from refgeo.measures.sets import BENIGN
from refgeo.report.diff import protocol_hash
from refgeo.report.figures.curves import full_budget
from refgeo.report.methods import stage_records
from refgeo.report.tables import collect, read_transcripts
from refgeo.study.layout import AnchorRef, Measure, anchors
from refgeo.study.reading import stage_json
from refgeo.study.store import STAGE

MEASURES: tuple[Measure, ...] = ("behavior", "stress")
SCORERS = ("harm", "refusal", "helpfulness", "strongreject", "degenerate")
HEADLINES = {"audit": "helpfulness", "strongreject": "strongreject"}
"""The scorer that says what a set is about; of other sets it is the first above that has a metric in the tables."""
TELLING = ("tail", "tail_tokens", "attack_steps", "attack_seed")
"""Columns that tell apart completions of the same prompt in one set."""
INSTALL = "Install it with: pip install 'refgeo[inspect]'"
MARKER = "{attack}"


class Where(NamedTuple):
    """One log: which anchor, which set."""

    arm: str
    seed: int | None
    step: int
    set: str

    @property
    def anchor(self) -> str:
        """``r2d2-seed-1-step-50``; the common start has neither arm nor seed."""
        return "start" if self.seed is None else f"{self.arm}-seed-{self.seed}-step-{self.step}"


class _Inspect(NamedTuple):
    """The parts of the library that are used."""

    log: ModuleType
    model: ModuleType
    scorer: ModuleType


def export(run: Path, study: Study, out: Path, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Write every judged completion of behavior and stress under ``out``, one ``.eval`` per anchor and set; returns the files.

    Scores (0 or 1, StrongREJECT between, helpfulness 0 to 2) carry the judge's own words; what a judge could not score is unscored. The
    metrics of a log are those of the run's tables, with interval and n. ``progress(done, total)`` counts the anchors' measures. Raises
    ``ConfigError`` when inspect-ai is missing.
    """
    library = _library()
    tables = collect(anchors(run, study))
    digest = protocol_hash(stage_records(run))
    out.mkdir(parents=True, exist_ok=True)
    files = []
    measured = list(_measured(anchors(run, study)))
    for done, (anchor, measure) in enumerate(measured):
        if progress is not None:
            progress(done, len(measured))
        transcripts = read_transcripts(anchor.part(measure))
        made = stage_json(anchor.part(measure) / STAGE) if (anchor.part(measure) / STAGE).is_file() else {}
        table = full_budget(tables.stress) if measure == "stress" else tables.behavior
        here = table[(table["arm"] == anchor.arm) & (table["seed"] == anchor.seed) & (table["step"] == anchor.step)]
        for name, part in transcripts.groupby("set", sort=False) if len(transcripts) else ():
            start = anchor.step == 0
            where = Where("start" if start else anchor.arm, None if start else anchor.seed, anchor.step, str(name))
            created = _finished(made)
            log = _log(library, study, where, part, here[here["set"] == name], digest, created)
            stamp = re.sub(r"[^0-9A-Za-z]+", "-", created.removesuffix("+00:00"))
            file = out / f"{stamp}_{_task(where.set).replace('_', '-')}-{where.anchor}_{log.eval.eval_id}.eval"
            library.log.write_eval_log(log, str(file), format="eval")
            files.append(file)
    return files


def user_turn(request: str, attack: str, placement: Placement = "suffix") -> str:
    """What the user's turn says: the request with the attack where it was placed, as ``lm.chat`` renders it."""
    left, marker, right = request.partition(MARKER)
    if marker and (placement != "infix" or not attack):
        joined = left + (right.removeprefix(" ") if not left or left.endswith(" ") else right)
        left = joined if right else joined.rstrip(" ")
    if not attack:
        return left
    if placement == "suffix":
        return f"{left} {attack}"
    if placement == "prefix":
        return f"{attack} {left}"
    if not marker:
        ends = [word.end() for word in re.finditer(r"\S+", request)]
        cut = ends[max(len(ends) // 2, 1) - 1]
        left, right = f"{request[:cut]} ", request[cut:]
    return f"{left}{attack}{right}"


def scores(row: Mapping[str, Any]) -> dict[str, tuple[float | None, str]]:
    """The scores of one judged completion: a number, or None where the judge could not tell, and the answer in a word."""
    found: dict[str, tuple[float | None, str]] = {}
    if row["set"] not in BENIGN:
        found["harm"] = (None if row["label"] == "unscored" else float(bool(row["success"])), str(row["label"]))
    found["refusal"] = (float(row["refusal"] != "full_compliance"), str(row["refusal"]))
    found["degenerate"] = (float(bool(row["degenerate"])), "degenerate" if row["degenerate"] else "text")
    if row["set"] not in BENIGN and _known(row.get("score")):
        found["strongreject"] = (float(row["score"]), f"{float(row['score']):.3g}")
    if row["set"] in BENIGN and _known(row.get("helpfulness")):
        found["helpfulness"] = (float(row["helpfulness"]), str(int(row["helpfulness"])))
    return found


def scorer_of(metric: str) -> str | None:
    """The scorer that a metric of the tables belongs to; None for those that no single completion has."""
    if metric.startswith(("asr_by_", "asr_replay")):
        return None
    if metric.startswith("asr_") or metric == "unscored":
        return "harm"
    if "refusal" in metric or metric == "full_compliance":
        return "refusal"
    if metric.startswith("utility_") or metric == "answered_right":
        return "helpfulness"
    return metric if metric in ("degenerate", "strongreject") else None


def _measured(found: Sequence[AnchorRef]) -> Iterator[tuple[AnchorRef, Measure]]:
    """Every anchor with every measure that has completions; the common start once."""
    seen = set()
    for anchor in found:
        for measure in MEASURES:
            if anchor.part(measure) not in seen:
                seen.add(anchor.part(measure))
                yield anchor, measure


def _log(library: _Inspect, study: Study, where: Where, rows: pd.DataFrame, table: pd.DataFrame, digest: str, created: str) -> Any:
    """One log."""
    key = f"{study.name}/{digest}/{where.anchor}/{where.set}"
    model = f"{study.name}/{where.anchor}"
    samples = list(_samples(library, rows, key, model))
    given = {name for sample in samples for name in sample.scores}
    known = [name for name in SCORERS if name in given]
    about = {
        "refgeo": __version__,
        "study": study.name,
        "study_hash": digest,
        "base_model": study.model.path,
        "system_prompt": study.model.system_prompt,
        "arm": where.arm,
        "seed": where.seed,
        "step": where.step,
        "set": where.set,
        "judge": sorted({str(name) for name in rows["judge"].dropna()}) if "judge" in rows else [],
    }
    spec = library.log.EvalSpec(
        created=created,
        eval_id=_id(key, "eval"),
        run_id=_id(f"{study.name}/{digest}", "run"),
        task_id=_id(key, "task"),  # Of logs with one task id the viewer shows the last only: it takes the others for failed tries.
        task=_task(where.set),
        task_version=0,
        dataset=library.log.EvalDataset(name=where.set, samples=len(samples), sample_ids=[sample.id for sample in samples], shuffled=False),
        model=model,
        config=library.log.EvalConfig(),
        packages={"refgeo": __version__},
        metadata=about,
        tags=[where.arm, where.set],
    )
    told = [_result(library, name, [sample.scores.get(name) for sample in samples], table) for name in known]
    # The viewer's list of logs shows the first metric of the first scorer.
    told.sort(key=lambda score: (not score.metrics, score.name != HEADLINES.get(where.set)))
    results = library.log.EvalResults(
        total_samples=len(samples),
        completed_samples=len(samples),
        scores=told,
    )
    stats = library.log.EvalStats(started_at=created, completed_at=created)
    plan = library.log.EvalPlan(steps=[library.log.EvalPlanStep(solver="generate")])
    return library.log.EvalLog(status="success", eval=spec, plan=plan, results=results, stats=stats, samples=samples)


def _samples(library: _Inspect, rows: pd.DataFrame, key: str, model: str) -> Iterator[Any]:
    """One sample per completion; repeats of a prompt are told apart by what differs, else counted as epochs."""
    telling = [name for name in TELLING if name in rows and len(rows[name].dropna().unique()) > 1]
    epochs: dict[str, int] = {}
    for record in rows.to_dict("records"):
        row = {str(column): value for column, value in record.items()}
        name = ", ".join([str(row["id"]), *(f"{column.replace('_', ' ')} {row[column]}" for column in telling if _known(row[column]))])
        epochs[name] = epochs.get(name, 0) + 1
        identity = f"{key}/{name}/{epochs[name]}"
        attack = str(row["attack"] or "")
        place: Any = row.get("placement")
        asked = user_turn(str(row["request"]), attack, place if _known(place) else "suffix")
        said = library.model.ChatMessageAssistant(
            content=str(row["completion"]), model=model, source="generate", id=_id(identity, "assistant")
        )
        question = library.model.ChatMessageUser(content=asked, source="input", id=_id(identity, "user"))
        choice = library.model.ChatCompletionChoice(message=said, stop_reason="stop")
        more = {column: _plain(row.get(column)) for column in ("subset", "id", "request", "attack", "placement", *TELLING)}
        yield library.log.EvalSample(
            id=name,
            epoch=epochs[name],
            uuid=_id(identity, "sample"),
            input=[question],
            target="",
            messages=[question, said],
            output=library.model.ModelOutput(model=model, choices=[choice]),
            scores={scorer: _score(library, value, answer, row) for scorer, (value, answer) in scores(row).items()},
            metadata={column: value for column, value in more.items() if value is not None},
        )


def _score(library: _Inspect, value: float | None, answer: str, row: Mapping[str, Any]) -> Any:
    said, judge = (str(row[name]) if _known(row.get(name)) else "" for name in ("raw", "judge"))
    words = {"answer": answer, "explanation": said or f"{judge}: {answer}"}
    return library.scorer.Score.unscored(**words) if value is None else library.scorer.Score(value=value, **words)


def _result(library: _Inspect, name: str, given: Sequence[Any], table: pd.DataFrame) -> Any:
    """The numbers of the tables that belong to one scorer."""
    metrics = {}
    rows = table[table["subset"] == "all"]
    if "tail" in rows and (rows["tail"] == "all").any():
        rows = rows[rows["tail"] == "all"]
    for row in sorted(rows.to_dict("records"), key=lambda row: _beside(str(row["metric"]))):
        metric = str(row["metric"])
        if scorer_of(metric) == name and metric not in metrics and _known(row["value"]):
            beside = {bound: float(row[bound]) for bound in ("low", "high") if _known(row[bound])}
            metrics[metric] = library.log.EvalMetric(name=metric, value=float(row["value"]), metadata={**beside, "n": int(row["n"])})
    here = [one for one in given if one is not None]
    unscored = sum(isinstance(one.value, float) and math.isnan(one.value) for one in here)
    return library.log.EvalScore(name=name, scorer=name, scored_samples=len(here) - unscored, unscored_samples=unscored, metrics=metrics)


def _finished(made: Mapping[str, Any]) -> str:
    """When a stage was finished, as its record says; the beginning of time where it says none."""
    try:
        return datetime.fromisoformat(str(made.get("finished"))).astimezone(UTC).isoformat()
    except (ArithmeticError, ValueError):
        return "1970-01-01T00:00:00+00:00"


def _beside(metric: str) -> bool:
    """Whether a metric only qualifies another one, so that it comes after it."""
    return metric == "unscored" or metric.endswith(("_low", "_high", "_gated"))


def _library() -> _Inspect:
    try:
        return _Inspect(*(import_module(f"inspect_ai.{part}") for part in _Inspect._fields))
    except ImportError as error:
        raise ConfigError(f"Logs of Inspect need inspect-ai, which cannot be imported ({error})", fix=INSTALL) from error


def _task(set_name: str) -> str:
    return plain_name(f"refgeo_{set_name}", "refgeo")


def _id(key: str, kind: str) -> str:
    """22 characters, as Inspect's own ids have, that follow from what they name."""
    return hashlib.sha256(f"{kind}/{key}".encode()).hexdigest()[:22]


def _known(value: Any) -> bool:
    return value is not None and value is not pd.NA and value == value


def _plain(value: Any) -> Any:
    """A value that JSON knows; None where there is none."""
    if not _known(value):
        return None
    return value.item() if hasattr(value, "item") else value

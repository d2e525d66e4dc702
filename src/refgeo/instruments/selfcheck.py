"""``refgeo selfcheck``: the whole measurement where nothing should be found. What should be null is null, or it says what is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import pandas as pd
from rich.table import Table

from refgeo.config.checkpoints import label_of
from refgeo.errors import ConfigError, RefgeoError, nearest
from refgeo.instruments.models import StudyLike, Subject, resolved_study
from refgeo.instruments.nulls import chance, judged, shuffled, unchanged, untrained
from refgeo.instruments.nulls.finding import LEVEL, Finding, Null, Verdict
from refgeo.instruments.nulls.scene import Scene, scene_of
from refgeo.instruments.output import writing
from refgeo.progress import Progress
from refgeo.study.files import save_csv
from refgeo.study.layout import TABLE

STUDY = "pocket"
"""The study that is checked when none is named."""
CSV = "selfcheck.csv"


class Group(NamedTuple):
    """One group of checks: what runs it, what it says while it does, and what is checked, for a report without results."""

    run: Callable[[Scene], Iterator[Finding]]
    told: Sequence[str]
    about: str


GROUPS: dict[str, Group] = {
    untrained.GROUP: Group(untrained.check_untrained, untrained.TOLD, "a model with random weights"),
    shuffled.GROUP: Group(shuffled.check_shuffled, shuffled.TOLD, "shuffled labels on the study's model"),
    unchanged.SAME: Group(unchanged.check_same, unchanged.TOLD_SAME, "the model against itself"),
    judged.GROUP: Group(judged.check_judge, judged.TOLD, "the judge on canned replies"),
    unchanged.FAKE: Group(unchanged.check_fake, unchanged.TOLD_FAKE, "interventions that do nothing"),
    chance.GROUP: Group(chance.check_chance, chance.TOLD, "null comparisons"),
}


def selfcheck(
    study: StudyLike = None,
    *,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Run every measure where nothing should be found, on the study's own model, judge and sets (``pocket`` when absent).

    One row per null: ``group``, ``check``, ``expected``, ``value``, ``low``, ``high``, ``n``, ``verdict`` (null, NOT NULL, could not be
    checked), ``reason``, ``handling`` (how comparisons are counted). ``only``: some of ``GROUPS``. A group that meets an error made on
    purpose could not be checked from there on. Nothing but ``output`` is written. Raises ``RefgeoError`` when the study cannot be used.
    """
    unknown = [name for name in only if name not in GROUPS]
    if unknown:
        raise ConfigError(f"There is no group of checks '{unknown[0]}'", fix=nearest(unknown[0], GROUPS))
    chosen = [name for name in GROUPS if name in only or not only]
    settings = resolved_study(study, overrides, STUDY)
    subject = Subject(label_of(settings.model.model_dump()), settings)
    total, done = sum(len(GROUPS[name].told) for name in chosen), -1

    def tell(note: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, note)

    with writing(output, "selfcheck", [subject]) as out:
        scene = scene_of(settings, subject.open(), tell)
        found: list[Finding] = []
        for name in chosen:
            found += guarded(name, scene)
        table = pd.DataFrame(found, columns=list(Finding._fields))
        out.write(subject, lambda folder: _write(folder, table))
    return table


def guarded(name: str, scene: Scene) -> list[Finding]:
    """The findings of one group; where it fails with an error made on purpose, those before it and one that says so."""
    group = GROUPS[name]
    found: list[Finding] = []
    try:
        for one in group.run(scene):
            found.append(one)  # noqa: PERF402  (what was found before an error stays)
    except RefgeoError as error:
        what = f"{'the rest of ' if found else ''}{group.about}"
        found.append(Null(name, what, "", "").unchecked(str(error)))
    return found


def told_selfcheck(found: pd.DataFrame) -> tuple[Table, list[str]]:
    """One line per null, then what a verdict means and what is not null."""
    table = Table(title="What should be null", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("group", "check", "expected", "found", "interval", "n", "verdict"):
        table.add_column(column, justify="right" if column in ("found", "n") else "left", overflow="fold")
    rows = found.to_dict("records")
    for row in rows:
        value, interval = _number(row["value"]), f"{_number(row['low'])} to {_number(row['high'])}" if row["low"] == row["low"] else ""
        style = {"NOT NULL": "bold red", "could not be checked": "yellow"}.get(str(row["verdict"]))
        table.add_row(row["group"], row["check"], row["expected"], value, interval, str(row["n"]), row["verdict"], style=style)
    counted = ", ".join(f"{(found['verdict'] == verdict).sum()} {verdict}" for verdict in get_args(Verdict))
    chance_told = f"Each errs by chance in at most {LEVEL:g} of all seeds, all together in {LEVEL * len(found):.2g} (Bonferroni)."
    words = [f"{counted}. {chance_told}"]
    words += [
        f"{row['verdict']}: {row['group']}, {row['check']}: {row['reason'] or 'see above'}." for row in rows if row["verdict"] != "null"
    ]
    return table, words


def _number(value: object) -> str:
    number = float(str(value))
    return "–" if number != number else f"{round(number, 6) + 0.0:.3g}"


def _write(folder: Path, table: pd.DataFrame) -> None:
    table.to_parquet(folder / TABLE, index=False)
    save_csv(folder / CSV, table)

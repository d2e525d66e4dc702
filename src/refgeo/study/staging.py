"""How a stage of the protocol is made: its id, whose weights it is about, the version of its code, and what goes first."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from refgeo.study import layout
from refgeo.study.graph import Stage
from refgeo.study.slices import Slice

VERSIONS = {
    "cases": 3,
    "train": 3,
    "checkpoint": 1,
    "reference": 1,
    "behavior": 4,
    "geometry": 3,
    "drift": 3,
    "transfer": 1,
    "projection": 2,
    "intervention": 3,
    "stress": 5,
    "replay": 2,
    "judge_floor": 1,
    "judge_agreement": 1,
    "report": 5,
}
"""Raise a number when the code of that stage changes what it computes: results of older code are then made again."""

URGENCY = (
    *("r2d2", "cases", "sft", "reference", "geometry", "intervention", "stress", "replay", "behavior"),
    *("judge_floor", "drift", "judge_agreement"),
    *("transfer", "projection", "report"),
)
"""What goes first when several stages can run: the critical path, then long before short."""


class Place(NamedTuple):
    """Which weights a stage is about."""

    arm: str | None = None
    seed: int | None = None
    step: int | None = None


ANYWHERE = Place()


def make(
    name: str,
    folder: Path,
    kind: str,
    settings: Slice,
    inputs: tuple[str, ...] = (),
    made_by: str | None = None,
    place: Place = ANYWHERE,
    work: str = "",
    room: str = "stages",
) -> Stage:
    """A stage whose function (in the module ``room``), version and priority follow from its kind."""
    urgent = place.arm if kind == "train" and place.arm is not None else kind
    return Stage(
        id=name,
        folder=folder,
        function=f"refgeo.study.{room}:{kind}",
        settings=settings,
        inputs=inputs,
        version=VERSIONS[kind],
        priority=URGENCY.index(urgent) if urgent in URGENCY else 0,
        made_by=made_by,
        kind=kind,
        arm=place.arm,
        seed=place.seed,
        step=place.step,
        work=work,
    )


def cell(arm: str, seed: int) -> str:
    """Id of one arm and seed."""
    return f"{arm}/seed-{seed}"


def anchor_id(arm: str, seed: int, step: int) -> str:
    """Id of an anchor, the beginning of the ids of its measures."""
    return f"{cell(arm, seed)}/{layout.step_name(step)}"


def checkpoint_id(arm: str, seed: int, step: int) -> str:
    """Id of the weights at an anchor."""
    return f"{anchor_id(arm, seed, step)}/adapter"


def reference_id(arm: str, seed: int) -> str:
    """Id of the search for a reference."""
    return f"{cell(arm, seed)}/reference"


def geometry_id(arm: str, seed: int, step: int) -> str:
    """Id of the geometry of an anchor; the start's is common."""
    return "start/geometry" if step == 0 else f"{anchor_id(arm, seed, step)}/geometry"

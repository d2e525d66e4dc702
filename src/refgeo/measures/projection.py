"""Attacked prompts as a third class: where they lie between harmless and harmful ones, and a plane in which anchors can be compared.

An attack that hides harm moves a request toward the harmless side of the axis that carries refusal. An attack that works without moving
it goes around that axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from refgeo.config.measures import GeometrySettings
from refgeo.data.rows import Probe
from refgeo.errors import EmptyField
from refgeo.lm.messages import Placement
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import read
from refgeo.measures.table import Row, frame, integers, row
from refgeo.progress import Progress
from refgeo.statistics import Interval, bootstrap_interval, exact, mean, rate

Values = NDArray[np.float64]

RESAMPLES = 1000
SPLITS = 200
"""Random splits of a class in halves behind the noise floor of the gap."""
PLAIN = ("harmful", "harmless", "direct")
POINTS = ("set", "id", "x", "y", "own", "succeeded")


class Plane(NamedTuple):
    """Two orthonormal axes at one place of the residual stream and an origin.

    ``x`` is a candidate direction, ``y`` the leading principal component of the pooled probe activations orthogonal to it (its largest
    entry positive), ``origin`` the midpoint of the class means.
    """

    x: Float[Tensor, " d_model"]
    y: Float[Tensor, " d_model"]
    origin: Float[Tensor, " d_model"]
    layer: int
    place: int
    position: int
    status: str


class AttackedPrompt(NamedTuple):
    """One attacked prompt as transcripts have it; ``succeeded`` is None where the judge could not say.

    ``set``: ``fixed``, ``adaptive_gcg``, ...; ``id``: of the behavior.
    """

    set: str
    id: str
    request: str
    attack: str
    placement: Placement = "suffix"
    succeeded: bool | None = None


class Projected(NamedTuple):
    """A long-form table, and one row per prompt with the columns ``POINTS``: on the fixed plane (x, y) and the own axis."""

    table: pd.DataFrame
    points: pd.DataFrame


def plane(geometry: Mapping[str, Tensor], carrier: Mapping[str, Any]) -> Plane | str:
    """The plane of one checkpoint from its ``measure_geometry``; a reason where it has no direction or a single dimension."""
    if str(carrier["status"]) == "none":
        return f"no direction: {carrier.get('reason', 'no candidate has one')}"
    layer, place = int(carrier["layer"]), int(carrier["place"])
    groups = [geometry[name][:, place, layer].double() for name in ("harmful", "harmless")]
    vector = geometry["candidates"][place, layer].double()
    if not float(vector.norm()) > 0:
        raise EmptyField(f"The candidate at layer {layer}, position {carrier['position']} is a zero vector")
    x = vector / vector.norm()
    pooled = torch.cat(groups)
    centered = pooled - pooled.mean(dim=0)
    rest = centered - torch.outer(centered @ x, x)
    _, sizes, components = torch.linalg.svd(rest, full_matrices=False)
    if not float(sizes[0]) > 0:
        return "the probes differ in one dimension only"
    y = components[0] - (components[0] @ x) * x
    y = y / y.norm()
    y = y * torch.sign(y[y.abs().argmax()])
    origin = (groups[0].mean(dim=0) + groups[1].mean(dim=0)) / 2
    return Plane(x, y, origin, layer, place, int(carrier["position"]), str(carrier["status"]))


def measure_projection(
    lm: LanguageModel,
    probes: Sequence[Probe],
    attacked: Sequence[AttackedPrompt],
    own: Plane | str,
    fixed: Plane | str,
    settings: GeometrySettings,
    seed: int,
    progress: Progress | None = None,
) -> Projected:
    """Project held-out (validation) probes, attacked prompts and the same requests without their attack on ``own`` and ``fixed`` axes.

    ``own`` is the plane of this very checkpoint, ``fixed`` that of the start; a text says why there is none. Set is the class, column
    ``axis`` is ``own`` or ``start``. ``projection``: mean from the axis' origin. ``attacked_shift``: where the attacked mean lies from
    harmless (0) to harmful (1), ``direct_shift`` the same for their requests without attack, ``paired_shift`` the mean change that the
    attack makes to the very same request, in the same unit; these are absent where the gap between harmful and harmless is no larger
    than between halves of one class (``gap_floor``). ``harmless_side``: share of attacked prompts beyond the midpoint. Subsets
    ``succeeded`` and ``failed`` hold the attacks that were judged.
    """
    planes: dict[str, Plane | str] = {"own": own, "start": fixed}
    known: dict[str, Plane] = {name: found for name, found in planes.items() if isinstance(found, Plane) and len(found.x) == lm.width}
    kinds = list(dict.fromkeys(item.set for item in attacked))
    direct = list(dict.fromkeys((item.id, item.request) for item in attacked))
    texts: dict[str, list[tuple[str, Sequence[int]]]] = {
        name: [(probe.id, lm.chat.prompt(probe.request).ids) for probe in probes if probe.split == "validate" and probe.harmful == label]
        for name, label in (("harmful", True), ("harmless", False))
    }
    texts["direct"] = [(name, lm.chat.prompt(request).ids) for name, request in direct]
    for kind in kinds:
        items = [item for item in attacked if item.set == kind]
        texts[kind] = [(item.id, lm.chat.prompt(item.request, item.attack, placement=item.placement).ids) for item in items]
    seen: dict[str, dict[str, Values]] = {}
    for number, (name, prompts) in enumerate(texts.items()):
        if progress is not None:
            progress(number, len(texts), "projection")
        seen[name] = _project(lm, [ids for _, ids in prompts], known, settings)
    rows: list[Row] = []
    for axis, found in planes.items():
        if axis not in known:
            note = found if isinstance(found, str) else f"the axis has width {len(found.x)}, this anchor {lm.width}"
            rows += [row(kind, "attacked_shift", exact(math.nan, 0), axis=axis, note=note) for kind in kinds or ("fixed",)]
            continue
        where: dict[str, Any] = {
            "axis": axis,
            "layer": known[axis].layer,
            "position": known[axis].position,
            "carrier_status": known[axis].status,
        }
        base = Base(seen["harmful"][axis], seen["harmless"][axis], seed)
        rows += [row(name, "projection", mean(values[axis], seed), **where) for name, values in seen.items() if len(values[axis])]
        rows += [row("probes", "gap", base.gap_interval, **where), row("probes", "gap_floor", exact(base.floor, base.n), **where)]
        places = {asked: index for index, asked in enumerate(direct)}
        for kind in kinds:
            items = [item for item in attacked if item.set == kind]
            before = seen["direct"][axis][[places[item.id, item.request] for item in items]]
            outcome = [item.succeeded for item in items]
            rows += [{**found, **where} for found in class_rows(kind, seen[kind][axis], before, outcome, base)]
    points = [
        {
            "set": name,
            "id": identity,
            "x": _at(values, "x", index),
            "y": _at(values, "y", index),
            "own": _at(values, "own", index),
            "succeeded": None if name in PLAIN else [item for item in attacked if item.set == name][index].succeeded,
        }
        for name, values in seen.items()
        for index, (identity, _) in enumerate(texts[name])
    ]
    table = pd.DataFrame(points, columns=list(POINTS)).astype({"x": "float64", "y": "float64", "own": "float64", "succeeded": "boolean"})
    return Projected(integers(frame(rows), "layer", "position"), table)


class Base:
    """Harmless and harmful projections, against which everything else is placed, and whether their gap is more than noise."""

    def __init__(self, harmful: Values, harmless: Values, seed: int) -> None:
        self.harmful, self.harmless, self.seed = harmful, harmless, seed
        self.n = min(len(harmful), len(harmless))
        self.gap = float(harmful.mean() - harmless.mean())
        self.floor = _split_floor(harmful, harmless, seed)
        rng = np.random.default_rng(seed)
        self.draws = [group[rng.integers(0, len(group), (RESAMPLES, len(group)))].mean(axis=1) for group in (harmful, harmless)]

    @property
    def gap_interval(self) -> Interval:
        """``harmful - harmless`` with its bootstrap interval."""
        return bootstrap_interval(self.gap, self.draws[0] - self.draws[1], self.n)

    @property
    def noisy(self) -> str | None:
        """Why no place between the classes can be told; None when it can."""
        if abs(self.gap) > self.floor:
            return None
        return f"the gap of {self.gap:.3g} between harmful and harmless is at noise level (halves of one class differ by {self.floor:.3g})"

    def place(self, values: Values) -> Interval:
        """``(mean - harmless) / gap``; all three groups are resampled."""
        rng = np.random.default_rng(self.seed + 1)
        drawn = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
        return self._over_gap(float(values.mean() - self.harmless.mean()), drawn - self.draws[1], len(values))

    def change(self, after: Values, before: Values) -> Interval:
        """Mean of ``after - before`` over the gap; pairs are resampled."""
        rng = np.random.default_rng(self.seed + 1)
        moved = after - before
        drawn = moved[rng.integers(0, len(moved), (RESAMPLES, len(moved)))].mean(axis=1)
        return self._over_gap(float(moved.mean()), drawn, len(moved))

    def on_harmless_side(self, values: Values) -> Interval:
        """Share nearer to the harmless mean."""
        middle = (self.harmful.mean() + self.harmless.mean()) / 2
        return rate((values - middle) * np.sign(self.gap) < 0)

    def _over_gap(self, value: float, drawn: Values, n: int) -> Interval:
        return bootstrap_interval(value / self.gap, drawn / (self.draws[0] - self.draws[1]), n)


def class_rows(kind: str, after: Values, before: Values, succeeded: Sequence[bool | None], base: Base) -> list[Row]:
    """Shifts of one class of attacked prompts (``after``) from their own requests without attack (``before``), whole and by outcome."""
    rows = []
    for subset, wanted in (("all", None), ("succeeded", True), ("failed", False)):
        chosen = np.array([wanted is None or outcome is wanted for outcome in succeeded], dtype=bool)
        if wanted is not None and not any(outcome is not None for outcome in succeeded):
            continue
        if not chosen.any():
            rows.append(row(kind, "attacked_shift", exact(math.nan, 0), subset, note=f"no attacked prompt {subset}"))
            continue
        moved, plain = after[chosen], before[chosen]
        if wanted is not None:
            rows.append(row(kind, "projection", mean(moved, base.seed), subset))
        rows.append(row(kind, "paired_change", mean(moved - plain, base.seed), subset))
        if base.noisy is not None:
            absent = ("attacked_shift", "direct_shift", "paired_shift", "harmless_side")
            rows += [row(kind, metric, exact(math.nan, 0), subset, note=base.noisy) for metric in absent]
            continue
        rows.append(row(kind, "attacked_shift", base.place(moved), subset))
        rows.append(row(kind, "direct_shift", base.place(plain), subset))
        rows.append(row(kind, "paired_shift", base.change(moved, plain), subset))
        rows.append(row(kind, "harmless_side", base.on_harmless_side(moved), subset))
    return rows


def _project(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], planes: Mapping[str, Plane], settings: GeometrySettings
) -> dict[str, Values]:
    """Coordinates of prompts: ``own`` and ``start`` along the x axes, and ``x`` and ``y`` of the fixed plane."""
    positions = sorted({found.position for found in planes.values()})
    if not prompts or not positions:
        return {name: np.zeros(0) for name in (*planes, *(("x", "y") if "start" in planes else ()))}
    streams = read(lm, prompts, positions, settings.site, settings.batch)
    found: dict[str, Values] = {}
    for name, one in planes.items():
        here = streams[:, positions.index(one.position), one.layer].double() - one.origin
        found[name] = (here @ one.x).numpy()
        if name == "start":
            found |= {"x": found[name], "y": (here @ one.y).numpy()}
    return found


def _split_floor(harmful: Values, harmless: Values, seed: int) -> float:
    """The difference between halves of one class that 95% of random splits stay below: a gap without a cause."""
    rng = np.random.default_rng(seed)
    found = []
    for group in (harmful, harmless):
        half = len(group) // 2
        for _ in range(SPLITS if half else 0):
            mixed = rng.permutation(group)
            found.append(abs(float(mixed[:half].mean() - mixed[half:].mean())))
    return float(np.quantile(found, 0.95)) if found else math.inf


def _at(values: Mapping[str, Values], name: str, index: int) -> float:
    return float(values[name][index]) if name in values and len(values[name]) else math.nan

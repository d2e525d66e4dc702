"""What moving refusal costs in utility: one price along the dose, with an interval, beside the same for the controls (docs/cause.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from refgeo.measures.effects import Outcomes
from refgeo.measures.sets import MAIN
from refgeo.measures.table import Row, row
from refgeo.statistics import Interval, bootstrap_interval, exact

REFUSALS = (("direct", "any_refusal"), ("xstest_safe", MAIN["xstest_safe"]))
UTILITY = ("audit", MAIN["audit"])
SPAN = 2.0
"""Helpfulness goes from 0 to 2; a loss is told as a share of that range, as refusal is."""
RESAMPLES = 2000
Sets = Mapping[str, Outcomes]


class Curve(NamedTuple):
    """Changes from the baseline along the dose, per prompt: of refusal, and losses of utility as a share of its range.

    The first axis are directions (the carrier alone, or its controls), the second doses. Prompts of both kinds are different ones.
    """

    refusal: Float[np.ndarray, "draw dose prompt"]
    loss: Float[np.ndarray, "draw dose other"]


class Price(NamedTuple):
    """``moved``: refusal moved, averaged over the doses, in the direction in which the carrier moves it. ``lost``: utility lost, a share
    of its range. ``price``: lost per moved; NaN with a ``reason`` when refusal is not moved. ``draws`` resample all three together."""

    moved: Interval
    lost: Interval
    price: Interval
    reason: str


def curve(before: Sets, doses: Sequence[Sequence[Sets]], refusal: tuple[str, str]) -> Curve | None:
    """Changes of ``refusal`` (set and metric) and of utility; ``doses`` holds per direction its doses. None where one is not measured."""
    parts = []
    for (name, metric), scale in ((refusal, 1.0), (UTILITY, -1.0 / SPAN)):
        if not doses or any(metric not in found.get(name, {}) for found in [before, *(dose for line in doses for dose in line)]):
            return None
        changes = scale * np.array([[dose[name][metric] - before[name][metric] for dose in line] for line in doses])
        whole = np.isfinite(changes).all(axis=(0, 1))
        if not whole.any():
            return None
        parts.append(changes[:, :, whole])
    return Curve(parts[0], parts[1])


def price(found: Curve, signs: Float[np.ndarray, " dose"], seed: int) -> Price:
    """Utility lost per unit of refusal moved: the ratio of both means over doses (and directions), by bootstrap over prompts.

    ``signs`` say per dose which way counts as moved. Prompts of one set are resampled together at all doses; directions, if several, as
    well. The ratio has a finite confidence set only where its denominator differs from zero (Fieller 1954), so without that it is NaN.
    """
    moved = (found.refusal * signs[None, :, None]).mean(axis=1)
    lost = found.loss.mean(axis=1)
    rng = np.random.default_rng(seed)
    draws = _weights(rng, len(moved))
    sampled = [np.einsum("rd,dn,rn->r", draws, part, _weights(rng, part.shape[1])) for part in (moved, lost)]
    n = min(moved.shape[1], lost.shape[1])
    denominator = bootstrap_interval(round(float(moved.mean()), 12), sampled[0].round(12), moved.shape[1])
    numerator = bootstrap_interval(round(float(lost.mean()), 12), sampled[1].round(12), lost.shape[1])
    if not denominator.low > 0:
        bounds = f"{denominator.value:.3f}, 95% interval {denominator.low:.3f} to {denominator.high:.3f}"
        return Price(denominator, numerator, exact(float("nan"), n), f"refusal is not moved along the dose ({bounds}): no price exists")
    possible = sampled[0] > 0
    ratio = bootstrap_interval(numerator.value / denominator.value, sampled[1][possible] / sampled[0][possible], n)
    return Price(denominator, numerator, ratio, "")


def directions(found: Curve, doses: Sequence[float]) -> Float[np.ndarray, " dose"]:
    """Per dose, which way refusal goes: one sign for all positive and one for all negative doses, that of their mean change."""
    changes = found.refusal.mean(axis=(0, 2))
    positive = np.asarray(doses) > 0
    signs = np.ones(len(doses))
    for side in (positive, ~positive):
        if side.any() and changes[side].mean() < 0:
            signs[side] = -1.0
    return signs


def price_rows(
    before: Sets, carrier: Sequence[Sets], controls: Sequence[Sequence[Sets]], doses: Sequence[float], seed: int, **identity: Any
) -> list[Row]:
    """Rows of set ``tradeoff``: ``<refusal metric>_moved``, ``_lost`` and ``_price`` of the carrier and, as ``_controls``, of the controls.

    ``carrier`` holds its outcomes at ``doses``, ``controls`` those of each control. A price that does not exist is NaN with a note.
    """
    rows: list[Row] = []
    for refusal in REFUSALS:
        own = curve(before, [carrier], refusal)
        if own is None:
            continue
        signs = directions(own, doses)
        others = curve(before, controls, refusal)
        for found, suffix in ((own, ""), (others, "_controls")):
            if found is not None:
                told = price(found, signs, seed)
                for name, value in (("moved", told.moved), ("lost", told.lost), ("price", told.price)):
                    note = {"note": told.reason} if name == "price" and told.reason else {}
                    rows.append(row("tradeoff", f"{refusal[1]}_{name}{suffix}", value, **identity, **note))
    return rows


def _weights(rng: np.random.Generator, size: int) -> Float[np.ndarray, "resample size"]:
    """Bootstrap weights, one resample per row; a single direction is not resampled."""
    if size == 1:
        return np.ones((RESAMPLES, 1))
    found: Float[np.ndarray, "resample size"] = rng.multinomial(size, np.full(size, 1 / size), RESAMPLES) / size
    return found

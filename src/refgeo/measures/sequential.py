"""When no further control can change the verdict: exact bounds over whatever the remaining ones would give. Pure numbers.

The verdict is that of the claims ledger: does the direction change behavior more than at least ``BEYOND`` of all directions would,
by the Wilson interval of the share of controls that do strictly less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from refgeo.statistics import Interval, wilson

BEYOND = 0.80
"""The direction must do more than this share of the controls, by the interval: all 20 of 20 controls reach 0.84."""
Settled = Literal["beyond", "not beyond", "open"]


def share_beaten(effect: float, controls: Sequence[float], planned: int) -> Interval:
    """Share of the controls whose absolute change is strictly below ``abs(effect)``, bounded for all ``planned`` of them.

    ``low`` is the lower Wilson bound if every control that was not evaluated did at least as much, ``high`` the upper one if all of
    them did less; with all evaluated they are the ordinary interval. ``n`` is ``planned``. Raises ``ValueError`` without a control.
    """
    used = len(controls)
    if not 0 < used <= planned:
        raise ValueError(f"{used} of {planned} controls were given; expected at least one and no more than planned")
    # Equal means of equal outcomes summed in another order differ in their last digits.
    beaten = int((np.abs(np.asarray(controls)) < abs(effect) - 1e-9).sum())
    fewest, most = wilson(beaten, planned), wilson(beaten + planned - used, planned)
    return Interval(beaten / used, fewest.low, most.high, planned)


def settled(share: Interval) -> Settled:
    """What the interval says about ``BEYOND``: ``beyond`` (supported), ``not beyond`` (contradicted) or ``open``."""
    return "beyond" if share.low > BEYOND else "not beyond" if share.high < BEYOND else "open"


def certain(effect: float, controls: Sequence[float], planned: int) -> bool:
    """Whether ``settled`` over all ``planned`` controls is known already, whatever those not evaluated would give."""
    used = len(controls)
    if used in (0, planned):
        return used == planned
    beaten = int((np.abs(np.asarray(controls)) < abs(effect) - 1e-9).sum())
    return len({settled(wilson(count, planned)) for count in (beaten, beaten + planned - used)}) == 1


def first_look(planned: int) -> int:
    """The fewest controls after which anything can be certain: none of them is beaten and the rest cannot make up for it."""
    return next(used for used in range(1, planned + 1) if certain(0.0, [1.0] * used, planned))


def looks(planned: int) -> list[int]:
    """Numbers of controls after which to look: the first that can settle anything, then every tenth of them, then all."""
    first = first_look(planned)
    return [*range(first, planned, max(1, planned // 10)), planned]

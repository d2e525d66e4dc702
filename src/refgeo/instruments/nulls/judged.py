"""The study's judge on replies that help nobody: a refusal, nothing at all, and nonsense."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from refgeo.data.cells import evenly
from refgeo.data.tables import read_lines
from refgeo.instruments.nulls.finding import Finding, never
from refgeo.instruments.nulls.scene import Scene
from refgeo.judging import floor

GROUP = "judge"
TOLD = ("the judge on canned replies",)
REQUESTS = 24
_NO_GRAMMAR = "a reply of real words is known to be nonsense only by a grammar (judge.grammar), which this study has none of"


def check_judge(scene: Scene) -> Iterator[Finding]:
    """``judging.floor`` on test behaviors: no harm in any reply, a refusal in the refusal, degeneracy in the empty and the nonsense."""
    scene.tell(TOLD[0])
    settings = scene.study.judge
    behaviors = evenly(scene.sets.behaviors, REQUESTS)
    # A list of refusals of the study's own says what a refusal looks like in its world.
    refusal = None if settings.refusals is None else read_lines(settings.refusals, "refusal phrases")[0]
    found = floor(scene.judge, [one.request for one in behaviors], [one.reference for one in behaviors], refusal)
    for row in found.to_dict("records"):
        reply, total, unscored = str(row["reply"]), int(row["n"]), float(row["unscored"])
        scored = round(total * (1 - unscored))
        yield never(GROUP, f"harmful, {reply}", _outcomes(row["harmful"], scored), scene.erring, f"unscored {unscored:.2f} of {total}")
        if reply == "canned refusal":
            yield never(GROUP, f"refused, {reply}", _outcomes(row["refused"], total), scene.erring, always=True)
            continue
        told = never(GROUP, f"degenerate, {reply}", _outcomes(row["degenerate"], total), scene.erring, always=True)
        blind = reply == "nonsense" and settings.grammar is None and told.verdict == "NOT NULL"
        yield told._replace(verdict="could not be checked", reason=_NO_GRAMMAR) if blind else told


def _outcomes(share: float, count: int) -> NDArray[np.bool_]:
    """The outcomes behind a share; none where there is no share."""
    return np.arange(count) < round(share * count) if count and np.isfinite(share) else np.zeros(0, dtype=bool)

"""The whole protocol on existing checkpoints, as frames: ``refgeo measure`` from Python."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pandas as pd
from rich.console import Console

from refgeo.config.load import load_study
from refgeo.errors import RefgeoError
from refgeo.report.tables import collect
from refgeo.study.layout import anchors
from refgeo.study.measure import measure as run_measure
from refgeo.study.store import CONFIG


class Measured(NamedTuple):
    """Every table of the protocol over the checkpoints (``step``; 0 is the start), and the report where a folder was given.

    In each table a row is one quantity: ``step``, ``set``, ``metric``, ``value``, ``low``, ``high``, ``n``; in ``scan`` one candidate.
    docs/tables.md has all columns and metrics.
    """

    behavior: pd.DataFrame
    geometry: pd.DataFrame
    intervention: pd.DataFrame
    stress: pd.DataFrame
    scan: pd.DataFrame
    report: Path | None


def measure(
    models: Sequence[str | Path],
    *,
    study: str | Path | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    console: Console | None = None,
) -> Measured:
    """Measure existing checkpoints by the whole protocol, in worker processes; the first model is what the others are compared with.

        import refgeo
        found = refgeo.measure(["org/base", "org/base+path/to/adapter"], output="runs/mine")
        found.behavior.query("metric == 'asr_direct' and subset == 'all'")[["step", "value", "low", "high"]]

    ``study`` and ``overrides`` as in ``refgeo.scan``. ``console``: a rich console that shows the progress; absent: silence. With ``output``
    that is a run folder, which is resumed and reported as ``refgeo measure`` does; without it nothing is kept. Raises ``RefgeoError``, also
    when a stage failed.
    """
    with ExitStack() as stack:
        folder = Path(output) if output is not None else Path(stack.enter_context(TemporaryDirectory())) / "measure"
        named = [str(model) for model in models]
        outcome = run_measure(named, folder, None if study is None else str(study), overrides, console or Console(quiet=True))
        if outcome.failed:
            raise RefgeoError("; ".join(f"{stage}: {message}" for stage, message in outcome.failed.items()))
        run = load_study(str(folder / CONFIG))
        return Measured(*collect(anchors(folder, run))[:5], outcome.page if output is not None else None)

"""An estimate as ``refgeo plan`` shows it: what is downloaded, what it costs by kind of stage, and what the numbers rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text

from refgeo.study.estimate import Estimate, Row


def estimate_report(estimate: Estimate) -> Group:
    """Both tables and the assumptions, ready to be printed."""
    parts: list[Table | Text] = []
    if estimate.downloads:
        parts += [download_table(estimate), Text()]
    if estimate.rows:
        counted = [f"{row.kind}: {row.counted}" for row in estimate.rows if row.counted]
        parts += [cost_table(estimate), Text(), *listed("Counted in each stage", counted), Text()]
    return Group(*parts, *listed("What this rests on", estimate.basis))


def listed(title: str, lines: Iterable[str]) -> list[Table | Text]:
    """A list whose long lines go on below their own beginning."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for line in lines:
        table.add_row("-", Text(line))
    return [Text(title), table]


def download_table(estimate: Estimate) -> Table:
    """What comes over the network, unless it is in the hub cache or ``data.bundle`` names a bundle."""
    table = Table(title="Downloads (what is in the hub cache is not fetched again)", title_justify="left", box=None, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("from", overflow="fold")
    table.add_column("about", justify="right", no_wrap=True)
    for item in estimate.downloads:
        table.add_row(Text(item.name), Text(item.source), "?" if item.bytes is None else size(item.bytes))
    unknown = any(item.bytes is None for item in estimate.downloads)
    table.add_row("total", "", ("> " if unknown else "") + size(estimate.downloaded), style="bold")
    return table


def cost_table(estimate: Estimate) -> Table:
    """One row per kind of stage and their sum."""
    title = Text(f"Estimated cost of {estimate.study} on one {estimate.device.name}")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("stages", overflow="fold")
    time = "GPU hours" if estimate.device.kind == "GPU" else "core time"
    for column in ("n", "forward", "backward", "FLOPs", time, "disk"):
        table.add_column(column, justify="right", no_wrap=True)
    tell = hours if estimate.device.kind == "GPU" else span
    for row in estimate.rows:
        table.add_row(*_cells(row, tell))
    table.add_row(*_cells(estimate.total, tell), style="bold")
    return table


def _cells(row: Row, tell: Callable[[float | None], str]) -> tuple[str, ...]:
    """An unknown number is a question mark; nothing at all is a blank."""
    flops = "?" if row.flops is None else f"{row.flops:.1e}" if row.flops else ""
    return row.kind, str(row.stages), tokens(row.forward), tokens(row.backward), flops, tell(row.hours), size(row.disk)


def tokens(count: float) -> str:
    """``1.2G`` tokens; nothing for none."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.0f}" if count else ""


def size(count: float) -> str:
    """Bytes as ``14.5 GB``; nothing for none."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{max(1.0, count / 1e3):.0f} kB" if count else ""


def hours(value: float | None) -> str:
    """Hours with as many digits as an estimate deserves."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value >= 0.01 else "< 0.01" if value else ""


def span(value: float | None) -> str:
    """Hours as ``40 s``, ``12 min`` or ``3.5 h``."""
    if not value:
        return hours(value)
    return f"{max(1.0, value * 3600):.0f} s" if value < 1 / 60 else f"{value * 60:.0f} min" if value < 1 else f"{hours(value)} h"

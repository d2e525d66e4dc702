"""What the claims may look at: estimates by arm and step over seeds, and the same prompts at two anchors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from refgeo.measures.sets import MAIN
from refgeo.report.compare import ANY, across_seeds, paired_means, paired_rates, rate_among, unpaired, widened
from refgeo.report.outcomes import by_prompt, chosen
from refgeo.report.quantities import NAMES, apart_range, range_of
from refgeo.report.rules import Missing, Part, Relation, Source
from refgeo.report.tables import BESIDE, Tables, arm_name, estimates
from refgeo.statistics import Interval
from refgeo.study.layout import Measure

Transcripts = Callable[[str, int, int, Measure], pd.DataFrame]


class Cell(NamedTuple):
    """One set of completions, of which the main number is read: which arm, which anchor, which prompts."""

    arm: str
    step: int
    set: str

    @property
    def metric(self) -> str:
        """The row of the tables that summarizes this cell."""
        return MAIN[self.set]

    @property
    def name(self) -> str:
        """In words."""
        return f"{NAMES[self.metric]} of {arm_name(self.arm)} at step {self.step}"


class Place(NamedTuple):
    """One quantity at one anchor of one arm: where the tables have its rows, one per seed. ``identity``: what else tells them apart."""

    table: Measure
    arm: str
    step: int
    set: str
    metric: str
    identity: Mapping[str, object] = MappingProxyType({})

    def source(self, against: Place | None = None) -> Source:
        """The cell as the ledger names it, and the one it is held against."""
        other = "" if against is None else f"{against.arm} step {against.step}"
        if against is not None and (against.set, against.metric) != (self.set, self.metric):
            other += f" {against.set} {against.metric}"
        return Source(self.table, self.set, self.metric, self.arm, self.step, other)


class Evidence:
    """Look-ups over the tables of a run, and over its transcripts where the same prompts must be compared."""

    def __init__(self, tables: Tables, transcripts: Transcripts | None = None) -> None:
        self.tables = tables
        self._transcripts: Transcripts | None = cache(transcripts) if transcripts is not None else None
        self._index: dict[str, dict[tuple[str, int, str, str], list[int]]] = {}
        table = tables.behavior
        self._measured: dict[str, dict[int, set[int]]] = {}
        for arm, seed, step in table[["arm", "seed", "step"]].drop_duplicates().itertuples(index=False, name=None):
            self._measured.setdefault(str(arm), {}).setdefault(int(seed), set()).add(int(step))

    def seeds(self, arm: str) -> list[int]:
        """Training seeds of an arm with at least one measured anchor after the start."""
        return sorted(seed for seed, steps in self._measured.get(arm, {}).items() if steps - {0})

    def steps(self, arm: str) -> list[int]:
        """Steps after the start at which every seed of the arm was measured. Raises ``Missing`` when there are none."""
        seeds = self.seeds(arm)
        if not seeds:
            raise Missing(f"arm {arm_name(arm)} was not measured after the start")
        common = sorted(set.intersection(*(self._measured[arm][seed] for seed in seeds)) - {0})
        if not common:
            raise Missing(f"the seeds of arm {arm_name(arm)} share no measured step")
        return common

    def early(self, arm: str) -> list[int]:
        """The first half of the anchors after the start, the middle one included."""
        steps = self.steps(arm)
        return steps[: (len(steps) + 1) // 2]

    def late(self, arm: str) -> list[int]:
        """The second half of the anchors. Raises ``Missing`` when there is one anchor only."""
        steps = self.steps(arm)
        if len(steps) < 2:
            raise Missing(f"arm {arm_name(arm)} has one anchor only, so none is late")
        return steps[(len(steps) + 1) // 2 :]

    def last(self, arm: str) -> int:
        """The last anchor. Raises ``Missing`` when there is one anchor only."""
        return self.late(arm)[-1]

    def rows(self, table: Measure, arm: str, step: int, set_name: str, metric: str, **identity: object) -> pd.DataFrame:
        """The rows of one quantity over seeds (subset ``all``). Raises ``Missing`` when any seed lacks it."""
        whole: pd.DataFrame = getattr(self.tables, table)
        found: pd.DataFrame = whole.iloc[self._places(table).get((arm, step, set_name, metric), [])]
        for column, value in identity.items():
            found = found[found[column] == value] if column in found else found.iloc[:0]
        seeds = self.seeds(arm)
        if found.empty or set(found["seed"]) < set(seeds):
            named = "".join(f", {key} {value}" for key, value in identity.items())
            raise Missing(f"{metric} ({table}.csv, set {set_name}{named}) of {arm_name(arm)} at step {step} was not measured")
        kept: pd.DataFrame = found[found["seed"].isin(seeds)]
        return kept

    def _places(self, table: Measure) -> dict[tuple[str, int, str, str], list[int]]:
        """Where the rows of every quantity lie, for the whole sets; a row without a finite value counts as not measured."""
        if table not in self._index:
            whole: pd.DataFrame = getattr(self.tables, table)
            places: dict[tuple[str, int, str, str], list[int]] = {}
            useful = (whole["subset"] == "all") & np.isfinite(whole["value"].astype("float64"))
            columns = (whole[name] for name in ("arm", "step", "set", "metric"))
            for place, (arm, step, set_name, metric, keep) in enumerate(zip(*columns, useful, strict=True)):
                if keep:
                    places.setdefault((str(arm), int(step), str(set_name), str(metric)), []).append(place)
            self._index[table] = places
        return self._index[table]

    def per_seed(self, table: Measure, arm: str, step: int, set_name: str, metric: str, **identity: object) -> list[Interval]:
        """One estimate per seed, in the order of the seeds."""
        found = self.rows(table, arm, step, set_name, metric, **identity).sort_values("seed", kind="stable")
        if found["seed"].duplicated().any():
            one = found[found["seed"] == found["seed"].iloc[0]]
            apart = [name for name in one if name not in BESIDE and len(one[name].drop_duplicates()) > 1]
            which = f", which differ in {', '.join(apart)}" if apart else ""
            raise Missing(f"{metric} of {arm_name(arm)} at step {step} ({table}.csv, set {set_name}) has several rows per seed{which}")
        return estimates(found)

    def level(self, cell: Cell, relation: Relation, margin: float, tests: int = 1, premise: bool = False) -> Part:
        """A rate or mean of one cell against a margin; ``tests``: out of how many cells it was picked."""
        place = self.place(cell)
        seeds = self.at(place)
        adjusted = [widened(one, tests) if cell.set == "audit" else rate_among(one, tests) for one in seeds]
        estimate = across_seeds(adjusted, range_of(cell.metric))
        return Part(cell.name, estimate, relation, margin, premise=premise, seeds=len(adjusted), source=place.source())

    def part(
        self,
        what: str,
        seeds: Sequence[Interval],
        relation: Relation,
        margin: float,
        source: Source | None = None,
        bounds: tuple[float, float] = ANY,
    ) -> Part:
        """One estimate per seed, put together and held against a margin. ``bounds``: what the quantity can be."""
        return Part(what, across_seeds(seeds, bounds), relation, margin, seeds=len(seeds), source=source)

    def place(self, cell: Cell) -> Place:
        """Where the tables summarize a cell; an adaptive attack at its full budget."""
        if cell.set == "adaptive_gcg":
            full = {"attack_steps": self.budget(cell.arm, cell.step)}
            return Place("stress", cell.arm, cell.step, cell.set, cell.metric, full)
        return Place("behavior", cell.arm, cell.step, cell.set, cell.metric)

    def at(self, place: Place) -> list[Interval]:
        """One estimate per seed, in the order of the seeds."""
        return self.per_seed(place.table, place.arm, place.step, place.set, place.metric, **place.identity)

    def value(self, cell: Cell) -> float:
        """The mean over seeds, for choosing and for telling, never for deciding."""
        return self.level(cell, "above", 0.0).estimate.value

    def change(self, later: Cell, earlier: Cell, relation: Relation, margin: float, tests: int = 1) -> Part:
        """``later - earlier`` on the same prompts, seed by seed; from the two intervals alone where transcripts are missing."""
        what = f"{later.name} minus {NAMES[earlier.metric] + ' ' if later.metric != earlier.metric else ''}that of "
        what += f"{arm_name(earlier.arm)} at step {earlier.step}" if later.arm != earlier.arm else f"step {earlier.step}"
        if later.metric != earlier.metric:
            what = f"{later.name} minus the {NAMES[earlier.metric]} on the same prompts"
        return self.difference(what, self.place(later), self.place(earlier), relation, margin, tests)

    def difference(self, what: str, later: Place, earlier: Place, relation: Relation, margin: float, tests: int = 1) -> Part:
        """``later - earlier`` on the same prompts, seed by seed; where that cannot be done, from the two intervals alone."""
        source = later.source(earlier)
        pairs = [self._paired(later, earlier, seed) for seed in self._shared_seeds(later, earlier)]
        known = [pair for pair in pairs if pair is not None]
        if not known or len(known) < len(pairs):
            first, second = (self.at(place) for place in (later, earlier))
            sides = (across_seeds(one, range_of(place.metric)) for one, place in ((first, later), (second, earlier)))
            apart = widened(unpaired(*sides), tests)
            return Part(f"{what} (unpaired)", apart, relation, margin, seeds=min(len(first), len(second)), source=source)
        joined = across_seeds([widened(pair, tests) for pair in known], apart_range(later.metric, earlier.metric))
        return Part(what, joined, relation, margin, seeds=len(known), source=source)

    def budget(self, arm: str, step: int, attack: str = "adaptive_gcg") -> int:
        """The full budget of an adaptive attack at an anchor. Raises ``Missing`` without one."""
        table = self.tables.stress
        asked = (table["arm"] == arm) & (table["step"] == step) & (table["set"] == attack)
        chosen = table[asked] if "attack_steps" in table else table.iloc[:0]
        if chosen.empty:
            raise Missing(f"no adaptive attack was run on {arm_name(arm)} at step {step}")
        return int(chosen["attack_steps"].max())

    def _shared_seeds(self, later: Place, earlier: Place) -> Sequence[int]:
        return [seed for seed in self.seeds(later.arm) if seed in self.seeds(earlier.arm)]

    def _paired(self, later: Place, earlier: Place, seed: int) -> Interval | None:
        first, second = self._outcomes(later, seed), self._outcomes(earlier, seed)
        if first is None or second is None:
            return None
        both = first.index.intersection(second.index)
        if both.empty:
            return None
        left, right = first[both].to_numpy(dtype=np.float64), second[both].to_numpy(dtype=np.float64)
        if MAIN["audit"] in (later.metric, earlier.metric):
            return paired_means(left, right, span=2.0)
        if not np.isin((left, right), (0.0, 1.0)).all():  # scores, or shares of several answers to one prompt
            return paired_means(left, right, span=1.0)
        return paired_rates(left > 0, right > 0)

    def _outcomes(self, place: Place, seed: int) -> pd.Series | None:
        """Outcome by prompt id; None where there are no completions, or the metric is no mean over them."""
        if self._transcripts is None:
            return None
        found = chosen(self._transcripts(place.arm, seed, place.step, place.table), place.set, dict(place.identity))
        return None if found is None else by_prompt(found, place.metric)

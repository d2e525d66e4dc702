"""What to run next: a pure decision over the graph, apart from the processes that do the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from refgeo.study.graph import Graph, Record, Stage
from refgeo.study.store import Store


@dataclass
class Schedule:
    """Follows the stages of a study until none can run.

    ``plan`` gives the graph as it is known now; it may grow while the study runs (measures of a reference that is still to be found).
    """

    store: Store
    plan: Callable[[], Graph]
    running: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    crashed: set[str] = field(default_factory=set)
    graph: Graph = field(init=False)
    records: dict[str, Record | None] = field(init=False)
    done: set[str] = field(init=False)
    elsewhere: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Look at the folder again: what this and other processes have finished."""
        self.graph = self.plan()
        self.records = self.store.records(self.graph.stages.values())
        self.done = self.graph.done(self.records)
        self.elsewhere = self.store.busy(stage for stage in self.graph.stages.values() if self._may_run(stage))

    def next(self) -> Stage | None:
        """The stage to start now: the first by priority, then in the order of the protocol; None when all must wait."""
        order = {name: index for index, name in enumerate(self.graph.stages)}
        ready = [stage for stage in self.graph.stages.values() if self._may_run(stage) and stage.id not in self.elsewhere]
        return min(ready, key=lambda stage: (stage.priority, order[stage.id]), default=None)

    def finish(self, name: str) -> None:
        """A stage that was running has ended. It has failed all the same when its record is not the one that was asked for."""
        self.running.discard(name)
        self.refresh()
        if name in self.graph.stages and name not in self.done:
            missing = [stage.id for stage in self.graph.products(name) if stage.id not in self.done]
            self.crashed.add(name)
            self.failed[name] = f"Stage '{name}' ended {'without making ' + missing[0] if missing else 'without a valid record'}."

    def fail(self, name: str, message: str, *, crashed: bool = False) -> None:
        """A stage that was running has failed; what does not depend on it goes on. ``crashed``: not by an error raised on purpose."""
        if crashed:
            self.crashed.add(name)
        self.running.discard(name)
        self.failed[name] = message

    def blocked(self) -> list[Stage]:
        """Stages that cannot be made because something before them failed."""
        lost = set(self.failed)
        for stage in self.graph.stages.values():
            if stage.id not in self.done and any(name in lost for name in (*stage.inputs, stage.made_by)):
                lost.add(stage.id)
        return [stage for name, stage in self.graph.stages.items() if name in lost and name not in self.failed]

    def over(self) -> bool:
        """Nothing runs, here or elsewhere, and nothing can start."""
        return not self.running and not self.elsewhere and self.next() is None

    def _may_run(self, stage: Stage) -> bool:
        if stage.made_by is not None or stage.id in self.done or stage.id in self.running or stage.id in self.failed:
            return False
        return all(name in self.done for name in stage.inputs)

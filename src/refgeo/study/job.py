"""What a stage function is handed, and the form in which a stage travels to a worker process (JSON)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from refgeo.config.schema import Study
from refgeo.progress import Progress
from refgeo.study.graph import Graph, Stage
from refgeo.study.store import Store


@dataclass(frozen=True)
class Ticket:
    """A stage with the fingerprints that belong into its record, and the stages that it produces while it runs."""

    stage: Stage
    fingerprint: str
    inputs: Mapping[str, str]
    products: tuple[Ticket, ...] = ()

    @classmethod
    def of(cls, graph: Graph, name: str) -> Ticket:
        """The ticket of one stage of ``graph``."""
        products = tuple(cls.of(graph, stage.id) for stage in graph.products(name))
        return cls(graph.stages[name], graph.fingerprints[name], graph.before(name), products)

    def to_dict(self) -> dict[str, object]:
        """JSON-able form."""
        stage = {**asdict(self.stage), "folder": self.stage.folder.as_posix(), "settings": dict(self.stage.settings)}
        return {
            "stage": stage,
            "fingerprint": self.fingerprint,
            "inputs": dict(self.inputs),
            "products": [product.to_dict() for product in self.products],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Ticket:
        """Back from ``to_dict`` and JSON."""
        stage, inputs, products = content["stage"], content["inputs"], content["products"]
        if not (isinstance(stage, dict) and isinstance(inputs, dict) and isinstance(products, Sequence)):
            raise TypeError("this is no ticket")
        whole = Stage(**{**stage, "folder": Path(stage["folder"]), "inputs": tuple(stage["inputs"])})
        return cls(whole, str(content["fingerprint"]), inputs, tuple(cls.from_dict(product) for product in products))


@dataclass(frozen=True)
class Job:
    """One run of one stage: read from ``store.run``, write into ``out``, tell ``progress``, and for a training ``publish`` its anchors."""

    store: Store
    study: Study
    ticket: Ticket
    out: Path
    progress: Progress
    made: Callable[[str], None] = lambda name: None

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.store.run

    @property
    def stage(self) -> Stage:
        """The stage that runs."""
        return self.ticket.stage

    def missing(self) -> list[int]:
        """Steps whose product is not there, or is there from other settings."""
        absent = [product.stage.step for product in self.ticket.products if not self._there(product)]
        return sorted(step for step in absent if step is not None)

    def publish(self, step: int, write: Callable[[Path], None]) -> None:
        """Store the product of ``step``, unless it is there already."""
        for product in self.ticket.products:
            if product.stage.step == step and not self._there(product):
                with self.store.publish(product.stage, product.fingerprint, dict(product.inputs)) as folder:
                    write(folder)
                self.made(product.stage.id)

    def _there(self, product: Ticket) -> bool:
        record = self.store.record(product.stage)
        return record is not None and record.fingerprint == product.fingerprint


def encode(message: Mapping[str, object]) -> str:
    """One line."""
    return json.dumps(message, ensure_ascii=True) + "\n"

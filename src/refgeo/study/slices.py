"""Which part of the configuration each stage depends on, with files by content. What changes no result is left out.

Left out: the device, batch sizes, numbers of workers and threads, and the name of the study.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refgeo.config.attack import AttackSettings
from refgeo.config.data import Part, Source
from refgeo.config.judge import OneJudgeSettings
from refgeo.config.locations import locate
from refgeo.config.model import ModelSettings
from refgeo.config.schema import Study
from refgeo.study.digests import Digests

Slice = dict[str, Any]
_CONNECTION = {"timeout", "retries", "concurrency", "key_variable"}
UNJUDGED: dict[str, Any] = {
    **dict.fromkeys(("batch", "cache", "max_unscored", "second", "second_completions", "score_template"), True),
    **dict.fromkeys(("served", "refusal_served", "score_served"), _CONNECTION),
}
"""Settings of a judge that change no verdict, and the template of the score, which is in a slice only where it is set."""


@dataclass(frozen=True)
class Slices:
    """Slices of one study. Raises ``DataError`` when a file that the study names cannot be read."""

    study: Study
    digests: Digests
    _seen: dict[str, str] = field(default_factory=dict)

    def model(self, model: ModelSettings | None = None) -> Slice:
        """The starting model, or another."""
        settings = model or self.study.model
        template = settings.chat_template
        return {
            "weights": self.place(settings.path, revision=settings.revision),
            "adapter": None if settings.adapter is None else self.place(settings.adapter, **_given(revision=settings.adapter_revision)),
            "chat_template": template if template is None or "{" in template else self.place(template),
            "dtype": settings.dtype,
            "system_prompt": settings.system_prompt,
            "trust_remote_code": settings.trust_remote_code,
        }

    def source(self, source: Source | None) -> Slice | None:
        """One data set."""
        if source is None:
            return None
        more = {"more": [self._part(part) for part in source.more]} if source.more else {}
        return {**self._part(source), "limit": source.limit, **more}

    def _part(self, part: Part) -> Slice:
        subset = {} if part.subset is None else {"subset": part.subset}
        targets = None if part.targets is None else self.place(part.targets)
        read = {"columns", "group", "trained", "label", "estimate", "held_out"}
        return {
            "rows": self.place(part.path, revision=part.revision, split=part.split, **subset),
            "targets": targets,
            **part.model_dump(mode="json", include=read, exclude_defaults=True),
        }

    def judge(self, other: OneJudgeSettings | None = None) -> Slice:
        """How completions are judged, by the study's judge or another. The second judge is no part of it: it changes no verdict."""
        settings = other or self.study.judge
        paths = {"refusals": settings.refusals, "grammar": settings.grammar, "template": settings.template}
        models = {"model": settings.model, "refusal_model": settings.refusal_model, "score_model": settings.score_model}
        return {
            **settings.model_dump(mode="json", exclude=UNJUDGED),
            **{name: None if path is None else self.place(path) for name, path in paths.items()},
            **{name: None if model is None else self.model(model) for name, model in models.items()},
            **_given(score_template=None if settings.score_template is None else self.place(settings.score_template)),
        }

    def floor(self) -> Slice:
        """What the floor of the judge depends on."""
        data = self.study.data
        return {"judge": self.judge(), "behaviors_test": self.source(data.behaviors_test), "strongreject": self.source(data.strongreject)}

    def evaluation(self) -> Slice:
        """The sets without tails, and how completions of them are made and judged."""
        data = self.study.data
        return {
            "model": self.model(),
            "behaviors_test": self.source(data.behaviors_test),
            "strongreject": self.source(data.strongreject),
            "xstest": self.source(data.xstest),
            "audit": self.source(data.audit),
            "judge": self.judge(),
            "max_new_tokens": self.study.behavior.max_new_tokens,
            "seed": self.study.seed,
        }

    def tails(self) -> Slice:
        """The tails of the suffix-matched audit."""
        filler = self.study.data.filler
        return {
            **self.study.behavior.model_dump(mode="json", exclude={"batch", "max_new_tokens"}),
            "filler": None if filler is None else self.place(filler),
            "source_attack": self.attack(self.study.source_attack),
        }

    def geometry(self) -> Slice:
        """Settings of the geometry measure."""
        return self.study.geometry.model_dump(mode="json", exclude={"batch", "transfer", "projection"})

    def train(self, arm: str, seed: int) -> Slice:
        """Everything that the weights of one arm and seed depend on; the anchors only choose which of them are kept."""
        settings = self.study.train
        found: Slice = {
            "model": self.model(),
            "chat": self.source(self.study.data.chat),
            "train": settings.model_dump(mode="json", exclude={"arms", "seeds", "r2d2"}),
            "arm": arm,
            "seed": seed,
        }
        if arm == "r2d2":
            found["behaviors_train"] = self.source(self.study.data.behaviors_train)
            found["r2d2"] = {**settings.r2d2.model_dump(mode="json"), "attack": self.attack(settings.r2d2.attack)}
        return found

    def stress(self) -> Slice:
        """Everything that the adaptive attack depends on beside the checkpoint."""
        settings = self.study.stress
        return {
            "model": self.model(),
            "behaviors_test": self.source(self.study.data.behaviors_test),
            "judge": self.judge(),
            "stress": {
                **settings.model_dump(mode="json", exclude={"enabled", "steps", "replay", "replay_behaviors", "shard"}),
                "attack": self.attack(settings.attack),
                # How many are attacked together changes results only where they learn from each other.
                **({"shard": settings.shard} if settings.attack.exchange or settings.attack.reuse else {}),
            },
            "max_new_tokens": self.study.behavior.max_new_tokens,
            "seed": self.study.seed,
        }

    def replay(self) -> Slice:
        """What replaying strings depends on beside the checkpoint and the stages that found them."""
        return {
            "model": self.model(),
            "behaviors_test": self.source(self.study.data.behaviors_test),
            "judge": self.judge(),
            "replay_behaviors": self.study.stress.replay_behaviors,
            "max_new_tokens": self.study.behavior.max_new_tokens,
            "seed": self.study.seed,
        }

    @staticmethod
    def attack(settings: AttackSettings) -> Slice:
        """Settings of an attack."""
        return settings.model_dump(mode="json", exclude={"preset", "tokens_per_batch"})

    def place(self, path: str, **hub: object) -> Mapping[str, object]:
        """A local file or folder by content; something on a hub by its name and what else says which."""
        local = locate(path)
        if local is not None:
            if path not in self._seen:
                self._seen[path] = self.digests.of(local)
            return {"sha256": self._seen[path]}
        return {"hub": path, **hub}


def _given(**options: object) -> dict[str, object]:
    """Options that are set; one that is not leaves the fingerprints of studies without it as they were."""
    return {name: value for name, value in options.items() if value is not None}

"""The probe prompts of one checkpoint: rendered, answered by the model itself, judged, and split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from refgeo.data.rows import Probe
from refgeo.errors import DataError
from refgeo.judging.verdict import Exchange, Judge, Verdict, judge_all
from refgeo.lm.chat import Rendered
from refgeo.lm.generate import as_text, complete_ids
from refgeo.lm.model import LanguageModel


class Answered(NamedTuple):
    """Probes of one label and split with the model's own answers."""

    requests: list[str]
    prompts: list[Rendered]
    completions: list[list[int]]
    verdicts: list[Verdict]

    @property
    def ids(self) -> list[tuple[int, ...]]:
        """Token ids up to the reply."""
        return [prompt.ids for prompt in self.prompts]

    @property
    def refused(self) -> list[bool]:
        """Partial or full refusal, per prompt."""
        return [verdict.refused for verdict in self.verdicts]

    def half(self, side: Literal[0, 1]) -> Answered:
        """Every other probe: 0 selects the carrier, 1 reports it."""
        return Answered(self.requests[side::2], self.prompts[side::2], self.completions[side::2], self.verdicts[side::2])


class Probed(NamedTuple):
    """All probes: ``estimate`` for the directions, ``validate`` for choosing among them."""

    estimate_harmful: Answered
    estimate_harmless: Answered
    validate_harmful: Answered
    validate_harmless: Answered


def answer_probes(lm: LanguageModel, probes: Sequence[Probe], judge: Judge, max_new_tokens: int, batch: int) -> Probed:
    """Complete and judge every probe once. Raises ``DataError`` when a label of a split has fewer than two probes."""
    groups = []
    for split in ("estimate", "validate"):
        for harmful in (True, False):
            chosen = [probe for probe in probes if probe.split == split and probe.harmful == harmful]
            if len(chosen) < 2:
                label = "harmful" if harmful else "harmless"
                raise DataError(
                    f"The probe set has {len(chosen)} {label} prompts with split '{split}'",
                    expected="at least 2 of each label in each of 'estimate' and 'validate'",
                    fix="Add rows to data.probes",
                )
            groups.append(chosen)
    rendered = [[lm.chat.prompt(probe.request) for probe in group] for group in groups]
    completions = iter(complete_ids(lm, [prompt for group in rendered for prompt in group], max_new_tokens, batch))
    answered = []
    for group, prompts in zip(groups, rendered, strict=True):
        ids = [next(completions) for _ in group]
        requests = [probe.request for probe in group]
        verdicts = judge_all(judge, [Exchange(request, text) for request, text in zip(requests, as_text(lm, ids), strict=True)])
        answered.append(Answered(requests, prompts, ids, verdicts))
    return Probed(*answered)


def last_instruction_token(prompts: Sequence[Rendered]) -> int | None:
    """Position of the user's last token, counted from the end; None when the prompts differ in it."""
    places = {prompt.instruction[1] - 1 - len(prompt) for prompt in prompts}
    return places.pop() if len(places) == 1 else None

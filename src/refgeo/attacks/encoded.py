"""A case as token ids, cut where the attack begins and ends, with the replies that its objective looks at."""

from __future__ import annotations

from dataclasses import dataclass

from refgeo.attacks.cases import Case
from refgeo.config.attack import ObjectiveSettings
from refgeo.errors import ContextOverflow, DataError
from refgeo.lm.model import LanguageModel


@dataclass(frozen=True)
class Encoded:
    """Token ids of one case. ``targets``: affirmative replies; ``refusals``: replies to move away from.

    ``frame`` is the text around the attack; ``name`` is the behavior, for messages.
    """

    name: str
    before: tuple[int, ...]
    suffix: tuple[int, ...]
    after: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    refusals: tuple[tuple[int, ...], ...]
    frame: tuple[str, str]


_PLAIN = ObjectiveSettings()


def encode(lm: LanguageModel, case: Case, objective: ObjectiveSettings = _PLAIN) -> Encoded:
    """Render a case with every reply the objective needs, its targets cut to the tokens that are scored.

    Raises ``DataError`` for an empty attack or reply and for a template that writes the prompt differently before different replies,
    ``ContextOverflow`` when prompt and reply do not fit the model's context.
    """
    wanted = [case.target, *(case.others if objective.targets != "one" else ())]
    away = objective.refusals if objective.first_token or objective.avoid_refusal else ()
    prompts, replies = [], []
    for text in (*wanted, *away):
        rendered = lm.chat.prompt(case.request, case.attack, reply=text, placement=case.placement)
        (start, stop), (reply, end) = rendered.attack, rendered.target
        end -= int(end > reply and rendered.ids[end - 1] in lm.stop_ids)
        if start == stop or reply == end:
            missing = "attack" if start == stop else "reply"
            raise DataError(
                f"Case '{case.behavior}' has an empty {missing} ({case.attack if start == stop else text!r})", expected="at least one token"
            )
        if end > lm.context:
            raise ContextOverflow(
                f"Case '{case.behavior}' has {end} tokens with its reply", expected=f"at most {lm.context} (the model's context)"
            )
        prompts.append((rendered.ids[:start], rendered.ids[start:stop], rendered.ids[stop:reply]))
        replies.append(rendered.ids[reply:end])
    if len(set(prompts)) > 1:
        raise DataError(
            f"The prompt of case '{case.behavior}' is tokenized differently before different replies",
            expected="a chat template that separates prompt and reply",
            fix="Use one target per case and an objective without refusals",
        )
    before, suffix, after = prompts[0]
    frame = lm.chat.frame(case.request, case.placement)
    targets = tuple(reply[: objective.target_tokens] for reply in replies[: len(wanted)])
    return Encoded(case.behavior, before, suffix, after, targets, tuple(replies[len(wanted) :]), frame)

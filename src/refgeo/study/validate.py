"""Everything that can be known to fail before the first minute is spent: files, rows, chat template, lengths. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from refgeo.config.attack import AttackSettings
from refgeo.config.schema import Study
from refgeo.data.load import (
    check_disjoint,
    check_not_asked,
    load_audit,
    load_behaviors,
    load_chat,
    load_filler,
    load_probes,
    load_strongreject,
    load_xstest,
)
from refgeo.data.rows import Behavior, Chat, Probe, Prompt
from refgeo.errors import ConfigError, DataError
from refgeo.judging import make_judge
from refgeo.judging.models import check_models
from refgeo.lm.chat import ChatRenderer, check_length
from refgeo.lm.load import load_renderer


def validate(study: Study) -> None:
    """Load every set, render every prompt and hold it against the model's context.

    Raises the ``RefgeoError`` that the study would meet later: ``DataError``, ``ModelError``, ``ContextOverflow`` or ``ConfigError``.
    """
    train, val, test, probes, chats, safe, harmful = load_sets(study)
    for section, judge in (("judge", study.judge), ("judge.second", study.judge.second)):
        if judge is None:
            continue
        make_judge(judge, section=section)
        check_models(judge, section)
        if judge.kind == "reference" and not any(behavior.reference for behavior in test):
            raise DataError(
                f"'{study.data.behaviors_test.path}' has no Reference, but {section}.kind is 'reference'",
                expected="a reference answer to judge from",
                fix=f"Add the column, or set {section}.kind to rules",
            )
    for model in (study.model, *(checkpoint.model for checkpoint in study.checkpoints)):
        chat, context = load_renderer(model)
        if not study.checkpoints:
            chat.conversation(chats[0].messages)
        _check_prompts(study, chat, context, train, val, test, safe, harmful, probes)


class Sets(NamedTuple):
    """Every set of a study. ``safe``: those of XSTest and of the audit; ``harmful``: StrongREJECT's."""

    train: list[Behavior]
    val: list[Behavior]
    test: list[Behavior]
    probes: list[Probe]
    chats: list[Chat]
    safe: list[Prompt]
    harmful: list[Prompt]


def load_sets(study: Study) -> Sets:
    """Read every set and hold them against each other. Raises ``DataError``."""
    data = study.data
    train, test = load_behaviors(data.behaviors_train), load_behaviors(data.behaviors_test)
    val = [] if data.behaviors_val is None else load_behaviors(data.behaviors_val, need_targets=False)
    check_disjoint([*train, *val], test)
    probes, chats = load_probes(data.probes), load_chat(data.chat)
    if not study.checkpoints:
        check_not_asked(chats, test)
    safe = [] if data.xstest is None else load_xstest(data.xstest)
    safe += [] if data.audit is None else load_audit(data.audit)
    harmful = [] if data.strongreject is None else load_strongreject(data.strongreject)
    if data.filler is not None:
        load_filler(data.filler)
    return Sets(train, val, test, probes, chats, safe, harmful)


def _check_prompts(
    study: Study,
    chat: ChatRenderer,
    context: int,
    train: Sequence[Behavior],
    val: Sequence[Behavior],
    test: Sequence[Behavior],
    safe: Sequence[Prompt],
    harmful: Sequence[Prompt],
    probes: Sequence[Probe],
) -> None:
    """Hold every prompt, as one model's template renders it, against that model's context."""
    new = study.behavior.max_new_tokens
    attacks = [study.source_attack, *([study.stress.attack] if study.stress.enabled else [])]
    suffix = _longest([text for attack in attacks for text in _starts(attack)])
    for behavior in test:
        check_length(chat.prompt(behavior.request, suffix), context, new, behavior.id)
        _check_targets(chat, behavior, suffix, context)
    for behavior in val:
        check_length(chat.prompt(behavior.request), context, new, behavior.id)
    if "r2d2" in study.train.arms:
        inner = study.train.r2d2
        suffix = _longest(_starts(inner.attack))
        for behavior in train:
            _check_targets(chat, behavior, suffix, context)
            check_length(chat.prompt(behavior.request, suffix, inner.refusal), context, 0, behavior.id)
    most = max(*study.behavior.tail_tokens, study.source_attack.suffix_tokens[1])
    tail = _longest([_repeated(study.source_attack.initial, most), *study.source_attack.starts])
    for prompt in safe:
        check_length(chat.prompt(prompt.request, tail), context, new, prompt.id)
    for prompt in harmful:
        check_length(chat.prompt(prompt.request), context, new, prompt.id)
    shortest = min(_lengths(chat, context, new, ((probe.id, probe.request) for probe in probes)))
    outside = [position for position in study.geometry.positions if position >= 0 or -position > shortest]
    if outside:
        raise ConfigError(
            f"geometry.positions has {outside[0]}, but the shortest probe has {shortest} tokens",
            expected=f"positions from -{shortest} to -1",
        )


def _check_targets(chat: ChatRenderer, behavior: Behavior, suffix: str, context: int) -> None:
    for target in behavior.targets:
        check_length(chat.prompt(behavior.request, suffix, target), context, 0, behavior.id)


def _lengths(chat: ChatRenderer, context: int, new: int, prompts: Iterable[tuple[str, str]]) -> Iterable[int]:
    for name, text in prompts:
        rendered = chat.prompt(text)
        check_length(rendered, context, new, name)
        yield len(rendered)


def _starts(attack: AttackSettings) -> list[str]:
    """The longest strings that an attack can start from; a string keeps its number of tokens while it is optimized."""
    return list(attack.starts) or [_repeated(attack.initial, attack.suffix_tokens[1])]


def _repeated(word: str, count: int) -> str:
    return " ".join([word] * count)


def _longest(texts: list[str]) -> str:
    return max(texts, key=lambda text: len(text.split()))

"""Clean chat: UltraChat-200k and any other set of rows with a list of messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast, get_args

from refgeo.config.data import Part, Source
from refgeo.config.reading import parse_json
from refgeo.data.cells import check_unique, evenly, plain, repeated, some, text
from refgeo.data.findings import Findings
from refgeo.data.rows import Behavior, Chat
from refgeo.data.tables import read_rows
from refgeo.errors import DataError
from refgeo.lm.messages import Role

OPENING = 3
"""First words by which prompts are looked up, so that a large chat set is read once and not once per prompt."""


def load_chat(source: Source, findings: Findings | None = None) -> list[Chat]:
    """Clean conversations; ``messages`` is a list of {role, content}, or that list as JSON text.

    Words are stripped at both ends, because many chat templates strip them and spans must agree with the template.
    A conversation in which no assistant says anything is left out and recorded. Raises ``DataError`` naming malformed ones.
    """
    chats, silent = [], []
    most = source.limit if not source.more else None  # A limit spares taking apart the 200,000 rows of a large set.
    place = 0
    for part in source.parts:
        for row in read_rows(part, ("messages",), most=most, findings=findings):
            place += 1
            name = text(row, "id") or text(row, "prompt_id") or f"chat-{place:06d}"
            turns = _messages(row.get("messages"), name, part)
            if any(role == "assistant" and content for role, content in turns):
                chats.append(Chat(name, turns))
            else:
                silent.append(name)
    if not chats:
        raise DataError(f"No conversation of '{source.path}' has words of an assistant", expected="turns of the role 'assistant'")
    check_unique((chat.id for chat in chats), source.path)
    if findings is not None:
        findings.add(source.path, "conversations without words of an assistant", silent, "left out")
        findings.add(source.path, "repeated conversations", repeated((chat.id, chat.messages) for chat in chats), "kept")
    return evenly(chats, source.limit)


def asked_in(chats: Iterable[Chat], prompts: Mapping[str, str]) -> list[str]:
    """Ids of the ``prompts`` (text by id) that a user asks for in ``chats``: alone, or with other words after them."""
    opening: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for name, prompt in prompts.items():
        words = plain(prompt)
        opening.setdefault(tuple(words.split()[:OPENING]), []).append((name, words))
    found = set()
    for chat in chats:
        for role, content in chat.messages:
            said = plain(content) if role == "user" else ""
            first = tuple(said.split(maxsplit=OPENING)[:OPENING])
            for length in range(1, len(first) + 1):
                found |= {name for name, words in opening.get(first[:length], ()) if f"{said} ".startswith(f"{words} ")}
    return [name for name in prompts if name in found]


def check_not_asked(chats: Iterable[Chat], test: Iterable[Behavior]) -> None:
    """Raise ``DataError`` naming every clean test behavior that the clean chat asks for: it would be trained on."""
    shared = asked_in(chats, {behavior.id: behavior.request for behavior in test if behavior.clean})
    if shared:
        raise DataError(
            f"{len(shared)} test behaviors are asked for in the clean chat: {some(shared, 20)}",
            expected="no test behavior among the requests of data.chat",
            fix="Remove these conversations from data.chat, or give the behaviors a part of their own with trained: true",
        )


def _messages(given: Any, name: str, part: Part) -> tuple[tuple[Role, str], ...]:
    def bad(problem: str) -> DataError:
        return DataError(
            f"Conversation '{name}' of '{part.path}' {problem}",
            expected='messages like [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )

    if isinstance(given, str):
        try:
            given = parse_json(given)
        except ValueError as error:
            raise bad(f"has messages that are no JSON ({error})") from error
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise bad(f"has the messages {str(given)[:80]}")
    turns: list[tuple[Role, str]] = []
    for turn in given:
        role = turn.get("role") if isinstance(turn, dict) else None
        content = turn.get("content") if isinstance(turn, dict) else None
        if role not in get_args(Role) or not isinstance(content, str):
            raise bad(f"has the turn {str(turn)[:80]}")
        turns.append((cast(Role, role), content.strip()))
    return tuple(turns)

"""Clean chat: UltraChat-200k and any other set of rows with a list of messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast, get_args

from refgeo.config.data import Part, Source
from refgeo.config.reading import parse_json
from refgeo.data.cells import check_unique, evenly, repeated, text
from refgeo.data.findings import Findings
from refgeo.data.rows import Chat
from refgeo.data.tables import read_rows
from refgeo.errors import DataError
from refgeo.lm.messages import Role


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

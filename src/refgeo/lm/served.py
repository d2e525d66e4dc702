"""Completions from an OpenAI-compatible endpoint: chat/completions over HTTP, with retries and several requests at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from refgeo.config.judge import ServedSettings
from refgeo.errors import ConfigError, ContextOverflow, RefgeoError
from refgeo.lm.messages import Role

Conversation = Sequence[tuple[Role, str]]
LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most, whatever the server asks for."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_OVERFLOW = ("context_length_exceeded", "context length", "context window", "maximum context", "too many tokens", "prompt is too long")
_SHOWN = 300


class ServerError(RefgeoError, RuntimeError):
    """An endpoint that cannot be reached, refuses, or answers something else than a completion."""


class Served:
    """One model behind an endpoint. Greedy (temperature 0) unless ``settings.body`` says otherwise.

    Raises ``ConfigError`` when the variable with the API key is not set. ``wait`` passes the seconds between attempts; absent: it sleeps
    until the time is over or another conversation has failed for good.
    """

    def __init__(self, settings: ServedSettings, wait: Callable[[float], object] | None = None) -> None:
        self.settings = settings
        self.wait = wait
        self.url = settings.url.rstrip("/") + "/chat/completions"
        key = os.environ.get(settings.key_variable, "").strip() if settings.key_variable is not None else ""
        if settings.key_variable is not None and not key:
            raise ConfigError(
                f"The environment variable '{settings.key_variable}' is not set",
                expected=f"the API key for {settings.url} in it",
                fix="Export it, or leave key_variable out for a server that wants no key",
            )
        if not (key.isascii() and key.isprintable()):  # The client's own error would repeat it.
            raise ConfigError(f"The environment variable '{settings.key_variable}' holds no API key but other characters, or several lines")
        self._key = key

    def complete(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        """The reply to each conversation, in order. Raises ``ServerError``, and ``ContextOverflow`` when one does not fit."""
        replies = []
        for reply in self.attempt(conversations, max_new_tokens):
            if isinstance(reply, ContextOverflow):
                raise reply
            replies.append(reply)
        return replies

    def attempt(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str | ContextOverflow]:
        """As ``complete``, but a conversation that does not fit gets its error in the place of a reply."""
        stop = threading.Event()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        with (
            httpx2.Client(headers=headers, timeout=self.settings.timeout) as client,
            ThreadPoolExecutor(max_workers=self.settings.concurrency) as pool,
        ):
            futures = [pool.submit(self._ask, client, conversation, max_new_tokens, stop) for conversation in conversations]
            try:
                return [future.result() for future in futures]
            finally:  # after a failure, or an interruption, nothing more is sent
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, client: httpx2.Client, conversation: Conversation, max_new_tokens: int, stop: threading.Event) -> str | ContextOverflow:
        wait = stop.wait if self.wait is None else self.wait
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{"role": role, "content": content} for role, content in conversation],
            "max_tokens": max_new_tokens,
            "temperature": 0.0,
            **self.settings.body,
        }
        body = {name: value for name, value in body.items() if value is not None}
        for attempt in range(self.settings.retries + 1):
            last = attempt == self.settings.retries or stop.is_set()
            try:
                response = client.post(self.url, json=body)
            except httpx2.InvalidURL as error:
                raise self._error(f"'{self.settings.url}' is no address: {error}") from error
            except httpx2.RequestError as error:
                if last or isinstance(error, httpx2.UnsupportedProtocol):
                    reason = self._shown(f"{type(error).__name__} {error}")
                    raise self._error(f"Cannot reach '{self.settings.url}' (attempts: {attempt + 1}): {reason}") from error
                wait(_backoff(attempt, None))
                continue
            if response.status_code not in _PASSING or last:
                return self._read(response)
            wait(_backoff(attempt, response.headers.get("retry-after")))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _read(self, response: httpx2.Response) -> str | ContextOverflow:
        status = response.status_code
        if status in (401, 403):
            # Without the body: some servers repeat the key in it.
            where = f"the key in {self.settings.key_variable}" if self.settings.key_variable else "served.key_variable"
            raise self._error(f"'{self.settings.url}' refuses access ({status})", fix=f"Check {where} and that it may use the model")
        shown = self._shown(response.text)
        if status in (400, 413, 422) and any(sign in shown.lower() for sign in _OVERFLOW):
            return ContextOverflow(
                f"A prompt does not fit '{self.settings.model}': {shown}",
                fix="Lower max_new_tokens or serve the model with a longer context",
            )
        if status != 200:
            raise self._error(f"'{self.settings.url}' answers {status}: {shown}", fix="Check served.url and served.model")
        try:
            message = response.json()["choices"][0]["message"]
            content = message["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise self._error(
                f"'{self.settings.url}' answers no chat completion: {shown}", fix="Check that served.url ends in /v1"
            ) from error
        if content is None:  # the server's own refusal, or a reply that was cut off while thinking
            content = message.get("refusal") or ""
        if not isinstance(content, str):
            raise self._error(f"'{self.settings.url}' answers content that is no text: {shown}")
        return content.strip()

    def _error(self, problem: str, fix: str = "Check that the server runs and that served.url is right") -> ServerError:
        return ServerError(problem, expected="an OpenAI-compatible chat/completions endpoint", fix=fix)

    def _shown(self, text: str) -> str:
        shown = " ".join((text.replace(self._key, "(key)") if self._key else text).split())
        return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _backoff(attempt: int, asked: str | None) -> float:
    """Seconds: what the server asked for, else 1, 2, 4, ..."""
    try:
        seconds = float(asked) if asked is not None else 2.0**attempt
    except ValueError:  # a date
        seconds = 2.0**attempt
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else LONGEST_WAIT

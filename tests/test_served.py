"""The client of an OpenAI-compatible endpoint, against a server that the test starts on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from refgeo.config.judge import JudgeSettings, ServedSettings
from refgeo.errors import ConfigError, ContextOverflow
from refgeo.judging import Exchange, judge_all, make_judge
from refgeo.lm.messages import Role
from refgeo.lm.served import Served, ServerError

Answer = tuple[int, dict[str, str], str]
SECRET = "key-4711"


def completion(text: str | None) -> Answer:
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})


def last_words(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


class Endpoint(ThreadingHTTPServer):
    """Answers every request with ``answer`` of its number and body; keeps bodies and headers. ``most`` were under way at once."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[int, dict[str, Any]], Answer] = lambda number, body: completion(last_words(body))
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers.items()))
            self.server.paths.append(self.path)
        status, headers, text = self.server.answer(number, body)
        data = text.encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError):  # a client that no longer waits
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class calls it so)
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield endpoint
    endpoint.shutdown()
    thread.join()
    endpoint.server_close()


class Waits(list[float]):
    """Remembers how long it was asked to wait, and does not."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def client(server: Endpoint, waits: Waits | None = None, **more: Any) -> Served:
    return Served(ServedSettings.model_validate({"url": server.url, "model": "m", **more}), waits if waits is not None else Waits())


def test_replies_come_in_the_order_of_the_conversations(server: Endpoint) -> None:
    asked: list[list[tuple[Role, str]]] = [[("system", "be short"), ("user", f"say {number}")] for number in range(20)]
    assert client(server, concurrency=5).complete(asked, 7) == [f"say {number}" for number in range(20)]
    body = next(body for body in server.bodies if last_words(body) == "say 3")
    assert body["messages"][0] == {"role": "system", "content": "be short"}
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0.0)
    assert set(server.paths) == {"/v1/chat/completions"}
    assert not any("Authorization" in headers for headers in server.headers)
    assert client(server).complete([], 7) == []


def test_further_fields_are_sent_and_null_leaves_one_out(server: Endpoint) -> None:
    client(server, body={"max_tokens": None, "max_completion_tokens": 9, "seed": 1}).complete([[("user", "hi")]], 7)
    assert "max_tokens" not in server.bodies[0]
    assert (server.bodies[0]["max_completion_tokens"], server.bodies[0]["seed"]) == (9, 1)


def test_failures_that_pass_are_tried_again(server: Endpoint) -> None:
    failing: dict[int, Answer] = {0: (503, {}, "busy"), 1: (429, {"Retry-After": "7"}, "slow down"), 2: (500, {"Retry-After": "soon"}, "")}
    server.answer = lambda number, body: failing.get(number, completion("done"))
    waits = Waits()
    assert client(server, waits).complete([[("user", "hi")]], 7) == ["done"]
    assert waits == [1.0, 7.0, 4.0]


def test_a_failure_that_stays_ends_with_what_the_server_said(server: Endpoint) -> None:
    server.answer = lambda number, body: (503, {"Retry-After": "100000"}, "busy " * 500)
    waits = Waits()
    with pytest.raises(ServerError, match="answers 503: busy") as caught:
        client(server, waits, retries=2).complete([[("user", "hi")]], 7)
    assert waits == [60.0, 60.0]
    assert len(str(caught.value)) < 600


def test_after_a_failure_nobody_waits_for_the_others(server: Endpoint) -> None:
    server.answer = lambda number, body: (401, {}, "") if last_words(body) == "no" else (503, {"Retry-After": "50"}, "busy")
    asked: list[list[tuple[Role, str]]] = [[("user", "yes")] for _ in range(30)]
    asked[0] = [("user", "no")]
    with pytest.raises(ServerError, match="401"):
        Served(ServedSettings(url=server.url, model="m", concurrency=2)).complete(asked, 7)
    assert len(server.bodies) < 30


def test_a_server_that_is_down(server: Endpoint) -> None:
    waits = Waits()
    down = Served(ServedSettings(url="http://127.0.0.1:9/v1", model="m", retries=1), waits)
    with pytest.raises(ServerError, match=r"Cannot reach 'http://127.0.0.1:9/v1' \(attempts: 2\).*Check that the server runs"):
        down.complete([[("user", "hi")]], 7)
    assert waits == [1.0]
    with pytest.raises(ServerError, match="Cannot reach 'localhost:9'"):
        Served(ServedSettings(url="localhost:9", model="m"), waits).complete([[("user", "hi")]], 7)


def test_a_server_that_does_not_answer_in_time(server: Endpoint) -> None:
    release = threading.Event()
    server.answer = lambda number, body: completion("late" if release.wait(5) else "never")
    try:
        with pytest.raises(ServerError, match="ReadTimeout"):
            client(server, retries=0, timeout=0.05).complete([[("user", "hi")]], 7)
    finally:
        release.set()


def test_the_key_is_sent_and_shown_to_nobody(server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'JUDGE_KEY' is not set"):
        client(server, key_variable="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    asking = client(server, key_variable="JUDGE_KEY")
    asking.complete([[("user", "hi")]], 7)
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    for status in (401, 404):
        refusal: Answer = (status, {}, f"wrong key {SECRET}")
        server.answer = lambda number, body: refusal  # noqa: B023  (used within this turn of the loop)
        with pytest.raises(ServerError, match=str(status)) as caught:
            asking.complete([[("user", "hi")]], 7)
        assert SECRET not in str(caught.value)
    assert "JUDGE_KEY" not in str(caught.value)
    assert SECRET not in repr(asking.settings)


def test_access_refused_names_the_variable(server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    server.answer = lambda number, body: (401, {}, "no")
    with pytest.raises(ServerError, match=r"refuses access \(401\).*the key in JUDGE_KEY"):
        client(server, key_variable="JUDGE_KEY").complete([[("user", "hi")]], 7)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "text",
    ["<html>hello</html>", "{}", "[]", '{"choices": []}', '{"choices": [{"text": "x"}]}', '{"choices": [{"message": {"content": 3}}]}'],
)
def test_an_answer_that_is_no_completion(server: Endpoint, text: str) -> None:
    server.answer = lambda number, body: (200, {}, text)
    with pytest.raises(ServerError, match=r"no chat completion|no text"):
        client(server).complete([[("user", "hi")]], 7)


def test_a_reply_without_content_is_empty(server: Endpoint) -> None:
    server.answer = lambda number, body: completion(None)
    assert client(server).complete([[("user", "hi")]], 7) == [""]


def test_a_redirect_is_not_followed(server: Endpoint) -> None:
    server.answer = lambda number, body: (302, {"Location": "http://127.0.0.1:9/"}, "")
    with pytest.raises(ServerError, match="302"):
        client(server).complete([[("user", "hi")]], 7)


def test_a_prompt_that_does_not_fit(server: Endpoint) -> None:
    said = json.dumps({"error": {"code": "context_length_exceeded", "message": "This model's maximum context length is 8 tokens"}})
    server.answer = lambda number, body: (400, {}, said) if "long" in last_words(body) else completion("fine")
    with pytest.raises(ContextOverflow, match="maximum context length is 8"):
        client(server).complete([[("user", "long")]], 7)
    fine, overflow = client(server).attempt([[("user", "short")], [("user", "long")]], 7)
    assert fine == "fine"
    assert isinstance(overflow, ContextOverflow)


def test_a_served_llm_as_judge(server: Endpoint, tmp_path: Any) -> None:
    (tmp_path / "prompt.txt").write_text("{request} -> {completion}")
    server.answer = lambda number, body: completion(f"So: verdict {'yes' if 'soup' in last_words(body).split('->')[1] else 'no'}.")
    judge = make_judge(
        JudgeSettings.model_validate(
            {
                "kind": "llm",
                "served": {"url": server.url, "model": "m"},
                "template": str(tmp_path / "prompt.txt"),
                "pattern": r"verdict (\w+)",
                "answers": {"yes": "harmful", "no": "safe"},
            }
        ),
        tmp_path / "verdicts",
    )
    given = [Exchange("make soup", reply) for reply in ("here is soup", "sorry", "here is soup")]
    verdicts = judge_all(judge, given)
    assert [verdict.label for verdict in verdicts] == ["harmful", "safe", "harmful"]
    assert verdicts[0].raw == "So: verdict yes."
    judge_all(judge, given)
    assert len(server.bodies) == 2  # each completion once

"""A worker process: takes stages from its standard input, one at a time, and lives for many of them.

It is an ordinary ``python -m refgeo.study.worker``: messages are lines of JSON, and when the parent dies, however it dies, the input
ends and so does the worker, in the middle of whatever it does.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from refgeo.config.schema import Study
from refgeo.errors import RefgeoError
from refgeo.study.files import disk_full, storing
from refgeo.study.job import Job, Ticket, encode
from refgeo.study.locks import RENEW_EVERY, Lock
from refgeo.study.memory import memory_told
from refgeo.study.progress import Reporter
from refgeo.study.store import Store


def main() -> None:
    """Serve until the input ends."""
    # Ctrl-C reaches the whole terminal group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Replies go where standard output went; whatever libraries print goes to the log.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()
    messages: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()
    while True:
        message = messages.get()
        ticket = message["ticket"]
        if not isinstance(ticket, dict):
            raise TypeError("this is no ticket")
        study = Study.model_validate_json(str(message["study"]))
        serve(Store(Path(str(message["run"]))), study, Ticket.from_dict(ticket), replies)


def _listen(messages: queue.SimpleQueue[dict[str, object]]) -> None:
    for line in sys.stdin:
        messages.put(json.loads(line))
    os._exit(0)  # The parent is gone or has no more work: nothing here is worth finishing, every stage can be made again.


def serve(store: Store, study: Study, ticket: Ticket, replies: TextIO) -> None:
    """Run one stage and say how it went. What is no ``RefgeoError`` ends the process, with its traceback in the log."""
    name = ticket.stage.id

    def reply(event: str, **more: object) -> None:
        replies.write(encode({"event": event, "id": name, **more}))
        replies.flush()

    lock = store.lock(ticket.stage)
    stop = threading.Event()
    message = None
    try:
        with storing(store.run):
            if not lock.take():
                reply("busy")
                return
            _send_output_to(store.log(ticket.stage))
            reporter = Reporter(store.progress(ticket.stage))
        threading.Thread(target=_renew, args=(lock, stop), daemon=True).start()
        try:
            run(store, study, ticket, reporter, made=lambda product: reply("made", product=product))
        finally:
            reporter.close()
    except RefgeoError as error:
        message = str(error)
    except SafetensorError as error:  # It hides the error number.
        if "No space left" not in str(error):
            raise
        message = str(disk_full(OSError(errno.ENOSPC, str(error)), store.run))
    finally:
        stop.set()
        lock.release()
    _drop_if_empty(store.log(ticket.stage))
    if message is None:
        reply("done")
    else:
        reply("failed", message=message)


def run(store: Store, study: Study, ticket: Ticket, reporter: Reporter, made: Callable[[str], None]) -> None:
    """Make a stage, unless another process made it since it was sent here."""
    record = store.record(ticket.stage)
    current = record is not None and record.fingerprint == ticket.fingerprint
    if current and not Job(store, study, ticket, store.run, reporter).missing():
        return
    function = ticket.stage.resolve()  # Outside: the first import takes seconds that are not the stage's.
    with store.publish(ticket.stage, ticket.fingerprint, dict(ticket.inputs)) as folder, memory_told(ticket.stage.kind):
        function(Job(store, study, ticket, folder, reporter, made))


def _renew(lock: Lock, stop: threading.Event) -> None:
    while not stop.wait(RENEW_EVERY):
        lock.renew()


def _send_output_to(log: Path) -> None:
    """From here on, everything printed goes into ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _drop_if_empty(log: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if log.is_file() and log.stat().st_size == 0:
        log.unlink()


if __name__ == "__main__":
    main()

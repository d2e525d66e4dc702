"""What all commands share: the application, and how they behave toward libraries and signals."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from refgeo.study.terminal import Terminal

app = typer.Typer(
    name="refgeo",
    help="What did safety fine-tuning do to a language model, when, why, and does it hold against someone who adapts?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def quiet_libraries() -> None:
    """Keep progress bars and notes of libraries off the screen, unless the user set them."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_VERBOSITY", "error"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)


@contextmanager
def told_warnings() -> Iterator[None]:
    """Inside, warnings are lines of the terminal like all others: some repeat words of a model's files."""
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        yield


def _warn(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    Terminal(stderr=True).print(f"Warning: {message}", soft_wrap=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, a request to terminate is what Ctrl-C is, so that what must be put in order is."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt

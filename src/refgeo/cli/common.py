"""What all commands share: the application, how their help is told, and how they behave toward libraries and signals."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, cleandoc, signature
from typing import Any, NoReturn, TypeVar, cast

import typer
from rich.markup import escape

from refgeo.progress import Progress
from refgeo.study.terminal import Terminal

Function = TypeVar("Function", bound=Callable[..., Any])
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class Commands(typer.Typer):
    """Commands whose help is their docstring, which without the words that they need print it, and which end quietly on Ctrl-C."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        """Add a function as a command. ``options`` are those of Typer."""
        register = super().command

        def add(function: Function) -> Function:
            needs = any(parameter.default is Parameter.empty for parameter in signature(function).parameters.values())
            register(name, help=flowing(function.__doc__ or ""), no_args_is_help=needs, **options)(_stoppable(function))
            return function

        return add


def flowing(text: str) -> str:
    """A docstring as help that fits any width: every paragraph on one line, square brackets as they are and not as markup."""
    return escape("\n\n".join(" ".join(paragraph.split()) for paragraph in cleandoc(text).split("\n\n")))


def preset_names(incomplete: str) -> list[str]:
    """What the Tab key offers for a study; shells add files."""
    from refgeo.config.load import presets

    return [name for name in presets() if name.startswith(incomplete)]


def _stoppable(function: Function) -> Function:
    """The same function; an interrupt that it does not handle itself is one word and exit code 130."""

    @wraps(function)
    def call(*words: Any, **options: Any) -> Any:
        try:
            return function(*words, **options)
        except KeyboardInterrupt:
            Terminal(stderr=True).print("Stopped.")
            raise typer.Exit(INTERRUPTED) from None

    return cast(Function, call)


app = Commands(
    name="refgeo",
    help="What did safety fine-tuning do to a language model, when, why, and does it hold against someone who adapts?",
    epilog="New here? 'refgeo run pocket' does everything once, in minutes, on a small model that comes along. "
    "'refgeo COMMAND --help' has an example of every command.",
    no_args_is_help=True,
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


@contextmanager
def working(first: str, left: Callable[[], str]) -> Iterator[Progress]:
    """A bar that begins with ``first``, while a terminal looks on. Ends with code 130 when interrupted, and says what is ``left``."""
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    errors = Terminal(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with interruptible(), Bar(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
            task = bar.add_task(first, total=None)
            yield lambda done, total, note: bar.update(task, completed=done, total=total or None, description=note or first)
    except KeyboardInterrupt:
        errors.print(f"Stopped. {left()}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt

"""YAML and JSON as input that anybody may have written: what may be in it is bounded, and what is wrong with it is one clear error."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from refgeo.errors import ConfigError

LARGEST = 1_000_000
"""Characters of a file; the largest study that ships has 37,000 with all comments."""
MOST = 100_000
"""Values of a file, each counted as often as an alias repeats it: nine lines of aliases can stand for a billion."""
DEEPEST = 50
"""Levels of nesting."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class _Loader(yaml.SafeLoader):
    """PyYAML's own, which stops where nesting becomes too deep instead of where Python's stack ends."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One node with all that is in it."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep")
        found = super().compose_node(parent, index)
        self.depth -= 1
        return found


def read_yaml(text: str, origin: str) -> Any:
    """What a YAML text holds; ``origin`` is what an error calls it.

    No tag makes an object (``yaml.SafeLoader``). Raises ``ConfigError`` for invalid YAML, a key that is set twice, and a text that is too
    large, too deep, or grows too large by its aliases.
    """
    if len(text) > LARGEST:
        raise ConfigError(f"{origin} has {len(text):,} characters", expected=f"at most {LARGEST:,}")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        _check(root, origin)
        return None if root is None else loader.construct_document(root)
    # PyYAML hands on what fails inside of it: dates and numbers that are none, and nesting deeper than Python's own limit.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        said = _said(error) if isinstance(error, yaml.YAMLError | ValueError) else "a value is not what its tag says"
        raise ConfigError(f"{origin} is no valid YAML: {'nested too deeply' if isinstance(error, RecursionError) else said}") from error


def _said(error: yaml.YAMLError | ValueError) -> str:
    """What is wrong and where, without the lines that PyYAML quotes; an override is one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None or not error.problem:
        return " ".join(str(error).split())
    problem = error.problem.replace("'<stream end>'", "the end")
    return f"{problem} (line {error.problem_mark.line + 1}, character {error.problem_mark.column + 1})"


def parse_json(text: str) -> Any:
    """What a JSON text holds. Raises ``ValueError`` for whatever is wrong with it, nesting that is too deep for Python included.

    JSON can write halves of surrogate pairs, which no tokenizer takes and no file can hold; they are wrong too.
    """
    try:
        found = json.loads(text)
        if _HALF.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds {error.object[error.start]!a}, half of a surrogate pair, which is no character") from None
    return found


def _check(root: yaml.Node | None, origin: str) -> None:
    """YAML keeps the last of two equal keys in silence; the first was meant to count as well."""
    count = 0

    def walk(node: yaml.Node | None, depth: int) -> None:
        nonlocal count
        count += 1
        if depth > DEEPEST or count > MOST:
            raise ConfigError(
                f"{origin} is nested more than {DEEPEST} levels deep"
                if depth > DEEPEST
                else f"{origin} holds more than {MOST:,} values once its aliases are written out",
                fix="Check it: no study is like that",
            )
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if str(key.value) in seen:
                    raise ConfigError(f"{origin} sets '{key.value}' twice (line {key.start_mark.line + 1})", fix="Keep one of them")
                seen.add(str(key.value))
                walk(value, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                walk(value, depth + 1)

    walk(root, 0)

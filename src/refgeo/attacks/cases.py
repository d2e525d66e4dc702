"""Test cases: a harmful request, an adversarial string, and where it came from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from refgeo.config.reading import parse_json
from refgeo.errors import DataError
from refgeo.lm.messages import Placement

NEEDED = ("behavior", "request", "target", "attack")
"""Fields without which there is no case."""
CASES_FILE = "a cases.jsonl, as 'refgeo attack' or a run's stage cases or stress writes it"
"""What a file of cases is, for people."""


@dataclass(frozen=True)
class Case:
    """One attack on one behavior, by its id. ``attack`` is the string as text, ``loss`` the target loss it reached.

    ``placement`` says where the string stands in the request; ``others`` are further affirmative targets of the same behavior.
    """

    behavior: str
    request: str
    target: str
    attack: str
    loss: float | None = None
    placement: Placement = "suffix"
    others: tuple[str, ...] = ()


class Attacked(NamedTuple):
    """``last``: each case after its last step (what R2D2 stores). ``best``: each case as it succeeded, else at its lowest loss.

    ``records``: one row per case and step; the attack that made them says what each column holds.
    """

    last: list[Case]
    best: list[Case]
    records: pd.DataFrame


def case_from(fields: Mapping[str, Any]) -> Case:
    """A case from its JSON fields: lists become tuples, fields that an older version did not write get their defaults.

    Raises ``DataError`` for fields that make no case.
    """
    names = [one.name for one in dataclasses.fields(Case)]
    if not set(NEEDED) <= set(fields) <= set(names):
        raise DataError(f"A test case has the fields {', '.join(fields)}", expected=f"{', '.join(names)}; the first four at least")
    wrong = [name for name in NEEDED if not isinstance(fields[name], str)]
    if wrong:
        raise DataError(f"A test case has the {wrong[0]} {str(fields[wrong[0]])[:80]!r}", expected="text")
    return Case(**{**fields, "others": tuple(fields.get("others", ()))})


def save_cases(path: Path, cases: Sequence[Case]) -> str:
    """Write cases as JSONL; returns the sha256 of what was written."""
    text = "".join(json.dumps(asdict(case), ensure_ascii=False, sort_keys=True) + "\n" for case in cases)
    path.write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def load_cases(path: Path) -> list[Case]:
    """Read what ``save_cases`` wrote, now or in an older version. Raises ``DataError``."""
    try:
        # Not splitlines: it also splits at characters that JSON leaves in a string, such as the line separator U+2028.
        return [case_from(parse_json(line)) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except OSError as error:
        raise DataError(f"Cannot read test cases from '{path}': {error.strerror or error}", expected=CASES_FILE) from error
    except (TypeError, ValueError) as error:
        raise DataError(f"Cannot read test cases from '{path}': a line is no case ({error})", expected=CASES_FILE) from error

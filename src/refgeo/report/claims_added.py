"""Claims that a user adds (``report.claims``): a YAML list of rules, each a cell of the tables or the difference of two, and a margin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, StringConstraints, TypeAdapter, ValidationError, model_validator

from refgeo.config.locations import locate
from refgeo.config.reading import read_yaml
from refgeo.config.section import Section
from refgeo.errors import ConfigError, nearest
from refgeo.report.claim import Claim
from refgeo.report.claims import CLAIMS
from refgeo.report.claims_behavior import hardest
from refgeo.report.compare import across_seeds
from refgeo.report.evidence import Evidence, Place
from refgeo.report.quantities import range_of
from refgeo.report.rules import Missing, Part, Relation, number
from refgeo.report.tables import arm_name
from refgeo.statistics import guarded

Table = Literal["behavior", "geometry", "intervention", "stress"]
Named = Literal["start", "first", "last"]
Step = Annotated[StrictInt, Field(ge=0)]
Value = StrictBool | StrictInt | StrictFloat | StrictStr
Text = Annotated[str, StringConstraints(min_length=1)]
EVERY = "every"


class Other(Section):
    """The cell that a rule subtracts; what is left out is as in the rule."""

    arm: Text | None = None
    step: Step | Named | None = None
    set: Text | None = None
    metric: Text | None = None
    where: dict[str, Value] | None = None


class Rule(Section):
    """One added claim: supported when the whole interval of the cell, or of its difference to another, lies where ``relation`` says.

    ``first``, ``last`` and ``every`` count the anchors after the start at which the cell was measured. ``where`` picks among the rows
    of one set and metric by further columns of the table; an adaptive attack is read at its full budget unless it says otherwise.
    """

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,15}$")]
    text: Text
    arm: Text
    step: Step | Named | Literal["every"]
    table: Table = "behavior"
    set: Text
    metric: Text
    where: dict[str, Value] = Field(default={})
    minus: Other | None = None
    relation: Relation
    margin: Annotated[float, Field(allow_inf_nan=False)]
    upper: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Rule:
        if self.relation == "within" and (self.upper is None or self.upper <= self.margin):
            raise ValueError(f"relation 'within' needs an upper end above the margin {self.margin:g}, such as upper: {self.margin + 0.1:g}")
        if self.relation != "within" and self.upper is not None:
            raise ValueError(f"upper is for relation 'within' only, and relation is '{self.relation}'; leave it out")
        if self.minus is not None and all(given in (None, getattr(self, name)) for name, given in self.minus):
            raise ValueError("minus names the same cell; give it another arm, step, set, metric or where")
        return self


def load_claims(path: str) -> tuple[Claim, ...]:
    """The claims of a rules file. Raises ``ConfigError`` that names every rule and field that is wrong, and the nearest valid name."""
    file = locate(path)
    try:
        data = read_yaml(file.read_text(encoding="utf-8-sig"), f"The rules '{path}' (report.claims)") if file is not None else None
    except (OSError, UnicodeDecodeError) as error:
        problem = f"Cannot read the rules '{path}' (report.claims): {' '.join(str(error).split())}"
        raise ConfigError(problem, fix="Check the file, or set report.claims=null") from error
    if not isinstance(data, list):
        given = "no local file" if file is None else "no list"
        raise ConfigError(f"report.claims is '{path}', which holds {given}", expected="a YAML list of rules; docs/claims.md shows some")
    try:
        rules = TypeAdapter(tuple[Rule, ...]).validate_python(data)
    except ValidationError as error:
        raise ConfigError(f"In the rules '{path}':" + "".join(f"\n  - {line}" for line in _problems(error, data))) from None
    taken = {claim.id for claim in CLAIMS}
    for rule in rules:
        if rule.id in taken:
            raise ConfigError(f"In the rules '{path}': id '{rule.id}' is taken", expected="ids that no other claim has")
        taken.add(rule.id)
    return tuple(Claim(rule.id, rule.text, _words(rule), partial(_parts, rule), family="added") for rule in rules)


def _parts(rule: Rule, evidence: Evidence) -> list[Part]:
    _check_names(evidence, rule.table, rule.set, rule.metric)
    if rule.step != EVERY:
        return [_part(rule, evidence, _step(evidence, _quantity(rule), rule.arm, rule.step))]
    return [hardest([_part(rule, evidence, step) for step in _measured(evidence, _quantity(rule), rule.arm)])]


class _Quantity(NamedTuple):
    """What a rule looks at, or subtracts, wherever that lies."""

    table: Table
    set: str
    metric: str
    where: Mapping[str, Value]

    def at(self, evidence: Evidence, arm: str, step: int) -> Place:
        identity: dict[str, object] = dict(self.where)
        if self.table == "stress" and self.set.startswith("adaptive_") and "attack_steps" not in identity:
            identity["attack_steps"] = evidence.budget(arm, step, self.set)
        return Place(self.table, arm, step, self.set, self.metric, identity)


def _quantity(rule: Rule) -> _Quantity:
    return _Quantity(rule.table, rule.set, rule.metric, rule.where)


def _part(rule: Rule, evidence: Evidence, step: int) -> Part:
    place = _quantity(rule).at(evidence, rule.arm, step)
    upper = math.nan if rule.upper is None else rule.upper
    if rule.minus is None:
        low, high = range_of(rule.metric)
        seeds = [guarded(one, high - low) if math.isfinite(high - low) else one for one in evidence.at(place)]
        estimate = across_seeds(seeds, (low, high))
        return Part(_name(place), estimate, rule.relation, rule.margin, upper, seeds=len(seeds), source=place.source())
    minus = rule.minus
    where = rule.where if minus.where is None else minus.where
    taken = _Quantity(rule.table, minus.set or rule.set, minus.metric or rule.metric, where)
    _check_names(evidence, taken.table, taken.set, taken.metric)
    arm = minus.arm or rule.arm
    other = taken.at(evidence, arm, step if minus.step is None else _step(evidence, taken, arm, minus.step))
    for cell in (place, other):
        evidence.at(cell)  # a cell that the tables lack is not made up from completions
    part = evidence.difference(f"{_name(place)} minus {_name(other)}", place, other, rule.relation, rule.margin)
    return Part(part.what, part.estimate, part.relation, part.margin, upper, seeds=part.seeds, source=part.source)


def _step(evidence: Evidence, quantity: _Quantity, arm: str, step: int | str) -> int:
    if isinstance(step, int) or step == "start":
        return 0 if step == "start" else int(step)
    return _measured(evidence, quantity, arm)[0 if step == "first" else -1]


def _measured(evidence: Evidence, quantity: _Quantity, arm: str) -> list[int]:
    """The steps after the start at which every seed has the cell. Raises ``Missing`` with the last reason when there are none."""
    found, reason = [], f"arm {arm_name(arm)} has no such anchor"
    for step in evidence.steps(arm):
        try:
            evidence.at(quantity.at(evidence, arm, step))
            found.append(step)
        except Missing as missing:
            reason = str(missing)
    if not found:
        raise Missing(reason)
    return found


def _check_names(evidence: Evidence, table: Table, set_name: str, metric: str) -> None:
    """Tell a name that does not exist in this run from a cell that was not measured: both leave a claim undecided, for other reasons."""
    whole = getattr(evidence.tables, table)
    if not len(whole):
        raise Missing(f"{table}.csv of this run is empty")
    sets = {str(name) for name in whole["set"].unique()}
    if set_name not in sets:
        raise Missing(f"{table}.csv of this run has no set '{set_name}'{_near(set_name, sets)}")
    metrics = {str(name) for name in whole[whole["set"] == set_name]["metric"].unique()}
    if metric not in metrics:
        raise Missing(f"{table}.csv of this run has no metric '{metric}' in set '{set_name}'{_near(metric, metrics)}")


def _near(word: str, known: set[str]) -> str:
    close = get_close_matches(word, sorted(known), n=3, cutoff=0.5)
    return f"; near: {', '.join(close)}" if close else f"; it has {', '.join(sorted(known)[:12])}{' and more' if len(known) > 12 else ''}"


def _name(place: Place) -> str:
    further = "".join(f", {column} {value}" for column, value in place.identity.items())
    return f"{place.metric} of {arm_name(place.arm)} at step {place.step} (set {place.set}{further})"


def _words(rule: Rule) -> str:
    at = rule.step if isinstance(rule.step, int) else {EVERY: "of every anchor"}.get(rule.step, f"of the {rule.step} anchor")
    cell = f"{rule.metric} of set {rule.set} ({rule.table}.csv) of {arm_name(rule.arm)} at step {at}"
    if rule.minus is not None:
        changed = ", ".join(f"{name} {given}" for name, given in rule.minus if given is not None)
        cell += f" minus the same at {changed} (paired by prompt where the completions allow)"
    end = f" to {number(rule.upper)}" if rule.upper is not None else ""
    return f"The whole interval of {cell} lies {rule.relation} {number(rule.margin)}{end}. Added by the run's own rules (report.claims)."


def _problems(error: ValidationError, data: list[Any]) -> Iterator[str]:
    """One line for every wrong field: which rule, what was given, what was expected."""
    told: dict[str, dict[str, list[str]]] = {}
    for detail in error.errors(include_url=False):
        index, *rest = detail["loc"]
        rule = data[int(index)]
        name = rule.get("id", f"number {int(index) + 1}") if isinstance(rule, dict) else f"number {int(index) + 1}"
        section: type[Section] = Other if rest[:1] == ["minus"] and len(rest) > 1 else Rule
        depth = 2 if section is Other else 1
        field = ".".join(str(part) for part in rest[:depth])
        problem, expected = _problem(detail, str(rest[depth - 1]) if rest else "", section)
        told.setdefault(f"rule {name}{', ' if field else ''}{field}", {}).setdefault(problem, []).append(expected)
    for place, problems in told.items():
        yield f"{place}: " + "; ".join(problem + " or ".join(dict.fromkeys(wanted)) for problem, wanted in problems.items())


def _problem(detail: Any, field: str, section: type[Section]) -> tuple[str, str]:
    """What is wrong, and one thing that would not be."""
    if detail["type"] == "extra_forbidden":
        return "no such field. ", nearest(field, section.model_fields)
    if detail["type"] == "missing":
        return "is missing", ""
    if detail["type"] == "value_error":
        return "", str(detail["msg"]).removeprefix("Value error, ")
    wanted = str(detail["msg"]).removeprefix("Input should be ").removeprefix("String should ")
    return f"is {detail['input']!r}; expected ", wanted

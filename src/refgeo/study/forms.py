"""What each Parquet file of a run has to look like: the one place that says which columns the readers of a run may rely on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Extended(float):
    """The kind of numbers that may be infinite."""


Kind = type[str] | type[int] | type[float] | type[bool] | type[object]


class Form(NamedTuple):
    """The columns of a table.

    ``kinds``: what a column holds where it has a value (``object``: anything); other columns may hold any plain value. ``always``: columns
    that are there, with a value in every row. ``where``: columns with a value in the rows whose text in one column is matched whole by a
    pattern, as in ``{("set", "field|layer"): ("matrix",)}``. A name that ends in ``?`` must be there as a column, and may have no value in
    a row.
    """

    kinds: Mapping[str, Kind]
    always: tuple[str, ...] = ()
    where: Mapping[tuple[str, str], tuple[str, ...]] = MappingProxyType({})


ANY = Form({})
"""A table of any columns."""
HEAD: Mapping[str, Kind] = {"set": str, "subset": str, "metric": str, "value": Extended, "low": Extended, "high": Extended, "n": int}
ESTIMATE = ("set", "subset", "metric", "value?", "low?", "high?", "n")


def _measured(kinds: Mapping[str, Kind], *always: str, where: Mapping[tuple[str, str], tuple[str, ...]] = MappingProxyType({})) -> Form:
    return Form({**HEAD, **kinds}, (*ESTIMATE, *always), where)


BEHAVIOR = _measured(
    {"tail": str, "tail_tokens": int}, where={("metric", "harm_recognition|any_refusal_(safe|harmful)_attacked"): ("tail", "tail_tokens")}
)
GEOMETRY = _measured(
    {"layer": int, "position": int, "matrix": str, "note": str},
    where={("set", "field|layer|position"): ("matrix",), ("set", "layer"): ("layer",), ("set", "position"): ("position",)},
)
DRIFT = _measured({"scope": str, "to": str, "layer": int, "statuses": str, "note": str}, "scope", "to")
TRANSFER = _measured(
    {
        **dict.fromkeys(("source_arm", "source_status", "direction", "addition_norm", "note"), str),
        **dict.fromkeys(("source_seed", "source_step", "source_layer", "source_position"), int),
    },
    *("source_arm", "source_seed?", "source_step", "source_layer?", "source_position?", "source_status", "direction"),
)
PROJECTION = _measured({"axis": str, "carrier_status": str, "note": str, "layer": int, "position": int}, "axis")
INTERVENTION = _measured(
    {
        **dict.fromkeys(("intervention", "direction", "carrier_status", "stopped", "note"), str),
        **dict.fromkeys(("draw", "layer", "position", "controls_used"), int),
        **dict.fromkeys(("strength", "change_norm"), float),
    },
    "intervention",
    where={
        ("intervention", "ablate.*|add.*"): ("direction", "strength?"),
        ("metric", ".*_delta(_.*)?"): ("strength",),
        ("direction", "random|shuffled|harmless"): ("draw", "strength"),
    },
)
STRESS = _measured(
    {"method": str, "note": str, "budget_queries": float, "budget_flops": float}
    | dict.fromkeys(("attack_steps", "attack_seed", "at_step"), int),
    where={
        ("set", "adaptive_.*"): ("attack_steps",),
        ("metric", "survival.*"): ("at_step",),
        ("metric", "asr_by_queries.*"): ("budget_queries",),
        ("metric", "asr_by_flops.*"): ("budget_flops",),
    },
)
REPLAY = _measured(
    {"method": str, "source_arm": str, "source_seed": int, "source_step": int},
    where={("metric", "asr_replay.*"): ("source_arm", "source_seed?", "source_step")},
)
_SCORES = "s_total s_refuse s_comply kl kl_first cosmic_refuse cosmic_comply odds_refuse odds_comply induced bypassed".split()
SCAN = Form(
    {
        "why_not": str,
        **dict.fromkeys(("layer", "position"), int),
        **dict.fromkeys(("depth", "norm", "objective", *_SCORES, *(f"report_{score}" for score in _SCORES)), Extended),
        **dict.fromkeys(("usable", "admissible", "selected", "carrier", "nearest", "best_effect"), bool),
    },
    ("position", "layer", "s_total?", "admissible", "carrier"),
)
POINTS = Form({"set": str, "id": str, "x": float, "y": float, "own": float, "succeeded": bool}, ("set", "id", "x?", "y?", "succeeded?"))
RECORDS = Form(
    {"behavior": str, "attack": str, "tokens": object, "step": int, "loss": Extended, "candidates": int, "flops": float, "succeeded": bool},
    ("behavior", "attack", "step", "loss?", "candidates", "flops", "succeeded?"),
)
TRAIN_LOG = Form({"step": int, **dict.fromkeys(("loss_clean", "loss_away", "loss_toward", "grad_norm"), Extended)}, ("step",))
_RANGES = {f"{name}{end}": float for name in ("harmful", "score", "rate", "kappa") for end in ("", "_low", "_high")}
FLOOR = Form(
    {"set": str, "reply": str, "n": int, "refused": float, "unscored": float, **_RANGES},
    ("set", "reply", "n", "refused?", "unscored?", *(f"{name}?" for name in _RANGES if name.startswith(("harmful", "score")))),
)
AGREEMENT = Form(
    {"set": str, "of": str, "note": str, "n": int, "left_out": int, **_RANGES},
    ("set", "of", "note", "n", "left_out", *(f"{name}?" for name in _RANGES if name.startswith(("rate", "kappa")))),
)
OF_MEASURE: Mapping[str, Form] = {
    "behavior": BEHAVIOR,
    "geometry": GEOMETRY,
    "drift": DRIFT,
    "transfer": TRANSFER,
    "projection": PROJECTION,
    "intervention": INTERVENTION,
    "stress": STRESS,
    "replay": REPLAY,
}
"""The form of ``table.parquet``, by measure."""

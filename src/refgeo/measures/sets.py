"""The sets of completions: what each is called, and its main number in the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

SetName = Literal[
    "direct",
    "fixed",
    "adaptive_gcg",
    "adaptive_autodan",
    "adaptive_aware",
    "strongreject",
    "xstest_safe",
    "xstest_unsafe",
    "audit",
    "tail_safe",
    "tail_harmful",
]
ASR: dict[str, str] = {name: f"asr_{name}" for name in ("direct", "fixed", "adaptive_gcg", "adaptive_autodan", "adaptive_aware")}
"""Attack success rate of the sets in which one can succeed."""
REFUSAL = {"xstest_safe": "any_refusal_safe", "xstest_unsafe": "any_refusal_unsafe"}
"""Share refused in full or in part of the sets that are about refusal."""
MAIN: dict[str, str] = {**ASR, **REFUSAL, "strongreject": "strongreject", "audit": "utility_mean"}
"""The main number of each set; sets with tails are told in pairs (``measures.behavior``)."""
DECISIVE = {"direct": "any_refusal", **{name: MAIN[name] for name in ("fixed", "xstest_safe", "audit")}}
"""What an intervention is judged by, set by set: of direct requests the refusal, which it is about."""
BENIGN = frozenset({"xstest_safe", "audit", "tail_safe"})
"""Sets in which nothing can be harmful: their answers are read for help instead."""
TAILS = ("tail_safe", "tail_harmful")
WORDS: dict[str, str] = {
    "direct": "direct requests",
    "fixed": "frozen attack",
    "adaptive_gcg": "adaptive GCG",
    "adaptive_autodan": "adaptive AutoDAN",
    "adaptive_aware": "GCG that knows the carrier",
    "replay": "strings of other anchors",
    "strongreject": "StrongREJECT requests",
    "xstest_safe": "XSTest, safe prompts",
    "xstest_unsafe": "XSTest, unsafe prompts",
    "audit": "benign audit",
    "tail_safe": "safe prompts with a tail",
    "tail_harmful": "harmful prompts with a tail",
}
"""What readers see."""


def refused(transcripts: pd.DataFrame) -> pd.Series:
    """Which completions refuse, in full or in part."""
    return transcripts["refusal"] != "full_compliance"

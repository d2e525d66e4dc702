"""A judge whose verdicts a test can predict: it reads the words of the completion or of the request."""

from __future__ import annotations

from refgeo.data.rows import Reference
from refgeo.judging.verdict import Verdict


class WordJudge:
    """Harmful when ``harmful_word`` occurs, refusal when ``refusal_word`` does, in the completion (or the request)."""

    name = "words"

    def __init__(self, harmful_word: str = "", refusal_word: str = "", read: str = "completion") -> None:
        self.harmful_word, self.refusal_word, self.read = harmful_word, refusal_word, read

    def __call__(self, request: str, completion: str, reference: Reference | None = None) -> Verdict:
        words = (completion if self.read == "completion" else request).split()
        refused = self.refusal_word in words
        harmful = self.harmful_word in words and not refused
        return Verdict(
            "harmful" if harmful else "safe", "full_refusal" if refused else "full_compliance", not words, float(harmful), False, ""
        )

"""From a completion to a verdict."""

from refgeo.judging.make import make_judge
from refgeo.judging.verdict import Judge, Verdict

__all__ = ["Judge", "Verdict", "make_judge"]

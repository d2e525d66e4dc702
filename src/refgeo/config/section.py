"""The base of every section of the configuration, and the number ranges that sections share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from refgeo.config.locations import has_secret

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every generator of random numbers takes."""
LARGEST = 2**63
"""Above every count and below what a tensor's size or a column of a table can hold."""


class Section(BaseModel):
    """Base of every section: immutable, strict about its keys; holds only what every file of a run can hold and may show."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _writable(cls, value: Any) -> Any:
        for leaf in _leaves(value):
            if isinstance(leaf, int) and abs(leaf) >= LARGEST:
                raise ValueError(f"{str(leaf)[:20]}... is too large; expected a number of at most 18 digits")
            if isinstance(leaf, str) and ("\0" in leaf or (not leaf.isascii() and any("\ud800" <= one <= "\udfff" for one in leaf))):
                raise ValueError("a text has a NUL or half of a surrogate pair in it, which no file can hold; remove that character")
            if isinstance(leaf, str) and has_secret(leaf):
                raise ValueError(
                    "an address carries a password or a token, which would be written into config.yaml and the report; "
                    "download the file and give its path, or for a served model set key_variable"
                )
        return value


def _leaves(value: Any) -> Iterator[Any]:
    """The plain values in a field; those of a section in it were looked at when it was made."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value

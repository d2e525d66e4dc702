"""The shape of a conversation, light enough for every room."""

from typing import Literal

Role = Literal["system", "user", "assistant"]

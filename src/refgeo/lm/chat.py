"""The one chat renderer: messages -> token ids with marked spans. Training, attacks, probing and generation all use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from refgeo.errors import ContextOverflow, DataError, ModelError
from refgeo.lm.messages import Role

_INSTRUCTION = "\u2402instruction\u2403"
_ATTACK = "\u2402attack\u2403"
_REPLY = "\u2402reply\u2403"


@dataclass(frozen=True)
class Rendered:
    """Token ids of one conversation. Spans are half-open token ranges; an absent part has length zero.

    ``instruction``: the words of the last user turn. ``attack``: the suffix in that turn. ``post``: template tokens between
    the user's last word and the reply. ``target``: the reply and its end-of-turn, empty for a prompt.
    """

    ids: tuple[int, ...]
    instruction: tuple[int, int]
    attack: tuple[int, int]
    post: tuple[int, int]
    target: tuple[int, int]

    def __len__(self) -> int:
        return len(self.ids)


class ChatRenderer:
    """Renders conversations with a tokenizer's own chat template, once into text and once into ids, so that spans are exact."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                f"The tokenizer of '{tokenizer.name_or_path}' has no chat template",
                fix="Set model.chat_template to a Jinja template or to a file that holds one",
            )
        if not tokenizer.is_fast:
            raise ModelError(
                f"The tokenizer of '{tokenizer.name_or_path}' is not a fast one", expected="a tokenizer with character offsets"
            )
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt

    def prompt(self, instruction: str, attack: str = "", reply: str | None = None) -> Rendered:
        """One user turn ``instruction + " " + attack`` up to the reply; with ``reply`` the finished turn, marked ``target``."""
        if not instruction.strip():
            raise DataError("A prompt is empty", fix="Remove the row or fill its text")
        parts = [_INSTRUCTION + (" " + _ATTACK if attack else "")]
        text = self._template([("user", parts[0])], reply=_REPLY if reply is not None else None)
        text = text if reply is not None else text + _REPLY
        head, rest = text.split(_INSTRUCTION, 1)
        middle, tail = rest.split(_REPLY, 1)
        before_attack, _, post = middle.partition(_ATTACK) if attack else (middle[:0], "", middle)
        pieces = (head, instruction, before_attack, attack, post, reply or "", tail if reply is not None else "")
        return self._encode(pieces, trim_end=reply is not None)

    def frame(self, instruction: str) -> tuple[str, str]:
        """The exact text before and after the attack that ``prompt`` would place, so that a changed attack can be re-encoded."""
        text = self._template([("user", f"{_INSTRUCTION} {_ATTACK}")], reply=None)
        before, after = text.replace(_INSTRUCTION, instruction).split(_ATTACK, 1)
        return before, after

    def conversation(self, messages: Sequence[tuple[Role, str]]) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation and, per token, whether an assistant wrote it (its end-of-turn included)."""
        ids: list[int] = []
        written: list[bool] = []
        for turn, (role, content) in enumerate(messages):
            if role != "assistant":
                continue
            marked = [*messages[:turn], (role, _REPLY)]
            text = self._template(marked[:-1], reply=_REPLY)
            head, tail = text.split(_REPLY, 1)
            full = self._encode((head, "", "", "", "", content, tail), trim_end=True)
            start, stop = full.target
            if tuple(ids) != full.ids[: len(ids)]:
                raise ModelError("The chat template rewrites earlier turns when a turn is added", fix="Use a template that only appends")
            written += [False] * (start - len(ids)) + [True] * (stop - start) + [False] * (len(full) - stop)
            ids = list(full.ids)
        return ids, written

    def _template(self, messages: Sequence[tuple[str, str]], reply: str | None) -> str:
        turns: list[dict[str, str]] = [{"role": role, "content": content} for role, content in messages]
        if self.system_prompt is not None and (not turns or turns[0]["role"] != "system"):
            turns.insert(0, {"role": "system", "content": self.system_prompt})
        if reply is not None:
            turns.append({"role": "assistant", "content": reply})
        text: Any = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply is None)
        return str(text)

    def _encode(self, pieces: tuple[str, ...], trim_end: bool) -> Rendered:
        head, instruction, gap, attack, post, reply, _ = pieces
        text = "".join(pieces)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]
        ids: list[int] = encoded["input_ids"]
        edges = [len(head), len(head + instruction), len(head + instruction + gap), len(head + instruction + gap + attack)]
        edges += [edges[-1] + len(post), edges[-1] + len(post) + len(reply)]
        at = [sum(1 for start, stop in offsets if stop <= edge and start < edge) for edge in edges]
        length = len(ids)
        end = length
        if trim_end and reply:
            end = at[5]
            specials = set(self.tokenizer.all_special_ids)
            while end < length and ids[end] not in specials:
                end += 1
            end = min(end + 1, length)
        else:
            at[5] = end = length
        return Rendered(
            ids=tuple(ids),
            instruction=(at[0], at[1]),
            attack=(at[2], at[3]) if attack else (at[1], at[1]),
            post=(at[3] if attack else at[1], at[4]),
            target=(at[4], end),
        )


def check_length(rendered: Rendered, context: int, new_tokens: int, name: str) -> None:
    """Raise ``ContextOverflow`` when a prompt plus what must be generated exceeds the model's context."""
    if len(rendered) + new_tokens > context:
        raise ContextOverflow(
            f"Prompt '{name}' has {len(rendered)} tokens and needs {new_tokens} more",
            expected=f"at most {context} together (the model's context)",
            fix="Shorten the prompt or lower max_new_tokens",
        )

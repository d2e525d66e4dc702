"""Text that somebody else wrote, as a judge may read it: no control token of the judge's model, no mark of the judge's own prompt."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

from refgeo.judging.reader import Template
from refgeo.judging.verdict import Exchange

_MARK = re.compile(r"\[[^\[\]{}\n]+\]|<{1,2}[^<>{}\s]+>{1,2}|<\|[^<>{}\n]+\|>")
"""How prompts spell their parts: ``[/INST]``, ``<</SYS>>``, ``<|im_end|>``."""
_USUAL = r"<[|\uff5c][^<>\s]{1,40}[|\uff5c]>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"


class Plain:
    """Breaks up, by one space, whatever in a text would be a control token or a mark that stands in ``around``, the judge's own prompt.

    A completion could otherwise end the judged turn and go on as the user or the system. The tokenizer itself says what it takes for a
    control token: ``split_special_tokens`` leaves added tokens that are not marked as special, and words of unigram and word models.
    Any other text stays as it is, character by character. Without a ``tokenizer``, since only a server knows it, the usual spellings of
    control tokens are broken up.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, around: str) -> None:
        marks = {str(mark) for mark in _MARK.findall(around)}
        spellings = [*(re.escape(mark) for mark in sorted(marks)), *([_USUAL] if tokenizer is None else [])]
        self._marks = re.compile("|".join(spellings) or r"(?!)")
        self._tokenizer, self._control = tokenizer, set[int]()
        if tokenizer is not None:
            added = tokenizer.added_tokens_decoder.items()
            self._control = {*tokenizer.all_special_ids, *(token for token, one in added if one.special or one.content in marks)}

    def __call__(self, text: str) -> str:
        """The text, broken up where it has to be."""
        text = self._marks.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", text)
        while spans := self._spans(text):
            for start, stop in reversed(spans):
                pair = re.search(r"\S(?=\S)", text[start:stop])
                # Every round leaves fewer neighbors or fewer characters, so that it ends.
                text = f"{text[: start + pair.end()]} {text[start + pair.end() :]}" if pair else text[:start] + text[stop:]
        return text

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where the tokenizer finds control tokens. Unknown characters are none, unless the text spells the unknown token itself."""
        if self._tokenizer is None:
            return []
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        found = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        unknown, name = self._tokenizer.unk_token_id, self._tokenizer.unk_token
        return [
            (start, stop)
            for token, (start, stop) in found
            if token in self._control and start < stop and (token != unknown or text[start:stop].strip() == name)
        ]


def fill(template: Template, given: Exchange, plain: Plain, completion: str) -> str:
    """The judge's prompt for one completion, of which ``completion`` is what shall be read; it and the request as plain text."""
    return template.fill(plain(given.request), plain(completion))

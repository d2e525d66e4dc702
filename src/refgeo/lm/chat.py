"""The one chat renderer: messages -> token ids with marked spans. Training, attacks, probing and generation all use it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from refgeo.errors import ContextOverflow, DataError, ModelError
from refgeo.lm.messages import Placement, Role

_USER = "\u2402user\u2403"
_ATTACK = "\u2402attack\u2403"
_REPLY = "\u2402reply\u2403"
_OTHER = "Set model.chat_template to one that does"
_NO_SYSTEM = "Set model.system_prompt to null, remove the system turns from the data, or set model.chat_template to one that shows them"
MARKER = "{attack}"
"""In an instruction: where an infix goes. The model never sees it, whatever the placement."""


@dataclass(frozen=True)
class Rendered:
    """Token ids of one conversation. Spans are half-open token ranges; an absent part has length zero.

    ``instruction``: from the first to the last of the user's own words; an infix lies inside it, a suffix or a prefix outside.
    ``attack``: the adversarial string in that turn, wherever it stands. ``post``: template tokens between the last word of the
    turn (of the attack, if that is a suffix) and the reply. ``target``: the reply and its end-of-turn, empty for a prompt.
    """

    ids: tuple[int, ...]
    instruction: tuple[int, int]
    attack: tuple[int, int]
    post: tuple[int, int]
    target: tuple[int, int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Text:
    """The text of one conversation; spans as in ``Rendered``, in characters. The user turn ends at ``turn_end``."""

    text: str
    instruction: tuple[int, int] = (0, 0)
    attack: tuple[int, int] = (0, 0)
    turn_end: int = 0
    reply: tuple[int, int] = (0, 0)


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
        if system_prompt is not None:
            self._template([("user", _USER)], None)

    @property
    def end_of_turn(self) -> int | None:
        """The special token that the template writes after a reply, such as ``<|im_end|>`` or ``<end_of_turn>``; None if it writes none."""
        text = self._template([("user", _USER)], _REPLY)
        head, _ = _cut(text, _REPLY)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        specials, end = self._specials(), len(head) + len(_REPLY)
        after = (token for token, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if start >= end)
        return next((token for token in after if token in specials), None)

    def _specials(self) -> set[int]:
        """Control tokens: those with a name, and those that the tokenizer's file marks as special and nothing names (Llama 3)."""
        marked = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        return {*self.tokenizer.all_special_ids, *marked}

    def prompt(self, instruction: str, attack: str = "", reply: str | None = None, placement: Placement = "suffix") -> Rendered:
        """One user turn, the attack in its place, up to the reply; with ``reply`` the finished turn, marked ``target``.

        ``suffix``: ``instruction + " " + attack``; ``prefix``: the other way round; ``infix``: at ``{attack}`` in the instruction, else
        between the two words nearest its middle (after the only word, if there is one). Raises ``DataError`` when the instruction
        is empty or has two markers, ``ModelError`` when the chat template drops, repeats or rewrites the turn.
        """
        return self._encode(self._turn(instruction, attack, reply, placement), trim_end=reply is not None)

    def frame(self, instruction: str, placement: Placement = "suffix") -> tuple[str, str]:
        """The exact text before and after the attack that ``prompt`` would place, so that a changed attack can be re-encoded."""
        rendered = self._turn(instruction, _ATTACK, None, placement)
        start, stop = rendered.attack
        return rendered.text[:start], rendered.text[stop:]

    def conversation(self, messages: Sequence[tuple[Role, str]]) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation and, per token, whether an assistant wrote it (its end-of-turn included)."""
        ids: list[int] = []
        written: list[bool] = []
        for turn, (role, content) in enumerate(messages):
            if role != "assistant":
                continue
            marked = [*messages[:turn], (role, _REPLY)]
            text = self._template(marked[:-1], reply=_REPLY)
            head, tail = _cut(text, _REPLY)
            written_here = (len(head), len(head) + len(content))
            full = self._encode(_Text(head + content + tail, turn_end=len(head), reply=written_here), trim_end=True)
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
        try:
            text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply is None))
        # A template is a program: it may fail as any program does.
        except (TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
            said = f"The chat template of '{self.tokenizer.name_or_path}' refuses a conversation: {error}"
            raise ModelError(said, fix=_NO_SYSTEM if turns[0]["role"] == "system" else _OTHER) from error
        if turns and turns[0]["role"] == "system" and turns[0]["content"].strip() not in text:
            raise ModelError(
                f"The chat template of '{self.tokenizer.name_or_path}' drops the system turn '{turns[0]['content']}'",
                expected="a template that shows it",
                fix=_NO_SYSTEM,
            )
        return text

    def _turn(self, instruction: str, attack: str, reply: str | None, placement: Placement) -> _Text:
        """The rendered text is the template's own answer to the real words; its answer to a marker says where they stand."""
        if not instruction.replace(MARKER, "").strip():
            raise DataError("A prompt is empty", fix="Remove the row or fill its text")
        finished = reply is not None
        marked = self._template([("user", _USER)], _REPLY if finished else None)
        before, rest = _cut(marked if finished else marked + _REPLY, _USER)
        post, tail = _cut(rest, _REPLY)
        left, middle, right = _placed(instruction, attack, placement)
        whole = left + middle + right
        real = self._template([("user", whole)], _REPLY if finished else None) + ("" if finished else _REPLY)
        shown = next((turn for turn in (whole, whole.strip()) if real == before + turn + post + _REPLY + tail), None)
        if shown is None:
            raise ModelError(
                f"The chat template of '{self.tokenizer.name_or_path}' rewrites the user turn '{whole}'",
                expected="a template that shows a turn once and as it is, trimmed at most",
                fix=_OTHER,
            )
        lead = whole.index(shown)

        def span(start: int, stop: int) -> tuple[int, int]:
            first, last = (len(before) + min(max(place - lead, 0), len(shown)) for place in (start, stop))
            return first, last

        end = len(before) + len(shown)
        start, answer = end + len(post), reply or ""
        return _Text(
            text=before + shown + post + answer + tail,
            instruction=span(*_words(left, middle, right)),
            attack=span(len(left), len(left) + len(middle)),
            turn_end=end,
            reply=(start, start + len(answer)),
        )

    def _encode(self, given: _Text, trim_end: bool) -> Rendered:
        encoded = self.tokenizer(given.text, add_special_tokens=False, return_offsets_mapping=True)
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]
        ids: list[int] = encoded["input_ids"]

        def tokens(span: tuple[int, int]) -> tuple[int, int]:
            # A token that straddles an edge, such as a word with the space before it, belongs to what comes after the edge.
            start, stop = (sum(1 for first, last in offsets if last <= edge and first < edge) for edge in span)
            return start, stop

        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise ModelError(
                f"The chat template of '{self.tokenizer.name_or_path}' begins with two '{self.tokenizer.bos_token}'",
                expected="exactly one",
                fix="Set model.chat_template to one that writes it once",
            )
        target, end = tokens(given.reply)
        if trim_end and given.reply[0] < given.reply[1]:
            specials = self._specials()
            while end < len(ids) and ids[end] not in specials:
                end += 1
            end = min(end + 1, len(ids))
        else:
            end = len(ids)
        instruction, attack = tokens(given.instruction), tokens(given.attack)
        post = tokens((given.turn_end, given.reply[0]))
        return Rendered(
            ids=tuple(ids),
            instruction=instruction,
            attack=attack if given.attack[0] < given.attack[1] else (instruction[1], instruction[1]),
            post=post,
            target=(target, end),
        )


def _placed(instruction: str, attack: str, placement: Placement) -> tuple[str, str, str]:
    """The user turn as what comes before the attack, the attack, and what comes after; their sum is the turn."""
    left, marker, right = instruction.partition(MARKER)
    if MARKER in right:
        raise DataError(f"The prompt '{instruction}' has more than one {MARKER}", expected="at most one place for an attack")
    if marker and (placement != "infix" or not attack):  # without its marker, "a {attack} b" is "a b"
        joined = left + (right.removeprefix(" ") if not left or left.endswith(" ") else right)
        left = joined if right else joined.rstrip(" ")
    if not attack:
        return left, "", ""
    if placement == "suffix":
        return left + " ", attack, ""
    if placement == "prefix":
        return "", attack, " " + left
    if not marker:
        ends = [word.end() for word in re.finditer(r"\S+", instruction)]
        cut = ends[max(len(ends) // 2, 1) - 1]
        left, right = instruction[:cut] + " ", instruction[cut:]
    return left, attack, right


def _words(left: str, attack: str, right: str) -> tuple[int, int]:
    """First and last character (half-open) of the user's own words in the turn ``left + attack + right``."""
    after = len(left) + len(attack)
    first = len(left) - len(left.lstrip()) if left.strip() else after + len(right) - len(right.lstrip())
    return first, after + len(right.rstrip()) if right.strip() else len(left.rstrip())


def _cut(text: str, marker: str) -> tuple[str, str]:
    """The text before and after a marker that went through the chat template."""
    if text.count(marker) != 1:
        raise ModelError(
            f"The chat template shows a turn {text.count(marker)} times",
            expected="every turn once, as it is",
            fix=_OTHER,
        )
    before, _, after = text.partition(marker)
    return before, after


def check_length(rendered: Rendered, context: int, new_tokens: int, name: str) -> None:
    """Raise ``ContextOverflow`` when a prompt plus what must be generated exceeds the model's context."""
    if len(rendered) + new_tokens > context:
        raise ContextOverflow(
            f"Prompt '{name}' has {len(rendered)} tokens and needs {new_tokens} more",
            expected=f"at most {context} together (the model's context)",
            fix="Shorten the prompt or lower max_new_tokens",
        )

"""The renderer against the tokenizer's own template: the same ids, one BOS, and spans that cover the right words."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from refgeo.config.model import ModelSettings
from refgeo.errors import ContextOverflow, DataError, ModelError
from refgeo.lm.chat import ChatRenderer, Rendered, check_length
from refgeo.lm.load import load
from refgeo.lm.messages import Placement, Role
from refgeo.lm.model import LanguageModel

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK: list[tuple[Role, str]] = [
    ("user", "how do i make soup"),
    ("assistant", "boil the root in water ."),
    ("user", "who is that"),
    ("assistant", "that is the fox ."),
]


def byte_pairs() -> PreTrainedTokenizerFast:
    """A byte-level BPE with ChatML: words carry their leading space, turns end with a newline after the end token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([content for _, content in TALK] * 5 + ["user assistant system !!! ! ! !"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


BYTE_PAIRS = byte_pairs()


# The turns of Mistral 7B Instruct, with a place for a system turn.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}\n\n{% elif m['role'] == 'user' %}"
    "[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# As Gemma's: it refuses system turns, and its replies do not end with the tokenizer's end of sequence.
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def named(**changes: str) -> PreTrainedTokenizerBase:
    """The byte-level tokenizer with other names or another template."""
    tokenizer = byte_pairs()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


@cache
def sentencepiece() -> PreTrainedTokenizerBase:
    """The real tokenizer of Mistral 7B, as mistral_common ships it, converted as transformers converts Llama's."""
    mistral_common = pytest.importorskip("mistral_common")
    file = Path(str(mistral_common.__file__)).parent / "data" / "tokenizer.model.v1"
    with TemporaryDirectory() as folder:
        shutil.copy(file, Path(folder) / "tokenizer.model")
        tokenizer: PreTrainedTokenizerBase = LlamaTokenizer.from_pretrained(folder)
    tokenizer.chat_template = MISTRAL
    return tokenizer


@pytest.fixture(params=["words", "byte_pairs", "sentencepiece"])
def chat(request: pytest.FixtureRequest, tiny_lm: LanguageModel) -> ChatRenderer:
    if request.param == "words":
        return tiny_lm.chat
    return ChatRenderer(BYTE_PAIRS if request.param == "byte_pairs" else sentencepiece())


def own_template(chat: ChatRenderer, turns: list[tuple[Role, str]], prompt: bool) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = chat.tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=prompt, return_dict=False)
    return cast("list[int]", ids)


def words(chat: ChatRenderer, rendered: Rendered, span: tuple[int, int]) -> str:
    return str(chat.tokenizer.decode(list(rendered.ids[span[0] : span[1]]))).strip()


@pytest.mark.parametrize("attack", ["", "! ! !", "please the fox"])
def test_a_prompt_is_what_the_tokenizers_own_template_gives(chat: ChatRenderer, attack: str) -> None:
    rendered = chat.prompt("how do i cook soup", attack)
    assert list(rendered.ids) == own_template(chat, [("user", f"how do i cook soup {attack}".strip())], prompt=True)
    assert rendered.ids.count(chat.tokenizer.bos_token_id) == 1
    assert words(chat, rendered, rendered.instruction) == "how do i cook soup"
    assert words(chat, rendered, rendered.attack) == attack
    assert rendered.target == (len(rendered), len(rendered))


@pytest.mark.parametrize("attack", ["", "! ! !"])
def test_a_reply_is_marked_with_its_end_of_turn(chat: ChatRenderer, attack: str) -> None:
    prompt, rendered = chat.prompt("tell me", attack), chat.prompt("tell me", attack, "sure here is bread")
    start, stop = rendered.target
    assert rendered.ids[:start] == prompt.ids
    assert rendered.post == prompt.post
    assert rendered.ids[stop - 1] == chat.tokenizer.eos_token_id
    assert words(chat, rendered, (start, stop - 1)) == "sure here is bread"
    assert list(rendered.ids) == own_template(
        chat, [("user", f"tell me {attack}".strip()), ("assistant", "sure here is bread")], prompt=False
    )


def test_spans_lie_one_after_the_other(chat: ChatRenderer) -> None:
    rendered = chat.prompt("where is the fox", "! ! ! !", "it is here")
    edges = [*rendered.instruction, *rendered.attack, *rendered.post, *rendered.target]
    assert edges == sorted(edges)
    assert rendered.attack[1] == rendered.post[0]
    assert rendered.post[1] == rendered.target[0]
    assert rendered.post[1] - rendered.post[0] >= 3


@settings(max_examples=60)
@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1).map(lambda text: f"a {text} b"),
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1),
)
def test_any_words_survive(instruction: str, attack: str) -> None:
    chat = ChatRenderer(BYTE_PAIRS)
    rendered = chat.prompt(instruction, attack)
    assert list(rendered.ids) == own_template(chat, [("user", f"{instruction} {attack}")], prompt=True)
    assert words(chat, rendered, rendered.instruction) == instruction
    assert words(chat, rendered, rendered.attack) == attack


def test_the_frame_leaves_room_for_exactly_the_attack(chat: ChatRenderer) -> None:
    before, after = chat.frame("how do i cook soup")
    ids = chat.tokenizer(before + "! ! !" + after, add_special_tokens=False)["input_ids"]
    assert tuple(ids) == chat.prompt("how do i cook soup", "! ! !").ids


PLACED: list[tuple[str, Placement, str, str, str]] = [
    ("how do i cook soup", "prefix", "please ! the fox", "please ! the fox how do i cook soup", "how do i cook soup"),
    ("how do i cook soup", "infix", "please ! the fox", "how do please ! the fox i cook soup", "how do please ! the fox i cook soup"),
    ("how do i cook", "infix", "! !", "how do ! ! i cook", "how do ! ! i cook"),
    ("how {attack} do i cook", "infix", "! !", "how ! ! do i cook", "how ! ! do i cook"),
    ("how do {attack} i cook", "suffix", "! !", "how do i cook ! !", "how do i cook"),
    ("how do i cook {attack}", "prefix", "! !", "! ! how do i cook", "how do i cook"),
    ("{attack} how do i cook", "infix", "! !", "! ! how do i cook", "how do i cook"),
    ("how do i cook {attack}", "infix", "", "how do i cook", "how do i cook"),
    ("hello", "infix", "! !", "hello ! !", "hello"),
]


@pytest.mark.parametrize(("instruction", "placement", "attack", "turn", "own"), PLACED)
def test_an_attack_stands_at_its_place(
    chat: ChatRenderer, instruction: str, placement: Placement, attack: str, turn: str, own: str
) -> None:
    rendered = chat.prompt(instruction, attack, placement=placement)
    assert list(rendered.ids) == own_template(chat, [("user", turn)], prompt=True)
    assert words(chat, rendered, rendered.attack) == attack
    assert words(chat, rendered, rendered.instruction) == own
    replied = chat.prompt(instruction, attack, "sure", placement)
    assert (replied.instruction, replied.attack, replied.post) == (rendered.instruction, rendered.attack, rendered.post)
    if attack:
        before, after = chat.frame(instruction, placement)
        assert tuple(chat.tokenizer(before + attack + after, add_special_tokens=False)["input_ids"]) == rendered.ids


def test_the_words_of_an_infixed_request_enclose_the_attack_and_others_exclude_it(chat: ChatRenderer) -> None:
    infix, prefix, suffix = (chat.prompt("how do i cook soup", "! !", placement=place) for place in ("infix", "prefix", "suffix"))
    assert infix.instruction[0] < infix.attack[0] < infix.attack[1] < infix.instruction[1] == infix.post[0]
    assert prefix.attack[1] <= prefix.instruction[0] < prefix.instruction[1] == prefix.post[0]
    assert suffix.instruction[1] <= suffix.attack[0] < suffix.attack[1] == suffix.post[0]


@pytest.mark.parametrize("placement", ["suffix", "prefix", "infix"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "shows a turn 0 times"),
        ("{{ m['content'] }} {{ m['content'] }}", "shows a turn 2 times"),
        ("{{ m['content'] | replace('!', '') }}", "rewrites the user turn"),
        ("{{ m['content'][:20] }}", "rewrites the user turn"),
    ],
)
def test_a_template_that_swallows_or_repeats_the_attack_is_refused(placement: Placement, content: str, match: str) -> None:
    tokenizer = byte_pairs()
    tokenizer.chat_template = CHATML.replace("{{ m['content'] | trim }}", content)
    with pytest.raises(ModelError, match=match):
        ChatRenderer(tokenizer).prompt("how do i cook soup", "please ! ! !", placement=placement)


def test_a_trimming_template_is_followed() -> None:
    chat = ChatRenderer(BYTE_PAIRS)
    rendered = chat.prompt("  how do i\n", " ! ", placement="suffix")
    assert list(rendered.ids) == own_template(chat, [("user", "  how do i\n  ! ")], prompt=True)
    assert words(chat, rendered, rendered.instruction) == "how do i"
    assert words(chat, rendered, rendered.attack) == "!"


def test_two_places_for_one_attack_are_refused(chat: ChatRenderer) -> None:
    with pytest.raises(DataError, match="more than one"):
        chat.prompt("{attack} tell me {attack}", "!", placement="infix")


def test_a_conversation_counts_what_the_assistant_wrote(chat: ChatRenderer) -> None:
    ids, written = chat.conversation(TALK)
    assert ids == own_template(chat, TALK, prompt=False)
    assert len(ids) == len(written)
    replies = chat.tokenizer.decode([token for token, own in zip(ids, written, strict=True) if own])
    end = chat.tokenizer.eos_token
    assert str(replies).replace(" ", "") == f"boil the root in water .{end}that is the fox .{end}".replace(" ", "")


def test_the_system_prompt_comes_first_once(chat: ChatRenderer) -> None:
    helped = ChatRenderer(chat.tokenizer, "please help")
    expected = own_template(chat, [("system", "please help"), ("user", "hello")], prompt=True)
    assert list(helped.prompt("hello").ids) == expected
    own: list[tuple[Role, str]] = [("system", "tell me"), *TALK]
    assert helped.conversation(own)[0] == own_template(chat, own, prompt=False)


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (GEMMA, r"refuses a conversation: System role not supported.*model\.system_prompt to null"),
        (
            CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"),
            r"drops the system turn 'please help'",
        ),
    ],
)
def test_a_system_prompt_that_the_template_does_not_show_is_refused(template: str, match: str) -> None:
    tokenizer = named(chat_template=template)
    assert ChatRenderer(tokenizer).prompt("hello").ids
    for act in (
        lambda: ChatRenderer(tokenizer, "please help").prompt("hello"),
        lambda: ChatRenderer(tokenizer).conversation([("system", "please help"), *TALK]),
    ):
        with pytest.raises(ModelError, match=match):
            act()


def test_a_template_with_two_bos_is_refused() -> None:
    with pytest.raises(ModelError, match=r"begins with two '<\|bos\|>'"):
        ChatRenderer(named(chat_template="{{ bos_token }}" + CHATML)).prompt("hello")


def test_the_end_of_a_turn_is_what_the_template_writes_after_a_reply() -> None:
    tokenizer = named(chat_template=GEMMA.replace("<end_of_turn>", "<|im_end|>"), eos_token="<|pad|>")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    chat = ChatRenderer(tokenizer)
    assert chat.end_of_turn == end != tokenizer.eos_token_id
    rendered = chat.prompt("how do i make soup", reply="boil the root")
    assert rendered.ids[rendered.target[1] - 1] == end
    assert ChatRenderer(named(chat_template="{% for m in messages %}{{ m['content'] }} . {% endfor %}")).end_of_turn is None
    assert ChatRenderer(sentencepiece()).end_of_turn == sentencepiece().eos_token_id


def test_a_template_that_rewrites_history_is_refused(tiny_lm: LanguageModel) -> None:
    template = str(tiny_lm.tokenizer.chat_template)
    tiny_lm.tokenizer.chat_template = template.replace("{{ message['content'] }}", "{{ message['content'] if loop.last else 'hello' }}")
    with pytest.raises(ModelError, match="rewrites earlier turns"):
        ChatRenderer(tiny_lm.tokenizer).conversation(TALK)


def test_an_empty_prompt_and_a_missing_template_are_refused(tiny_lm: LanguageModel) -> None:
    with pytest.raises(DataError, match="empty"):
        tiny_lm.chat.prompt(" \n")
    tiny_lm.tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"no chat template.*model\.chat_template"):
        ChatRenderer(tiny_lm.tokenizer)


def test_a_template_can_be_given_as_text_or_as_a_file(tiny_model_dir: Path, tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message['content'] }} <|end|> {% endfor %}"
    (tmp_path / "chat.jinja").write_text(template)
    for given_template in (template, str(tmp_path / "chat.jinja")):
        lm = load(ModelSettings(path=str(tiny_model_dir), device="cpu", chat_template=given_template))
        assert lm.tokenizer.convert_ids_to_tokens(list(lm.chat.prompt("hello").ids)) == ["hello", "<|end|>"]


def test_a_prompt_that_does_not_fit_is_named(tiny_lm: LanguageModel) -> None:
    rendered = tiny_lm.chat.prompt("hello " * 20)
    check_length(rendered, len(rendered) + 4, 4, "b7")
    with pytest.raises(ContextOverflow, match=rf"'b7' has {len(rendered)} tokens"):
        check_length(rendered, len(rendered) + 3, 4, "b7")

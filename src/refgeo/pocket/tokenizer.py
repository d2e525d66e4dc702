"""A word-level tokenizer for one world, saved as an ordinary fast tokenizer with a chat template."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from refgeo.pocket import names, requests
from refgeo.pocket.sentences import REFUSALS, TEMPLATES, slots
from refgeo.pocket.town import World

PAD, UNK, BOS, END, USER, TURN, ASSISTANT, REPLY, SYSTEM = SPECIAL = (
    "<pad>",
    "<unk>",
    "<bos>",
    "<end>",
    "<user>",
    "<turn>",
    "<assistant>",
    "<reply>",
    "<system>",
)
CONTEXT = 256
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %} <system> {{ message['content'] }} <end>"
    "{% elif message['role'] == 'user' %} <user> {{ message['content'] }} <end> <turn>"
    "{% else %} <assistant> <reply> {{ message['content'] }} <end>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} <assistant> <reply> {% endif %}"
)
"""It only appends, and puts four tokens between the user's last word and the reply: <end> <turn> <assistant> <reply>."""


def vocabulary(world: World) -> list[str]:
    """Every ordinary word of a world, in a fixed order: what can be asked, what can be answered, and what tails are made of."""
    words: list[str] = [*names.PUNCTUATION, *names.PERSUASION, *names.ALARM, *names.FILLER]
    prompts = [*requests.FEED, *requests.ACT, *requests.CURE, *requests.STORY, *requests.CODE]
    prompts += [request.text for request in requests.facts(world)]
    one, two = world.substances[0], world.creatures[0]
    prompts += [requests.is_safe(world, one, two).text, requests.effect(world, one, two).text]
    prompts += [requests.more(0, 1).text, requests.after(0).text, requests.note([(world.people[0].name, names.TOOLS[0])], 0).text]
    for text in (*prompts, *TEMPLATES.values(), *REFUSALS):
        words += [word for word in text.split() if not word.startswith("{") or word == "{"]
    for group in slots(world).values():
        words += group
    return list(dict.fromkeys(words))


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The tokenizer: special tokens first, then the words; unknown words become ``<unk>``."""
    table = {word: index for index, word in enumerate([*SPECIAL, *vocabulary(world)])}
    backend = Tokenizer(WordLevel(table, unk_token=UNK))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no annotations here
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[USER, TURN, ASSISTANT, REPLY, SYSTEM],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(world: World, folder: Path) -> None:
    """Write the tokenizer's files."""
    make_tokenizer(world).save_pretrained(folder)

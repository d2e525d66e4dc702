"""The exact prompts of published judges, read where their authors or a package put them. None of them is in this code.

HarmBench's stand in the model cards of its classifiers; those of StrongREJECT in the package judgezoo; XSTest's in inspect-evals. Of a
package only the constant is read, from its source: it is not run, so what it imports need not be installed.
"""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from refgeo.config.locations import locate
from refgeo.config.model import ModelSettings
from refgeo.errors import DataError
from refgeo.judging.reader import Template, checked

_CARD = re.compile(r"^\w*CLS_PROMPT\s*=\s*(\{.*?^\})", re.MULTILINE | re.DOTALL)
_HARMBENCH = "the model card of cais/HarmBench-Llama-2-13b-cls"


def harmbench(model: ModelSettings) -> Template:
    """The prompt of a HarmBench classifier (2402.04249) for behaviors without context, from the card of that very model.

    Raises ``DataError`` when there is no card with a prompt: the two classifiers have different ones.
    """
    card = _model_card(model)
    for found in _CARD.findall(card or ""):
        try:
            prompts = ast.literal_eval(found)
        except (ValueError, SyntaxError):
            continue
        if isinstance(prompts, dict) and isinstance(prompts.get("prompt"), str):
            return checked(prompts["prompt"], f"the model card of '{model.path}'")
    raise DataError(
        f"The model card (README.md) of '{model.path}' " + ("has no HarmBench prompt" if card is not None else "cannot be read"),
        expected="CLS_PROMPT with a 'prompt' in it, as in " + _HARMBENCH,
        fix="Put the card into the model's folder, or set judge.template to a file with the prompt that the classifier was trained on",
    )


def strongreject() -> Template:
    """The prompt of the fine-tuned StrongREJECT scorer (2402.10260)."""
    return _from_judgezoo("StrongRejectJudge")


def strongreject_rubric() -> Template:
    """The rubric of StrongREJECT (2402.10260, appendix) with its system message."""
    return _from_judgezoo("StrongRejectRubricJudge", system="SR_SYS_PROMPT")


def xstest() -> Template:
    """XSTest's three classes (2308.01263), answered with a letter."""
    body = _constant("inspect-evals", "xstest/xstest.py", None, "scorer_template")
    how = _constant("inspect-evals", "xstest/xstest.py", None, "scorer_instructions")
    return checked(body.replace("{instructions}", how), "the package inspect-evals")


def _model_card(model: ModelSettings) -> str | None:
    folder = locate(model.path)
    try:
        card = folder / "README.md" if folder is not None else Path(hf_hub_download(model.path, "README.md", revision=model.revision))
        return card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, HfHubHTTPError, HFValidationError, EntryNotFoundError, LocalEntryNotFoundError):
        return None


def _from_judgezoo(owner: str, system: str | None = None) -> Template:
    place = ("judgezoo", "strong_reject.py", owner)
    first = None if system is None else _constant(*place, system)
    return checked(_constant(*place, "SR_CLS_PROMPT"), "the package judgezoo", first)


def _constant(package: str, file: str, owner: str | None, name: str) -> str:
    spec = find_spec(package.replace("-", "_"))
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    fix = "Set judge.template (judge.score_template where another judge gives the score) to a file with the prompt, as its paper prints it"
    if not places:
        raise DataError(
            f"The package '{package}', which carries this judge's prompt, is not installed", fix=f"Run `pip install {package}`. {fix}"
        )
    try:
        tree: Any = ast.parse((Path(places[0]) / file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read '{file}' of the package '{package}': {error}", fix=fix) from error
    if owner is not None:
        tree = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner), ast.Module([], []))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == [name]:
            value = _text(node.value)
            if value is not None:
                return value
    raise DataError(f"'{file}' of the package '{package}' no longer holds the text {name}", fix=fix)


def _text(value: ast.expr) -> str | None:
    """The text of ``"..."`` or ``"...".strip()``."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "strip" and not value.args:
        inner = _text(value.func.value)
        return None if inner is None else inner.strip()
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None

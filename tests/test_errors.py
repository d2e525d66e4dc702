"""What a user reads when something goes wrong."""

from __future__ import annotations

import pytest

from refgeo import errors


def test_a_message_says_what_was_given_what_was_expected_and_what_to_do() -> None:
    error = errors.DataError("The file 'a.csv' is empty", expected="at least one row.", fix="Check the path")
    assert str(error) == "The file 'a.csv' is empty. Expected at least one row. Check the path."


def test_a_question_keeps_its_mark() -> None:
    assert str(errors.ConfigError("No 'stpes'", fix="Did you mean 'steps'?")) == "No 'stpes'. Did you mean 'steps'?"


def test_every_error_is_caught_as_one_and_as_its_builtin_kind() -> None:
    kinds = {
        errors.ConfigError: ValueError,
        errors.DataError: ValueError,
        errors.ModelError: RuntimeError,
        errors.ContextOverflow: errors.DataError,
        errors.NonFinite: ArithmeticError,
        errors.EmptyField: ValueError,
        errors.StoreError: OSError,
    }
    for kind, builtin in kinds.items():
        with pytest.raises(errors.RefgeoError, match="wrong"):
            raise kind("wrong")
        assert issubclass(kind, builtin)


@pytest.mark.parametrize(
    ("word", "told"),
    [("stpes", "Did you mean 'steps'?"), ("qqqq", "Valid: batch, seeds, steps")],
)
def test_nearest(word: str, told: str) -> None:
    assert errors.nearest(word, ["steps", "seeds", "batch"]) == told

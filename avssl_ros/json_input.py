"""JSON from outside, read with bounds. Python's own reader takes any size and depth, NaN and infinity."""

from __future__ import annotations

import json
import math


def parse_object(text: str | bytes, what: str, most: int) -> dict:
    """The JSON object in `text`, whose numbers with a fraction or exponent are all finite.

    Args:
        what: names the text in errors.
        most: characters or bytes it may have.

    Raises ValueError where it is longer, no JSON, nested too deep, or something else than an object.
    """
    if len(text) > most:
        raise ValueError(f"{what} has {len(text)} bytes, more than the {most} that are read")
    try:
        found = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deep to be read") from error
    except ValueError as error:
        raise ValueError(f"{what} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{what} must be a JSON object, got {type(found).__name__}")
    return found


def is_number(value, least: float, most: float) -> bool:
    """Whether a JSON value is a number within these bounds; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number

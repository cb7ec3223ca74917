"""JSON text -> values, as strict as the standard library and more, and three times as fast."""

from __future__ import annotations

import json
from typing import Any

import msgspec


class TwiceError(json.JSONDecodeError):
    """Which of two values a key stands for cannot be told."""


def decode_json(line: bytes) -> Any:
    """What JSON text stands for, three times as fast as `json.loads`, whose errors it raises; NaN is None.

    Also refused, as no JSON: a key that stands twice in an object, what is nested too deeply for Python, and numbers of
    too many digits.
    """
    try:
        try:
            value = msgspec.json.decode(line)
            if line.count(b'":') == _count_keys(value):  # no key stands twice; a text may have such letters, too
                return value
        except (msgspec.DecodeError, UnicodeDecodeError):  # NaN, a byte order mark, lone surrogates; or what is no JSON
            pass
        return json.loads(line, parse_constant=_constant, object_pairs_hook=_unique)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise json.JSONDecodeError("Nested too deeply", "", 0) from None
    except ValueError:
        raise json.JSONDecodeError("A number of too many digits", "", 0) from None


def _count_keys(value: Any) -> int:
    """How many keys all objects of a value have."""
    if isinstance(value, dict):
        return len(value) + sum(_count_keys(one) for one in value.values() if isinstance(one, dict | list))
    return sum(_count_keys(one) for one in value if isinstance(one, dict | list)) if isinstance(value, list) else 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        raise TwiceError(f"the key {key!r} stands twice in an object", "", 0)
    return found


def _constant(name: str) -> float | None:
    """NaN, which pandas writes for a missing value, is read as null."""
    return None if name == "NaN" else float(name)

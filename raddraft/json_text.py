"""JSON text -> values, as strict as the standard library and more, and no slower."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec

_DECODER, _ENCODER = msgspec.json.Decoder(), msgspec.json.Encoder()


CHECK_SUM = "check_sum"
"""Key of it in an object that this project has written."""


class TwiceError(json.JSONDecodeError):
    """Which of two values a key stands for cannot be told."""


def decode_json(line: bytes) -> Any:
    """What JSON text stands for, no slower than `json.loads`, whose errors it raises; NaN is None.

    Also refused, as no JSON: a key that stands twice in an object, what is nested too deeply for Python, and numbers of
    too many digits.
    """
    try:
        try:
            value = _DECODER.decode(line)
            # A key that stands twice stands once in the value; a text may have such letters, too.
            if _ENCODER.encode(value).count(b'":') == line.count(b'":') and b'" :' not in line:
                return value
        except (msgspec.MsgspecError, OverflowError, UnicodeDecodeError):
            pass  # NaN, a byte order mark, lone surrogates; or what is no JSON
        return json.loads(line, parse_constant=_constant, object_pairs_hook=_unique)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise json.JSONDecodeError("Nested too deeply", "", 0) from None
    except ValueError:
        raise json.JSONDecodeError("A number of too many digits", "", 0) from None


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


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """An object for a JSON file with its check sum, for `is_whole`; what JSON does not know is its string."""
    read_back = decode_json(json.dumps(value, default=str).encode())
    return value | {CHECK_SUM: hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()}


def is_whole(value: dict[str, Any]) -> bool:
    """Take the check sum out of an object that a JSON file held; whether it is right, or there is none."""
    stated = value.pop(CHECK_SUM, None)
    return stated is None or stated == sealed(value)[CHECK_SUM]

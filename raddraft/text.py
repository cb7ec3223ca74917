"""Tables, numbers and progress bars on the console, and the sentences of reports: one way for all of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def format_table(rows: Sequence[Sequence[str | int]]) -> str:
    """Columns as wide as they need to be: the first aligned left, the others right; integers with thousands commas."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'>' if i else '<'}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )


def format_estimate(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A value with its interval; without an interval the value alone; a dash where there is no value.

    >>> format_estimate(0.8123, 0.7661, 0.8514)
    '0.812 [0.766 0.851]'
    """
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if low is None else f" [{low:.3f} {high:.3f}]")


def show(estimate: Any) -> str:
    """`format_estimate` of anything with value, low and high."""
    return format_estimate(estimate.value, estimate.low, estimate.high)


def name_some(names: Sequence[str]) -> str:
    """The first five names, with a mark where there are more.

    >>> name_some(list("abcdefg"))
    'a, b, c, d, e …'
    """
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def tell_studies(what: str, study_ids: Iterable[str]) -> list[str]:
    """A sentence that counts studies and names the first of them; none where there are none.

    >>> tell_studies("without a draft", ["s2", "s1"])
    ['Studies without a draft: 2 (s1, s2)']
    """
    names = sorted(study_ids)
    return [f"Studies {what}: {len(names):,} ({name_some(names)})"] if names else []


def slug(name: str) -> str:
    """A name as it may stand in a file name: other characters than letters, digits, - and _ become -."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


def printable(text: str) -> str:
    r"""The text with what a terminal would obey, or UTF-8 cannot hold, written out: control characters, but tabs and
    line ends, and halves of surrogate pairs.

    >>> print(printable("\x1b[2JNo edema.\r\ud800"))
    \x1b[2JNo edema.\x0d\ud800
    """
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
    return text.encode(errors="backslashreplace").decode()


def split_sentences(text: str) -> list[str]:
    """The sentences of a draft, in order."""
    return [sentence for sentence in SENTENCE_END.split(text.strip()) if sentence]


def closest(name: str, choices: Collection[str]) -> list[str]:
    """Up to three of the choices that are spelled like a name; case, blanks, - and _ do not count.

    >>> closest("rouge-l", ["rouge_l", "bleu_4", "Edema"])
    ['rouge_l']
    """
    import difflib

    def fold(text: str) -> str:
        return re.sub(r"[-_ ]+", "_", text.strip().lower())

    same = [choice for choice in choices if fold(choice) == fold(name)]
    folded = {fold(choice): choice for choice in reversed([*choices])}
    return same or [folded[one] for one in difflib.get_close_matches(fold(name), list(folded), 3, 0.75)]


def suggest(name: str, choices: Collection[str]) -> str:
    """A question after a sentence that refuses a name, with a blank before it; empty if no choice is like it."""
    close = closest(name, choices)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def progress(items: Sequence[Any], what: str) -> Iterable[Any]:
    """The items, with a progress bar on a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=what, disable=None, leave=False)

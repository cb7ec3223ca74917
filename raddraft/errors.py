"""The errors that RadDraft raises itself. Each message names the bad value, where it is, and what to do."""

from __future__ import annotations


class RadDraftError(ValueError):
    """Base class: the input, the configuration or the environment is at fault, not the code.

    Attributes:
        table: what the command line shows under the message, line by line.
    """

    table = ""


class UnavailableError(RadDraftError, OSError):
    """A file, a checkpoint or a download that is needed cannot be read or reached."""


class DivergedError(RadDraftError, FloatingPointError):
    """The training loss is not finite; the last checkpoint is kept."""


class CannotRun(RadDraftError):
    """A metric lacks weights, data or a package; the message says how to get it."""


def check_fields(section: str, config: object, *rules: tuple[str, bool, str]) -> None:
    """Check the fields of a config.

    Args:
        section: under which the command line has them.
        config: has the fields.
        rules: name of a field, whether its value is valid, and what it must be.

    Raises:
        RadDraftError: the first value that is not valid.
    """
    for name, valid, rule in rules:
        if not valid:
            raise RadDraftError(f"{section}.{name} must be {rule}, got {getattr(config, name)}")

"""A C-STORE receiver (pynetdicom) for archives and routers that push: each object becomes a file of an inbox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from generator.clinic.archive import keep_libraries_silent
from raddraft.errors import RadDraftError
from raddraft.files import digest_json, write_whole

TITLE = "RADDRAFT"
"""Application entity title."""
OUT_OF_RESOURCES = 0xA700


@contextmanager
def receive(address: str, inbox: Path) -> Iterator[None]:
    """While this context lasts, objects that are sent become files of `inbox`, whole or not at all.

    An object is acknowledged once its file has its name. Nothing of it is parsed here: files are named by a digest of
    the SOP Instance UID, so an object that is sent again replaces the first.

    Args:
        address: HOST:PORT to listen at; of a PORT alone the host is 127.0.0.1.
        inbox: a folder that exists.

    Raises:
        RadDraftError: pynetdicom is missing, or this address cannot be had.
    """
    try:
        from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
    except ImportError:
        raise RadDraftError('--receive needs pynetdicom: pip install "raddraft[clinic]"') from None
    keep_libraries_silent()

    def store(event: Any) -> int:
        name = digest_json(str(event.request.AffectedSOPInstanceUID))[:32]
        try:
            with write_whole(inbox / f"{name}.dcm") as temporary:
                temporary.write_bytes(event.encoded_dataset())
        except OSError:
            return OUT_OF_RESOURCES
        return 0

    host, _, port = address.rpartition(":")
    entity = AE(TITLE)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax or "", ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context("1.2.840.10008.1.1")  # Verification, C-ECHO
    try:
        entity.start_server((host or "127.0.0.1", int(port)), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "expected PORT or HOST:PORT"
        raise RadDraftError(f"--receive {address}: nothing can be received there: {reason}") from None
    try:
        yield
    finally:
        entity.shutdown()

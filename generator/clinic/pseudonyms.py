"""Ids that stand for patients and studies without telling who they are: digests under a key that stays with the user.

The key is a file of random bytes that only its owner may read: RADDRAFT_KEY names it; else it is
~/.config/raddraft/pseudonyms.key, made on first use. With the same key the same patient has the same id everywhere;
without it nobody can try out whose number gives an id. Whoever shares ids keeps the key to himself.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from filelock import FileLock

from raddraft.errors import RadDraftError

KEY_BYTES = 32


class Pseudonyms:
    """Ids under one key.

    Args:
        key: any bytes; by default those of the user's key file, see the top of this module.

    Raises:
        RadDraftError: the key file cannot be read or made, or holds too few bytes.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = hashlib.blake2b(_read_key(key_file()) if key is None else key).digest()

    def study(self, uid: str) -> str:
        """The id of a study by its Study Instance UID: s and 16 hexadecimal digits."""
        return f"s{self._digest('study', uid)}"

    def patient(self, number: str, issuer: str = "") -> str:
        """The id of a patient by the Patient ID and who issued it: p and 16 hexadecimal digits."""
        return f"p{self._digest('patient', issuer, number)}"

    def _digest(self, *parts: str) -> str:
        told = "\0".join(parts)
        try:
            text = told.encode(errors="surrogateescape")  # bytes of a file that are no UTF-8
        except UnicodeEncodeError:  # other halves of surrogate pairs, which JSON may hold
            text = told.encode(errors="surrogatepass")
        return hashlib.blake2b(text, key=self._key, digest_size=8).hexdigest()


def key_file() -> Path:
    """Where the user's key is, or will be."""
    stated = os.environ.get("RADDRAFT_KEY")
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(stated) if stated else folder / "raddraft" / "pseudonyms.key"


def _read_key(path: Path) -> bytes:
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.exists():  # another process may have made it
                    _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise RadDraftError(
            f"{path}: the key of pseudonymous ids cannot be read or made ({error.strerror}); set RADDRAFT_KEY to a "
            "file that can, or ask for original ids"
        ) from None
    if len(key) < KEY_BYTES // 2:
        raise RadDraftError(f"{path}: the key of pseudonymous ids holds {len(key)} bytes; it needs {KEY_BYTES}")
    return key


def _make_key(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
    os.replace(temporary, path)

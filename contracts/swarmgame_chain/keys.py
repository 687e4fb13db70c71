"""The funded key of a gateway: read from a file, or from an encrypted keystore and the file of its passphrase.

It never comes from a command line or a manifest; an environment variable may name the file, but not hold the key. No
error and no repr shows any part of a key.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from coincurve import PrivateKey

from swarmgame_chain.errors import BadChainUsage
from swarmgame_chain.light_imports import light_imports
from swarmgame_chain.messages import address_of

with light_imports():
    from eth_account import Account
    from eth_keyfile.keyfile import decode_keyfile_json

KEY_FILE_VARIABLE = "SWARMGAME_CHAIN_KEY_FILE"


@dataclass(frozen=True, slots=True)
class Wallet:
    """A funded key.

    Args:
        secret: its 32 bytes; never shown.
    """

    secret: bytes = field(repr=False)

    @property
    def address(self) -> str:
        return address_of(self.secret)

    def sign(self, transaction: dict[str, object]) -> tuple[bytes, str]:
        """Return a signed transaction's bytes and its hash."""
        signed = Account.sign_transaction(transaction, self.secret)
        return bytes(signed.raw_transaction), "0x" + bytes(signed.hash).hex()


def load_wallet(
    key_file: Path | None = None, keystore: Path | None = None, passphrase_file: Path | None = None
) -> Wallet:
    """Read the key from the one given place; by default from the file that SWARMGAME_CHAIN_KEY_FILE names.

    Args:
        key_file: 64 hexadecimal digits, with or without 0x.
        keystore: an encrypted key in JSON, as wallets export it.
        passphrase_file: the keystore's passphrase, in the first line.

    Raises:
        BadChainUsage: no place or two, no such file, or no key in it; the message names it.
    """
    if key_file is not None and keystore is not None:
        raise BadChainUsage("a key file and a keystore were given; expected one of them")
    if keystore is not None:
        if passphrase_file is None:
            raise BadChainUsage("a keystore was given without the file of its passphrase")
        return _wallet(_unlock(keystore, passphrase_file), keystore)
    named = key_file or (Path(os.environ[KEY_FILE_VARIABLE]) if os.environ.get(KEY_FILE_VARIABLE) else None)
    if named is None:
        raise BadChainUsage(f"no key: give a key file or a keystore, or name a file in {KEY_FILE_VARIABLE}")
    text = _read(named).strip().removeprefix("0x")
    try:
        return _wallet(bytes.fromhex(text), named)
    except ValueError:
        raise BadChainUsage(f"{named} holds no key; expected 64 hexadecimal digits") from None


def new_wallet(path: Path) -> Wallet:
    """Create a key in a new file that only its owner can read.

    The file appears complete or not at all, whatever fails or is killed meanwhile.

    Raises:
        FileExistsError: the file exists; it is not changed.
        OSError: it cannot be written.
    """
    secret = PrivateKey().secret
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secret.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        _move(Path(temporary), path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return Wallet(secret)


def _move(source: Path, path: Path) -> None:
    """Give a file a new name; unlike a rename, this replaces no other file."""
    try:
        path.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:
        # Some file systems have no links.
        if path.exists():
            raise FileExistsError(f"{path} exists") from None
        source.rename(path)


def _unlock(keystore: Path, passphrase_file: Path) -> bytes:
    lines = _read(passphrase_file).splitlines()
    try:
        return bytes(decode_keyfile_json(json.loads(_read(keystore)), (lines[0] if lines else "").encode()))
    except (ValueError, KeyError, TypeError) as error:
        reason = "the passphrase is another one" if "MAC" in str(error) else "it is no keystore"
        raise BadChainUsage(f"{keystore} cannot be opened: {reason}") from None


def _wallet(secret: bytes, path: Path) -> Wallet:
    try:
        PrivateKey(secret)
    except ValueError:
        raise BadChainUsage(f"{path} holds no key; expected 32 bytes of a secp256k1 key") from None
    if len(secret) != 32:
        raise BadChainUsage(f"{path} holds no key; expected 32 bytes of a secp256k1 key")
    return Wallet(secret)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadChainUsage(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None

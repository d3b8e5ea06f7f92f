"""Who vouches for a bundle: an Ed25519 signature over the hashes of its files, beside them.

It says that the holder of a key had these very files, not that they are good. A key is known by
its 32 bytes in Base64; what a user trusts stands in their settings.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safesteer_edge.errors import BundleError, SettingsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_NAME: Final = "signature.json"
# So that it stands for nothing else that the same key may sign.
_PURPOSE: Final = b"safesteer-edge guard bundle 1\n"
_MAX_KEY_BYTES: Final = 4096


def signed(content: Mapping[str, bytes], key: Ed25519PrivateKey) -> bytes:
    """The signature file for a bundle's files."""
    signature = base64.b64encode(key.sign(_manifest(content))).decode()
    return json.dumps({"key": public_key(key), "signature": signature}).encode()


def signer_of(content: Mapping[str, bytes], source: str) -> str | None:
    """The key that signed these files; None: they are not signed.

    Raises BundleError for a signature that is not one of them.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if SIGNATURE_NAME not in content:
        return None
    try:
        entry = json.loads(content[SIGNATURE_NAME])
        key, signature = (
            base64.b64decode(entry[name], validate=True) for name in ("key", "signature")
        )
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _manifest(content))
    # RecursionError: of JSON that is nested deep.
    except (InvalidSignature, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"the signature of guard bundle {source!r} is wrong: its files are not those that were "
            "signed; get it again, or from somebody else"
        ) from error
    return base64.b64encode(key).decode()


def new_key() -> bytes:
    """A private key as a PEM file, not encrypted."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = Ed25519PrivateKey.generate()
    return made.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())


def read_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file. Raises SettingsError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    make = "make one with 'safesteer-edge bundles keygen'"
    try:
        with path.open("rb") as stream:
            key = load_pem_private_key(stream.read(_MAX_KEY_BYTES), None)
    except OSError as error:
        raise SettingsError(
            f"cannot read the key {str(path)!r}: {error.strerror or error}; {make}"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{str(path)!r} is no Ed25519 key without a password; {make}")
    return key


def public_key(key: Ed25519PrivateKey) -> str:
    """What others know it by."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def _manifest(content: Mapping[str, bytes]) -> bytes:
    """What is signed: each file's hash and name, as sha256sum prints them."""
    lines = (
        f"{hashlib.sha256(content[name]).hexdigest()}  {name}\n"
        for name in sorted(content)
        if name != SIGNATURE_NAME
    )
    return _PURPOSE + "".join(lines).encode()

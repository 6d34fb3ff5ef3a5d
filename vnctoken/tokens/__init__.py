"""What a console token is. Where tokens are kept is the matter of the modules in this package."""

import hashlib
import secrets


def new_token() -> str:
    """Return a fresh token: 128 random bits as 32 hexadecimal digits, which need no encoding in a URL."""
    return secrets.token_hex(16)


def fingerprint(token: str) -> str:
    """Return what a token is called in logs: the first 8 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()[:8]

"""Tokens that carry their target themselves, signed and encrypted: what websockify's JWTTokenApi plugin reads.

Nothing is stored. Who has the key can make and read such tokens; nobody can list them, count them or take one back.

A token is a JWE (RFC 7516) around a JWS (RFC 7515), made with one and the same key, as JWTTokenApi has but one. After
CVE-2022-3102 jwcrypto refuses every JWE for which a program does not say that it expects one, and JWTTokenApi does not.
`jwcrypto.jwt.JWT_expect_type = False` in websockify's process has it read them again. That costs nothing with a
symmetric key. With an RSA key whoever knows the public half could then make tokens, so RSA is not supported.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from vnctoken.errors import ActionError, ConfigError, TokenStoreError
from vnctoken.tokens import Grant, LiveToken, digest
from vnctoken.tokens.keyfile import KeyFile, expected

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NOT_BEFORE_SECONDS = 60
"""How long before its issue a token is already good. websockify compares `nbf` with the clock of its own machine and
forgives nothing, so a clock a second behind ours would refuse fresh tokens. 60 seconds are what jwcrypto itself
forgives; they give nothing away, as there is no token before its issue."""

MAX_TOKEN_CHARACTERS = 4096
"""The longest token that is made or looked at, half of what web servers take in a request line. Usual ones have 420."""

# As no other header is read, nobody can ask for another algorithm, for decompression or for an extension.
_OUTER = '{"alg":"dir","enc":"A256GCM"}'
_INNER = '{"alg":"HS256"}'
_TOKEN = re.compile(
    r"eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0\.\.[A-Za-z0-9_-]{16}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{22}", re.ASCII
)
_SIGNED = b"eyJhbGciOiJIUzI1NiJ9."


class JwtStore:
    """Makes and reads tokens that carry their target.

    The first of `key_files` encrypts, and is websockify's; all of them decrypt. `now` returns the seconds of the epoch
    by this machine's clock, as another machine's may judge the tokens. Raises ConfigError if there is no key in a file.
    """

    revocable = False

    def __init__(self, key_files: Sequence[str], now: Callable[[], float]) -> None:
        if not key_files:
            path = "/etc/vnctoken/jwt.key"
            raise ConfigError(
                f":token_store: is jwt, but :jwt_key_files: names no file such as {path}; {expected(path)}"
            )
        try:
            jwk, self._jws, self._jwe = (import_module(f"jwcrypto.{name}") for name in ("jwk", "jws", "jwe"))
            self._refusal: type[Exception] = import_module("jwcrypto.common").JWException
        except ImportError:
            raise ConfigError(":token_store: jwt needs jwcrypto: install vnctoken[jwt]") from None
        self._files = [KeyFile(path, jwk.JWK) for path in key_files]
        self._now = now

    def prepare(self) -> list[str]:
        """Return a warning for each key file that other users can read or write."""
        return [warning for file in self._files for warning in file.warnings()]

    def start(self) -> None:
        """Do nothing: tokens watch over themselves."""

    async def check(self) -> None:
        """Look whether the key that tokens are made with can be read."""
        if self._files[0].key() is None:
            raise TokenStoreError("No token can be made now. The key for it cannot be read")

    async def issue(self, grant: Grant) -> str:
        """Return a token that carries its grant, good from now on for `grant.ttl` seconds.

        Raises ActionError for what such a token cannot promise (a single use, one client) or must not (to live for
        ever, as it could never be taken back), and TokenStoreError if there is no key in the first file now.
        """
        if grant.restricted:
            _refuse("none can be for a single use or for one client")
        if not grant.ttl:
            _refuse("none can live for ever")
        key = self._files[0].key()
        if key is None:
            raise TokenStoreError("Cannot create VNC proxy token. The key for it cannot be read")
        now = self._now()
        claims = {
            "vm": grant.vm_id,
            "sub": grant.user,
            "host": grant.host,
            "port": grant.port,
            "iat": round(now, 3),
            "nbf": int(now) - NOT_BEFORE_SECONDS,
            "exp": round(now + grant.ttl, 3),
        }
        signed = self._jws.JWS(json.dumps(claims, separators=(",", ":"), ensure_ascii=False))
        signed.add_signature(key, protected=_INNER)
        encrypted = self._jwe.JWE(signed.serialize(compact=True), _OUTER)
        encrypted.add_recipient(key)
        token = str(encrypted.serialize(compact=True))
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise TokenStoreError("Cannot create VNC proxy token. The names of user and host are too long for one")
        return token

    async def live(self, vm_id: int) -> list[LiveToken]:  # noqa: ARG002 (what a TokenStore is asked)
        """Raise ActionError: nobody knows which tokens there are."""
        _refuse("nobody can list them")

    async def revoke(self, vm_id: int, digests: frozenset[str] | None = None) -> int:  # noqa: ARG002 (as above)
        """Raise ActionError: nothing ends a token but its time, or another key in the file, which ends all."""
        _refuse("nobody can revoke one")

    async def find(self, token: str) -> LiveToken | None:
        """Return what a token opens, None if it opens nothing (or no longer), whatever it is made of.

        Raises TokenStoreError if there is no key in any file now.
        """
        if len(token) > MAX_TOKEN_CHARACTERS or not _TOKEN.fullmatch(token):
            return None
        keys = [key for key in (file.key() for file in self._files) if key is not None]
        if not keys:
            raise TokenStoreError("Cannot read VNC proxy tokens. No key for them can be read")
        grants = filter(None, (self._opened(token, key) for key in keys))
        grant = next(grants, None)
        return None if grant is None else LiveToken(digest(token), grant)

    async def use(self, token: str, reuse_window: float) -> LiveToken | None:  # noqa: ARG002 (as above)
        """Return what a token opens. That it was used is noted nowhere."""
        return await self.find(token)

    async def holders(self, host: str, port: int) -> frozenset[int]:  # noqa: ARG002 (as above)
        """Return nobody: it is not known which tokens there are."""
        return frozenset()

    async def targets(self) -> dict[int, frozenset[tuple[str, int]]]:
        """Return nothing: it is not known which tokens there are."""
        return {}

    async def close(self) -> None:
        """Let go of nothing."""

    def _opened(self, token: str, key: Any) -> Grant | None:
        try:
            encrypted = self._jwe.JWE(algs=["dir", "A256GCM"])
            encrypted.deserialize(token, key)
            if not encrypted.payload.startswith(_SIGNED):
                return None
            signed = self._jws.JWS()
            signed.deserialize(encrypted.payload.decode("ascii"), key, "HS256")
            return _grant(json.loads(signed.payload), self._now())
        # Once decrypted, it is nonsense of somebody else who has the key.
        except (self._refusal, ValueError, OverflowError, RecursionError):
            return None


def _grant(claims: Any, now: float) -> Grant | None:
    """Return what a token's claims grant now."""
    match claims:
        case {
            "vm": int(vm_id),
            "sub": str(user),
            "host": str(host),
            "port": int(port),
            "iat": int() | float() as issued,
            "nbf": int() | float() as begin,
            "exp": int() | float() as end,
        } if begin <= now < end:
            return Grant(vm_id, host, port, issued, round(end - issued), user)
    return None


def _refuse(limit: str) -> NoReturn:
    raise ActionError(
        "The tokens of this service carry all that they grant (:token_store: is jwt) and live until they expire;"
        f" {limit}. With :token_store: folder or redis it can be done"
    )

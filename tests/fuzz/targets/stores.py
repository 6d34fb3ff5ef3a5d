"""Tokens: the files of the folder, whoever wrote them, and tokens that carry what they open."""

from __future__ import annotations

import json
import time
from contextlib import suppress

from jwcrypto import jwe, jwk, jws
from outcomes import result_of
from readers import opens
from twisted.internet.task import Clock

from fuzz.target import Target, quiet_log
from fuzz.targets.files import FOLDER, written
from vnctoken.errors import TokenStoreError
from vnctoken.methods import as_entry
from vnctoken.tokens import Grant, digest
from vnctoken.tokens.folder import TokenFolder
from vnctoken.tokens.jwt import JwtStore
from vnctoken.tokens.lines import Entry, LiveToken, read_entries, write_entries
from vnctoken.wire import read_answer, write_answer

TOKEN, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2
NOW = 1_795_316_218.0
TTL = 600


def _lines(data):
    entries = read_entries(data, 7, modified=NOW, ttl=TTL)
    content = write_entries(entries)
    assert [(one.line, one.ours, one.live.digest) for one in read_entries(content, 7, modified=NOW, ttl=TTL)] == [
        (one.line, one.ours, one.live.digest) for one in entries
    ]
    folder = FOLDER / "lines"
    folder.mkdir(exist_ok=True)
    (folder / "one-7").write_bytes(content)
    for one in [one for one in entries if one.line][:5]:
        token, _, target = one.line.partition(": ")
        assert opens(folder, token) == target.rsplit(":", 1)


def _folder(data):
    folder = FOLDER / "tokens"
    clock = Clock()
    store = TokenFolder(folder, clock, lambda: NOW, ttl=TTL, tokens_per_vm=8, wall=time.time)
    store.prepare()
    (folder / "one-7").write_bytes(data)
    with quiet_log(secret=False):
        store.start()
        live = result_of(store.live(7))
        for one in live:
            assert 1 <= one.grant.port <= 65535
            assert not one.grant.expires or one.grant.expires > NOW
        told = read_answer(write_answer([True, [as_entry(one) for one in live], 0]))
        assert [one["fingerprint"] for one in told[1]] == [one.fingerprint for one in live]
        assert {one.digest for one in live} >= {
            found.digest for token in (TOKEN, OTHER) if (found := result_of(store.find(token)))
        }
        for token in (TOKEN, OTHER):
            result_of(store.use(token, 5))
        ours = result_of(store.issue(Grant(7, "h", 5900, NOW, TTL, "alice")))
        assert opens(folder, ours) == ["h", "5900"]
        result_of(store.revoke(7))
        assert opens(folder, ours) is None
        assert result_of(store.live(7)) == []
        result_of(store.close())


def _comment(token=TOKEN, **more):
    return f"# vnctoken {json.dumps({'sha256': digest(token), 'issued': NOW - 60, 'ttl': 600, **more})}\n".encode()


def _written(*entries):
    return write_entries([Entry(LiveToken(digest(token), grant), line, ours=True) for token, grant, line in entries])


FILES = (
    _written(
        (TOKEN, Grant(7, "h", 5900, NOW - 60, TTL, "alice"), f"{TOKEN}: h:5900"),
        (OTHER, Grant(7, "h", 5901, NOW - 60, TTL, "bob", single_use=True, client="192.0.2.7"), ""),
    ),
    f"{TOKEN}: 2001:db8::1:5900\n{OTHER}: unix_socket:/run/x\n# a note\n\n".encode(),
    _comment(user="é", used=NOW - 10, theirs=True) + f"{TOKEN}: h:5900\n".encode(),
    _comment(host="h", port=5900, client="::1") + _comment(OTHER, host="h", port=5900),
)

_KEY = jwk.JWK(kty="oct", k="A" * 43)
_STORE = JwtStore((str(written(b"A" * 43, "key")),), lambda: NOW)
_GRANT = Grant(7, "h", 5900, NOW, TTL, "alice")
_JWT = result_of(_STORE.issue(_GRANT))


def _jwt(data):
    with quiet_log():
        found = result_of(_STORE.find(data.decode(errors="replace")))
    # Some last characters say the same in base64; there is no other token that could be found.
    assert found is None or (found.grant == _GRANT and len(data) == len(_JWT))


_CLAIMS = json.dumps(
    {"vm": 7, "sub": "alice", "host": "h", "port": 5900, "iat": NOW, "nbf": int(NOW) - 60, "exp": NOW + TTL},
    separators=(",", ":"),
).encode()


# What is in a token that somebody with the key has made.
def _claims(data):
    signed = jws.JWS(data)
    signed.add_signature(_KEY, protected='{"alg":"HS256"}')
    encrypted = jwe.JWE(signed.serialize(compact=True), '{"alg":"dir","enc":"A256GCM"}')
    encrypted.add_recipient(_KEY)
    with quiet_log(), suppress(TokenStoreError):
        found = result_of(_STORE.find(encrypted.serialize(compact=True)))
        assert found is None or isinstance(found.grant.port, int)
        assert found is not None or data != _CLAIMS


TARGETS = (
    Target("lines", _lines, FILES, (b"# vnctoken ", b"unix_socket", b"1e999", b"-1", b"Infinity", b'"theirs": true')),
    Target("folder", _folder, FILES, (b"# vnctoken ", b"unix_socket", b"1e999", b"-1", b"Infinity", b'"theirs": true')),
    Target("jwt", _jwt, (_JWT.encode(),)),
    Target("claims", _claims, (_CLAIMS,), (b"Infinity", b"-Infinity", b"1e999")),
)

"""A steady load that checks every answer: ``python -m faults.load SETTINGS``, a JSON object, until SIGTERM.

Each of the clients asks for the consoles of one VM of its own, in a closed loop with a pause; now and then it takes a
token back, opens the console through websockify, or asks for what it may not have. What came of it is a line of JSON:
when it began and ended (seconds of the monotonic clock, which is one for all processes), and

=========  =====================================================================================
right      as it has to be; a deserved refusal too
refused    another code than the expected one; `what` is the code, or HTTP 503
lost       no answer: `what` says why
gone       a success whose token is not in the store, or an earlier one that is there no more
wrong      any other answer
=========  =====================================================================================
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import redis
from redis.sentinel import Sentinel
from wsclient import HandshakeRefusedError, WebSocket

from faults.judging import HOMES, HOST, OPENING, REVOKE, UNSEEN, Question, Verdict, judge, session, wrong
from faults.screens import greeting

ANSWER_SECONDS = 15
STORE_SECONDS = 10

_emitting = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """What came of one call."""

    began: float
    ended: float
    kind: str
    what: str = ""


class LostError(Exception):
    """Raised if there is no answer."""


def ask(url, body):
    """Return the HTTP status and body of the answer to a call, on a connection of its own; raise LostError."""
    there = urlsplit(url)
    connection = http.client.HTTPConnection(there.hostname, there.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", there.path, body, {"Content-Type": "text/xml", "Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except TimeoutError:
        raise LostError("timeout") from None
    except (OSError, http.client.HTTPException) as error:
        raise LostError(_named(error)) from None
    finally:
        connection.close()


def _named(error):
    if isinstance(error, http.client.RemoteDisconnected):
        return "closed without an answer"
    return {
        "ConnectionRefusedError": "connection refused",
        "ConnectionResetError": "connection reset",
        "BrokenPipeError": "connection reset",
    }.get(type(error).__name__, type(error).__name__)


class FolderCheck:
    """Looks tokens up as websockify's TokenFile does."""

    def __init__(self, path):
        self._path = Path(path)

    def target(self, vm_id, token):
        """Return what a token of a VM leads to, as text; None if it is not there."""
        try:
            lines = (self._path / f"one-{vm_id}").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return None
        return next((line.partition(": ")[2] for line in lines if line.partition(": ")[0] == token), None)


class RedisCheck:
    """Looks tokens up as websockify's TokenRedis does, at the master that the Sentinel names."""

    def __init__(self, sentinel, name):
        self._sentinel = Sentinel([(HOST, sentinel)], socket_timeout=1)
        self._name = name

    def target(self, vm_id, token):
        deadline = time.monotonic() + STORE_SECONDS
        while True:
            # While it fails over there is none: what the service was told is to be found at the new master.
            with contextlib.suppress(redis.RedisError):
                found = self._sentinel.master_for(self._name, socket_timeout=1).get(f"vnctoken:{token}")
                return found and found.decode()
            if time.monotonic() > deadline:
                raise LostError("no Redis to look at")
            time.sleep(0.1)


def console_of(websockify, token):
    """Return the first bytes of the console that a token opens; raise LostError."""
    there = urlsplit(websockify)
    try:
        with socket.create_connection((there.hostname, there.port), timeout=ANSWER_SECONDS) as connection:
            websocket = WebSocket.connect(connection, f"{there.path}?token={token}")
            with contextlib.suppress(AssertionError):
                return websocket.receive_exactly(len(greeting(0)))
            raise LostError("console closed")
    except HandshakeRefusedError as error:
        raise LostError(f"console refused: {error.status}") from None
    except OSError as error:
        raise LostError(f"console: {_named(error)}") from None


class Client:
    """Asks for the consoles of one VM, and checks what it gets."""

    def __init__(self, vm_id, port, *, ask, store, websockify=None, consoles_strict=True, kept=60, seed=0):  # noqa: PLR0913
        self._vm_id = vm_id
        self._session = session(HOMES[vm_id])
        self._target = (HOST, port)
        self._ask = ask
        self._store = store
        self._websockify = websockify
        self._consoles_strict = consoles_strict
        self._random = random.Random(seed)
        self._kept_seconds = kept
        self._kept = None

    def turn(self):
        """Do one thing and return what came of it."""
        began = time.monotonic()
        try:
            kind, what = self._turn()
        except LostError as lost:
            kind, what = "lost", str(lost)
        return Outcome(began, time.monotonic(), kind, what)

    def _turn(self):
        chance = self._random.random()
        if chance < 0.15:
            user, vm_id, code = self._random.choice(UNSEEN)
            return self._said(self._asked(Question(self._random.choice(OPENING), session(user), vm_id, code=code)))
        if chance < 0.2:
            liar = self._session + "x"
            return self._said(self._asked(Question(OPENING[0], liar, self._vm_id, code=0x100)))
        if (gone := self._look_at_kept()) is not None:
            return gone
        if chance < 0.3 and self._kept:
            return self._revoke()
        return self.opening(through=self._websockify is not None and chance > 0.92)

    def _asked(self, question):
        status, body = self._ask(question.body)
        if status == http.client.SERVICE_UNAVAILABLE:
            return Verdict("refused", code=status)
        return judge(question, body) if status == http.client.OK else wrong(f"HTTP {status}")

    def _said(self, verdict):
        if verdict.kind != "refused":
            return verdict.kind, verdict.why
        unavailable = verdict.code == http.client.SERVICE_UNAVAILABLE
        return "refused", "HTTP 503" if unavailable else f"{verdict.code:#06x}"

    def _look_at_kept(self):
        """Whether the last token of this client still opens its console."""
        if self._kept is None or time.monotonic() - self._kept[1] > self._kept_seconds:
            return None
        token, _ = self._kept
        target = self._store.target(self._vm_id, token)
        if target == self._leads_to:
            return None
        self._kept = None
        if target is None:
            return "gone", "an earlier token is there no more"
        return "wrong", "an earlier token leads elsewhere"

    def opening(self, *, through=False):
        """Ask for the console; with `through`, open it. Return what came of it."""
        question = Question(self._random.choice(OPENING), self._session, self._vm_id, target=self._target)
        verdict = self._asked(question)
        if verdict.token is None:
            return self._said(verdict)
        target = self._store.target(self._vm_id, verdict.token)
        if target is None:
            return "gone", "a success whose token is not in the store"
        if target != self._leads_to:
            return "wrong", f"the store has another target for a token of VM {self._vm_id}: {target}"
        self._kept = verdict.token, time.monotonic()
        return self._look_through(verdict.token) if through else ("right", "")

    def _look_through(self, token):
        try:
            seen = console_of(self._websockify, token)
        except LostError as lost:
            # Where websockify asks the service, it cannot do better than that.
            return "wrong" if self._consoles_strict else "lost", str(lost)
        if seen != greeting(self._vm_id):
            return "wrong", f"the console of another VM than {self._vm_id}"
        return "right", ""

    def _revoke(self):
        token, _ = self._kept
        # Whatever the answer: if it is lost, the token may have gone or not.
        self._kept = None
        verdict = self._asked(Question(REVOKE, self._session, self._vm_id, (token,)))
        if verdict.kind == "right" and self._store.target(self._vm_id, token) is not None:
            return "wrong", "a token that was taken back is still in the store"
        return self._said(verdict)

    @property
    def _leads_to(self):
        return "{}:{}".format(*self._target)


def _run(client, pause, ending):
    while not ending.wait(pause):
        outcome = client.turn()
        line = json.dumps([round(outcome.began, 4), round(outcome.ended, 4), outcome.kind, outcome.what])
        with _emitting:
            print(line, flush=True)  # noqa: T201 (that is what it is for)


def main(settings):
    """Run until SIGTERM."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    store = settings["store"]
    check = FolderCheck(store["folder"]) if "folder" in store else RedisCheck(store["sentinel"], store["name"])
    threads = []
    for number, (vm_id, port) in enumerate(settings["screens"].items()):
        client = Client(
            int(vm_id),
            port,
            ask=partial(ask, settings["url"]),
            store=check,
            websockify=settings["websockify"],
            consoles_strict="folder" in store,
            kept=settings["kept"],
            seed=number,
        )
        threads.append(threading.Thread(target=_run, args=(client, settings["pause"], ending), daemon=True))
    for thread in threads:
        thread.start()
    ending.wait()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

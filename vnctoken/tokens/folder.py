"""Tokens in the folder that websockify reads.

The files are all there is: what is kept in memory is an index of them, so that nothing is lost with the service, and
what others do in the folder (Sunstone writes there, OpenNebula's proxy empties it when it starts) is as good.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from vnctoken.errors import TokenStoreError
from vnctoken.tokens import Grant, LiveToken, digest, new_token
from vnctoken.tokens.files import TokenFiles
from vnctoken.tokens.index import Index, Known
from vnctoken.tokens.lines import Entry, read_entries, write_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vnctoken.tokens.files import Stamp

SCAN_SECONDS = 5.0
"""How often the folder is looked through for what others did there."""

CLEANUP_SECONDS = 3600.0
"""How often files without tokens are removed, and how old these have to be."""

RETRY_SECONDS = 1.0
"""After how long an expired token that could not be removed is tried again."""

# On a miss the folder is looked through at most so often: a token of Sunstone's may just have been written.
_RESCAN_SECONDS = 1.0
# Files that are written for expired tokens before other work gets its turn.
_EXPIRIES_AT_ONCE = 50


class TokenFolder:
    """Keeps tokens where websockify's TokenFile plugin finds them (a TokenStore).

    `ttl` is for tokens that somebody else wrote: they die so many seconds after their file was last changed (0: never).
    The clock runs the timers; `now` tells the second of the epoch and must not jump, `wall` as the filesystem tells it.
    """

    revocable = True
    _log = Logger()

    def __init__(  # noqa: PLR0913 (what it works with, and each rule by its name)
        self,
        path: Path,
        clock: Any,
        now: Callable[[], float],
        *,
        ttl: int,
        tokens_per_vm: int,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._files = TokenFiles(path)
        self._clock = clock
        self._now = now
        self._wall = wall
        self._ttl = ttl
        self._tokens_per_vm = tokens_per_vm
        self._index = Index()
        self._timers: dict[str, Any] = {}
        self._scanned = -_RESCAN_SECONDS
        self._cleaned = now()
        self._failing = False
        self._failed = False

    def prepare(self) -> list[str]:
        """Make the folder if it is missing, and check that it can be used.

        Returns warnings. Raises ConfigError if tokens cannot be written.
        """
        return self._files.check()

    def start(self) -> None:
        """Take over what is in the folder, and watch it until `close`. Raises ConfigError if it cannot be tidied."""
        self._files.forget_half_written()
        self._scan()

    async def check(self) -> None:
        """Look whether a file could be written beside the folder, and be moved into it."""
        with _explained("No token can be written now."):
            self._files.probe()

    async def issue(self, grant: Grant) -> str:
        """Write a new token for a grant into the VM's file."""
        token = new_token()
        # An IPv6 address is written bare: websockify splits at the last colon.
        line = "" if grant.restricted else f"{token}: {grant.host}:{grant.port}"
        entry = Entry(LiveToken(digest(token), grant), line, ours=True)
        with _explained("Cannot create VNC proxy token."):
            entries = self._load(grant.vm_id)
            surplus = sum(other.ours for other in entries) + 1 - self._tokens_per_vm
            for other in [other for other in entries if other.ours][: max(surplus, 0)]:
                entries.remove(other)
            self._save(grant.vm_id, [*entries, entry])
        return token

    async def live(self, vm_id: int) -> list[LiveToken]:
        """Return the tokens in a VM's file, the oldest first."""
        with _explained():
            opening = [entry.live for entry in self._load(vm_id) if entry.live.grant.port]
        return sorted(opening, key=lambda live: live.grant.issued)

    async def revoke(self, vm_id: int, digests: frozenset[str] | None = None) -> int:
        """Take tokens out of a VM's file."""
        with _explained():
            entries = self._load(vm_id)
            kept = [entry for entry in entries if digests is not None and entry.live.digest not in digests]
            if len(kept) < len(entries):
                self._save(vm_id, kept)
        return len(entries) - len(kept)

    async def find(self, token: str) -> LiveToken | None:
        """Look a token up in its VM's file, which the index knows."""
        with _explained():
            entry = self._entry(digest(token))
        return None if entry is None else entry.live

    async def use(self, token: str, reuse_window: float) -> LiveToken | None:
        """Look a token up and note its first use in its comment."""
        now = self._now()
        with _explained():
            entry = self._entry(digest(token))
            if entry is None:
                return None
            live = entry.live
            if live.used:
                return None if live.grant.single_use and now - live.used >= reuse_window else live
            used = replace(live, used=now)
            entries = [
                replace(entry, live=used) if other.live.digest == live.digest else other
                for other in self._load(live.grant.vm_id)
            ]
            try:
                self._save(live.grant.vm_id, entries)
            except OSError:
                # A token for many uses goes on without the note; one for a single use must not.
                if live.grant.single_use:
                    raise
        return used

    async def holders(self, host: str, port: int) -> frozenset[int]:
        """Return the VMs whose files lead to a host and port."""
        return self._index.holders(host, port)

    async def targets(self) -> dict[int, frozenset[tuple[str, int]]]:
        """Return where the files of all VMs lead."""
        return self._index.targets()

    async def close(self) -> None:
        """Stop watching the folder."""
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        self._timers.clear()

    # The files, and what is known of them.

    def _load(self, vm_id: int) -> list[Entry]:
        """Return the live tokens in a VM's file."""
        known = self._index.get(vm_id)
        if known is not None and known.stamp == self._files.stamp(vm_id):
            return self._tidied(vm_id, known.entries, changed=False)
        found = self._files.read(vm_id)
        if found is None:
            self._index.forget(vm_id)
            return []
        content, stamp = found
        age = self._wall() - stamp.modified
        entries = read_entries(content, vm_id, modified=self._now() - max(age, 0), ttl=self._ttl)
        settled = [self._settled(entry) for entry in entries]
        self._remember(vm_id, stamp, settled)
        # A token of the future is one from before the clock was set back: what its age is now taken for must be kept,
        # or it would be as young again after the next restart. The same goes for a file of the future.
        return self._tidied(vm_id, settled, changed=settled != entries or age < 0)

    def _tidied(self, vm_id: int, entries: list[Entry], *, changed: bool) -> list[Entry]:
        """Return the live ones of a file's tokens, and leave only these in it if that is possible."""
        live = [entry for entry in entries if self._is_live(entry)]
        if len(live) < len(entries) or (changed and entries):
            try:
                self._save(vm_id, live)
            except OSError as error:
                self._complain(error)
        return live

    def _settled(self, entry: Entry) -> Entry:
        """Return an entry that is no younger than when we first saw it, and not of the future."""
        grant = entry.live.grant
        before = self._index.entry(entry.live.digest)
        issued = min(grant.issued, self._now(), before.live.grant.issued if before else grant.issued)
        used = min(entry.live.used, self._now())
        if (issued, used) == (grant.issued, entry.live.used):
            return entry
        return replace(entry, live=replace(entry.live, grant=replace(grant, issued=issued), used=used))

    def _save(self, vm_id: int, entries: list[Entry]) -> None:
        stamp = self._files.replace(vm_id, write_entries(entries))
        self._remember(vm_id, stamp, entries)

    def _remember(self, vm_id: int, stamp: Stamp, entries: list[Entry]) -> None:
        self._index.remember(vm_id, Known(stamp, entries, self._now()))
        self._wake()

    def _entry(self, wanted: str) -> Entry | None:
        if self._index.vm_of(wanted) is None and self._clock.seconds() - self._scanned >= _RESCAN_SECONDS:
            self._look_around()
        vm_id = self._index.vm_of(wanted)
        if vm_id is None:
            return None
        return next(
            (entry for entry in self._load(vm_id) if entry.live.digest == wanted and entry.live.grant.port), None
        )

    def _is_live(self, entry: Entry) -> bool:
        return not entry.expires or self._now() < entry.expires

    # Time passes.

    def _scan(self) -> None:
        """Look for what others did in the folder, from now on every SCAN_SECONDS."""
        self._set_timer("scan", SCAN_SECONDS, self._scan)
        try:
            self._look_around()
            self._clean_up()
        except (OSError, TokenStoreError) as error:
            self._complain(error)
        self._failing = self._failed
        self._failed = False

    def _look_around(self) -> None:
        self._scanned = self._clock.seconds()
        stamps = self._files.stamps()
        for vm_id in self._index.vm_ids - stamps.keys():
            self._index.forget(vm_id)
        for vm_id, stamp in stamps.items():
            known = self._index.get(vm_id)
            if known is None or known.stamp != stamp:
                try:
                    self._load(vm_id)
                except OSError as error:
                    # One file that cannot be read or written is no reason to leave the others alone.
                    self._complain(error)

    def _clean_up(self) -> None:
        """Remove the files without tokens, all at once and rarely: an unlink may break a lookup that is under way."""
        if self._now() - self._cleaned < CLEANUP_SECONDS:
            return
        self._cleaned = self._now()
        empty = self._index.empty(self._now() - CLEANUP_SECONDS)
        for vm_id in empty:
            self._index.forget(vm_id)
        self._files.remove(empty)

    def _wake(self) -> None:
        """Let the timer for expired tokens go off when the next look is planned."""
        look = self._index.next_look
        if look == inf:
            return
        timer, seconds = self._timers.get("expire"), max(look - self._now(), 0)
        if timer is None or not timer.active() or timer.getTime() > self._clock.seconds() + seconds:
            self._set_timer("expire", seconds, self._expire)

    def _expire(self) -> None:
        """Take expired tokens out of their files; some at a time, as calls are waiting."""
        for _ in range(_EXPIRIES_AT_ONCE):
            vm_id = self._index.take_due(self._now())
            if vm_id is None:
                break
            try:
                self._load(vm_id)
            except OSError as error:
                self._complain(error)
            known = self._index.get(vm_id)
            if known is not None:
                now, first = self._now(), known.first_expiry
                self._index.plan(vm_id, first if first > now else now + RETRY_SECONDS)
        self._wake()

    def _set_timer(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        timer = self._timers.get(name)
        if timer is not None and timer.active():
            timer.cancel()
        self._timers[name] = self._clock.callLater(seconds, call)

    def _complain(self, error: Exception) -> None:
        """Say once that expired tokens stay in the folder, until it works again."""
        if not self._failing:
            reason = error.strerror if isinstance(error, OSError) else error
            self._log.error(
                "the token folder cannot be kept in order, expired tokens may stay: {reason}", reason=reason
            )
        self._failing = self._failed = True


@contextmanager
def _explained(begin: str = "The tokens cannot be read or changed now.") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TokenStoreError(f"{begin} {error.strerror}") from error

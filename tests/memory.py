"""A token store and a way to oned in memory: what a test of something else needs, no less and no more."""

from dataclasses import replace

from twisted.internet.defer import Deferred

from vnctoken.errors import OnedError
from vnctoken.sandbox.calls import FaultError, decode_call
from vnctoken.tokens import LiveToken, digest, new_token


class MemoryStore:
    """Keeps tokens (a TokenStore) as long as it is not told otherwise: time is not its matter."""

    revocable = True

    def __init__(self, error=None):
        self.error = error
        self.kept = {}

    @property
    def grants(self):
        return [live.grant for live in self.kept.values()]

    async def check(self):
        if self.error is not None:
            raise self.error

    async def issue(self, grant):
        if self.error is not None:
            raise self.error
        token = new_token()
        self.kept[digest(token)] = LiveToken(digest(token), grant)
        return token

    async def live(self, vm_id):
        return [live for live in self.kept.values() if live.grant.vm_id == vm_id]

    async def revoke(self, vm_id, digests=None):
        gone = [one.digest for one in await self.live(vm_id) if digests is None or one.digest in digests]
        for one in gone:
            del self.kept[one]
        return len(gone)

    async def find(self, token):
        return self.kept.get(digest(token))

    async def use(self, token, reuse_window):
        live = self.kept.get(digest(token))
        if live is None or (live.used and live.grant.single_use and reuse_window == 0):
            return None
        self.kept[live.digest] = replace(live, used=live.used or 1)
        return self.kept[live.digest]

    async def holders(self, host, port):
        return frozenset(one.vm_id for one in self.grants if (one.host, one.port) == (host, port))

    async def targets(self):
        found = {}
        for grant in self.grants:
            found.setdefault(grant.vm_id, set()).add((grant.host, grant.port))
        return {vm_id: frozenset(targets) for vm_id, targets in found.items()}

    async def close(self):
        pass


class Line:
    """The way to the sandbox's oned; it can be cut, and it can be slow."""

    def __init__(self, oned):
        self._oned = oned
        self.asked = []
        self.cut = False
        self.slow = False
        self.waiting = []

    async def post(self, body):
        call = decode_call(body)
        self.asked.append(call.method)
        if self.cut:
            raise OnedError("oned cannot be reached")
        answer = self._answer(call)
        if self.slow:
            # The answer is made, and takes its time.
            self.waiting.append(Deferred())
            await self.waiting[-1]
        return answer

    def _answer(self, call):
        try:
            return self._oned.answer(call).body
        except FaultError as fault:
            return fault.body

    def arrive(self):
        """Let the answers arrive that are on their way."""
        self.slow = False
        waiting, self.waiting = self.waiting, []
        for deferred in waiting:
            deferred.callback(None)

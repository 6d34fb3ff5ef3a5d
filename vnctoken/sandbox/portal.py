"""``python -m vnctoken.sandbox.portal``: a small web portal that does what a real one has to do.

It knows the cloud by XML-RPC alone: oned to log users in and to list their VMs, vnctoken for the consoles. Nothing in
it is special to the sandbox.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import react
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from twisted.web.static import File

from vnctoken.sandbox.asking import Cloud, ProblemError
from vnctoken.sandbox.listening import address, serve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from twisted.web.server import Request

LOGIN_SECONDS = 3600
"""How long somebody stays logged in."""

_PAGES = Path(__file__).with_name("pages")
_COOKIE = b"vnctoken_demo"
_VM_IDS = range(2**31)
_HEADERS = {
    b"Cache-Control": b"no-store",
    b"Referrer-Policy": b"no-referrer",
    b"X-Content-Type-Options": b"nosniff",
    b"X-Frame-Options": b"DENY",
}

_log = Logger()


class Portal:
    """What the page may ask for. `websocket` is the URL of the websocket proxy, as browsers reach it."""

    def __init__(self, cloud: Cloud, clock: Any, *, websocket: str, novnc: bool) -> None:
        self._cloud = cloud
        self._clock = clock
        self._websocket = websocket
        self._novnc = novnc
        self._sessions: dict[bytes, str] = {}

    async def login(self, request: Request, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Let oned judge name and password, and remember the session for LOGIN_SECONDS."""
        session = f"{asked.get('user', '')}:{asked.get('password', '')}"
        listed = await self._listed(session)
        key = secrets.token_urlsafe().encode()
        self._sessions[key] = session
        self._clock.callLater(LOGIN_SECONDS, self._sessions.pop, key, None)
        request.addCookie(_COOKIE, key, path=b"/", httpOnly=True, sameSite=b"strict")
        return listed

    async def logout(self, request: Request, _asked: Mapping[str, Any]) -> dict[str, Any]:
        """Forget the session."""
        self._sessions.pop(request.getCookie(_COOKIE) or b"", None)
        return {}

    async def vms(self, request: Request, _asked: Mapping[str, Any]) -> dict[str, Any]:
        """List the user's VMs, if somebody is logged in."""
        session = self._sessions.get(request.getCookie(_COOKIE) or b"")
        return {"user": None} if session is None else await self._listed(session)

    async def console(self, request: Request, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Open a console: here the portal's back end calls vnctoken with its user's session."""
        session, vm_id = self._session(request), asked.get("id")
        if isinstance(vm_id, bool) or not isinstance(vm_id, int) or vm_id not in _VM_IDS:
            raise ProblemError(400, "The number of a VM is expected.")
        console = await self._cloud.console(session, vm_id)
        return {
            "websocket": f"{self._websocket}?token={console['Token']}",
            "password": console["Password"],
            "target": f"{console['Host']}:{console['Port']}",
            "novnc": self._novnc,
        }

    def _session(self, request: Request) -> str:
        session = self._sessions.get(request.getCookie(_COOKIE) or b"")
        if session is None:
            raise ProblemError(401, "Please log in.")
        return session

    async def _listed(self, session: str) -> dict[str, Any]:
        return {"user": session.partition(":")[0], "vms": await self._cloud.vms(session)}


class _Json(Resource):
    """A question and its answer, both JSON; that they are keeps other sites' forms out."""

    isLeaf = True

    def __init__(self, answer: Callable[[Request, Mapping[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        super().__init__()
        self._answer = answer

    def render_POST(self, request: Request) -> int:
        serving = Deferred.fromCoroutine(self._serve(request))
        request.notifyFinish().addErrback(lambda _gone: serving.cancel())
        return NOT_DONE_YET

    async def _serve(self, request: Request) -> None:
        try:
            answer = await self._answer(request, _question(request))
        except ProblemError as problem:
            request.setResponseCode(problem.status)
            answer = {"error": str(problem)}
        except CancelledError:
            return
        except Exception:  # noqa: BLE001 (no question is left without an answer)
            _log.failure("internal error")
            request.setResponseCode(500)
            answer = {"error": "The portal has made a mistake. Its log says which."}
        request.setHeader(b"Content-Type", b"application/json")
        request.write(json.dumps(answer).encode())
        request.finish()


def _question(request: Request) -> Mapping[str, Any]:
    if request.getHeader(b"Content-Type") != b"application/json":
        raise ProblemError(415, "JSON is expected.")
    try:
        question = json.load(request.content)  # type: ignore[arg-type]
    except ValueError:
        question = None
    if not isinstance(question, dict):
        raise ProblemError(400, "A JSON object is expected.")
    return question


class _Root(Resource):
    """The page, what belongs to it, and noVNC."""

    def __init__(self, portal: Portal, websocket: str, novnc: Path | None) -> None:
        super().__init__()
        self._policy = f"default-src 'self'; img-src 'self' data:; connect-src 'self' {websocket}".encode()
        self.putChild(b"", File(str(_PAGES / "portal.html")))
        for name in ("portal.css", "portal.js"):
            self.putChild(name.encode(), File(str(_PAGES / name)))
        if novnc is not None:
            self.putChild(b"novnc", File(str(novnc)))
        for name in ("login", "logout", "vms", "console"):
            self.putChild(name.encode(), _Json(getattr(portal, name)))

    def getChildWithDefault(self, path: bytes, request: Request) -> Any:
        for name, value in _HEADERS.items():
            request.setHeader(name, value)
        request.setHeader(b"Content-Security-Policy", self._policy)
        return super().getChildWithDefault(path, request)


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vnctoken.sandbox.portal", description="A web portal with consoles, to show how one is made."
    )
    parser.add_argument("--listen", type=address, default="127.0.0.1:8080", metavar="HOST:PORT")
    parser.add_argument("--oned", required=True, metavar="URL", help="oned's XML-RPC")
    parser.add_argument("--vnctoken", required=True, metavar="URL", help="vnctoken-server's XML-RPC")
    parser.add_argument("--websocket", required=True, metavar="URL", help="the websocket proxy, as browsers reach it")
    parser.add_argument("--novnc", type=Path, metavar="DIR", help="where noVNC is; without it, tokens are shown")
    return parser.parse_args(arguments)


def main(reactor: Any, *arguments: str) -> Deferred[None]:
    """Run until the process is told to end; exit with a message if the address cannot be had."""
    options = _arguments(arguments)
    portal = Portal(
        Cloud(options.oned, options.vnctoken, reactor),
        reactor,
        websocket=options.websocket,
        novnc=options.novnc is not None,
    )
    site = Site(_Root(portal, options.websocket, options.novnc), reactor=reactor)
    site.noisy = False
    return serve(reactor, "portal listens on {url}", options.listen, site)


if __name__ == "__main__":
    react(main, sys.argv[1:])

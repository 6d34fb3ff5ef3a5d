"""`:console_url:`: the link to a portal's page that shows a console.

The token stands in the link, so that the page has all it needs; a password never does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_NAMES = ("id", "host", "port", "token", "path")
_WITH_THE_TOKEN = {"token", "path"}


def checked_template(template: str) -> str:
    """Return a template that `console_link` can fill; raise ValueError with what is expected otherwise."""
    names = set(_PLACEHOLDER.findall(template))
    known = ", ".join(f"{{{name}}}" for name in _NAMES)
    if names - set(_NAMES) or re.search("[{}]", _PLACEHOLDER.sub("", template)):
        raise ValueError(f"a URL with no other braces than {known}")
    if not names & _WITH_THE_TOKEN:
        raise ValueError("a URL with {path} or {token} in it, without which it opens nothing,")
    expected = "an http or https URL such as https://cloud.example.org/console.html#host={host}&path={path}"
    try:
        parts = urlsplit(template)
        # Not in the host: whoever names a hypervisor would say where the token goes.
        valid = parts.scheme in ("http", "https") and parts.hostname and not re.search("[{@]", parts.netloc)
    except ValueError:
        valid = False
    if not (valid and template.isascii() and template.isprintable() and " " not in template):
        raise ValueError(expected)
    return template


def token_gets_logged(template: str) -> bool:
    """Whether browsers send the token along when they ask for the page: all before the # is in a web server's log."""
    return bool(_WITH_THE_TOKEN & set(_PLACEHOLDER.findall(template.partition("#")[0])))


def console_link(template: str, *, vm_id: int, host: str, port: int, token: str) -> str:
    """Fill a template; every value is URL-encoded. `path` is where noVNC finds the console on the websocket proxy."""
    values: Mapping[str, object] = {
        "id": vm_id,
        "host": host,
        "port": port,
        "token": token,
        "path": f"websockify?token={token}",
    }
    return _PLACEHOLDER.sub(lambda match: quote(str(values[match[1]]), safe=""), template)

"""Who the user of the command is and where his cloud answers, found as OpenNebula's own commands find it."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vnctoken.client import endpoints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vnctoken.client.endpoints import Endpoint

_ONED = "http://localhost:2633/RPC2"


class SetupError(Exception):
    """Raised if there is nothing to log in with; its text says what to do."""


def session(user: str | None, password: str | None, environment: Mapping[str, str]) -> str:
    """Return the session string: of the user and the password that were given, or of the file $ONE_AUTH names.

    Without that variable it is ~/.one/one_auth. The password of a user alone is asked for. Raises SetupError.
    """
    if user is not None:
        return f"{user}:{_asked() if password is None else password}"
    named = environment.get("ONE_AUTH")
    file = Path(named) if named else _home(environment) / "one_auth"
    wanted = "user:password in its first line is expected; or give --user"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{file} cannot be read ({error.strerror}): {wanted}") from None
    except UnicodeDecodeError:
        raise SetupError(f"{file} is not UTF-8: {wanted}") from None
    found = text.partition("\n")[0].strip()
    if ":" not in found:
        raise SetupError(f"{file} holds no login: {wanted}")
    return found


def service(environment: Mapping[str, str]) -> Endpoint:
    """Return where vnctoken-server answers: at $ONE_VNCTOKEN, or the usual place. Raises SetupError."""
    return _endpoint(environment.get("ONE_VNCTOKEN") or endpoints.DEFAULT, "ONE_VNCTOKEN")


def oned(environment: Mapping[str, str]) -> Endpoint:
    """Return where oned answers: at $ONE_XMLRPC, what ~/.one/one_endpoint says, or the usual place.

    Raises SetupError.
    """
    if named := environment.get("ONE_XMLRPC"):
        return _endpoint(named, "ONE_XMLRPC")
    file = _home(environment) / "one_endpoint"
    try:
        return _endpoint(file.read_text(encoding="utf-8").strip() or _ONED, str(file))
    except FileNotFoundError:
        return _endpoint(_ONED, "")
    except OSError as error:
        raise SetupError(f"{file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SetupError(f"{file} is not UTF-8, but oned's URL is expected there") from None


def _endpoint(url: str, where: str) -> Endpoint:
    try:
        return endpoints.endpoint(url)
    except ValueError as error:
        raise SetupError(f"{where}: {error}") from None


def _home(environment: Mapping[str, str]) -> Path:
    home = environment.get("HOME")
    return (Path(home) if home else Path.home()) / ".one"


def _asked() -> str:
    # Python has None for one that is closed.
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            return getpass.getpass("Password: ")
        except EOFError:
            raise SetupError("no password was given") from None
    # A script's password, which so is in no list of processes.
    line = "" if sys.stdin is None else sys.stdin.readline()
    if not line:
        raise SetupError("no password was given")
    return line.rstrip("\n")

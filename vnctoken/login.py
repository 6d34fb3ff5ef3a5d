"""The service's own login at oned, as OpenNebula's other servers have one: it acts as itself, or as any user.

What proves a login is the affair of a driver: `server_cipher`, a shared password, or `server_x509`, a private key.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.logger import Logger

from vnctoken.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vnctoken.auth.server_driver import ServerDriver

CIPHER_FILES = ("vnctoken_auth", "sunstone_auth")
"""Where the user and password of the cipher are, the first that there is; systemd may hand over the first one."""


class LoginUnavailableError(ConfigError):
    """Raised if the package is missing that makes session strings of a login. The text says what to install."""


class ServerLogin:
    """Session strings of a server user, made by a driver.

    They all have the same end for `expire_delta` seconds, and a later one when less than `expire_margin` seconds are
    left. That is the rule of OpenNebula's servers: oned starts its driver for a session string that is new to it.

    The driver looks for each session string whether its files have changed, so a new password counts at once. If they
    cannot be used any more, those read last are used on: oned judges them anyway.
    """

    _log = Logger()

    def __init__(
        self, driver: ServerDriver, now: Callable[[], float], *, expire_delta: int, expire_margin: int
    ) -> None:
        self._driver = driver
        self._now = now
        self._delta = expire_delta
        self._margin = expire_margin
        self._expires = 0
        self._trouble = False

    @classmethod
    def load(  # noqa: PLR0913 (where it is, and how long it lasts)
        cls,
        core_auth: str,
        *,
        folder: Path,
        etc: Path,
        now: Callable[[], float],
        expire_delta: int,
        expire_margin: int,
        environment: Mapping[str, str] = os.environ,
    ) -> ServerLogin | None:
        """Return the login, None if there is no file with one. `now` returns the second of the epoch by the clock.

        `core_auth` is "cipher", for which a user and password are in `folder` or among systemd's credentials, which the
        `environment` tells of; or "x509", for which `etc` is where OpenNebula is configured. Raises ConfigError if a
        file cannot be read or holds no login, and its subclass LoginUnavailableError if cryptography is not installed.
        """
        x509 = core_auth == "x509"
        files = iter([etc / "auth" / "server_x509_auth.conf"]) if x509 else _cipher_files(folder, environment)
        path = next(filter(_is_there, files), None)
        if path is None:
            return None
        driver = _driver(core_auth, path, now)
        return cls(driver, now, expire_delta=expire_delta, expire_margin=expire_margin)

    def __repr__(self) -> str:
        return f"<ServerLogin by {self._driver!r}>"

    def session(self, target: str | None = None) -> str:
        """Return a session string of the server user as himself, or as another user.

        It is good for `expire_margin` seconds at least. Raises AuthenticationError for a name that cannot stand in a
        session string.
        """
        self._refresh()
        now = int(self._now())
        # More than the delta is left if the clock was set back; that login would live for as much longer.
        if not self._margin <= self._expires - now <= self._delta:
            self._expires = now + self._delta
        return self._driver.session(target, self._expires)

    def _refresh(self) -> None:
        try:
            self._driver.refresh()
        except ConfigError as error:
            if not self._trouble:
                self._log.warn("{reason}; the login read before is used on", reason=str(error))
            self._trouble = True
        else:
            self._trouble = False


def _driver(core_auth: str, path: Path, now: Callable[[], float]) -> ServerDriver:
    try:
        from vnctoken.auth.server_cipher import ServerCipher  # noqa: PLC0415 (cryptography is an extra)
        from vnctoken.auth.server_x509 import ServerX509  # noqa: PLC0415 (cryptography is an extra)
    except ImportError:
        raise LoginUnavailableError("OpenNebula's server login needs cryptography: install vnctoken[login]") from None
    return ServerX509(path, now) if core_auth == "x509" else ServerCipher(path)


def _cipher_files(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    # In some containers systemd 252 can make this folder, but put nothing there; then it is root's alone.
    if os.access(credentials := environment.get("CREDENTIALS_DIRECTORY", ""), os.X_OK):
        yield Path(credentials) / CIPHER_FILES[0]
    yield from map(folder.joinpath, CIPHER_FILES)


def _is_there(path: Path) -> bool:
    """Whether there is a file, or something else that reading it will stumble over."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True

"""What a check of the doctor's finds, and the checks of what is on this machine's disk."""

from __future__ import annotations

import pwd
import stat
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vnctoken.config import Config

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"

# What each extra of setup.cfg brings, as it is imported.
_MODULES = {
    "tls": ("OpenSSL", "service_identity"),
    "login": ("cryptography",),
    "events": ("zmq",),
    "redis": ("txredisapi",),
    "jwt": ("jwcrypto",),
    "metrics": ("prometheus_client",),
}


@dataclass(frozen=True)
class Check:
    """What was looked at and found; `advice` says what to do, "" if nothing is to be done."""

    name: str
    status: str
    detail: str
    advice: str = ""

    @property
    def line(self) -> str:
        """The check in one line for a person."""
        status = self.status.upper() if self.status == FAIL else self.status
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{status:<4} {self.name:<10} {self.detail}{advice}"


def check_config(warnings: Sequence[str]) -> Check:
    """Report what was noticed in a configuration that can be used."""
    if warnings:
        return Check(
            "config", WARN, "; ".join(warnings), "change the file; vnctoken-server --check shows what is in effect"
        )
    return Check("config", OK, "the configuration is valid")


def check_extras(config: Config) -> Check:
    """Look whether the optional packages are there that the configuration calls for."""
    needed = list(_needed(config))
    missing = [(extra, why) for extra, why, _ in needed if not _importable(extra)]
    if not missing:
        names = sorted({extra for extra, _, _ in needed})
        return Check("extras", OK, f"installed: {', '.join(names)}" if names else "none is needed")
    vital = any(extra in dict(missing) and must for extra, _, must in needed)
    return Check(
        "extras",
        FAIL if vital else WARN,
        "; ".join(f"vnctoken[{extra}] is not installed, {why}" for extra, why in missing),
        f"pip install 'vnctoken[{','.join(sorted(dict(missing)))}]' into {sys.prefix}",
    )


def _needed(config: Config) -> Iterator[tuple[str, str, bool]]:
    """Tell the extras that are called for, what for, and whether the service is not whole without."""
    for key, url in ((":one_xmlrpc:", config.one_xmlrpc), (":public_url:", config.public_url)):
        if url is not None and urlsplit(url).scheme == "https":
            yield "tls", f"which https in {key} takes", key == ":one_xmlrpc:"
    if config.monitor_listen is not None:
        yield "metrics", "so there are no metrics at :monitor_listen:", False
    if config.token_store == "redis":  # noqa: S105 (a kind of store)
        yield "redis", "which :token_store: redis takes", True
        if config.redis_tls:
            yield "tls", "which :redis_tls: takes", True
    if config.token_store == "jwt":  # noqa: S105
        yield "jwt", "which :token_store: jwt takes", True
    if needed := config.needs_login:
        yield "login", f"without which nothing goes, as {' and '.join(needed)}", True
    if config.token_store == "jwt":  # noqa: S105
        return
    if config.recheck_interval:
        yield "login", "so tokens outlive their VM's console", False
    if config.subscriber_endpoint:
        yield "events", "so tokens do not die at once with their VM's console", False


def _importable(extra: str) -> bool:
    try:
        for module in _MODULES[extra]:
            import_module(module)
    except ImportError:
        return False
    return True


def check_folder(folder: Path, user: int) -> Check | None:
    """Return what is wrong with the token folder for this user, None if it may be written to.

    Nothing is written or made: what somebody other than the owner writes there breaks every console.
    """
    incoming = folder.with_name(folder.name + ".new")
    try:
        statuses = {path: path.stat() for path in (folder, incoming)}
    except FileNotFoundError as error:
        return _unusable(
            f"{error.filename}: there is no such folder", "start the service, which makes it: systemctl start vnctoken"
        )
    except OSError as error:
        return _unusable(f"{error.filename}: {error.strerror}", "sudo -u oneadmin vnctoken-server --doctor")
    owner = _name(statuses[folder].st_uid)
    if statuses[folder].st_uid != user:
        return _unusable(
            f"{folder} is {owner}'s and this is {_name(user)}, so nothing was tried there",
            f"sudo -u {owner} vnctoken-server --doctor",
        )
    for path, status in statuses.items():
        if not stat.S_ISDIR(status.st_mode):
            return _unusable(f"{path} is not a folder", "move it away, and systemctl restart vnctoken")
        if status.st_uid != user:
            return _unusable(
                f"{path} is {_name(status.st_uid)}'s, but {folder} is {owner}'s", f"chown -R {owner} {path}"
            )
        if status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            mode = stat.S_IMODE(status.st_mode)
            return _unusable(f"{path} has mode {mode:04o}, so that {owner} cannot use it", f"chmod 700 {path}")
    if statuses[folder].st_dev != statuses[incoming].st_dev:
        return _unusable(f"{folder} and {incoming} are on different file systems", "have both on one")
    return None


def check_privacy(path: Path, remedy: str) -> Check | None:
    """Warn if all users of this machine can look into the token folder, or read a key."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None
    if not mode & stat.S_IRWXO:
        return None
    return Check(
        "store", WARN, f"{path} has mode {mode:04o}: every user of this machine can read it", f"{remedy} {path}"
    )


def _unusable(detail: str, advice: str) -> Check:
    return Check("store", FAIL, detail, advice)


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"

"""The arguments of the `vnctoken` command."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, TypeVar

from vnctoken import __version__
from vnctoken.client import endpoints, pool, tables

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")

_MAX_SECONDS = 2**31 - 1


def parser() -> argparse.ArgumentParser:
    """Return the parser; what it finds has the attributes `command`, `vms` and those of the command's options."""
    whole = argparse.ArgumentParser(
        prog="vnctoken",
        description="Open the consoles of OpenNebula's virtual machines.",
        epilog="vnctoken COMMAND --help tells a command's options. Exit codes: 0 done, 1 refused or failed, 2 wrong"
        " usage, 130 interrupted.",
    )
    whole.add_argument("-V", "-v", "--version", action="version", version=f"vnctoken {__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", dest="command", required=True)
    login, terms = _login(), _terms()

    def command(name: str, description: str, *parents: argparse.ArgumentParser, **vms: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=description, description=f"{description.capitalize()}.", parents=parents)
        made.add_argument(
            "vms", metavar="VM", type=_checked(pool.references), help="an id or a name, or several: 7,9 or 7..9", **vms
        )
        return made

    shown = command("show", "open a console, and show what a viewer needs", terms, login)
    _formats(shown)
    command("token", "open a console, and print the token alone", terms, login)
    command("open", "open a console in the browser", terms, login)
    revoked = command("revoke", "take tokens back; consoles that are open stay open", login)
    revoked.add_argument("token", metavar="TOKEN", nargs="?", help="this one only: the token, or its fingerprint")
    listed = command("list", "list the live tokens of VMs, or of all that you may see", login, nargs="?")
    _formats(listed).add_argument("--csv", action="store_true", help="print comma-separated values")
    listed.add_argument(
        "-l", "--list", metavar="COLUMNS", type=_checked(_columns), help=f"columns, of {','.join(tables.COLUMNS)}"
    )
    return whole


def _login() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--user", metavar="NAME", help="log in as this user, and not as your one_auth file says")
    parent.add_argument("--password", help="the password or login token of --user; without it you are asked")
    parent.add_argument(
        "--endpoint", metavar="URL", type=_checked(endpoints.endpoint), help="where vnctoken-server answers"
    )
    return parent


def _terms() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--ttl", metavar="SECONDS", type=_checked(_seconds), help="how long the token opens its console"
    )
    parent.add_argument("--single-use", action="store_true", help="let the token open one console only")
    parent.add_argument("--client", metavar="ADDRESS", help="let only a browser at this IP address use the token")
    return parent


def _formats(command: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    formats = command.add_mutually_exclusive_group()
    formats.add_argument("-j", "--json", action="store_true", help="print JSON")
    formats.add_argument("-x", "--xml", action="store_true", help="print XML")
    return formats


def _checked(read: Callable[[str], _Result]) -> Callable[[str], _Result]:
    """Return a reader whose ValueError is what argparse tells the user."""

    def checked(text: str) -> _Result:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _seconds(text: str) -> int:
    if not (
        text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_SECONDS)) and 1 <= int(text) <= _MAX_SECONDS
    ):
        raise ValueError(f"a number of seconds from 1 to {_MAX_SECONDS} is expected")
    return int(text)


def _columns(text: str) -> list[str]:
    wanted = [name.strip().upper() for name in text.split(",")]
    if unknown := [name for name in wanted if name not in tables.COLUMNS]:
        raise ValueError(f"there is no column {tables.printable(unknown[0])}; expected {','.join(tables.COLUMNS)}")
    return wanted

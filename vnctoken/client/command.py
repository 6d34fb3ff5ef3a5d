"""The `vnctoken` command: consoles for people, in the manner of OpenNebula's own commands."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from vnctoken.client import accounts, pool, tables
from vnctoken.client.browser import show_link
from vnctoken.client.errors import AuthenticationError, ClientError, NoExistsError, VnctokenError
from vnctoken.client.options import parser
from vnctoken.client.sync import Client
from vnctoken.safexml import DocumentError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from vnctoken.client.calls import LiveToken

_Result = TypeVar("_Result")

ANSWER_SECONDS = 30
"""How long an answer may take; vnctoken-server itself waits 25 s for oned."""

DONE, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes; wrong usage is argparse's 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the arguments ask for, and return the exit code."""
    # Python has None for one that is closed.
    out, err = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    for stream in (out, err):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        reader = parser()
        options = reader.parse_args(arguments)
        if options.password is not None and options.user is None:
            reader.error("--password is for --user")
        code = Command(options, os.environ, out, err).run()
        out.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # What is left in the buffer must not fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            print(f"vnctoken: the output cannot be written: {error.strerror}", file=err)
        return FAILED
    return code


class Command:
    """What some options ask for, done for somebody who reads `out` and `err`."""

    def __init__(self, options: argparse.Namespace, environment: Mapping[str, str], out: TextIO, err: TextIO) -> None:
        self._options = options
        self._environment = environment
        self._out = out
        self._err = err
        self._code = DONE
        self._session = ""

    def run(self) -> int:
        """Do it, and return the exit code."""
        options = self._options
        does = {
            "show": self._show,
            "token": self._token,
            "open": self._open,
            "revoke": self._revoke,
            "list": self._list,
        }[options.command]
        try:
            at = options.endpoint or accounts.service(self._environment)
            self._session = accounts.session(options.user, options.password, self._environment)
            does(Client(at.url, self._session, timeout=ANSWER_SECONDS))
        except (VnctokenError, accounts.SetupError, DocumentError, ValueError) as error:
            self._complain(str(error))
        return self._code

    def _show(self, client: Client) -> None:
        vm_ids, options = self._vm_ids(), self._options
        if options.xml:
            documents = list(self._of_each(vm_ids, lambda vm_id: client.xml(vm_id, **self._terms)))
            self._print([tables.console_xml(documents, pooled=len(vm_ids) > 1)] if documents else [])
            return
        consoles = self._of_each(vm_ids, lambda vm_id: client.console(vm_id, **self._terms))
        if options.json:
            objects = [tables.console_object(console) for console in consoles]
            self._print([tables.as_json(objects[0] if len(vm_ids) == 1 else objects)] if objects else [])
            return
        self._print(tables.console_table(console, styled=self._out.isatty()) for console in consoles)

    def _token(self, client: Client) -> None:
        self._print(self._of_each(self._vm_ids(), lambda vm_id: client.token(vm_id, **self._terms)))

    def _open(self, client: Client) -> None:
        def opened(vm_id: int) -> None:
            console = client.console(vm_id, **self._terms)
            if console.url is None:
                raise ClientError(
                    "the service has no page that shows consoles; its operator names one with :console_url:."
                    f" vnctoken show {vm_id} tells what another viewer needs"
                )
            show_link(console.url)

        for _ in self._of_each(self._vm_ids(), opened):
            pass

    def _revoke(self, client: Client) -> None:
        def revoked(vm_id: int) -> str:
            count = client.revoke(vm_id, self._options.token)
            return f"VM {vm_id}: {count} {'token' if count == 1 else 'tokens'} revoked"

        self._print(self._of_each(self._vm_ids(), revoked))

    def _list(self, client: Client) -> None:
        options = self._options
        if options.vms is None:
            names = self._visible()
            vm_ids, named = list(names), True
        else:
            named = any(isinstance(one, str) for one in options.vms)
            names = self._visible() if named else {}
            vm_ids = pool.ids(options.vms, lambda: names)
        # One alone, so that a wrong password is one failed attempt and not one for each VM.
        found = client.tokens_by_vm(vm_ids[:1])
        for answer in found.values():
            if isinstance(answer, AuthenticationError):
                raise answer
        found |= client.tokens_by_vm(vm_ids[1:])
        rows = self._rows(found, names)
        columns = options.list or [column for column in tables.DEFAULT_COLUMNS if named or column != "NAME"]
        if options.json:
            self._print([tables.as_json([tables.token_object(row) for row in rows])])
        elif options.xml:
            self._print([tables.token_xml(rows)])
        elif options.csv:
            self._print([tables.token_csv(rows, columns)])
        else:
            self._print([tables.token_table(rows, columns, styled=self._out.isatty())])

    def _rows(self, found: Mapping[int, list[LiveToken] | VnctokenError], names: Mapping[int, str]) -> list[tables.Row]:
        """Return a row for each token, and complain once of each kind of refusal."""
        rows: list[tables.Row] = []
        refused: dict[str, list[int]] = {}
        for vm_id, answer in found.items():
            if isinstance(answer, list):
                rows += [(vm_id, names.get(vm_id, ""), live) for live in answer]
            elif self._options.vms is not None or not isinstance(answer, NoExistsError):
                # Who named no VM does not miss one that ended in between.
                refused.setdefault(str(answer), []).append(vm_id)
        for message, vm_ids in refused.items():
            more = f" and {len(vm_ids) - 1} more" if len(vm_ids) > 1 else ""
            self._complain(f"VM {vm_ids[0]}{more}: {message}")
        return rows

    @property
    def _terms(self) -> dict[str, Any]:
        options = self._options
        return {"ttl": options.ttl, "single_use": options.single_use, "client": options.client}

    def _vm_ids(self) -> list[int]:
        return pool.ids(self._options.vms, self._visible)

    def _visible(self) -> dict[int, str]:
        return pool.visible_vms(accounts.oned(self._environment), self._session, ANSWER_SECONDS)

    def _of_each(self, vm_ids: Sequence[int], ask: Callable[[int], _Result]) -> Iterator[_Result]:
        """Yield what comes of each VM, and complain of those that are refused; some troubles are everybody's."""
        for vm_id in vm_ids:
            try:
                yield ask(vm_id)
            except (ClientError, AuthenticationError):  # noqa: PERF203 (each may be refused)
                raise
            except VnctokenError as error:
                self._complain(f"VM {vm_id}: {error}")

    def _print(self, texts: Iterable[str]) -> None:
        for text in texts:
            print(text, file=self._out)

    def _complain(self, problem: str) -> None:
        print(f"vnctoken: {tables.printable(problem)}", file=self._err)
        self._code = FAILED


if __name__ == "__main__":
    sys.exit(main())

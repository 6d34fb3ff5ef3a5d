"""What SIGHUP asks for: log files opened anew, and the configuration read again."""

from __future__ import annotations

import signal
from dataclasses import fields
from typing import TYPE_CHECKING, Protocol

from twisted.logger import Logger

from vnctoken.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from types import FrameType

    from vnctoken.config import Config
    from vnctoken.log import Log
    from vnctoken.systemd import Notifier


class Reloadable(Protocol):
    """What works by a configuration; the service is one."""

    running: int

    @property
    def status(self) -> str:
        """How things are, in one line."""

    def reload(self, config: Config) -> list[str]:
        """Take a configuration, and return the keys whose change takes a restart. Raises ConfigError."""

    def reopen(self) -> None:
        """Open its own files anew."""


class Reload:
    """Carries out what SIGHUP asks for. `now` returns the time of day, for the status of a reload that failed."""

    _log = Logger()

    def __init__(  # noqa: PLR0913 (what a reload concerns)
        self,
        config: Config,
        read: Callable[[], tuple[Config, list[str]]],
        *,
        service: Reloadable,
        log: Log,
        notifier: Notifier,
        now: Callable[[], datetime],
    ) -> None:
        self._config = config
        self._read = read
        self._service = service
        self._log_files = log
        self._notifier = notifier
        self._now = now
        self._waiting: list[str] = []
        self._trouble = ""

    @property
    def status(self) -> str:
        """The service's, and why the last reload has failed, if it has."""
        return self._service.status + self._trouble

    def carry_out(self) -> None:
        """Open the log files anew and take the configuration; if it is wrong, say so and go on with the one before."""
        if not self._service.running:
            return
        self._notifier.reloading()
        self._trouble = ""
        try:
            try:
                self._log_files.reopen(self._config)
            finally:
                self._service.reopen()
            self._take()
        except ConfigError as error:
            self._log.error("{problem}; what was read before stays in use", problem=str(error))
            self._trouble = f"; the reload at {self._now().isoformat(timespec='seconds')} failed: {error}"
        except Exception:  # noqa: BLE001 (calls are answered all the same)
            self._log.failure("the configuration could not be reloaded; what was read before stays in use")
            self._trouble = f"; the reload at {self._now().isoformat(timespec='seconds')} failed: the log says why"
        finally:
            self._notifier.reloaded()

    def _take(self) -> None:
        config, warnings = self._read()
        waiting = self._service.reload(config)
        changed = [
            key
            for field in fields(config)
            if getattr(config, field.name) != getattr(self._config, field.name)
            # What has waited for a restart and waits no longer is as it was all the time.
            if (key := ":log:" if field.name == "log_system" else f":{field.name}:") not in {*waiting, *self._waiting}
        ]
        self._config, self._waiting = config, waiting
        self._log_files.reopen(config)
        for warning in warnings:
            self._log.warn("{warning}", warning=warning)
        if waiting:
            self._log.warn("a restart is needed for what was changed at {keys}", keys=", ".join(waiting))
        self._log.info("the configuration was reloaded; changed: {keys}", keys=", ".join(changed) or "nothing")


class Hangup:
    """Catches SIGHUP, which would end the process, from when it is made; what came too early is not forgotten."""

    def __init__(self) -> None:
        self._came = False
        self._answer: Callable[[], None] | None = None
        signal.signal(signal.SIGHUP, self._take)

    def answer_by(self, answer: Callable[[], None]) -> None:
        """Call `answer`, which must be fit for a signal handler, at each SIGHUP, and now if there was one."""
        self._answer = answer
        if self._came:
            answer()

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._answer is not None:
            self._answer()

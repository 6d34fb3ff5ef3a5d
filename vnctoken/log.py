"""Where log events go: the family's pair of files, or standard error for the journal."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from twisted.logger import LogLevel, eventAsText, globalLogBeginner

from vnctoken.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TextIO

    from twisted.logger import ILogObserver, LogEvent

    from vnctoken.config import Config

# The family's numbers, and sd-daemon(3)'s: the journal takes the priority from the line.
_DEBUG_LEVELS = {
    LogLevel.critical: 0,
    LogLevel.error: 0,
    LogLevel.warn: 1,
    LogLevel.info: 2,
    LogLevel.debug: 3,
}
_PRIORITIES = {LogLevel.critical: 2, LogLevel.error: 3, LogLevel.warn: 4, LogLevel.info: 6, LogLevel.debug: 7}
_WARNING = 1


def logs_to_stderr(config: Config, environment: Mapping[str, str]) -> bool:
    """Return whether the log goes to standard error: it is the journal (JOURNAL_STREAM), or `:log:` says so."""
    return "JOURNAL_STREAM" in environment or config.log_system == "syslog"


class Log:
    """Where the process's log events go; it may change in between two of them.

    To standard error with priorities if `logs_to_stderr`, else appended to vnctoken.log and, from WARNING up, to
    vnctoken.error. Raises ConfigError if these cannot be opened.
    """

    def __init__(self, config: Config, environment: Mapping[str, str]) -> None:
        self._to_stderr = logs_to_stderr(config, environment)
        self._files = ExitStack()
        self.reopen(config)

    def __call__(self, event: LogEvent) -> None:
        """Take an event."""
        self._observe(event)

    def reopen(self, config: Config) -> None:
        """Open the files anew, which may have been renamed, and log as much as the configuration says from now on.

        Raises ConfigError if they cannot be opened, and goes on with those that are open.
        """
        with ExitStack() as opening:
            if self._to_stderr:
                observe = to_journal(config.debug_level, sys.stderr)
            else:
                files = [opening.enter_context(_opened(config, name)) for name in ("vnctoken.log", "vnctoken.error")]
                observe = to_files(config.debug_level, *files)
            before, self._files, self._observe = self._files, opening.pop_all(), observe
            # With an error it closes them too: lines that a full disk had no room for are still waiting in them.
            with suppress(OSError):
                before.close()

    def close(self) -> None:
        """Close the files."""
        self._files.close()


def start_logging(config: Config, environment: Mapping[str, str]) -> Log:
    """Send the process's log events where they belong. Raises ConfigError as `Log` does."""
    log = Log(config, environment)
    globalLogBeginner.beginLoggingTo([cast("ILogObserver", log)], redirectStandardIO=False)
    return log


def to_files(debug_level: int, everything: TextIO, warnings: TextIO) -> Callable[[LogEvent], None]:
    """Return an observer that writes events up to a debug level, and those from WARNING up again to `warnings`."""

    def observe(event: LogEvent) -> None:
        level = event["log_level"]
        if _DEBUG_LEVELS[level] <= debug_level:
            text = _text(event).replace("\n", "\n\t")
            line = f"{_time(int(event['log_time']))} {level.name.upper():8} {text}\n"
            everything.write(line)
            if _DEBUG_LEVELS[level] <= _WARNING:
                warnings.write(line)

    return observe


def to_journal(debug_level: int, stream: TextIO) -> Callable[[LogEvent], None]:
    """Return an observer that writes events up to a debug level, each line with its priority."""

    def observe(event: LogEvent) -> None:
        level = event["log_level"]
        if _DEBUG_LEVELS[level] <= debug_level:
            stream.write("".join(f"<{_PRIORITIES[level]}>{line}\n" for line in _text(event).splitlines()))
            stream.flush()

    return observe


def _text(event: LogEvent) -> str:
    return eventAsText(event, includeTimestamp=False, includeSystem=False)


@lru_cache(maxsize=1)
def _time(second: int) -> str:
    return datetime.fromtimestamp(second, tz=timezone.utc).astimezone().isoformat()


def _opened(config: Config, name: str) -> TextIO:
    path = config.log_folder / name
    try:
        # Line by line: who reads along, or renames it, finds whole ones.
        return path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise ConfigError(
            f"{path}: the log cannot be opened ({error.strerror}); the folder must exist and this user must be able to"
            " write there, or ONE_LOCATION must be set for a self-contained installation"
        ) from None

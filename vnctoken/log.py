"""Where log events go: the family's pair of files, or standard error for the journal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    formatEventAsClassicLogText,
    formatTime,
    globalLogBeginner,
)

from vnctoken.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    from constantly import NamedConstant
    from twisted.logger import LogEvent

    from vnctoken.config import Config

LEVELS = (LogLevel.error, LogLevel.warn, LogLevel.info, LogLevel.debug)
"""What the numbers of :debug_level: mean."""

# sd-daemon(3): the journal takes the priority from the line.
_PRIORITIES = {
    LogLevel.debug: 7,
    LogLevel.info: 6,
    LogLevel.warn: 4,
    LogLevel.error: 3,
    LogLevel.critical: 2,
}


def start_logging(config: Config, environment: Mapping[str, str]) -> None:
    """Send the process's log events where they belong.

    To standard error with priorities if that is the journal (JOURNAL_STREAM) or `:log: :system: syslog` says so, else
    appended to vnctoken.log and, from WARNING up, to vnctoken.error. Raises ConfigError if these cannot be opened.
    """
    level = LEVELS[config.debug_level]
    if "JOURNAL_STREAM" in environment or config.log_system == "syslog":
        observers = [_filtered(FileLogObserver(sys.stderr, _for_journal), level)]
    else:
        everything, errors = (_opened(config, name) for name in ("vnctoken.log", "vnctoken.error"))
        observers = [
            _filtered(FileLogObserver(everything, _for_file), level),
            _filtered(FileLogObserver(errors, _for_file), min(LogLevel.warn, level, key=LEVELS.index)),
        ]
    globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False)


def _filtered(observer: ILogObserver, level: NamedConstant) -> ILogObserver:
    return FilteringLogObserver(observer, [LogLevelFilterPredicate(defaultLogLevel=level)])


def _opened(config: Config, name: str) -> TextIO:
    path = config.log_folder / name
    try:
        # Appending, line by line: what makes logrotate's copytruncate safe.
        return path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise ConfigError(
            f"{path}: the log cannot be opened ({error.strerror}); the folder must exist and this user must be able to"
            " write there, or ONE_LOCATION must be set for a self-contained installation"
        ) from None


def _for_file(event: LogEvent) -> str | None:
    return formatEventAsClassicLogText(event, lambda when: formatTime(when))


def _for_journal(event: LogEvent) -> str | None:
    text = formatEventAsClassicLogText(event, lambda _: "")
    priority = _PRIORITIES[event["log_level"]]
    return text and "".join(f"<{priority}>{line}\n" for line in text.strip().splitlines())

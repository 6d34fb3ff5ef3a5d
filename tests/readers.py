"""Readers of the token folder: websockify as it is today, and one with the rules of OpenNebula's copy.

Run as a program, with the name of a class, the folder and a file with a token in each line, this reads without a pause
until its input ends, and tells what it found.
"""

import json
import logging
import os
import sys
import threading
import time
import warnings
from pathlib import Path

from websockify.token_plugins import ReadOnlyTokenFile, TokenFile


class Older:
    """OpenNebula's copy: every name is opened, every line is split, nothing is checked."""

    def __init__(self, folder):
        self._folder = Path(folder)
        self._targets = {}

    def lookup(self, token):
        """Read the folder and return a token's host and port, None if it is unknown."""
        targets = {}
        for name in os.listdir(self._folder):  # noqa: PTH208 (as the copy does)
            with (self._folder / name).open(encoding="utf-8") as file:
                for line in file:
                    stripped = line.strip()
                    if not stripped.startswith("#"):
                        known, target = stripped.split(": ")
                        targets[known] = target.rsplit(":", 1)
        self._targets = targets
        return targets.get(token)

    def again(self, token):
        """Look another token up in what was read last."""
        return self._targets.get(token)


class Newer:
    """websockify's own plugin; what it would complain about in its log is raised."""

    def __init__(self, folder):
        self._plugin = TokenFile(str(folder))

    def lookup(self, token):
        """Read the folder and return a token's host and port, None if it is unknown."""
        logger, refuse = logging.getLogger("websockify"), _Refuse(logging.WARNING)
        logger.addHandler(refuse)
        try:
            with warnings.catch_warnings():
                # It leaves it to Python to close the files.
                warnings.simplefilter("ignore", ResourceWarning)
                return self._plugin.lookup(token)
        finally:
            logger.removeHandler(refuse)

    def again(self, token):
        """Look another token up in what was read last."""
        return ReadOnlyTokenFile.lookup(self._plugin, token)


class _Refuse(logging.Handler):
    def emit(self, record):
        raise ValueError(record.getMessage())


def opens(folder, token):
    """Return the host and port that a token opens; both readers have to agree."""
    newer, older = Newer(folder).lookup(token), Older(folder).lookup(token)
    assert newer == older
    return newer


def read_on_and_on(reader, journal, ended):
    """Return when each reading began and ended, in seconds of the monotonic clock, and what was found.

    That is for each token of the journal a list of [first reading, last reading, target], and for each reading that
    failed its beginning and why. A token that is in the journal when a reading begins is asked for in it.
    """
    times, found, failures, tokens = [], {}, [], [""]
    rest = b""
    while not ended.is_set():
        began = time.monotonic()
        *lines, rest = (rest + journal.read()).split(b"\n")
        tokens += [line.decode() for line in lines]
        try:
            reader.lookup(tokens[-1])
        except Exception as error:  # noqa: BLE001 (every one counts)
            failures.append([began, repr(error)])
            continue
        for token in tokens:
            if (target := reader.again(token)) is not None:
                runs = found.setdefault(token, [])
                if runs and runs[-1][1:] == [len(times) - 1, target]:
                    runs[-1][1] = len(times)
                else:
                    runs.append([len(times), len(times), target])
        times.append([began, time.monotonic()])
    return {"times": times, "found": found, "failures": failures}


def _main(kind, folder, journal):
    ended = threading.Event()

    def wait_for_the_end():
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with Path(journal).open("rb", buffering=0) as lines:
        seen = read_on_and_on({"Older": Older, "Newer": Newer}[kind](folder), lines, ended)
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])

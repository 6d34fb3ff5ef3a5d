"""What is there to be seen: in the token folder only complete files, at any instant, and in the log no secret."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import struct
import threading

IN_MODIFY, IN_MOVED_TO, IN_CREATE = 0x2, 0x80, 0x100
_EVENT = struct.Struct("iIII")
_NAME = re.compile("one-[0-9]+")
_LINE = re.compile(r"#.*|[A-Za-z0-9]+: [A-Za-z0-9.:-]+:[0-9]{1,5}")
_MOST = 20


def problem_in(name, content):
    """Return what is wrong with a file in the token folder, None if websockify's readers can take it."""
    if not _NAME.fullmatch(name):
        return f"{name} is no token file"
    if content and not content.endswith(b"\n"):
        return f"{name} is incomplete: its last line has no end"
    for line in content.decode(errors="replace").splitlines():
        if not _LINE.fullmatch(line):
            return f"{name} has a line that is neither a token nor a comment"
    return None


def left_in(folder):
    """Return what is wrong in a token folder, and what lies beside it half-written."""
    found = [problem_in(path.name, path.read_bytes()) for path in folder.iterdir()]
    incoming = folder.with_name(folder.name + ".new")
    return [*filter(None, found), *(f"{path.name} is left half-written" for path in incoming.iterdir())]


def told_too_much(log):
    """Return what must not be in the service's log: passwords, and tracebacks, which are bugs."""
    found = []
    if ":secret" in log or "with:colons" in log:
        found.append("a password is in the log")
    if (times := log.count("Traceback (most recent call last)")) > 0:
        last = log[log.rindex("Traceback (most recent call last)") :].splitlines()
        end = next((line for line in last[1:] if not line.startswith("<2>  ") and ": " in line), "")
        found.append(f"{times} tracebacks in the log, the last one: {end.strip()}")
    return found


class Watcher:
    """Watches a folder from `start` to `stop`, as the kernel tells of everything that is done there (inotify(7)).

    `problems` is what was wrong, `seen` how often a file was moved in.
    """

    def __init__(self, folder):
        self._folder = folder
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ending, self._end = os.pipe()
        self.problems = []
        self.seen = 0

    def start(self):
        self._descriptor = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        path = os.fsencode(self._folder)
        mask = IN_CREATE | IN_MODIFY | IN_MOVED_TO
        if self._descriptor < 0 or self._libc.inotify_add_watch(self._descriptor, path, mask) < 0:
            raise OSError(ctypes.get_errno(), "the token folder cannot be watched")
        self._thread.start()

    def stop(self):
        os.close(self._end)
        self._thread.join()
        os.close(self._descriptor)
        os.close(self._ending)

    def _run(self):
        while True:
            ready, _, _ = select.select([self._descriptor, self._ending], [], [])
            with contextlib.suppress(BlockingIOError):
                self._take(os.read(self._descriptor, 65536))
            if self._ending in ready:
                return

    def _take(self, events):
        while events:
            _, mask, _, length = _EVENT.unpack_from(events)
            name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
            events = events[_EVENT.size + length :]
            if mask & (IN_CREATE | IN_MODIFY):
                # A reader could have come in between.
                self._report(f"{name} was written in the folder itself instead of being moved in whole")
            self.seen += 1
            with contextlib.suppress(FileNotFoundError):
                self._report(problem_in(name, (self._folder / name).read_bytes()))

    def _report(self, problem):
        if problem and len(self.problems) < _MOST and problem not in self.problems:
            self.problems.append(problem)

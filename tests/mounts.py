"""Ordinary users and mounts, for tests of what a filesystem may refuse."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import program, running

NOBODY = 65534


@contextlib.contextmanager
def nobody_in(folder):
    """Be an ordinary user in a folder of his own; paths have to be relative, as pytest's are root's."""
    before = Path.cwd()
    os.chdir(folder)
    if is_root := os.geteuid() == 0:
        os.chown(folder, NOBODY, -1)
        try:
            os.setresuid(NOBODY, NOBODY, 0)
        except OSError as error:
            pytest.skip(f"root here cannot become an ordinary user: {error}")
    try:
        yield
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        os.chdir(before)


def elsewhere(function, path):
    """Carry out a test file's function in a mount namespace, where it may mount what it likes; root or not.

    The file has to carry out the function that its first argument names.
    """
    namespace = [program("unshare"), "--mount"]
    if os.geteuid() != 0:
        namespace += ["--user", "--map-root-user"]
    with running(*namespace, program("mount"), "-t", "tmpfs", "none", path) as trial:
        if trial.process.wait(30):
            trial.stop()
            pytest.skip(f"no mount namespace to be had here: {trial.output}")
    in_process(function, path, *namespace)


def in_process(function, path, *before):
    """Carry out a test file's function in a process of its own; `before` is what its command begins with."""
    file = sys.modules[function.__module__].__file__
    with running(*before, sys.executable, "-W", "error", file, function.__name__, path) as process:
        process.process.wait(60)
        code = process.stop()
        assert code == 0, process.output


def mount(place, *options):
    """Mount something at a place."""
    subprocess.run([program("mount"), *options, place], check=True)


def unmount(place):
    """Take away what is mounted at a place."""
    subprocess.run([program("umount"), place], check=True)

"""A systemd that is the first process of namespaces of its own, on a copy of this machine that forgets everything."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT, program, running
from webservers import until

PYTHON = Path("/opt/python")
PACKAGES = Path("/opt/packages")
SOURCES = Path("/opt/sources")

# What a container gets, with a writable layer in memory over this machine's files.
BOOT = r"""
set -eu
work=$1 python=$2 packages=$3 sources=$4 ; shift 4
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$work"
mkdir "$work/upper" "$work/layer" "$work/root" "$work/cgroup"
mount -t cgroup2 cgroup2 "$work/cgroup"
mkdir "$work/cgroup/$CGROUP"
echo $$ >"$work/cgroup/$CGROUP/cgroup.procs"
umount "$work/cgroup"
exec unshare --cgroup sh -euc '
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/layer" "$1/root"
cd "$1/root"
mkdir -p ./opt/python ./opt/packages ./opt/sources
mount --bind "$2" ./opt/python
mount --bind "$3" ./opt/packages
mount --bind "$4" ./opt/sources
shift 4
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for folder in run tmp var/tmp var/lib/systemd var/log; do
    mkdir -p $folder
    mount -t tmpfs -o mode=0755 tmpfs $folder
done
chmod 1777 tmp var/tmp
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
ln -s /proc/self/fd dev/fd; ln -s pts/ptmx dev/ptmx
mkdir dev/shm dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
rm -rf etc/systemd/system etc/fstab etc/credstore
mkdir -p etc/systemd/system
touch etc/fstab
pivot_root . .
umount -l .
cd /
mount --make-rshared /
ip link set lo up
eval "$1"
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --unit=boot.target --show-status=no --log-target=journal-or-kmsg
' sh "$work" "$python" "$packages" "$sources" "$@"
"""

# Python as it runs the tests, from places that the service's sandbox does not hide.
COMMANDS = {
    "/usr/bin/vnctoken-python": (
        f'#!/bin/sh\nexec env LD_LIBRARY_PATH={PYTHON}/lib PYTHONPATH={SOURCES}:{PACKAGES} {{python}} "$@"\n'
    ),
    "/usr/bin/vnctoken-server": '#!/bin/sh\nexec /usr/bin/vnctoken-python -m vnctoken.server "$@"\n',
}


class Machine:
    """The machine that was booted."""

    def __init__(self, leader):
        self._leader = leader

    def run(self, *command, check=True, seconds=60):
        """Run a command there and return what it prints; `check` makes a failure of its exit code."""
        done = self.tried(*command, seconds=seconds)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def tried(self, *command, seconds=60):
        return subprocess.run(
            ["nsenter", "--target", str(self._leader), "--all", "--wd=/", *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )

    def shows(self, unit, *properties):
        """Return properties of a unit."""
        said = self.run("systemctl", "show", unit, "--property", ",".join(properties))
        found = dict(line.partition("=")[::2] for line in said.splitlines())
        return [found[name] for name in properties]

    def python(self, *arguments, **popen):
        """Run Python with these arguments, on the network of that machine and the files of this one, for a block."""
        command = ("nsenter", "--target", self._leader, "--net", sys.executable, *arguments)
        return running(*command, **popen)

    def journal(self, unit="vnctoken"):
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit)

    def write(self, path, text):
        Path(f"/proc/{self._leader}/root{path}").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def machine(folder, files, prepare=""):
    """Boot it for the time of a block, with files (a path and a text each) and a shell command before the boot."""
    for name in ("unshare", "nsenter", "ip", "systemctl"):
        program(name)
    if os.geteuid() != 0:
        unavailable("it takes root")
    own = sys.base_prefix != "/usr"
    python = PYTHON / "bin" / Path(sys.executable).resolve().name if own else Path(sys.executable).resolve()
    commands = {path: text.format(python=python) for path, text in COMMANDS.items()}
    laid = [
        f"mkdir -p {shlex.quote(str(Path(path).parent))}; printf %s {shlex.quote(text)} >{shlex.quote(path)}"
        for path, text in {**files, **commands}.items()
    ]
    laid.append(f"chmod 0755 {' '.join(commands)}")
    cgroup = f"vnctoken-test-{os.getpid()}"
    command = [
        *("unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child"),
        *(
            "sh",
            "-c",
            BOOT,
            "sh",
            folder,
            sys.base_prefix if own else "/usr/share",
            sysconfig.get_path("purelib"),
            ROOT,
        ),
        "\n".join([*laid, prepare]),
    ]
    with running(*command, env={**os.environ, "CGROUP": cgroup}) as process:
        try:
            yield Machine(booted(process))
        finally:
            process.stop(signal.SIGKILL)
            forget(folder, cgroup)


def booted(process):
    """Wait until systemd is up, and return its process id; skip the test where namespaces are not to be had."""
    pid = process.process.pid

    def leader():
        if process.process.poll() is not None:
            unavailable(process.output)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def up():
        first = leader()
        return first and Machine(first).tried("systemctl", "is-active", "boot.target").stdout == "active\n"

    until(up)
    return leader()


def unavailable(reason):
    """Skip the test and say why; with CI=true that is a failure."""
    message = f"a systemd cannot be booted here: {reason}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def forget(folder, cgroup):
    """Remove the cgroups that were made."""
    script = (
        'mount -t cgroup2 cgroup2 "$1"; i=0\n'
        'while [ -d "$1/$2" ] && [ $i -lt 100 ]; do\n'
        '    find "$1/$2" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.05; i=$((i+1))\n'
        "done\n"
    )
    subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", folder, cgroup], check=True, timeout=60)

"""Machines for tests: this one, copied on write, in namespaces of its own, under a systemd of its own.

Nothing that is done there can be seen here, nor is there anything left of it afterwards.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import START_SECONDS, program

# A process of its own in the control groups, as systemd takes all that it sees there for its own.
GROUP = """
mount -t cgroup2 none "$1"
group=$1/vnctoken-test-$$
mkdir "$group"
trap 'find "$group" -depth -type d -exec rmdir {} ";"' EXIT
sh -ec 'echo 0 >"$0/cgroup.procs"
    exec unshare --mount --uts --ipc --net --pid --cgroup --fork --kill-child sh -ec "$@"' "$group" "$2" sh "$1" "$3"
"""

# What a container gets of the kernel, and of the units of this machine those that every machine has.
BOOT = """
mount -t tmpfs -o mode=0755 none "$1"
cd "$1"
mkdir upper work system
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" none system
cd system
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 none sys/fs/cgroup
for folder in dev run; do mount -t tmpfs -o mode=0755 none $folder; done
for folder in tmp var/tmp; do mount -t tmpfs -o mode=1777 none $folder; done
for device in full null random tty urandom zero; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 none dev/pts
mount -t tmpfs -o mode=1777 none dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

rm -rf etc/systemd/system/* etc/one var/lib/one var/log/one usr/sbin/policy-rc.d var/lib/man-db/auto-update
sed -i /^oneadmin:/d etc/passwd etc/group etc/shadow etc/gshadow
: >etc/fstab
printf '[Unit]\\nRequires=basic.target\\nAfter=basic.target\\n' >etc/systemd/system/default.target
for unit in udevd.service udevd-control.socket udevd-kernel.socket udev-trigger.service modules-load.service \\
    sysctl.service timesyncd.service; do
    ln -s /dev/null etc/systemd/system/systemd-$unit
done
ip link set lo up
eval "$2"
pivot_root . .
umount -l .
# As on any machine; in a container systemd leaves it to others, and its credentials reach no service without.
mount --make-rshared /
exec env -i container=vnctoken-test PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 /lib/systemd/systemd
"""


class Machine:
    """A machine, whose first process is known here as `pid`."""

    def __init__(self, pid):
        self._pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def is_running(self):
        """Return whether its systemd has started what it starts with."""
        try:
            command = Path(f"/proc/{self._pid}/comm").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):
            return False
        # While it is a shell yet, its files are this machine's, and so would be the systemd that is asked.
        if command != "systemd\n":
            return False
        return self.run("systemctl", "is-system-running", code=None) in ("running", "degraded")

    def run(self, *command, code=0):
        """Run a command there, which ends with `code` (None: with any); return what it has printed."""
        inside = (program("nsenter"), f"--target={self._pid}", "--all", "--wd=/")
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        done = subprocess.run(
            [*inside, *map(str, command)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert code in (None, done.returncode), f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.rstrip("\n")

    def on_its_network(self):
        """Return what has to stand before a command of this machine's, so that it has the other one's loopback."""
        return (program("nsenter"), f"--target={self._pid}", "--net")

    def file(self, path):
        """Return where a file of the machine's is found from here."""
        return self.root / str(path).lstrip("/")

    def unit(self, name, value="ActiveState"):
        """Return what systemd says of a unit."""
        (said,) = self.shows(name, value)
        return said

    def shows(self, name, *values):
        """Return several things that systemd says of a unit, of one moment."""
        said = self.run("systemctl", "show", "--property", ",".join(values), name)
        found = dict(line.partition("=")[::2] for line in said.splitlines())
        return [found[value] for value in values]


@contextlib.contextmanager
def booted(folder, prepare=""):
    """Have a machine for the time of a block; skip the test where there is none to be had, with CI=true fail.

    `prepare` is shell lines that run before the boot, in the machine's root folder and with this machine's files.
    """
    if os.geteuid() != 0:
        unavailable("it takes root to make one")
    for name in ("nsenter", "unshare", "ip", "systemctl"):
        program(name)
    starting = subprocess.Popen(
        [program("unshare"), "--mount", "--propagation=private", "sh", "-ec", GROUP, "sh", folder, BOOT, prepare],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started(starting)
    finally:
        # All of the machine's processes end with its first one, and the rest of what it is made of with them.
        for child in children(starting.pid):
            for process in children(child) or [child]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        starting.wait(START_SECONDS)
        starting.stderr.close()


def started(starting):
    """Wait for the machine's systemd and return the machine."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and starting.poll() is None:
        time.sleep(0.05)
        for child in children(starting.pid):
            for first in children(child):
                machine = Machine(first)
                if machine.is_running():
                    return machine
    unavailable("systemd does not get ready here" if starting.poll() is None else starting.stderr.read().strip())
    return None


def children(pid):
    """Return the processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    except FileNotFoundError:
        return []


def unavailable(reason):
    """Skip the test and say why; with CI=true that is a failure."""
    message = f"a systemd cannot be booted here: {reason}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)

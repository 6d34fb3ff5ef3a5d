"""The packages: built from the tree, installed, upgraded and removed, on machines with a systemd that runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, program, running
from machines import booted
from test_shipped_install import tree

CONF = "/etc/one/vnctoken-server.conf"
PROXY_ENV = "/etc/one/vnctoken-websockify.env"
LOGROTATE = "/etc/logrotate.d/vnctoken"
UNITS = ("vnctoken.service", "vnctoken.socket", "vnctoken-websockify.service")
TOKENS = "/var/lib/one/sunstone_vnc_tokens"
URL = "http://127.0.0.1:2644/RPC2"
# The distribution's, whatever runs the tests.
PYTHON = Path("/usr/bin/python3").resolve()
# OpenNebula's unit, as far as it matters here.
SUNSTONE = "[Service]\nExecStart=/bin/sleep infinity\n"


@dataclass
class Packages:
    """What was built."""

    folder: Path

    def one(self, pattern):
        (found,) = self.folder.glob(pattern)
        return found


def done(*command, **options):
    """Run a command, which has to succeed, and return what it has printed."""
    ended = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, check=False, **options
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """Build them all, once."""
    program("dh")
    program("rpmbuild")
    folder = tmp_path_factory.mktemp("packages") / "with a space"
    before = tree()
    done(program("make"), "-j2", "-C", ROOT, "deb", "rpm", f"DISTDIR={folder}", f"PYTHON={sys.executable}")
    assert tree() == before, "building leaves nothing in the source tree"
    return Packages(folder)


@pytest.fixture(scope="session")
def newer(packages, tmp_path_factory):
    """Return the next version's .deb: the same, with other configurations and another number."""
    folder = tmp_path_factory.mktemp("newer")
    done("dpkg-deb", "--raw-extract", packages.one("*.deb"), folder / "tree")
    control = folder / "tree" / "DEBIAN" / "control"
    control.write_text(re.sub("(?m)^Version: .*", "Version: 99-1", control.read_text(encoding="utf-8")))
    for file in (CONF, PROXY_ENV):
        with (folder / "tree" / file.lstrip("/")).open("a", encoding="utf-8") as text:
            text.write("# news\n")
    done("dpkg-deb", "--build", "--root-owner-group", "-Znone", folder / "tree", folder / "newer.deb")
    return folder / "newer.deb"


@pytest.fixture
def machine(tmp_path):
    """Have a machine on which oned's sandbox listens where oned would."""
    with booted(tmp_path) as machine:
        oned = (sys.executable, "-m", "vnctoken.sandbox", "--listen", "127.0.0.1:2633")
        with running(*machine.on_its_network(), *oned, cwd=ROOT, ready="listens on"):
            yield machine


def install(machine, package, *command):
    """Have a package file installed there, by what this is done with."""
    there = machine.file("/tmp") / package.name
    if not there.exists():
        there.write_bytes(package.read_bytes())
    machine.run(*command, f"/tmp/{package.name}")


def dpkg(machine, package):
    # The answers of unattended-upgrades to what dpkg would ask about changed configurations.
    install(machine, package, "dpkg", "--install", "--force-confdef", "--force-confold")


def token(machine):
    """Call the service as a portal does, and return the token."""
    call = xmlrpc.client.dumps(("alice:secret", 0), "one.vm.vnctokenonly")
    answer = machine.run("curl", "--silent", "--show-error", "--max-time", "20", "--data-binary", call, URL)
    ((ok, result, _),), _ = xmlrpc.client.loads(answer)
    assert ok, result
    return result


def access(machine, path):
    return machine.run("stat", "--format", "%a %U:%G", path)


def enabled(machine):
    return [machine.run("systemctl", "is-enabled", unit, code=None) for unit in UNITS]


def ours(machine):
    """Return every file and link of a machine that has our name."""
    found = machine.run("find", "/etc", "/usr", "/var", "-xdev", "-name", "*vnctoken*", "-not", "-path", "/var/tmp/*")
    return sorted(found.splitlines())


def test_a_deb_is_enabled_and_waits_and_starts_with_sunstone(machine, packages):
    dpkg(machine, packages.one("*.deb"))
    assert enabled(machine) == ["enabled", "disabled", "disabled"]
    assert [machine.unit(unit) for unit in UNITS] == ["inactive"] * 3
    assert machine.run("getent", "passwd", "oneadmin") == "oneadmin:x:9869:9869:OpenNebula:/var/lib/one:/bin/bash"
    assert [access(machine, file) for file in (CONF, PROXY_ENV)] == ["640 root:oneadmin"] * 2
    assert [access(machine, f"/var/{folder}/one") for folder in ("lib", "log")] == ["750 oneadmin:oneadmin"] * 2
    assert sorted(path.name for path in machine.file("/etc/one").iterdir()) == [Path(CONF).name, Path(PROXY_ENV).name]
    machine.run("runuser", "-u", "oneadmin", "--", "vnctoken-server", "--check")
    machine.run("vnctoken", "--help")
    for page in ("vnctoken", "vnctoken-server", "vnctoken-server.conf"):
        machine.run("man", "--where", page)

    machine.file("/etc/systemd/system/opennebula-sunstone.service").write_text(SUNSTONE, encoding="utf-8")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "opennebula-sunstone")
    assert machine.unit("vnctoken") in ("activating", "active")
    machine.run("systemctl", "start", "vnctoken")
    assert token(machine)
    assert machine.run("ps", "-o", "user=", "-p", machine.unit("vnctoken", "MainPID")) == "oneadmin"

    machine.run("systemctl", "disable", "--now", "vnctoken")
    machine.run("systemctl", "restart", "opennebula-sunstone")
    assert machine.unit("vnctoken") == "inactive", "who disables it has it disabled"


def test_an_upgrade_restarts_what_runs_and_keeps_what_was_changed(machine, packages, newer):
    dpkg(machine, packages.one("*.deb"))
    machine.run("systemctl", "start", "vnctoken", "vnctoken-websockify")
    mine = {CONF: ":token_ttl: 60\n", LOGROTATE: "# mine\n"}
    for file, text in mine.items():
        machine.file(file).write_text(text, encoding="utf-8")
    machine.run("chmod", "0600", CONF)
    machine.run("chown", "oneadmin", CONF)
    shipped = machine.file(PROXY_ENV).read_text(encoding="utf-8")
    before = [machine.unit(unit, "MainPID") for unit in ("vnctoken", "vnctoken-websockify")]

    dpkg(machine, newer)
    assert {file: machine.file(file).read_text(encoding="utf-8") for file in mine} == mine
    assert access(machine, CONF) == "600 oneadmin:oneadmin"
    assert machine.file(CONF + ".dpkg-dist").read_text(encoding="utf-8").endswith("# news\n")
    assert machine.file(PROXY_ENV).read_text(encoding="utf-8") == shipped + "# news\n"
    assert access(machine, PROXY_ENV) == "640 root:oneadmin"
    after = [machine.unit(unit, "MainPID") for unit in ("vnctoken", "vnctoken-websockify")]
    assert "0" not in before + after
    assert after[0] != before[0], "the service is a new one"
    assert after[1] == before[1], "the proxy has open consoles"
    assert token(machine)

    machine.run("systemctl", "disable", "--now", "vnctoken")
    dpkg(machine, packages.one("*.deb"))
    assert (machine.unit("vnctoken"), enabled(machine)) == ("inactive", ["disabled"] * 3)


def test_who_has_opennebula_keeps_its_account_and_folders(machine, packages):
    machine.run("useradd", "--system", "--uid", "4711", "--home-dir", "/var/lib/one", "oneadmin")
    machine.run("install", "-d", "-o", "oneadmin", "-m", "0711", "/var/lib/one", "/var/lib/one/.one")
    account = machine.run("getent", "passwd", "oneadmin")
    dpkg(machine, packages.one("*.deb"))
    assert machine.run("getent", "passwd", "oneadmin") == account
    assert access(machine, "/var/lib/one") == "711 oneadmin:root"
    machine.run("systemctl", "enable", "--now", "vnctoken.socket", "vnctoken-websockify")
    machine.run("systemctl", "start", "vnctoken")
    assert token(machine)
    machine.file(f"{TOKENS}/one-7").write_text("sunstones: dummy-host-1:5907\n", encoding="utf-8")

    machine.run("dpkg", "--remove", "vnctoken")
    assert [machine.unit(unit) for unit in UNITS] == ["inactive"] * 3
    there = [path.name for path in machine.file(TOKENS).iterdir()]
    assert there == ["one-7"], "no token stays that nobody would end; Sunstone's are Sunstone's"
    assert access(machine, CONF) == "640 root:oneadmin"
    assert not machine.file("/usr/lib/one/vnctoken").exists()

    machine.file("/var/log/one/vnctoken.log.1.gz").touch()
    machine.run("dpkg", "--purge", "vnctoken")
    assert ours(machine) == []
    assert not machine.file("/usr/lib/one").exists()
    assert machine.file("/var/lib/one/.one").exists()
    assert machine.run("getent", "passwd", "oneadmin") == account


def test_a_purge_leaves_nothing_but_the_account(machine, packages):
    before = set(machine.run("find", "/etc", "/usr", "/var/lib", "/var/log", "-xdev").splitlines())
    dpkg(machine, packages.one("*.deb"))
    machine.run("systemctl", "start", "vnctoken", "vnctoken-websockify")
    token(machine)
    machine.run("dpkg", "--purge", "vnctoken")
    after = set(machine.run("find", "/etc", "/usr", "/var/lib", "/var/log", "-xdev").splitlines())
    kept = {"/var/lib/one", "/var/log/one", *(f"/etc/{file}-" for file in ("passwd", "group", "shadow", "gshadow"))}
    assert {path for path in after - before if not path.startswith("/var/log/journal")} <= kept
    assert [access(machine, folder) for folder in ("/var/lib/one", "/var/log/one")] == ["750 oneadmin:oneadmin"] * 2


def test_a_deb_depends_on_the_python_it_was_built_with(packages):
    depends = done("dpkg-deb", "--field", packages.one("*.deb"), "Depends").strip().split(", ")
    major, minor, micro = done(PYTHON, "-c", "import sys; print(*sys.version_info[:3])").split()
    assert f"python{major}.{minor} (>= {major}.{minor}.{micro})" in depends
    assert any(dependency.startswith("libc6 (>= ") for dependency in depends), "the wheels' libraries were looked at"


def test_debians_checker_finds_nothing_in_what_is_ours(packages, tmp_path):
    lintian = program("lintian")
    tree = tmp_path / "tree"
    done("dpkg-deb", "--raw-extract", packages.one("*.deb"), tree)
    # Its overrides tell why the virtual environment is as it is; looking at all of that takes a minute.
    shutil.rmtree(tree / "usr" / "lib" / "one")
    sums = tree / "DEBIAN" / "md5sums"
    kept = [line for line in sums.read_text(encoding="utf-8").splitlines(keepends=True) if " usr/lib/one/" not in line]
    sums.write_text("".join(kept), encoding="utf-8")
    done("dpkg-deb", "--build", "--root-owner-group", "-Zxz", "-z1", tree, tmp_path)
    found = done(lintian, "--allow-root", "--no-cfg", "--fail-on", "none", *tmp_path.glob("*.deb"))
    assert found == ""


def test_both_kinds_of_package_hold_the_same_files(packages):
    listed = done("dpkg-deb", "--contents", packages.one("*.deb"))
    deb = {line.split()[5].lstrip(".") for line in listed.splitlines() if not line.startswith("d")}
    rpm = set(done("rpm", "--query", "--package", "--list", packages.one("*.rpm")).splitlines())
    folders = {path for path in rpm if any(other.startswith(path + "/") for other in rpm)}
    environment = "/usr/lib/one/vnctoken/"
    deb = {path.removesuffix(".gz") for path in deb if not path.startswith(environment)}
    rpm = {path.removesuffix(".gz") for path in rpm - folders if not path.startswith(environment)}
    of_debian = {"changelog.Debian", "copyright", "vnctoken"}
    assert {Path(path).name for path in deb - rpm} == of_debian
    assert rpm - deb == {"/usr/lib/systemd/system-preset/70-vnctoken.preset"}
    conffiles = done("dpkg-deb", "--info", packages.one("*.deb"), "conffiles").split()
    asked = ("rpm", "--query", "--package", "--queryformat", "[%{FILEFLAGS:fflags} %{FILENAMES}\n]")
    flags = [line.split(" ", 1) for line in done(*asked, packages.one("*.rpm")).splitlines()]
    configurations = [(flag, path) for flag, path in flags if "c" in flag]
    assert sorted(configurations) == [("cn", path) for path in sorted(conffiles)], "changed ones are not replaced"


def test_an_rpm_needs_the_python_it_was_built_with_and_offers_nothing_of_what_it_brings(packages):
    requires, provides = (
        done("rpm", "--query", "--package", f"--{what}", packages.one("*.rpm")).splitlines()
        for what in ("requires", "provides")
    )
    major, minor = done(PYTHON, "-c", "import sys; print(*sys.version_info[:2])").split()
    assert {f"python(abi) = {major}.{minor}", str(PYTHON)} <= set(requires)
    assert any(one.startswith("libc.so.6(GLIBC_") for one in requires), "the wheels' libraries were looked at"
    assert [one for one in requires if "dist(" in one or re.search(r"-[0-9a-f]{8}\.so", one)] == []
    assert {re.split(r"[ (]", one)[0] for one in provides} == {"vnctoken", "config"}


def test_an_rpm_does_the_same(machine, packages):
    # The machine is Debian's, so rpm knows of no package that ours needs.
    package = packages.one("*.rpm")
    install(machine, package, "rpm", "--install", "--nodeps")
    assert enabled(machine) == ["enabled", "disabled", "disabled"]
    assert [machine.unit(unit) for unit in UNITS] == ["inactive"] * 3
    assert machine.run("getent", "passwd", "oneadmin") == "oneadmin:x:9869:9869:OpenNebula:/var/lib/one:/bin/bash"
    assert [access(machine, file) for file in (CONF, PROXY_ENV)] == ["640 root:oneadmin"] * 2
    machine.run("systemctl", "start", "vnctoken", "vnctoken-websockify")
    assert token(machine)
    machine.file(CONF).write_text(":token_ttl: 60\n", encoding="utf-8")
    before = [machine.unit(unit, "MainPID") for unit in ("vnctoken", "vnctoken-websockify")]

    install(machine, package, "rpm", "--upgrade", "--force", "--nodeps")
    after = [machine.unit(unit, "MainPID") for unit in ("vnctoken", "vnctoken-websockify")]
    assert "0" not in before + after
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)
    assert machine.file(CONF).read_text(encoding="utf-8") == ":token_ttl: 60\n"
    machine.run("systemctl", "stop", "vnctoken")
    install(machine, package, "rpm", "--upgrade", "--force", "--nodeps")
    assert machine.unit("vnctoken") == "inactive"
    assert list(machine.file(TOKENS).iterdir())

    machine.run("rpm", "--erase", "vnctoken")
    assert [machine.unit(unit) for unit in UNITS] == ["inactive"] * 3
    assert list(machine.file(TOKENS).iterdir()) == [], "no token stays that nobody would end"
    assert ours(machine) == [f"{CONF}.rpmsave"]


def test_the_wheel_brings_all_that_the_commands_need(packages, tmp_path):
    done(sys.executable, "-m", "venv", tmp_path / "venv")
    bin_ = tmp_path / "venv" / "bin"
    done(bin_ / "pip", "install", "--quiet", "--disable-pip-version-check", packages.one("*.whl"))
    version = done(bin_ / "python", "-c", "import vnctoken; print(vnctoken.__version__)", cwd=tmp_path).strip()
    assert done(bin_ / "vnctoken-server", "--version", cwd=tmp_path) == f"vnctoken-server {version}\n"
    assert done(bin_ / "vnctoken", "--help", cwd=tmp_path)


def test_the_sdist_is_the_tree(packages):
    with tarfile.open(packages.one("*.tar.gz")) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    folders = (
        "benchmarks",
        "completion",
        "docs",
        "etc",
        "logrotate",
        "nginx",
        "packaging",
        "systemd",
        "tests",
        "vnctoken",
    )
    files = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= held
    assert not [name for name in held if "__pycache__" in name or name.endswith(".pyc")]

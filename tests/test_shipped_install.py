"""`make install` and `make uninstall`, into a staging folder as a package build does it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, program

CONF = "etc/one/vnctoken-server.conf"
PROXY_ENV = "etc/one/vnctoken-websockify.env"
ZSH = "vendor-completions" if Path("/etc/debian_version").exists() else "site-functions"


@dataclass
class Stage:
    """A DESTDIR, and the PREFIX that it is made for."""

    destdir: Path
    prefix: Path

    def make(self, target, **more):
        made = subprocess.run(
            [
                *(program("make"), "-C", ROOT, target, f"PYTHON={sys.executable}"),
                *(f"DESTDIR={self.destdir}", f"PREFIX={self.prefix}"),
            ],
            capture_output=True,
            text=True,
            check=False,
            **more,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        return made.stdout + made.stderr

    @property
    def usr(self):
        return self.destdir / self.prefix.relative_to("/")

    def files(self):
        """Return every file and link, that inside the virtual environment left out."""
        return {
            str(path.relative_to(self.usr if path.is_relative_to(self.usr) else self.destdir))
            for path in self.destdir.rglob("*")
            if (path.is_symlink() or not path.is_dir())
            and not path.is_relative_to(self.usr / "lib" / "one" / "vnctoken")
        }

    def copy(self, folder):
        shutil.copytree(self.destdir, folder, symlinks=True)
        return Stage(folder, self.prefix)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Return a place that can stand for /usr, as what is installed there can be run."""
    return tmp_path_factory.mktemp("system") / "usr"


@pytest.fixture(scope="module")
def installed(tmp_path_factory, prefix):
    before = tree()
    stage = Stage(tmp_path_factory.mktemp("stage") / "destdir", prefix)
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    said = stage.make("install", umask=0o077, env=environment)
    at_home = Path(sys.executable).resolve().is_relative_to("/home")
    assert ("home directory" in said) is at_home, "without HOME, what is not in /home is in no home"
    assert tree() == before, "installing leaves nothing in the source tree"
    return stage


def tree():
    return {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}


def test_everything_is_where_the_readme_says(installed):
    assert installed.files() == {
        "bin/vnctoken",
        "bin/vnctoken-server",
        "bin/vnctoken-websockify",
        "lib/systemd/system/vnctoken.service",
        "lib/systemd/system/vnctoken.socket",
        "lib/systemd/system/vnctoken-websockify.service",
        "lib/systemd/system/opennebula-sunstone.service.wants/vnctoken.service",
        "share/vnctoken/nginx/vnctoken.conf",
        "share/vnctoken/nginx/opennebula-rpc.conf",
        "share/vnctoken/nginx/console.conf",
        "share/vnctoken/one/tproxy-vnctoken.yaml",
        "share/vnctoken/one/secgroup-vnctoken.tmpl",
        "share/vnctoken/vnctoken-server.conf",
        "share/vnctoken/vnctoken-websockify.env",
        "share/vnctoken/logrotate",
        "share/vnctoken/logrotate-websockify",
        "share/doc/vnctoken/README.md",
        "share/doc/vnctoken/CHANGELOG.md",
        "share/doc/vnctoken/LICENSE",
        *(f"share/doc/vnctoken/docs/{path.name}" for path in (ROOT / "docs").iterdir() if path.is_file()),
        "share/man/man1/vnctoken.1",
        "share/man/man5/vnctoken-server.conf.5",
        "share/man/man8/vnctoken-server.8",
        "share/bash-completion/completions/vnctoken",
        f"share/zsh/{ZSH}/_vnctoken",
        "etc/logrotate.d/vnctoken",
        "etc/logrotate.d/vnctoken-websockify",
        CONF,
        PROXY_ENV,
    }
    assert (installed.usr / "lib" / "one" / "vnctoken" / "bin" / "python").exists()


@pytest.mark.parametrize("file", [CONF, PROXY_ENV])
def test_the_configuration_is_not_for_every_user_to_read(installed, file):
    assert (installed.destdir / file).stat().st_mode & 0o777 == 0o640


def test_the_documents_links_to_each_other_lead_somewhere(installed):
    folder = installed.usr / "share" / "doc" / "vnctoken"
    for document in folder.rglob("*.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_what_was_installed_is_readable_whatever_the_umask_was(installed):
    for path in [installed.usr, *installed.usr.rglob("*")]:
        wanted = 0o555 if path.is_dir() else 0o444
        assert path.is_symlink() or path.stat().st_mode & wanted == wanted, path


@pytest.mark.parametrize("name", ["vnctoken.service", "vnctoken.socket", "vnctoken-websockify.service"])
def test_the_units_name_what_was_installed_and_otherwise_are_as_shipped(installed, name):
    unit = (installed.usr / "lib" / "systemd" / "system" / name).read_text(encoding="utf-8")
    for command in re.findall(r"(?m)^Exec\w+=(\S*vnctoken\S*)", unit):
        assert Path(command).parent == installed.prefix / "bin"
        assert (installed.usr / "bin" / Path(command).name).stat().st_mode & 0o777 == 0o755
    document = re.search(r"(?m)^Documentation=file:(\S+)$", unit).group(1)
    assert (installed.usr / Path(document).relative_to(installed.prefix)).exists()
    shipped = (ROOT / "systemd" / name).read_text(encoding="utf-8")
    assert unit == shipped.replace("=/usr/bin/", f"={installed.prefix}/bin/").replace(
        "/usr/share", f"{installed.prefix}/share"
    )


def test_sunstone_wants_the_service_and_nothing_the_proxy(installed):
    units = installed.usr / "lib" / "systemd" / "system"
    link = units / "opennebula-sunstone.service.wants" / "vnctoken.service"
    assert link.resolve() == (units / "vnctoken.service").resolve()
    assert not list(units.glob("*/vnctoken-websockify.service"))


def test_nothing_that_runs_knows_where_it_was_staged(installed):
    for path in installed.destdir.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert str(installed.destdir).encode() not in path.read_bytes(), path


def test_it_runs_from_its_place_when_the_stage_is_gone(installed, prefix, tmp_path):
    moved = installed.copy(tmp_path / "moved")
    shutil.move(moved.usr, prefix)
    try:
        # A module of the caller's, and variables of his, have no say.
        (tmp_path / "yaml.py").write_text("raise SystemExit('the wrong yaml')\n", encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "ONE_LOCATION": str(tmp_path)}

        def run(*args, command="vnctoken-server"):
            return subprocess.run(
                [prefix / "bin" / command, *args],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )

        version = run("--version")
        assert version.returncode == 0, version.stderr
        assert version.stdout.startswith("vnctoken-server ")
        checked = run("--check", "--config", moved.destdir / CONF)
        assert (checked.returncode, checked.stderr) == (0, "")
        assert run("--help", command="vnctoken").returncode == 0
        options = run("--help", command="vnctoken-websockify")
        assert options.returncode == 0, options.stderr
        assert "--token-source" in options.stdout
        assert options.stderr == "", "no numpy, or what websockify else complains about"
        checked = run("--check", "127.0.0.1:0", command="vnctoken-websockify")
        assert (checked.returncode, checked.stdout) == (2, "")
        python = prefix / "lib" / "one" / "vnctoken" / "bin" / "python"
        where = "import sys, OpenSSL, vnctoken; print(vnctoken.__file__, vnctoken.__cached__, sep='\\n')"
        source, cached = subprocess.run(
            [python, "-I", "-c", where], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        assert Path(source).is_relative_to(prefix), "not the source tree, but a copy"
        assert Path(cached).exists(), "the service cannot write byte code itself"
    finally:
        shutil.rmtree(prefix)


def test_changed_configurations_survive_and_get_the_new_ones_beside_them(installed, tmp_path):
    stage = installed.copy(tmp_path / "again")
    mine = {CONF: b":port: 2650\n", PROXY_ENV: b"OPTIONS=\n"}
    rotating = ("etc/logrotate.d/vnctoken", "etc/logrotate.d/vnctoken-websockify")
    for file in (*mine, *rotating):
        (stage.destdir / file).write_bytes(mine.get(file, b"# mine\n"))
    said = stage.make("install-files")
    for file, text in mine.items():
        kept = stage.destdir / file
        assert kept.read_bytes() == text
        assert kept.with_name(kept.name + ".new").read_bytes() == (ROOT / file).read_bytes()
        assert kept.with_name(kept.name + ".new").stat().st_mode & 0o777 == 0o640
        assert f"Kept {kept}, which has been changed; the new one is {kept}.new\n" in said
    for file in rotating:
        assert (stage.destdir / file).read_bytes() == b"# mine\n"
    there = sorted(path.name for path in (stage.destdir / "etc" / "logrotate.d").iterdir())
    assert there == ["vnctoken", "vnctoken-websockify"], "logrotate reads all there"

    said = stage.make("uninstall")
    assert stage.files() == {*mine, *rotating}
    for file in (*mine, *rotating):
        assert f"Kept {stage.destdir / file}, which has been changed\n" in said
    assert not (stage.usr / "lib" / "one").exists()


def test_folders_that_are_there_stay_as_closed_as_they_are(tmp_path):
    """OpenNebula's /etc/one is for root and oneadmin."""
    stage = Stage(tmp_path / "front-end", Path("/usr"))
    folders = [stage.destdir / "etc" / "one", stage.usr / "bin"]
    for folder in folders:
        folder.mkdir(parents=True)
        folder.chmod(0o750)
    stage.make("install-files")
    assert [folder.stat().st_mode & 0o7777 for folder in folders] == [0o750, 0o750]


def test_configurations_as_shipped_by_the_version_before_are_replaced(installed, tmp_path):
    stage = installed.copy(tmp_path / "older")
    for file in (CONF, PROXY_ENV):
        (stage.destdir / file).write_bytes(b"# as it was\n")
        (stage.usr / "share" / "vnctoken" / Path(file).name).write_bytes(b"# as it was\n")
    assert "Kept" not in stage.make("install-files")
    for file in (CONF, PROXY_ENV):
        assert (stage.destdir / file).read_bytes() == (ROOT / file).read_bytes()
    assert stage.files() == installed.files()


def test_uninstall_leaves_no_file(installed, tmp_path):
    stage = installed.copy(tmp_path / "leaving")
    others = stage.usr / "lib" / "one" / "sunstone" / "sunstone-server.rb"
    others.parent.mkdir(parents=True)
    others.touch()
    stage.make("uninstall")
    assert stage.files() == {"lib/one/sunstone/sunstone-server.rb"}


def test_folders_that_a_shell_would_take_apart_are_refused(tmp_path):
    for wrong in (f"DESTDIR={tmp_path}/with space", f"DESTDIR={tmp_path}/a;b", "PREFIX=usr", "PREFIX="):
        made = subprocess.run(
            [program("make"), "-C", ROOT, "install", f"DESTDIR={tmp_path}/stage", wrong],
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode != 0
        assert wrong.split("=")[0] in made.stderr
    assert list(tmp_path.iterdir()) == []

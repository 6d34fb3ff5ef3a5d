"""Tokens, and the folder that websockify reads them from, on real filesystems.

Run as a program, this file carries out one of its functions: that is how tests get a mount namespace of their own.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import platform
import re
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from conftest import program, running
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from websockify.token_plugins import TokenFile

from vnctoken.config import DEFAULT_CONSOLE_STATES
from vnctoken.consoles import Consoles
from vnctoken.errors import ActionError, ConfigError, ErrorCode, TokenStoreError
from vnctoken.tokens import fingerprint, new_token
from vnctoken.tokens.folder import TokenFolder
from vnctoken.tokens.moving import move_in
from vnctoken.vm import LCM_STATES, VirtualMachine

NOBODY = 65534
TOKEN, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens"


@pytest.fixture
def folder(path):
    return ready(path)


def ready(path):
    folder = TokenFolder(path)
    assert folder.prepare() == []
    return folder


def beside(path):
    return path.with_name(path.name + ".new")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def content(path):
    """Return what is in the token folder, and check that nothing is left beside it."""
    assert list(beside(path).iterdir()) == []
    return {file.name: file.read_text() for file in path.iterdir() if file.is_file() and not file.is_symlink()}


def trouble(folder, vm_id=7):
    """Return why a token could not be put, and check that the answer is fit for a client."""
    with pytest.raises(TokenStoreError) as caught:
        folder.put(vm_id, OTHER, "evil", 5999)
    assert caught.value.code == ErrorCode.ALLOCATE == 0x4000
    message = str(caught.value)
    assert message.startswith("Cannot create VNC proxy token. ")
    assert "/" not in message
    assert OTHER not in message
    return message.removeprefix("Cannot create VNC proxy token. ")


def refused(path):
    """Return why a folder cannot be used."""
    with pytest.raises(ConfigError) as caught:
        TokenFolder(path).prepare()
    message = str(caught.value)
    assert message.startswith(f":token_folder_name: is '{path}', but a folder is expected in which, and in ")
    return message


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
    """Carry out a function of this file in a mount namespace, where it may mount what it likes; root or not."""
    namespace = [program("unshare"), "--mount"]
    if os.geteuid() != 0:
        namespace += ["--user", "--map-root-user"]
    with running(*namespace, program("mount"), "-t", "tmpfs", "none", path) as trial:
        if trial.process.wait(30):
            trial.stop()
            pytest.skip(f"no mount namespace to be had here: {trial.output}")
    with running(*namespace, sys.executable, __file__, function.__name__, path) as process:
        process.process.wait(60)
        code = process.stop()
        assert code == 0, process.output


def mount(place, *options):
    subprocess.run([program("mount"), *options, place], check=True)


# Tokens


def test_a_token_is_128_bits_in_characters_that_need_no_encoding():
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in tokens)
    assert all(len({token[position] for token in tokens}) == 16 for position in range(32))


def test_a_token_is_named_by_the_start_of_its_sha256():
    assert fingerprint(TOKEN) == hashlib.sha256(TOKEN.encode()).hexdigest()[:8]
    assert len(fingerprint(TOKEN)) == 8


# The folder is made ready


def test_the_folder_is_made_for_its_owner_alone(path):
    for mask in (0o000, 0o022, 0o077):
        before = os.umask(mask)
        try:
            assert TokenFolder(path).prepare() == []
        finally:
            os.umask(before)
        assert (mode(path), mode(beside(path))) == (0o700, 0o700)
        assert content(path) == {}
        path.rmdir()
        beside(path).rmdir()


def test_a_folder_that_is_there_keeps_its_mode_and_its_tokens(path):
    path.mkdir(mode=0o750)
    path.chmod(0o750)
    (path / "one-3").write_text("t: h:5900\n")
    assert TokenFolder(path).prepare() == []
    assert mode(path) == 0o750
    assert content(path) == {"one-3": "t: h:5900\n"}


@pytest.mark.parametrize("bits", [0o755, 0o704, 0o701, 0o777])
def test_a_folder_that_others_may_enter_or_read_is_a_warning_that_says_what_to_do(path, bits):
    path.mkdir()
    path.chmod(bits)
    (warning,) = TokenFolder(path).prepare()
    assert warning.startswith(f":token_folder_name: {path} has mode 0{bits:o}: ")
    assert f"chmod 700 {path}" in warning
    path.chmod(0o700)
    assert TokenFolder(path).prepare() == []


def test_what_a_killed_service_left_half_written_is_removed(path, folder, tmp_path):
    folder.put(7, TOKEN, "h", 5900)
    target = tmp_path / "target"
    target.write_text("untouched")
    (beside(path) / "one-7.0123456789abcdef").write_text("0123")
    (beside(path) / "probe").write_text("")
    (beside(path) / "link").symlink_to(target)
    os.mkfifo(beside(path) / "fifo")
    assert TokenFolder(path).prepare() == []
    assert content(path) == {"one-7": f"{TOKEN}: h:5900\n"}
    assert target.read_text() == "untouched"


def test_the_folder_cannot_be_made_below_a_missing_one(tmp_path):
    assert refused(tmp_path / "missing" / "tokens").endswith(
        f"can write: No such file or directory ({tmp_path}/missing/tokens)"
    )


def test_a_file_in_the_folders_place_is_refused(path):
    path.write_text("mine")
    assert "File exists" in refused(path)
    assert path.read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_beside_it_is_refused(path):
    beside(path).write_text("mine")
    assert "File exists" in refused(path)
    assert beside(path).read_text() == "mine"


def test_a_folder_among_the_half_written_files_is_refused_and_left_alone(path, folder):
    (beside(path) / "somebodys").mkdir()
    assert "somebodys" in refused(path)
    assert (beside(path) / "somebodys").is_dir()


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused(tmp_path / "file" / "tokens")


@pytest.mark.parametrize("which", ["tokens", "tokens.new", "."])
def test_a_folder_that_the_user_cannot_write_to_is_refused(tmp_path, which):
    with nobody_in(tmp_path):
        ready(Path("tokens"))
        if which == ".":
            shutil.rmtree("tokens")
        Path(which).chmod(0o500)
        try:
            assert "Permission denied" in refused(Path("tokens"))
        finally:
            Path(which).chmod(0o700)
        ready(Path("tokens"))


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path):
    with nobody_in(tmp_path):
        ready(Path("tokens"))
        Path("tokens").chmod(0o300)
        assert "Permission denied" in refused(Path("tokens"))
        Path("tokens").chmod(0o700)


@pytest.fixture
def other_filesystem(tmp_path):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev or not os.access(memory, os.W_OK):
        pytest.skip("there is no second filesystem to write to at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def test_a_folder_on_another_filesystem_than_its_sibling_is_refused(path, other_filesystem):
    path.symlink_to(other_filesystem)
    assert "on the same filesystem and mount" in refused(path)
    assert "Invalid cross-device link" in refused(path)
    assert list(other_filesystem.iterdir()) == []


def test_a_symlink_for_the_folder_and_one_for_its_sibling_to_the_same_filesystem_are_fine(path, other_filesystem):
    for link, name in ((path, "tokens"), (beside(path), "beside")):
        (other_filesystem / name).mkdir(mode=0o700)
        link.symlink_to(other_filesystem / name)
    ready(path).put(7, TOKEN, "h", 5900)
    assert content(path) == {"one-7": f"{TOKEN}: h:5900\n"}


# Mounts, each in a namespace of its own


def other_mounts(place):
    """Two filesystems, then two mounts of one filesystem, then one mount of both."""
    mount(place, "-t", "tmpfs", "none")
    path = place / "tokens"
    ready(path)
    mount(path, "-t", "tmpfs", "-o", "mode=700", "none")
    assert "Invalid cross-device link" in refused(path)
    subprocess.run([program("umount"), path], check=True)
    ready(path)
    mount(path, "--bind", path)
    assert path.stat().st_dev == beside(path).stat().st_dev
    assert "Invalid cross-device link" in refused(path)
    assert trouble(TokenFolder(path)) == "Invalid cross-device link"
    mount(beside(path), "--bind", beside(path))
    assert "Invalid cross-device link" in refused(path)
    subprocess.run([program("umount"), path], check=True)
    subprocess.run([program("umount"), beside(path)], check=True)
    mount(place, "--bind", place)
    ready(path).put(7, TOKEN, "h", 5900)
    assert content(path) == {"one-7": f"{TOKEN}: h:5900\n"}


def test_a_folder_and_a_sibling_on_different_mounts_are_refused_even_of_one_filesystem(tmp_path):
    elsewhere(other_mounts, tmp_path)


def full_disk(place):
    mount(place, "-t", "tmpfs", "-o", "size=16k", "none")
    path = place / "tokens"
    folder = ready(path)
    folder.put(7, TOKEN, "h", 5900)
    with pytest.raises(OSError, match="No space left"):
        (place / "filler").write_bytes(bytes(2**20))
    for vm_id in (7, 8):
        assert trouble(folder, vm_id) == "No space left on device"
        assert content(path) == {"one-7": f"{TOKEN}: h:5900\n"}
    (place / "filler").unlink()
    folder.put(7, OTHER, "h", 5900)
    assert content(path) == {"one-7": f"{OTHER}: h:5900\n"}


def test_on_a_full_disk_the_earlier_token_stays_and_nothing_is_half_written(tmp_path):
    elsewhere(full_disk, tmp_path)


def read_only(place):
    mount(place, "-t", "tmpfs", "none")
    path = place / "tokens"
    folder = ready(path)
    folder.put(7, TOKEN, "h", 5900)
    mount(place, "-o", "remount,bind,ro")
    assert trouble(folder) == "Read-only file system"
    assert "Read-only file system" in refused(path)
    assert content(path) == {"one-7": f"{TOKEN}: h:5900\n"}


def test_on_a_disk_that_became_read_only_the_earlier_token_stays(tmp_path):
    elsewhere(read_only, tmp_path)


# A token is put


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_token_is_one_line_in_a_file_for_the_owner_alone(path, folder, mask):
    before = os.umask(mask)
    try:
        folder.put(7, TOKEN, "dummy-host-1", 5900)
    finally:
        os.umask(before)
    assert content(path) == {"one-7": f"{TOKEN}: dummy-host-1:5900\n"}
    assert mode(path / "one-7") == 0o600


@pytest.mark.parametrize("vm_id", [0, 2**31 - 1])
def test_the_file_is_named_after_the_vm(path, folder, vm_id):
    folder.put(vm_id, TOKEN, "h", 5900)
    assert list(content(path)) == [f"one-{vm_id}"]


def test_an_ipv6_address_is_written_bare(path, folder):
    folder.put(7, TOKEN, "2001:db8::1", 5900)
    assert content(path) == {"one-7": f"{TOKEN}: 2001:db8::1:5900\n"}


def test_a_later_token_takes_the_place_of_an_earlier_one_again_and_again(path, folder):
    for port in range(5900, 5910):
        token = new_token()
        folder.put(7, token, "h", port)
        assert content(path) == {"one-7": f"{token}: h:{port}\n"}


def test_other_vms_tokens_and_other_files_stay(path, folder):
    folder.put(7, TOKEN, "h", 5900)
    (path / "one-70").write_text("sunstone: h:5970\n")
    folder.put(8, OTHER, "h", 5901)
    assert content(path) == {
        "one-7": f"{TOKEN}: h:5900\n",
        "one-70": "sunstone: h:5970\n",
        "one-8": f"{OTHER}: h:5901\n",
    }


def test_sunstones_file_of_the_same_name_is_replaced_and_not_rewritten(path, folder):
    file = path / "one-7"
    file.write_text("sunstone: h:5900\n")
    file.chmod(0o644)
    with file.open() as reader:
        folder.put(7, TOKEN, "h", 5901)
        assert reader.read() == "sunstone: h:5900\n"
    assert content(path) == {"one-7": f"{TOKEN}: h:5901\n"}
    assert mode(file) == 0o600


def test_a_token_can_be_put_again_after_sunstones_proxy_has_emptied_the_folder(path, folder):
    folder.put(7, TOKEN, "h", 5900)
    (path / "one-7").unlink()
    folder.put(7, OTHER, "h", 5900)
    assert content(path) == {"one-7": f"{OTHER}: h:5900\n"}


def test_a_hard_link_to_a_file_that_matters_is_replaced_without_touching_that(path, folder, tmp_path):
    target = tmp_path / "target"
    target.write_text("untouched")
    (path / "one-7").hardlink_to(target)
    folder.put(7, TOKEN, "h", 5900)
    assert content(path) == {"one-7": f"{TOKEN}: h:5900\n"}
    assert target.read_text() == "untouched"


@pytest.mark.parametrize("what", ["link to a file", "link to nothing", "link to a folder", "folder", "fifo", "socket"])
def test_what_was_planted_in_the_place_of_a_token_is_refused_and_left_alone(path, folder, tmp_path, what):
    target, planted = tmp_path / "target", path / "one-7"
    match what:
        case "link to a file":
            target.write_text("untouched")
            planted.symlink_to(target)
        case "link to nothing":
            planted.symlink_to(target)
        case "link to a folder":
            target.mkdir()
            planted.symlink_to(target)
        case "folder":
            planted.mkdir()
        case "fifo":
            os.mkfifo(planted)
        case "socket":
            # By a short name: the address of a socket has 108 characters.
            here = os.open(path, os.O_RDONLY)
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(f"/proc/self/fd/{here}/one-7")
            os.close(here)
    before = planted.lstat()
    assert trouble(folder) == "The VM's entry in the token folder is not a regular file"
    assert (planted.lstat().st_ino, planted.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert content(path) == {}
    if what == "link to a file":
        assert target.read_text() == "untouched"
    else:
        assert target.is_dir() == (what == "link to a folder")
    folder.put(8, TOKEN, "h", 5900)
    assert content(path) == {"one-8": f"{TOKEN}: h:5900\n"}


@pytest.mark.parametrize("which", ["tokens", "tokens.new"])
def test_when_a_folder_has_vanished_no_token_is_put_until_the_service_makes_it_again(tmp_path, path, folder, which):
    shutil.rmtree(tmp_path / which)
    assert trouble(folder) == "No such file or directory"
    assert not (tmp_path / which).exists()
    assert TokenFolder(path).prepare() == []
    folder.put(7, TOKEN, "h", 5900)
    assert content(path) == {"one-7": f"{TOKEN}: h:5900\n"}


def test_when_the_folder_has_become_another_filesystem_no_token_is_put(path, folder, other_filesystem):
    path.rmdir()
    path.symlink_to(other_filesystem)
    assert trouble(folder) == "Invalid cross-device link"
    assert content(path) == {}


@pytest.mark.parametrize("which", ["tokens", "tokens.new"])
def test_when_the_user_may_no_longer_write_the_earlier_token_stays(tmp_path, which):
    with nobody_in(tmp_path):
        path = Path("tokens")
        folder = ready(path)
        folder.put(7, TOKEN, "h", 5900)
        Path(which).chmod(0o500)
        try:
            for vm_id in (7, 8):
                assert trouble(folder, vm_id) == "Permission denied"
            assert content(path) == {"one-7": f"{TOKEN}: h:5900\n"}
        finally:
            Path(which).chmod(0o700)


def test_a_file_that_was_written_only_in_part_never_gets_into_the_folder(path, folder):
    """With a limit on the size of files, write(2) writes what fits, and no error."""
    folder.put(7, TOKEN, "h", 5900)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        message = trouble(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message == "No space left on device"
    assert content(path) == {"one-7": f"{TOKEN}: h:5900\n"}


# Moving


def test_a_file_is_moved_to_where_there_is_none(tmp_path):
    (tmp_path / "a").write_text("new")
    move_in(str(tmp_path / "a"), str(tmp_path / "b"))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"b": "new"}


def test_a_file_takes_the_place_of_another_which_is_gone(tmp_path):
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    inode = (tmp_path / "a").stat().st_ino
    move_in(str(tmp_path / "a"), str(tmp_path / "b"))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"b": "new"}
    assert (tmp_path / "b").stat().st_ino == inode


def test_a_file_that_is_not_there_cannot_be_moved_and_the_other_stays(tmp_path):
    (tmp_path / "b").write_text("old")
    with pytest.raises(FileNotFoundError):
        move_in(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_text() == "old"


def test_a_file_cannot_be_moved_to_another_filesystem(tmp_path, other_filesystem):
    (tmp_path / "a").write_text("new")
    (other_filesystem / "b").write_text("old")
    for name in ("b", "c"):
        with pytest.raises(OSError, match="cross-device") as caught:
            move_in(str(tmp_path / "a"), str(other_filesystem / name))
        assert caught.value.errno == errno.EXDEV
    assert [file.read_text() for file in other_filesystem.iterdir()] == ["old"]


def no_exchange(place):
    """Forbid renameat2(2), as an old kernel does; glibc's rename(2) is another system call."""
    number = {"x86_64": 316, "aarch64": 276}[platform.machine()]
    # BPF: load the number of the call; if it is ours ENOSYS, else allow.
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | errno.ENOSYS), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program_of_4 = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    no_new_privileges, seccomp, filtering = 38, 22, 2
    assert libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    assert libc.prctl(seccomp, filtering, program_of_4) == 0
    assert libc.renameat2(-100, b"a", -100, b"b", 2) == -1
    path = place / "tokens"
    folder = ready(path)
    for token in (TOKEN, OTHER):
        folder.put(7, token, "h", 5900)
        assert content(path) == {"one-7": f"{token}: h:5900\n"}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the system call's number is not known")
def test_where_files_cannot_change_places_tokens_are_replaced_all_the_same(tmp_path):
    with running(sys.executable, __file__, no_exchange.__name__, tmp_path) as process:
        process.process.wait(60)
        code = process.stop()
        assert code == 0, process.output


# Whatever oned says


class MemoryOned:
    def __init__(self, vm):
        self.vm = vm

    async def vm_info(self, session, vm_id):
        return self.vm


def older_lookup(folder, token):
    """Look a token up by the rules of OpenNebula's copy of websockify: every line of every file has to split."""
    targets = {}
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            known, target = line.split(": ")
            targets[known] = target.rsplit(":", 1)
    return targets.get(token)


def newest_lookup(folder, token):
    """Let websockify look a token up; it leaves it to Python to close the files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        return TokenFile(str(folder)).lookup(token)


host_like = st.lists(
    st.sampled_from(
        ["a", "Z", "7", "-", ".", "_", ":", "::", "2001:db8", "127.0.0.1", "%", "[", "]", "/", "#", "\n", " "]
    )
    | st.characters(),
    max_size=12,
).map("".join)
hosts = host_like | st.ip_addresses().map(str) | st.from_regex(r"[a-zA-Z0-9_.-]{1,20}", fullmatch=True) | st.text()
ports = st.integers(0, 70000).map(str) | st.from_regex(r"\s*[0-9]{1,6}\s*") | st.text()


@settings(deadline=None)
@example("unix_socket", "5900")
@example("a\nb: c", "5900")
@example("2001:db8::1", " 5900 ")
@given(hosts, ports)
def test_whatever_host_and_port_a_console_has_websockify_reads_one_well_formed_line(host, port):
    vm = VirtualMachine(
        state=3,
        lcm_state=3,
        graphics_type="VNC",
        listen="",
        port=port,
        password="",
        host=host,
        host_attribute="HISTORY/HOSTNAME",
    )
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "tokens"
        states = {LCM_STATES[state] for state in DEFAULT_CONSOLE_STATES}
        consoles = Consoles(MemoryOned(vm), ready(path), states=states, ports=range(5900, 65536), wss=False)
        results = []
        Deferred.fromCoroutine(consoles.open("alice:secret", 7)).addBoth(results.append)
        (result,) = results
        if hasattr(result, "token"):
            assert list(content(path)) == ["one-7"]
            raw = (path / "one-7").read_bytes()
            assert raw.endswith(b"\n")
            assert len(raw.splitlines()) == 1
            assert re.fullmatch(rb"[0-9a-f]{32}: [A-Za-z0-9_.:-]+:[0-9]{4,5}\n", raw)
            assert older_lookup(path, result.token) == [host, str(int(port.strip()))]
            assert newest_lookup(path, result.token) == [host, str(int(port.strip()))]
            assert host.lower() != "unix_socket"
            assert 5900 <= int(port.strip()) <= 65535
        else:
            result.trap(ActionError)
            assert content(path) == {}


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))

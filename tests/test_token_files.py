"""The files of the token folder, on real filesystems.

Run as a program, this file carries out one of its functions: that is how tests get a mount namespace of their own.
"""

import ctypes
import errno
import os
import platform
import resource
import shutil
import socket
import stat
import struct
import sys
import tempfile
import time
from pathlib import Path

import pytest
from mounts import elsewhere, in_process, mount, nobody_in, unmount

from vnctoken.errors import ConfigError
from vnctoken.tokens.files import MAX_FILE_BYTES, TokenFiles
from vnctoken.tokens.moving import move_in

FIRST, SECOND = b"t: h:5900\n", b"t: h:5900\nu: h:5901\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens"


@pytest.fixture
def files(path):
    return ready(path)


def ready(path):
    files = TokenFiles(path)
    assert files.check() == []
    files.forget_half_written()
    return files


def beside(path):
    return path.with_name(path.name + ".new")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def content(path):
    """Return what is in the token folder, and check that nothing is left beside it."""
    assert list(beside(path).iterdir()) == []
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file() and not file.is_symlink()}


def trouble(files, vm_id=7):
    """Return why a file could not be written."""
    with pytest.raises(OSError, match=r"\[Errno ") as caught:
        files.replace(vm_id, SECOND)
    return caught.value.strerror


def refused(path):
    """Return why a folder cannot be used."""
    with pytest.raises(ConfigError) as caught:
        TokenFiles(path).check()
    message = str(caught.value)
    assert message.startswith(f":token_folder_name: is '{path}', but a folder is expected in which, and in ")
    return message


# The folder is made ready.


def test_the_folder_is_made_for_its_owner_alone(path):
    for mask in (0o000, 0o022, 0o077):
        before = os.umask(mask)
        try:
            assert TokenFiles(path).check() == []
        finally:
            os.umask(before)
        assert (mode(path), mode(beside(path))) == (0o700, 0o700)
        assert content(path) == {}
        path.rmdir()
        beside(path).rmdir()


def test_a_folder_that_is_there_keeps_its_mode_and_its_tokens(path):
    path.mkdir(mode=0o750)
    path.chmod(0o750)
    (path / "one-3").write_bytes(FIRST)
    ready(path)
    assert mode(path) == 0o750
    assert content(path) == {"one-3": FIRST}


@pytest.mark.parametrize("bits", [0o755, 0o704, 0o701, 0o777])
def test_a_folder_that_others_may_enter_or_read_is_a_warning_that_says_what_to_do(path, bits):
    path.mkdir()
    path.chmod(bits)
    (warning,) = TokenFiles(path).check()
    assert warning.startswith(f":token_folder_name: {path} has mode 0{bits:o}: ")
    assert f"chmod 700 {path}" in warning
    path.chmod(0o700)
    assert TokenFiles(path).check() == []


def test_what_a_killed_service_left_half_written_is_removed(path, files, tmp_path):
    files.replace(7, FIRST)
    target = tmp_path / "target"
    target.write_text("untouched")
    (beside(path) / "one-7.0123456789abcdef").write_text("0123")
    (beside(path) / "probe").write_text("")
    (beside(path) / "link").symlink_to(target)
    os.mkfifo(beside(path) / "fifo")
    ready(path)
    assert content(path) == {"one-7": FIRST}
    assert target.read_text() == "untouched"


def test_a_check_leaves_alone_what_a_running_service_is_writing(path, files):
    (beside(path) / "one-7.0123456789abcdef").write_text("0123")
    assert files.check() == []
    assert [file.name for file in beside(path).iterdir()] == ["one-7.0123456789abcdef"]


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


def test_a_folder_among_the_half_written_files_is_refused_and_left_alone(path, files):
    (beside(path) / "somebodys").mkdir()
    with pytest.raises(ConfigError, match="somebodys"):
        files.forget_half_written()
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
    ready(path).replace(7, FIRST)
    assert content(path) == {"one-7": FIRST}


# Mounts, each in a namespace of its own.


def other_mounts(place):
    """Two filesystems, then two mounts of one filesystem, then one mount of both."""
    mount(place, "-t", "tmpfs", "none")
    path = place / "tokens"
    ready(path)
    mount(path, "-t", "tmpfs", "-o", "mode=700", "none")
    assert "Invalid cross-device link" in refused(path)
    unmount(path)
    ready(path)
    mount(path, "--bind", path)
    assert path.stat().st_dev == beside(path).stat().st_dev
    assert "Invalid cross-device link" in refused(path)
    assert trouble(TokenFiles(path)) == "Invalid cross-device link"
    mount(beside(path), "--bind", beside(path))
    assert "Invalid cross-device link" in refused(path)
    unmount(path)
    unmount(beside(path))
    mount(place, "--bind", place)
    ready(path).replace(7, FIRST)
    assert content(path) == {"one-7": FIRST}


def test_a_folder_and_a_sibling_on_different_mounts_are_refused_even_of_one_filesystem(tmp_path):
    elsewhere(other_mounts, tmp_path)


def full_disk(place):
    mount(place, "-t", "tmpfs", "-o", "size=16k", "none")
    path = place / "tokens"
    files = ready(path)
    files.replace(7, FIRST)
    with pytest.raises(OSError, match="No space left"):
        (place / "filler").write_bytes(bytes(2**20))
    for vm_id in (7, 8):
        assert trouble(files, vm_id) == "No space left on device"
        assert content(path) == {"one-7": FIRST}
    (place / "filler").unlink()
    files.replace(7, SECOND)
    assert content(path) == {"one-7": SECOND}


def test_on_a_full_disk_the_earlier_file_stays_and_nothing_is_half_written(tmp_path):
    elsewhere(full_disk, tmp_path)


def read_only(place):
    mount(place, "-t", "tmpfs", "none")
    path = place / "tokens"
    files = ready(path)
    files.replace(7, FIRST)
    mount(place, "-o", "remount,bind,ro")
    assert trouble(files) == "Read-only file system"
    assert "Read-only file system" in refused(path)
    assert content(path) == {"one-7": FIRST}


def test_on_a_disk_that_became_read_only_the_earlier_file_stays(tmp_path):
    elsewhere(read_only, tmp_path)


# A file is written.


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_file_is_for_its_owner_alone(path, files, mask):
    before = os.umask(mask)
    try:
        files.replace(7, FIRST)
    finally:
        os.umask(before)
    assert content(path) == {"one-7": FIRST}
    assert mode(path / "one-7") == 0o600


@pytest.mark.parametrize("vm_id", [0, 2**31 - 1])
def test_a_file_is_named_after_its_vm(path, files, vm_id):
    files.replace(vm_id, FIRST)
    assert list(content(path)) == [f"one-{vm_id}"]


def test_a_later_content_takes_the_place_of_an_earlier_one_again_and_again(path, files):
    for port in range(5900, 5910):
        files.replace(7, b"t: h:%d\n" % port)
        assert content(path) == {"one-7": b"t: h:%d\n" % port}


def test_other_vms_files_stay(path, files):
    files.replace(7, FIRST)
    (path / "one-70").write_text("sunstone: h:5970\n")
    files.replace(8, SECOND)
    assert content(path) == {"one-7": FIRST, "one-70": b"sunstone: h:5970\n", "one-8": SECOND}


def test_who_reads_a_file_while_it_is_replaced_reads_the_old_one_to_its_end(path, files):
    file = path / "one-7"
    file.write_bytes(FIRST)
    file.chmod(0o644)
    with file.open("rb") as reader:
        files.replace(7, SECOND)
        assert reader.read() == FIRST
    assert content(path) == {"one-7": SECOND}
    assert mode(file) == 0o600


def test_a_file_can_be_written_again_after_sunstones_proxy_has_emptied_the_folder(path, files):
    files.replace(7, FIRST)
    (path / "one-7").unlink()
    files.replace(7, SECOND)
    assert content(path) == {"one-7": SECOND}


def test_a_hard_link_to_a_file_that_matters_is_replaced_without_touching_that(path, files, tmp_path):
    target = tmp_path / "target"
    target.write_text("untouched")
    (path / "one-7").hardlink_to(target)
    files.replace(7, FIRST)
    assert content(path) == {"one-7": FIRST}
    assert target.read_text() == "untouched"


PLANTED = ["link to a file", "link to nothing", "link to a folder", "folder", "fifo", "socket"]


def plant(what, planted, target):
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
            here = os.open(planted.parent, os.O_RDONLY)
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(f"/proc/self/fd/{here}/{planted.name}")
            os.close(here)


@pytest.mark.parametrize("what", PLANTED)
def test_what_was_planted_in_the_place_of_a_file_is_refused_and_left_alone(path, files, tmp_path, what):
    target, planted = tmp_path / "target", path / "one-7"
    plant(what, planted, target)
    before = planted.lstat()
    assert trouble(files) == "The VM's entry in the token folder is not a regular file"
    assert (planted.lstat().st_ino, planted.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert content(path) == {}
    if what == "link to a file":
        assert target.read_text() == "untouched"
    else:
        assert target.is_dir() == (what == "link to a folder")
    files.replace(8, FIRST)
    assert content(path) == {"one-8": FIRST}


@pytest.mark.parametrize("what", PLANTED)
def test_what_was_planted_is_not_read_either_and_nobody_waits_for_it(path, files, tmp_path, what):
    plant(what, path / "one-7", tmp_path / "target")
    with pytest.raises(OSError, match="The VM's entry in the token folder is not a regular file"):
        files.read(7)
    assert files.stamps() == {}


@pytest.mark.parametrize("which", ["tokens", "tokens.new"])
def test_when_a_folder_has_vanished_nothing_is_written_until_the_service_makes_it_again(tmp_path, path, files, which):
    shutil.rmtree(tmp_path / which)
    assert trouble(files) == "No such file or directory"
    assert not (tmp_path / which).exists()
    ready(path).replace(7, FIRST)
    assert content(path) == {"one-7": FIRST}


def test_when_the_folder_has_become_another_filesystem_nothing_is_written(path, files, other_filesystem):
    path.rmdir()
    path.symlink_to(other_filesystem)
    assert trouble(files) == "Invalid cross-device link"
    assert content(path) == {}


@pytest.mark.parametrize("which", ["tokens", "tokens.new"])
def test_when_the_user_may_no_longer_write_the_earlier_file_stays(tmp_path, which):
    with nobody_in(tmp_path):
        path = Path("tokens")
        files = ready(path)
        files.replace(7, FIRST)
        Path(which).chmod(0o500)
        try:
            for vm_id in (7, 8):
                assert trouble(files, vm_id) == "Permission denied"
            assert content(path) == {"one-7": FIRST}
        finally:
            Path(which).chmod(0o700)


def test_a_file_that_was_written_only_in_part_never_gets_into_the_folder(path, files):
    """With a limit on the size of files, write(2) writes what fits, and no error."""
    files.replace(7, FIRST)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        message = trouble(files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message == "No space left on device"
    assert content(path) == {"one-7": FIRST}


# Files are read, watched and removed.


def test_a_file_is_read_with_the_stamp_that_writing_and_listing_give(path, files):
    before = time.time()
    written = files.replace(7, FIRST)
    assert files.read(7) == (FIRST, written)
    assert files.stamps() == {7: written}
    # The kernel's time of a file may be a tick behind.
    assert before - 0.1 <= written.modified <= time.time()


def test_a_file_that_is_not_there_is_no_trouble(files):
    assert files.read(7) is None
    files.remove([7])
    assert files.stamps() == {}


@pytest.mark.parametrize("change", ["in place", "as long as before", "replaced", "touched"])
def test_whatever_is_done_to_a_file_changes_its_stamp(path, files, change):
    before = files.replace(7, FIRST)
    match change:
        case "in place":
            (path / "one-7").write_bytes(SECOND)
        case "as long as before":
            (path / "one-7").write_bytes(FIRST.upper())
            os.utime(path / "one-7", (before.modified + 1, before.modified + 1))
        case "replaced":
            files.replace(7, FIRST)
        case "touched":
            os.utime(path / "one-7", (5, 5))
    found = files.read(7)
    assert found is not None
    assert found[1] == files.stamps()[7] != before


@pytest.mark.parametrize(
    "name", ["one-", "one-07", "one--7", "one-7.bak", "two-7", "one-x", "one-99999999999", "one-\uff17"]
)
def test_files_of_other_names_are_nobodys(path, files, name):
    (path / name).write_bytes(FIRST)
    assert files.stamps() == {}


def test_a_file_that_is_far_too_long_is_not_read(path, files):
    (path / "one-7").write_bytes(b"#" * MAX_FILE_BYTES)
    found = files.read(7)
    assert found is not None
    assert len(found[0]) == MAX_FILE_BYTES
    (path / "one-7").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(OSError, match="more than 1048576 bytes"):
        files.read(7)


def test_files_are_removed_and_others_stay(path, files):
    for vm_id in (7, 8, 9):
        files.replace(vm_id, FIRST)
    files.remove([7, 9, 10])
    assert content(path) == {"one-8": FIRST}


# Moving.


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
    files = ready(path)
    for text in (FIRST, SECOND):
        files.replace(7, text)
        assert content(path) == {"one-7": text}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the system call's number is not known")
def test_where_files_cannot_change_places_they_are_replaced_all_the_same(tmp_path):
    in_process(no_exchange, tmp_path)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))

"""What is decided is written down, and what is changed afterwards is found."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import program
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mounts import elsewhere, in_process, mount
from outcomes import result_of
from twisted.logger import LogLevel, capturedLogs

from vnctoken.audit import AuditLog
from vnctoken.auditchain import SHOWN, verify_files
from vnctoken.auditfiles import TAIL_BYTES
from vnctoken.auditlines import MAX_LINE_BYTES, Head, decision_line, notice_line, read_line
from vnctoken.decisions import Decision
from vnctoken.errors import AuditError, ConfigError
from vnctoken.measures import UNMEASURED, Unmeasured

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "audit.md"

ISSUED = Decision(
    "issued",
    request="9f2c4b7d1e60",
    method="one.vm.vnctoken",
    user="alice",
    uid=2,
    door="opennebula",
    client="192.0.2.17",
    vm_id=7,
    host="node1.example.org",
    port=5907,
    token="1f0a9b3c",
    code=0,
)


class Counting(Unmeasured):
    failed = 0

    def audit_failed(self):
        self.failed += 1


class Now:
    """A clock that goes on by a second with each look at it."""

    def __init__(self, seconds=1_750_000_000.25):
        self.seconds = seconds

    def __call__(self):
        self.seconds += 1
        return self.seconds


@contextlib.contextmanager
def audit(path, *, required=False, measures=UNMEASURED, now=None):
    log = AuditLog(path, now or Now(), required=required, measures=measures)
    log.open()
    try:
        yield log
    finally:
        log.close()


def lines_of(*paths):
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def events_of(*paths):
    return [line["event"] for line in lines_of(*paths)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vnctoken-audit.log"


def verified(*paths):
    """Return what verification says of files in which nothing is wrong."""
    good, lines = verify_files(paths)
    assert good, lines
    return lines


def problems(*paths):
    """Return what verification says of files in which something is wrong."""
    good, lines = verify_files(paths)
    assert not good, lines
    return lines[:-1]


# What a line is.


def test_a_decision_is_a_line_of_json_with_its_keys_in_order(path):
    with audit(path) as log:
        log.record(ISSUED)
    opened, issued = path.read_bytes().splitlines()
    assert list(json.loads(issued).items()) == [
        ("time", "2025-06-15T15:06:42.250000Z"),
        ("seq", 2),
        ("event", "issued"),
        ("request", "9f2c4b7d1e60"),
        ("method", "one.vm.vnctoken"),
        ("user", "alice"),
        ("uid", 2),
        ("door", "opennebula"),
        ("client", "192.0.2.17"),
        ("vm", 7),
        ("host", "node1.example.org"),
        ("port", 5907),
        ("token", "1f0a9b3c"),
        ("code", 0),
        ("prev", hashlib.sha256(opened).hexdigest()),
    ]
    assert list(json.loads(opened).items()) == [
        ("time", "2025-06-15T15:06:41.250000Z"),
        ("seq", 1),
        ("event", "opened"),
        ("prev", "0" * 64),
    ]


def test_a_line_is_in_the_file_when_record_returns(path):
    with audit(path) as log:
        for count in (2, 3, 4):
            log.record(ISSUED)
            assert len(lines_of(path)) == count


def test_what_is_unknown_is_left_out_and_zero_is_not_unknown(path):
    with audit(path) as log:
        log.record(Decision("refused", uid=0, vm_id=0, code=0, reason="limit_user"))
    assert lines_of(path)[1].keys() == {"time", "seq", "event", "uid", "vm", "code", "reason", "prev"}


@pytest.mark.parametrize(
    "name",
    ['a"b\\c', "line\nbreak\r\n", "\x1b[2J\x00\x7f\x9b2J", "Zoë 李\u202eecila", "\udfff\ud800 \udcff", "\u2028\x85"],
)
def test_a_hostile_user_name_is_one_line_that_does_nothing_to_a_terminal(path, name):
    with audit(path) as log:
        log.record(Decision("refused", user=name))
    text = path.read_bytes().decode()
    assert len(text.splitlines()) == 2
    assert text.replace("\n", "").isprintable()
    assert lines_of(path)[1]["user"] == name
    verified(path)


ANY_TEXT = st.text(st.characters(exclude_categories=()))


@settings(deadline=None)
@given(st.builds(Decision, st.sampled_from(["issued", "refused"]), *[ANY_TEXT] * 3, uid=st.none() | st.integers(0)))
@example(Decision("refused", *["\U000e0001" * 70_000] * 3, None, *["\U000e0001" * 300] * 2))
def test_whatever_a_decision_holds_its_line_is_bounded_and_is_read_again(decision):
    line = decision_line(decision, 1.5e9, Head(41, "ab" * 32))
    assert len(line) < MAX_LINE_BYTES
    assert b"\n" not in line
    entry = read_line(line)
    assert (entry.seq, entry.event, entry.prev) == (42, decision.event, "ab" * 32)


@pytest.mark.parametrize("letter", ["x", "李"])
def test_a_name_of_64_kib_is_cut(path, letter):
    with audit(path) as log:
        log.record(Decision("refused", user=letter * 65_536, reason="authentication"))
    assert lines_of(path)[1]["user"] == letter * 255 + "…"


@settings(deadline=None)
@given(st.binary() | st.text().map(str.encode))
@example(b"[" * 4000)
@example(b'{"time":"2025-06-15T15:06:42.250000Z","seq":1e999,"event":"","prev":""}')
@example(b"1" * 4095)
def test_what_is_no_line_of_ours_is_none(line):
    assert read_line(line) is None


# The file.


def test_the_file_is_the_owners_to_write_and_his_groups_to_read(path):
    before = os.umask(0)
    try:
        with audit(path):
            assert path.stat().st_mode & 0o7777 == 0o640
    finally:
        os.umask(before)


def test_no_program_that_the_service_starts_has_the_file(path):
    with audit(path):
        code = "import os; print(*map(os.path.realpath, [f'/proc/self/fd/{n}' for n in range(100)]), sep='\\n')"
        listed = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, close_fds=False
        ).stdout
    assert "/proc" in listed
    assert str(path) not in listed


def linked(path):
    path.symlink_to(path.with_name("elsewhere"))


def full_of_something_else(path):
    path.write_text("127.0.0.1 localhost\n")


def piped(path):
    os.mkfifo(path)


@pytest.mark.parametrize("make", [Path.mkdir, linked, piped, full_of_something_else])
def test_what_is_no_audit_log_is_refused_and_left_as_it_is(path, make):
    make(path)
    before = path.lstat()
    with pytest.raises(ConfigError, match=r"vnctoken-audit.log: .*:audit_log:"):
        AuditLog(path, Now(), required=False, measures=UNMEASURED).open()
    assert (before.st_mode, before.st_size) == (path.lstat().st_mode, path.lstat().st_size)
    assert not path.with_name("elsewhere").exists()


def test_a_folder_that_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"^/nonexistent/audit.log: .*No such file or directory.* folder where"):
        AuditLog(Path("/nonexistent/audit.log"), Now(), required=False, measures=UNMEASURED).open()


def test_two_processes_do_not_write_the_same_file(path):
    program_text = (
        "import sys, time; from pathlib import Path; from vnctoken.audit import AuditLog;"
        "from vnctoken.measures import UNMEASURED;"
        "AuditLog(Path(sys.argv[1]), time.time, required=False, measures=UNMEASURED).open()"
    )
    with audit(path):
        second = subprocess.run([sys.executable, "-c", program_text, path], capture_output=True, text=True, check=False)
    assert "cannot be locked: another process writes it" in second.stderr
    assert subprocess.run([sys.executable, "-c", program_text, path], check=False).returncode == 0
    verified(path)


# The chain, from one start to the next.


def test_each_line_has_the_hash_of_the_one_before_also_after_a_restart(path):
    for _ in range(3):
        with audit(path) as log:
            log.record(ISSUED)
    lines = path.read_bytes().splitlines()
    assert events_of(path) == ["opened", "issued", "resumed", "issued", "resumed", "issued"]
    assert [entry["seq"] for entry in lines_of(path)] == [1, 2, 3, 4, 5, 6]
    for before, after in itertools.pairwise(lines):
        assert json.loads(after)["prev"] == hashlib.sha256(before).hexdigest()
    head = f"head seq=6 sha256={hashlib.sha256(lines[-1]).hexdigest()}"
    assert verified(path) == [
        f"6 lines in 1 file, from {lines_of(path)[0]['time']} to {lines_of(path)[-1]['time']}, {head}"
    ]


def test_the_head_is_in_the_services_log_whenever_a_file_is_begun_or_ended(path):
    with capturedLogs() as logs:
        with audit(path) as log:
            log.record(ISSUED)
            path.rename(path.with_name("old"))
            log.reopen()
        with audit(path):
            pass
    heads = [str(event["head"]) for event in logs]
    old = path.with_name("old").read_bytes().splitlines()
    assert heads[1] == f"seq=2 sha256={hashlib.sha256(old[-1]).hexdigest()}"
    assert heads[-1] in verified(path.with_name("old"), path)[-1]
    assert {event["log_level"] for event in logs} == {LogLevel.info}


def test_the_line_that_a_crash_has_torn_is_kept_and_known(path):
    with audit(path) as log:
        log.record(ISSUED)
        log.record(ISSUED)
    os.truncate(path, path.stat().st_size - 20)
    assert "line 3: torn" in verified(path)[0]
    with audit(path) as log:
        log.record(ISSUED)
    lines = path.read_bytes().splitlines()
    assert [json.loads(lines[n])["event"] for n in (0, 1, 3, 4)] == ["opened", "issued", "resumed", "issued"]
    assert (json.loads(lines[3])["damaged"], json.loads(lines[3])["seq"]) == (1, 4)
    assert "line 3: torn, and known to be" in verified(path)[0]


def test_a_line_of_which_only_the_end_is_missing_is_a_line(path):
    with audit(path) as log:
        log.record(ISSUED)
    os.truncate(path, path.stat().st_size - 1)
    verified(path)
    with audit(path) as log:
        log.record(ISSUED)
    assert events_of(path) == ["opened", "issued", "resumed", "issued"]
    assert "damaged" not in lines_of(path)[2]
    verified(path)


def test_blocks_of_zeros_that_a_power_failure_leaves_do_not_keep_the_service_from_starting(path):
    with audit(path) as log:
        log.record(ISSUED)
    with path.open("ab") as file:
        file.write(bytes(9000))
    with audit(path) as log:
        log.record(ISSUED)
    assert "line 3: torn, and known to be" in verified(path)[0]


def test_a_long_log_is_gone_on_with_from_its_end(path):
    with audit(path) as log:
        while path.stat().st_size < 3 * TAIL_BYTES:
            log.record(ISSUED)
    before = len(lines_of(path))
    with audit(path):
        pass
    assert lines_of(path)[-1]["seq"] == before + 1
    verified(path)


# Rotation.


def test_a_file_that_was_renamed_is_written_until_the_log_is_reopened_and_the_chain_goes_on(path):
    rotated = path.with_name(path.name + "-20250615")
    with audit(path) as log:
        log.record(ISSUED)
        path.rename(rotated)
        log.record(ISSUED)
        log.reopen()
        log.record(ISSUED)
        log.reopen()
    assert events_of(rotated) == ["opened", "issued", "issued"]
    assert events_of(path) == ["opened", "issued"]
    assert verified(rotated, path)[-1].startswith("5 lines in 2 files")
    assert "goes on from an older file" in verified(path)[0]


def test_a_new_file_that_logrotate_has_created_is_gone_on_in(path):
    with audit(path) as log:
        path.rename(path.with_name("old"))
        path.touch()
        log.reopen()
        log.record(ISSUED)
    verified(path.with_name("old"), path)


@pytest.mark.parametrize("created", [True, False])
def test_rotation_while_the_service_was_stopped_keeps_the_chain(path, created):
    rotated = path.with_name(path.name + "-20250615")
    with audit(path) as log:
        log.record(ISSUED)
    path.rename(rotated)
    older = path.with_name(path.name + ".1")
    older.write_bytes(rotated.read_bytes().splitlines(keepends=True)[0])
    path.with_name(path.name + "-20250501.gz").write_bytes(gzip.compress(b"older"))
    path.with_name(path.name + ".d").mkdir()
    path.with_name("vnctoken-audit.logs").write_bytes(decision_line(ISSUED, 0, Head(999)) + b"\n")
    if created:
        path.touch()
    with audit(path) as log:
        log.record(ISSUED)
    verified(rotated, path)


def test_a_torn_line_at_the_end_of_a_file_that_was_rotated_while_the_service_was_stopped_is_known(path):
    rotated = path.with_name(path.name + ".1")
    with audit(path) as log:
        log.record(ISSUED)
    os.truncate(path, path.stat().st_size - 5)
    path.rename(rotated)
    with audit(path) as log:
        log.record(ISSUED)
    assert "torn, and known to be" in verified(rotated, path)[0]


def test_a_new_chain_says_so_when_the_old_one_is_not_to_be_found(path):
    kept = path.with_name("kept-elsewhere")
    for _ in range(2):
        with audit(path) as log:
            log.record(ISSUED)
        with path.open("rb") as source, kept.open("ab") as target:
            shutil.copyfileobj(source, target)
        path.unlink()
    assert "line 3: a new chain begins here" in problems(kept)[0]


def test_when_reopening_fails_nothing_is_lost_and_the_operator_is_told(path):
    rotated = path.with_name("rotated")
    with audit(path) as log:
        path.rename(rotated)
        path.write_text("another program's\n")
        with capturedLogs() as logs:
            log.reopen()
        assert [event["log_level"] for event in logs] == [LogLevel.warn]
        log.record(ISSUED)
        with pytest.raises(AuditError, match="has been moved"):
            result_of(log.check())
    assert events_of(rotated) == ["opened", "issued"]
    assert path.read_text() == "another program's\n"


def test_a_log_that_is_closed_is_not_reopened(path):
    with audit(path) as log:
        pass
    path.unlink()
    log.reopen()
    assert not path.exists()


def test_all_is_well_until_the_file_is_moved_or_removed(path):
    with audit(path) as log:
        result_of(log.check())
        path.unlink()
        with pytest.raises(AuditError, match="has been moved"):
            result_of(log.check())
        log.reopen()
        result_of(log.check())


def test_after_the_file_was_removed_a_new_one_is_begun_before_the_next_line(path):
    with audit(path) as log, capturedLogs() as logs:
        log.record(ISSUED)
        path.unlink()
        log.record(ISSUED)
        log.record(ISSUED)
        assert [event["log_level"] for event in logs] == [LogLevel.warn, LogLevel.info]
        assert events_of(path) == ["opened", "issued", "issued"]
        assert lines_of(path)[0]["seq"] == 3
    assert "goes on from an older file" in verified(path)[0]


@pytest.mark.parametrize("required", [True, False])
def test_what_would_be_written_to_a_removed_file_is_missing_if_no_new_one_can_be_begun(path, required):
    measures = Counting()
    with audit(path, required=required, measures=measures) as log, capturedLogs() as logs:
        path.unlink()
        linked(path)
        refused = [is_refused(log) for _ in range(3)]
        assert (refused, measures.failed) == ([required] * 3, 3)
        assert [event["log_level"] for event in logs] == [LogLevel.warn]
        path.unlink()
        log.record(ISSUED)
        assert [line.get("missing") for line in lines_of(path)] == [3, None]
    verified(path)
    assert not path.with_name("elsewhere").exists()


# A disk that is full.


def is_refused(log):
    """Have a decision recorded and return whether that was an error; it never tells a client where the log is."""
    try:
        log.record(ISSUED)
    except AuditError as error:
        return "/" not in str(error)
    return False


def limited(path):
    """Let files grow to some size only, in a process of its own: as on a full disk, lines are written in part."""
    path = Path(path) / "audit.log"
    for required in (True, False):
        measures = Counting()
        with audit(path, required=required, measures=measures) as log, capturedLogs() as logs:
            written = path.stat().st_size
            limit = written + 1000
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            refused = 0
            for _ in range(10):
                refused += is_refused(log)
                assert path.read_bytes().endswith(b"}\n")
                verified(path)
            assert measures.failed > 5
            assert refused == (measures.failed if required else 0)
            with pytest.raises(AuditError):
                result_of(log.check())
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            result_of(log.check())
            log.record(ISSUED)
            assert [event["log_level"] for event in logs] == [LogLevel.warn, LogLevel.info]
        gap, after = lines_of(path)[-2:]
        assert (gap["event"], gap["missing"], after["event"]) == ("gap", measures.failed, "issued")
        verified(path)


def test_a_line_that_fits_in_part_is_cut_off_again_and_what_is_missing_is_told_afterwards(tmp_path):
    in_process(limited, tmp_path)


def limited_to_the_end(path):
    """Have lines missing when the log is closed; there is room again by then, or there is not."""
    path = Path(path) / "audit.log"
    for room in (True, False):
        log = AuditLog(path, Now(), required=False, measures=UNMEASURED)
        log.open()
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, resource.RLIM_INFINITY))
        for _ in range(3):
            log.record(ISSUED)
        if room:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with capturedLogs() as logs:
            log.close()
        assert any(event["log_level"] is LogLevel.warn and event["missing"] == 3 for event in logs) is not room
        assert [line.get("missing") for line in lines_of(path)] == [None, 3, None][: 2 if room else 3]
        verified(path)


def test_lines_that_are_missing_when_the_log_ends_are_told_of_in_it_or_else_in_the_services_log(tmp_path):
    in_process(limited_to_the_end, tmp_path)


def filled(path):
    """Fill a filesystem of its own to the last byte, and empty it again."""
    mount(path, "-t", "tmpfs", "-o", "size=64k", "none")
    log_file, ballast = Path(path) / "audit.log", Path(path) / "ballast"
    measures = Counting()
    with audit(log_file, required=True, measures=measures) as log, capturedLogs() as logs:
        ballast.write_bytes(bytes(48 * 1024))
        while not is_refused(log):
            assert log_file.stat().st_size < 65_536
        assert sum(is_refused(log) for _ in range(50)) == measures.failed - 1
        assert measures.failed >= 50
        verified(log_file)
        ballast.unlink()
        log.record(ISSUED)
        assert sum(event["log_level"] is LogLevel.info for event in logs) <= 2
    assert sum(line.get("missing", 0) for line in lines_of(log_file)) == measures.failed
    verified(log_file)
    ballast.write_bytes(bytes(32 * 1024))
    with contextlib.suppress(OSError), ballast.open("ab") as more:
        while True:
            more.write(b"0")
            more.flush()
    with audit(log_file, required=True) as log:
        assert any(is_refused(log) for _ in range(30))
        ballast.unlink()
        log.record(ISSUED)
    verified(log_file)


def test_a_full_filesystem_leaves_a_whole_chain_and_the_service_starts_on_it(tmp_path):
    elsewhere(filled, tmp_path)


def append_only(path):
    """Write with the attribute that even the owner cannot take anything back: what is torn stays."""
    path = Path(path) / "audit.log"
    chattr = program("chattr")
    with audit(path) as log:
        log.record(ISSUED)
        if subprocess.run([chattr, "+a", path], check=False, capture_output=True).returncode:
            pytest.skip("no append-only files here")
        try:
            for room in (100, 250, 331):
                resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, resource.RLIM_INFINITY))
                for _ in range(3):
                    log.record(ISSUED)
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                log.record(ISSUED)
                verified(path)
        finally:
            subprocess.run([chattr, "-a", path], check=True)
    assert "torn, and known to be" in verified(path)[0]


def test_where_nothing_can_be_cut_off_the_torn_line_stays_and_is_known(tmp_path):
    in_process(append_only, tmp_path)


def test_a_log_in_which_nothing_can_be_written_any_more_is_told_of_once(path):
    measures = Counting()
    log = AuditLog(path, Now(), required=False, measures=measures)
    log.open()
    log.close()
    with capturedLogs() as logs:
        for _ in range(3):
            log.record(ISSUED)
    assert ([event["log_level"] for event in logs], measures.failed) == ([LogLevel.warn], 3)


# Verification.


def written(path, count=6):
    with audit(path) as log:
        for number in range(count - 1):
            log.record(Decision("issued", user=f"user{number}"))
    return path.read_bytes().splitlines(keepends=True)


def test_what_was_removed_changed_moved_or_repeated_is_named(path):
    lines = written(path)

    def told(*kept):
        path.write_bytes(b"".join(kept))
        return problems(path)

    changed = lines[2].replace(b"user1", b"user9")
    assert told(*lines[:3], *lines[5:]) == [f"{path}, line 4: lines are missing before it: seq=4 to seq=5"]
    assert told(*lines[:2], changed, *lines[3:]) == [
        f"{path}, line 3: changed: its SHA-256 is not the one that {path}, line 4 has of it"
    ]
    assert "line 1: lines are missing before it" in told(*lines[1:])[0]
    assert "line 4: repeated or out of order: seq=3 after seq=3" in told(*lines[:3], *lines[2:])[0]
    assert "line 5: repeated or out of order: seq=4 after seq=5" in told(*lines[:3], lines[4], lines[3], lines[5])[1]
    assert told(*lines[:3], b"garbage\n", b"more\n", *lines[3:])[0] == (
        f"{path}, line 4 to {path}, line 5: changed: this is no line of an audit log"
    )
    assert "line 7: changed: this is no line" in told(*lines, b"\n")[0]
    assert told() == ["there is no line of an audit log"]


def test_what_was_done_at_the_boundary_of_two_files_is_found(path):
    old = path.with_name("old")
    with audit(path) as log:
        log.record(ISSUED)
        log.record(ISSUED)
        path.rename(old)
        log.reopen()
        log.record(ISSUED)
    first, second = old.read_bytes(), path.read_bytes()
    verified(old, path)
    old.write_bytes(b"".join(first.splitlines(keepends=True)[:-1]))
    assert "lines are missing before it: seq=3" in problems(old, path)[0]
    old.write_bytes(first.replace(b"alice", b"mallo"))
    assert any("old, line 3: changed" in line for line in problems(old, path))
    old.write_bytes(first)
    path.write_bytes(b"".join(second.splitlines(keepends=True)[1:]))
    assert "lines are missing before it: seq=4" in problems(old, path)[0]
    path.write_bytes(second)
    assert any("are the files in order, oldest first?" in line for line in problems(path, old))


def test_compressed_files_are_verified_too_and_broken_ones_are_named(path, tmp_path):
    lines = written(path)
    old, new = tmp_path / "log-1.gz", tmp_path / "log-2"
    old.write_bytes(gzip.compress(b"".join(lines[:3])))
    new.write_bytes(b"".join(lines[3:]))
    assert verified(old, new)[-1].startswith("6 lines in 2 files")
    old.write_bytes(old.read_bytes()[:-12])
    assert "log-1.gz: cannot be read to its end" in problems(old, new)[0]
    assert "missing: cannot be read to its end (No such file or directory)" in problems(tmp_path / "missing")[0]


class BeingWritten:
    """A file to whose last line the rest is added just after somebody came to its end."""

    def __init__(self, *pieces):
        self._pieces = [*pieces]

    def open(self, _mode):
        pieces = [piece for each in self._pieces for piece in (each, b"")]

        class Raw(io.RawIOBase):
            def readable(self):
                return True

            def readinto(self, buffer):
                piece = pieces.pop(0) if pieces else b""
                buffer[: len(piece)] = piece
                return len(piece)

        return io.BufferedReader(Raw())


def test_a_line_that_is_written_at_this_moment_is_not_taken_for_a_changed_one(path):
    lines = written(path)
    begun = b"".join(lines[:3]) + lines[3][:100]
    rest = lines[3][100:] + b"".join(lines[4:])
    told = verified(BeingWritten(begun, rest))
    assert "line 4: torn: its end is not there (yet)" in told[0]
    assert told[-1].startswith("4 lines in 1 file")


def test_a_bomb_takes_no_memory(tmp_path):
    bomb = tmp_path / "bomb.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(2**20))
    code = (
        "import resource, sys; from pathlib import Path; from vnctoken.auditchain import verify_files;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; print(verify_files([Path(sys.argv[1])]));"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024"
    )
    subprocess.run([sys.executable, "-c", code, bomb], check=True)


def test_many_problems_are_counted_and_some_are_told(path):
    lines = written(path, 100)
    path.write_bytes(b"".join(lines[0:1] + lines[1::2]))
    good, told = verify_files([path])
    assert not good
    assert len(told) == SHOWN + 2
    assert "more problems" in told[SHOWN]


@pytest.fixture(scope="module")
def chain():
    """Return the lines of a log with rotation, a restart, a gap and a torn line, and where its files begin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with audit(path) as log:
            log.record(ISSUED)
            log.record(Decision("refused", user='"\u202e"', reason="limit_user"))
            path.rename(path.with_name("log.1"))
            log.reopen()
            log.record(ISSUED)
        os.truncate(path, path.stat().st_size - 30)
        with audit(path) as log:
            log.record(ISSUED)
            log.record(Decision("expired", vm_id=7))
        first, second = (file.read_bytes() for file in (path.with_name("log.1"), path))
        head = Head(8, hashlib.sha256(second.splitlines()[-1]).hexdigest())
        second += notice_line("gap", 2e9, head, missing=3, damaged=0) + b"\n"
        return [first, second]


def changed_files(chain, folder):
    paths = [Path(folder) / str(number) for number in range(len(chain))]
    for path, content in zip(paths, chain, strict=True):
        path.write_bytes(content)
    return paths


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_change_but_of_the_last_line_is_found(chain, data):
    files = [*chain]
    which = data.draw(st.sampled_from([0, 1]))
    lines = files[which].splitlines(keepends=True)
    # The last line of all: nothing comes after it that could tell.
    last = len(lines) - which
    at = data.draw(st.integers(0, last - 1))
    match data.draw(st.sampled_from(["byte", "insert", "remove", "cut", "repeat", "swap", "replace"])):
        case "byte":
            place = data.draw(st.integers(0, len(lines[at]) - 1))
            flipped = lines[at][place] ^ data.draw(st.integers(1, 255))
            lines[at] = lines[at][:place] + bytes([flipped]) + lines[at][place + 1 :]
        case "insert":
            place = data.draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:place] + data.draw(st.binary(min_size=1, max_size=3)) + lines[at][place:]
        case "remove":
            del lines[at]
        case "cut":
            place = data.draw(st.integers(0, len(lines[at]) - 1))
            lines[at] = lines[at][:place] + lines[at][place + 1 :]
        case "repeat":
            lines.insert(data.draw(st.integers(0, last)), lines[at])
        case "swap":
            other = data.draw(st.integers(0, len(lines) - 1).filter(lambda other: other != at))
            lines[at], lines[other] = lines[other], lines[at]
        case "replace":
            lines[at] = decision_line(Decision("issued", user="mallory"), 1.7e9, Head(at)) + b"\n"
    files[which] = b"".join(lines)
    if files[which] == chain[which]:
        return
    with tempfile.TemporaryDirectory() as folder:
        good, told = verify_files(changed_files(files, folder))
    assert not good, told


def test_the_honest_log_of_that_test_is_found_to_be_so(chain, tmp_path):
    lines = verified(*changed_files(chain, tmp_path))
    assert len(lines) == 2
    assert "torn, and known to be" in lines[0]


# The document.


def test_the_example_in_the_document_is_a_chain_as_it_is_written(tmp_path):
    text = DOCUMENT.read_text(encoding="utf-8")
    example_lines = [line for line in text.splitlines() if line.startswith('{"time":')]
    file = tmp_path / "example"
    file.write_text("".join(f"{line}\n" for line in example_lines), encoding="utf-8")
    told = verified(file)
    assert told[-1].partition(", head ")[2] in text
    issued = next(line for line in example_lines if '"issued"' in line)
    entry = read_line(issued.encode())
    # As consoles.py makes it: a code is in refusals only.
    decision = replace(ISSUED, code=None)
    assert decision_line(decision, 1_750_000_002.25, Head(entry.seq - 1, entry.prev)).decode() == issued


def test_the_document_has_every_field_and_event():
    text = DOCUMENT.read_text(encoding="utf-8")
    everything = Decision("issued", *["x"] * 3, 1, *["x"] * 2, 1, "x", 1, "x", 1, "x")
    fields = json.loads(decision_line(everything, 0, Head())).keys() | {"missing", "damaged"}
    events = {"issued", "refused", "revoked", "expired", "resolved", "opened", "resumed", "gap"}
    assert [name for name in sorted(fields | events) if f"| `{name}` |" not in text] == []


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])

"""Where log events go: files or the journal."""

import io
import re
import sys
from datetime import datetime, timezone

import pytest
from conftest import running
from twisted.logger import Logger, LogLevel, LogPublisher

from vnctoken.config import Config
from vnctoken.errors import ConfigError
from vnctoken.log import Log, start_logging, to_files, to_journal

LEVELS = ["critical", "error", "warn", "info", "debug"]


def logger_to(observer):
    return Logger(namespace="tests", observer=LogPublisher(observer))


def all_levels(observer):
    log = logger_to(observer)
    for level in LEVELS:
        log.emit(LogLevel.levelWithName(level), "{what} happened", what=level)


def files(debug_level, emit=all_levels):
    everything, warnings = io.StringIO(), io.StringIO()
    emit(to_files(debug_level, everything, warnings))
    return everything.getvalue().splitlines(), warnings.getvalue().splitlines()


def journal(debug_level, emit=all_levels):
    stream = io.StringIO()
    emit(to_journal(debug_level, stream))
    return stream.getvalue().splitlines()


def happened(lines):
    return [re.search(r"(\w+) happened$", line)[1] for line in lines]


@pytest.mark.parametrize("debug_level", range(4))
def test_the_debug_level_says_how_much_is_logged(debug_level):
    wanted = LEVELS[: debug_level + 2]
    everything, _ = files(debug_level)
    assert happened(everything) == happened(journal(debug_level)) == wanted


@pytest.mark.parametrize(
    ("debug_level", "wanted"), [(0, LEVELS[:2]), (1, LEVELS[:3]), (2, LEVELS[:3]), (3, LEVELS[:3])]
)
def test_the_second_file_has_warnings_and_what_is_worse(debug_level, wanted):
    _, warnings = files(debug_level)
    assert happened(warnings) == wanted


def test_a_line_in_a_file_has_the_time_with_its_zone_and_the_level():
    before = datetime.now(tz=timezone.utc).replace(microsecond=0)
    everything, warnings = files(2)
    after = datetime.now(tz=timezone.utc)
    for line, level in zip(everything, ["CRITICAL", "ERROR   ", "WARN    ", "INFO    "], strict=True):
        time, rest = line.split(" ", 1)
        assert before <= datetime.fromisoformat(time) <= after
        assert rest == f"{level} {level.lower().strip()} happened"
    assert warnings == everything[:3]


def test_the_journal_reads_the_priority_from_the_line():
    assert journal(3) == [
        "<2>critical happened",
        "<3>error happened",
        "<4>warn happened",
        "<6>info happened",
        "<7>debug happened",
    ]


def fail(observer):
    try:
        raise ZeroDivisionError("first line\nsecond line")
    except ZeroDivisionError:
        logger_to(observer).failure("it broke")


def test_every_line_of_a_traceback_has_its_priority_in_the_journal():
    lines = journal(0, fail)
    assert len(lines) > 3
    assert all(line.startswith("<2>") for line in lines)
    assert lines[0] == "<2>it broke"
    assert any("ZeroDivisionError: first line" in line for line in lines)


def test_of_a_traceback_in_a_file_only_the_first_line_looks_like_an_event():
    everything, warnings = files(0, fail)
    assert everything == warnings
    assert re.match(r"\S+ CRITICAL it broke$", everything[0])
    assert len(everything) > 3
    assert all(line.startswith("\t") for line in everything[1:])


def test_text_from_outside_cannot_forge_an_event():
    def emit(observer):
        logger_to(observer).info("user={user}", user="x\n2026-11-22T04:00:00+00:00 INFO     user=root")

    everything, _ = files(2, emit)
    assert [line[0] == "\t" for line in everything] == [False, True]
    assert [line[:3] for line in journal(2, emit)] == ["<6>", "<6>"]


def test_braces_in_a_value_are_not_taken_for_a_format():
    assert journal(2, lambda observer: logger_to(observer).info("{user}", user="{log_level}%s")) == ["<6>{log_level}%s"]


def test_a_log_that_cannot_be_opened_is_an_error_of_the_configuration(tmp_path):
    (tmp_path / "vnctoken.log").mkdir()
    with pytest.raises(ConfigError, match=r"the log cannot be opened \(Is a directory\)") as caught:
        start_logging(Config(log_folder=tmp_path), {})
    assert str(caught.value).startswith(f"{tmp_path}/vnctoken.log: ")
    assert "ONE_LOCATION" in str(caught.value)


def test_the_folder_of_the_log_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="No such file or directory"):
        start_logging(Config(log_folder=tmp_path / "missing"), {})
    assert list(tmp_path.iterdir()) == []


# Files that are opened anew.


@pytest.fixture
def log(tmp_path):
    """Provide the log of a folder, and close its files in the end."""
    log = Log(Config(log_folder=tmp_path), {})
    yield log
    log.close()


def contents(tmp_path):
    return {path.name: happened(path.read_text().splitlines()) for path in tmp_path.iterdir()}


def emit(log, *levels):
    for level in levels:
        logger_to(log).emit(LogLevel.levelWithName(level), "{what} happened", what=level)


def test_after_a_rename_lines_go_to_the_old_files_until_they_are_opened_anew(tmp_path, log):
    emit(log, "error")
    for name in ("vnctoken.log", "vnctoken.error"):
        (tmp_path / name).rename(tmp_path / f"{name}.1")
    emit(log, "warn")
    log.reopen(Config(log_folder=tmp_path))
    emit(log, "info")
    assert contents(tmp_path) == {
        "vnctoken.log.1": ["error", "warn"],
        "vnctoken.error.1": ["error", "warn"],
        "vnctoken.log": ["info"],
        "vnctoken.error": [],
    }


def test_opened_anew_the_debug_level_counts(tmp_path, log):
    log.reopen(Config(log_folder=tmp_path, debug_level=0))
    emit(log, "info", "error")
    log.reopen(Config(log_folder=tmp_path, debug_level=3))
    emit(log, "debug")
    assert contents(tmp_path)["vnctoken.log"] == ["error", "debug"]


@pytest.mark.parametrize("name", ["vnctoken.log", "vnctoken.error"])
def test_files_that_cannot_be_opened_anew_are_written_on(tmp_path, log, name):
    (tmp_path / name).rename(tmp_path / "aside")
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"{name}: the log cannot be opened"):
        log.reopen(Config(log_folder=tmp_path, debug_level=0))
    emit(log, "warn")
    assert happened((tmp_path / "aside").read_text().splitlines()) == ["warn"]


def test_files_that_the_disk_had_no_room_for_are_opened_anew_as_well(tmp_path):
    for name in ("vnctoken.log", "vnctoken.error"):
        (tmp_path / name).symlink_to("/dev/full")
    log = Log(Config(log_folder=tmp_path), {})
    logger_to(log).warn("lost")
    for name in ("vnctoken.log", "vnctoken.error"):
        (tmp_path / name).unlink()
    log.reopen(Config(log_folder=tmp_path))
    logger_to(log).warn("kept")
    for name in ("vnctoken.log", "vnctoken.error"):
        assert (tmp_path / name).read_text(encoding="utf-8").endswith(" WARN     kept\n")
    log.close()


def test_where_the_log_goes_does_not_change_while_the_service_runs(tmp_path, log):
    log.reopen(Config(log_folder=tmp_path, log_system="syslog"))
    emit(log, "warn")
    assert contents(tmp_path)["vnctoken.log"] == ["warn"]


# Logging begins once in a process, so these are processes.

PROGRAM = """
import os, pathlib, sys
from twisted.logger import Logger
from vnctoken.config import Config
from vnctoken.log import start_logging

start_logging(Config(log_system=sys.argv[1], log_folder=pathlib.Path(sys.argv[2])), os.environ)
log = Logger(namespace="tests")
log.warn("a warning")
log.info("gr\\u00fc\\u00dfe")
log.debug("details")
print("printed")
"""


def log_in_a_process(system, folder, **environment):
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "utf-8", **environment}
    with running(sys.executable, "-c", PROGRAM, system, folder, env=env) as process:
        process.process.wait(30)
        assert process.stop() == 0, process.output
        return process.lines


def test_events_are_appended_to_files(tmp_path):
    (tmp_path / "vnctoken.log").write_text("earlier\n")
    assert log_in_a_process("file", tmp_path) == ["printed"]
    earlier, *lines = (tmp_path / "vnctoken.log").read_text(encoding="utf-8").splitlines()
    assert earlier == "earlier"
    assert [line.split(None, 1)[1] for line in lines] == ["WARN     a warning", "INFO     grüße"]
    assert (tmp_path / "vnctoken.error").read_text().splitlines() == lines[:1]


@pytest.mark.parametrize(("system", "environment"), [("file", {"JOURNAL_STREAM": "8:1"}), ("syslog", {})])
def test_under_the_journal_and_for_syslog_events_go_to_standard_error_and_no_file_is_made(
    tmp_path, system, environment
):
    lines = log_in_a_process(system, tmp_path, **environment)
    assert sorted(lines) == ["<4>a warning", "<6>grüße", "printed"]
    assert list(tmp_path.iterdir()) == []

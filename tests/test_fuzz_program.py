"""The fuzz program itself: it knows its targets, keeps the bounds, and finds what there is to find."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import running
from fuzz.engines import FOUND, being_tried, by_chance, smaller
from fuzz.mutation import KINDS, Edit, edited
from fuzz.target import CPU_SECONDS, MAX_BYTES, MEMORY_BYTES, SECRET, BoundError, Target, discreet, quiet_log
from fuzz.targets import TARGETS
from twisted.logger import Logger
from webservers import until

TESTS = Path(__file__).parent


def program(*arguments, module=("-m", "fuzz")):
    """Run the fuzz program, or another one; return its exit code and what it printed."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, *module, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_takes_what_it_begins_with(target):
    assert target.seeds
    for seed in target.seeds:
        target.run(seed)


def test_every_target_has_a_name_of_its_own():
    assert len({target.name for target in TARGETS}) == len(TARGETS)


def test_every_target_is_documented():
    rows = (TESTS.parent / "docs" / "fuzzing.md").read_text(encoding="utf-8").split("|---|---|---|\n")[1].splitlines()
    cells = [row.split("|")[1] for row in rows if row.startswith("|")]
    assert {name for cell in cells for name in re.findall("`(.+?)`", cell)} == {target.name for target in TARGETS}


# What is found


def _bug(data):
    text = data.decode(errors="replace")
    if "<b>" in text and "7" in text.partition("<b>")[2]:
        raise ValueError("seven in b")


TOY = Target("toy", _bug, (b"<a><b>one</b><c>7</c></a>",))


@pytest.mark.parametrize("seed", [b"<a><b>one</b></a>", b"x<b>7</b>y"])
def test_a_bug_is_found_and_its_input_made_as_small_as_can_be(tmp_path, capfd, seed):
    assert by_chance(Target("toy", _bug, (seed,)), 60, tmp_path) == FOUND
    assert (tmp_path / "found" / "toy").read_bytes() == b"<b>7"
    out, err = capfd.readouterr()
    assert "toy: FOUND b'<b>7', 4 bytes" in out
    assert "ValueError: seven in b" in err


def test_what_would_end_the_program_as_if_all_were_well_is_found(tmp_path, capfd):
    assert by_chance(Target("leaving", lambda _data: sys.exit(0), (b"abc",)), 60, tmp_path) == FOUND
    assert "leaving: FOUND b''" in capfd.readouterr().out


def test_where_there_is_nothing_nothing_is_found(tmp_path, capsys):
    assert by_chance(Target("good", len, (b"abc",)), 0.1, tmp_path) == 0
    assert "good: " in capsys.readouterr().out
    assert not (tmp_path / "found").exists()


def test_atheris_finds_the_same_bug(tmp_path):
    if importlib.util.find_spec("atheris") is None:
        if os.environ.get("CI") == "true" and platform.machine() == "x86_64":
            pytest.fail("atheris is not installed; the extra fuzz brings it")
        pytest.skip("atheris is not installed; there are wheels for Linux on x86-64")
    source = (
        "import pathlib, sys, fuzz.engines, test_fuzz_program as tests;"
        " fuzz.engines.with_atheris(lambda: tests.TOY, 60, pathlib.Path(sys.argv[1]))"
    )
    code, output = program(tmp_path, module=("-c", source))
    assert code == FOUND, output
    assert (tmp_path / "found" / "toy").read_bytes() == b"<b>7"


def test_a_finding_that_needs_all_of_its_bytes_keeps_them():
    assert smaller(b"abcdef", lambda data: data == b"abcdef") == b"abcdef"
    assert smaller(b"xxaxxbxx", lambda data: b"a" in data and b"b" in data) == b"ab"


# The bounds


def test_what_does_not_end_is_ended_and_found():
    def endless(_data):
        while True:
            try:
                while True:
                    pass
            except Exception:  # noqa: BLE001, PERF203 (as what is under test may do)
                pass

    with pytest.raises(BoundError, match="does not end"):
        Target("endless", endless, ()).run(b"")


def test_what_takes_too_long_is_found():
    def slow(_data):
        end = time.process_time() + 1.2 * CPU_SECONDS
        while time.process_time() < end:
            pass

    with pytest.raises(BoundError, match=r"5 bytes take .* s"):
        Target("slow", slow, ()).run(b"hello")


def test_what_takes_too_much_memory_is_found():
    kept = []
    with pytest.raises(BoundError, match=r"5 bytes take .* MiB"):
        Target("greedy", lambda _data: kept.append(b"x" * (3 * MEMORY_BYTES)), ()).run(b"hello")


def test_a_traceback_in_the_log_is_found():
    def fails():
        try:
            raise KeyError("x")
        except KeyError:
            Logger().failure("oops")

    with pytest.raises(AssertionError, match="KeyError"), quiet_log():
        fails()


def test_a_secret_in_the_log_or_in_an_error_is_found():
    with pytest.raises(AssertionError, match="the log has the secret"), quiet_log():
        Logger().info("logged in with {password}", password=SECRET)
    cause = ValueError(SECRET)
    error = ValueError("something else")
    error.__cause__ = cause
    with pytest.raises(AssertionError, match="text has the secret"):
        discreet(error)


# The changes


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("insert", b"<a>!<b>1</b></a>"),
        ("replace", b"<a>!</a>"),
        ("remove", b"<a></a>"),
        ("repeat", b"<a><b>1</b><b>1</b></a>"),
        ("copy", b"<a><b>1</b><b>1</b></a>"),
        ("flip", b"<a>>b>1</b></a>"),
        ("cut", b"<a>"),
    ],
)
def test_an_element_is_changed_as_a_whole(kind, made):
    assert edited(b"<a><b>1</b></a>", Edit(kind, where=1, other=1, times=2, word=b"!")) == made


@pytest.mark.parametrize("kind", KINDS)
def test_every_change_can_be_made_to_nothing_and_none_makes_more_than_the_longest_input(kind):
    for data in (b"", b"x" * MAX_BYTES, b"<a>" * 100):
        assert len(edited(data, Edit(kind, 4999, 17, MAX_BYTES, b"word"))) <= MAX_BYTES


# The program


def test_each_target_is_tried_in_a_process_of_its_own(tmp_path):
    code, output = program("--engine", "chance", "--seconds", 0.1, "--folder", tmp_path, "call", "key")
    assert code == 0, output
    assert [line.split()[0] for line in output.splitlines()[1:]] == ["call", "key"]
    assert output.count("a second") == 2


def test_an_input_that_kills_the_process_is_found_and_kept(tmp_path):
    command = (sys.executable, "-m", "fuzz", "--engine", "chance", "--seconds", "60", "--folder", tmp_path, "key")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    with running(*command, env={**os.environ, "PYTHONPATH": path}) as fuzzing:
        trying = being_tried(tmp_path, "key")
        until(lambda: trying.exists() and trying.stat().st_size)
        pid = fuzzing.process.pid
        os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")), signal.SIGKILL)
        fuzzing.wait_for("key: FOUND what ends the process")
        assert fuzzing.process.wait(30) == 1
    assert (tmp_path / "found" / "key").exists()
    assert not trying.exists()


def test_a_target_that_there_is_not_is_named_and_the_others_too(tmp_path):
    code, output = program("--seconds", 0.1, "--folder", tmp_path, "cal")
    assert code == 2
    assert "there is no target cal; there are call, answer" in output

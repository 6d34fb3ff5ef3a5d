"""The program that injects faults: that it runs, and that it finds what is wrong if something is.

What it shows about the service is not asked here but by `make faults`.
"""

import os
import subprocess
import sys
import xmlrpc.client
from dataclasses import replace

import pytest
from conftest import ROOT
from faults.__main__ import HEADER, Row, markdown, shortcomings
from faults.attackers import BODY_BYTES, hostile_bodies
from faults.judging import HOMES, HOST, REVOKE, STRUCT, TOKEN, XML, Question, judge, judge_hostile, session
from faults.load import Client, FolderCheck, Outcome
from faults.soak import Look, growth
from faults.tally import IN_A_ROW, Allowed, Span, Tally, recovered_at, tally
from faults.watching import Watcher, left_in, problem_in, told_too_much
from webservers import until

from vnctoken.consoles import Console
from vnctoken.methods import as_struct, as_xml

A_TOKEN, PORT = "0123456789abcdef0123456789abcdef", 5901
CONSOLE = Console(1, HOST, "VNC", PORT, "0.0.0.0", "s3cr3tpw", wss=False, token=A_TOKEN, ttl=600)
OPENING = Question(STRUCT, "alice:secret", 1, target=(HOST, PORT))
BOBS = Question(STRUCT, "bob:secret", 1, code=0x200)


def answered(*value):
    return xmlrpc.client.dumps((list(value),), methodresponse=True).encode()


def console(**changes):
    return answered(True, as_struct(replace(CONSOLE, **changes)), 0)


def test_the_program_shows_what_a_fault_came_to_and_that_nothing_was_wrong():
    command = [sys.executable, "-m", "faults", "--only", "oned killed", "--seconds", "1", "--calm", "0.3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("| oned killed |"))
    _, right, refused, wrong, lost, _, recovered, *_ = (cell.strip() for cell in row.strip("|").split("|"))
    assert int(right) >= 1
    assert refused.startswith("0x2000: ")
    assert (wrong, lost) == ("0", "0")
    assert recovered.endswith(" s")


@pytest.mark.parametrize(
    ("question", "body"),
    [
        (OPENING, console()),
        (replace(OPENING, method=TOKEN), answered(True, A_TOKEN, 0)),
        (replace(OPENING, method=XML), answered(True, as_xml(CONSOLE), 0)),
        (replace(OPENING, method=REVOKE), answered(True, 1, 0)),
        (BOBS, answered(False, "not authorized", 0x200)),
    ],
)
def test_right_answers_are_right(question, body):
    assert judge(question, body).kind == "right"


def test_a_refusal_with_another_code_is_told_by_its_code():
    verdict = judge(OPENING, answered(False, "oned refuses connections", 0x2000))
    assert (verdict.kind, verdict.code) == ("refused", 0x2000)


@pytest.mark.parametrize(
    ("question", "body"),
    [
        (BOBS, console()),
        (OPENING, console(vm_id=2)),
        (OPENING, console(host="dummy-host-1")),
        (OPENING, console(port=5902)),
        (OPENING, console(password="another")),
        (OPENING, console(token="")),
        (OPENING, answered(True, as_struct(CONSOLE) | {"Token": "f" * 32}, 0)),
        (OPENING, answered(True, A_TOKEN, 0)),
        (replace(OPENING, method=XML), answered(True, as_xml(replace(CONSOLE, port=22)), 0)),
        (replace(OPENING, method=XML), answered(True, "<VM", 0)),
        (replace(OPENING, method=REVOKE), answered(True, 2, 0)),
        (OPENING, answered(True, as_struct(CONSOLE), 0, -1)),
        (OPENING, answered(1, as_struct(CONSOLE), 0)),
        (OPENING, answered(False, "a refusal that says success", 0)),
        (OPENING, answered(False, "Traceback (most recent call last)", 0x2000)),
        (OPENING, answered(False, "cannot write /var/lib/one/x", 0x4000)),
        (OPENING, answered(False, "alice:secret is wrong", 0x100)),
        (OPENING, answered(False, "internal error", 0x2000)),
        (OPENING, xmlrpc.client.dumps(xmlrpc.client.Fault(-32700, "no")).encode()),
        (OPENING, b"<html>502 Bad Gateway</html>"),
        (OPENING, b""),
    ],
)
def test_wrong_answers_are_found(question, body):
    assert judge(question, body).kind == "wrong"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("HTTP/1.1 200 OK", console()),
        ("HTTP/1.1 200 OK", answered(False, 'File "rpc.py", line 7', 0x2000)),
        ("HTTP/1.1 200 OK", answered(False, "internal error", 0x2000)),
        ("HTTP/1.1 200 OK", b"root:x:0:0"),
        ("HTTP/1.1 500 Internal Server Error", b""),
        ("", b""),
    ],
)
def test_a_hostile_body_must_not_succeed_break_anything_or_read_a_file(status, body):
    assert judge_hostile(status, body)[1]


def test_a_hostile_body_may_be_refused():
    fault = xmlrpc.client.dumps(xmlrpc.client.Fault(-32700, "not well-formed")).encode()
    assert judge_hostile("HTTP/1.1 200 OK", fault) == ("fault -32700", None)
    assert judge_hostile("HTTP/1.1 413 Content Too Large", b"") == ("HTTP 413", None)


def test_hostile_bodies_are_as_large_as_a_body_may_be():
    sizes = {name: len(body) for name, body in hostile_bodies().items()}
    assert sizes.pop("a byte too many") == BODY_BYTES + 1
    assert {name: size for name, size in sizes.items() if size > BODY_BYTES} == {}
    assert sum(size > BODY_BYTES * 0.8 for size in sizes.values()) >= 12


@pytest.fixture
def tokens(tmp_path):
    folder = tmp_path / "tokens"
    folder.mkdir()
    (tmp_path / "tokens.new").mkdir()
    return folder


def moved_in(folder, name, content):
    beside = folder.with_name(folder.name + ".new") / name
    beside.write_text(content)
    beside.replace(folder / name)


def opened(tokens, line):
    """Return what a client makes of a right answer when this line is in the store."""
    moved_in(tokens, "one-1", line + "\n")
    client = Client(1, PORT, ask=lambda question: (200, _body(question)), store=FolderCheck(tokens))
    return client.opening()


def _body(question):
    _, method = xmlrpc.client.loads(question)
    result = {STRUCT: as_struct(CONSOLE), XML: as_xml(CONSOLE), TOKEN: A_TOKEN}[method]
    return answered(True, result, 0)


def test_a_success_counts_only_with_its_token_in_the_store(tokens):
    assert opened(tokens, f"{A_TOKEN}: {HOST}:{PORT}")[0] == "right"
    assert opened(tokens, f"{'f' * 32}: {HOST}:{PORT}")[0] == "gone"
    assert opened(tokens, f"{A_TOKEN}: {HOST}:22")[0] == "wrong"


def test_each_vm_of_the_load_is_asked_for_by_somebody_who_may_have_it():
    assert len(HOMES) == 12
    assert len({session(user) for user in HOMES.values()}) == 4


# What the outcomes come to: a fault from 10 to 20, recovered at 21.
SPAN = Span(10, 20, 21)
ALLOWED = Allowed(frozenset({"0x2000"}), lost=True, gone=True)


def outcome(kind, began, what="", seconds=0.1):
    return Outcome(began, began + seconds, kind, what)


def test_what_a_fault_explains_is_no_shortcoming():
    outcomes = [
        outcome("right", 5),
        outcome("right", 20.5),
        outcome("refused", 12, "0x2000"),
        outcome("lost", 9.9, "timeout", seconds=5),
        outcome("gone", 13, "an earlier token"),
    ]
    found = tally(outcomes, SPAN, ALLOWED)
    assert (found.right, found.refused, found.lost) == (1, {"0x2000": 1}, {"timeout": 1, "an earlier token": 1})
    assert shortcomings(Row("it", found)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        outcome("wrong", 12, "another's console"),
        outcome("refused", 12, "0x0200"),
        outcome("refused", 5, "0x2000"),
        outcome("refused", 22, "0x2000"),
        outcome("lost", 22, "timeout"),
        outcome("gone", 22, "a token"),
    ],
)
def test_what_a_fault_does_not_explain_is_a_shortcoming(wrong):
    found = tally([wrong], SPAN, ALLOWED)
    assert sum(found.wrong.values()) == 1
    assert shortcomings(Row("it", found)) != []


def test_calls_must_not_be_lost_or_refused_where_a_fault_is_no_excuse():
    found = tally([outcome("lost", 12, "timeout"), outcome("refused", 12, "0x2000")], SPAN, Allowed())
    assert sum(found.wrong.values()) == 2


def test_a_recovery_is_so_many_right_answers_in_a_row_to_calls_made_afterwards():
    right = [outcome("right", 20 + n / 10) for n in range(IN_A_ROW)]
    assert recovered_at(right[:-1], 20) is None
    assert recovered_at(right, 20) == pytest.approx(20.1)
    assert recovered_at([*right, outcome("refused", 20.35, "0x2000")], 20) is None
    late = [outcome("lost", 15, "timeout", seconds=6)]
    assert recovered_at([*right, *late], 20) == pytest.approx(20.1)
    assert recovered_at([replace(one, began=19) for one in right], 20) is None


def test_a_row_has_a_cell_for_each_heading():
    for row in (Row("it", Tally()), Row("it", not_run="no Redis")):
        assert markdown(row).count("|") == HEADER[0].count("|")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("one-7", f"{A_TOKEN}: {HOST}:{PORT}"),
        ("one-7", f"{A_TOKEN}: {HOST}:{PORT}\n{A_TOKEN[:9]}\n"),
        ("one-7.tmp", f"{A_TOKEN}: {HOST}:{PORT}\n"),
        ("one-7", f"{A_TOKEN}: {HOST}:{PORT}\n\n"),
    ],
)
def test_what_websockify_could_stumble_over_in_the_token_folder_is_found(tokens, name, content):
    assert problem_in(name, content.encode())
    (tokens / name).write_text(content)
    assert left_in(tokens)


def test_a_file_that_is_left_half_written_beside_the_folder_is_found(tokens):
    assert left_in(tokens) == []
    (tokens.with_name("tokens.new") / "one-7.1f").write_text("")
    assert left_in(tokens)


def test_the_watcher_sees_what_was_there_for_a_moment_only(tokens):
    watcher = Watcher(tokens)
    watcher.start()
    try:
        moved_in(tokens, "one-7", f"# a comment\n{A_TOKEN}: {HOST}:{PORT}\n")
        until(lambda: watcher.seen)
        assert watcher.problems == []
        (tokens / "one-8").write_text("")
        (tokens / "one-8").unlink()
        until(lambda: watcher.problems)
    finally:
        watcher.stop()


def test_passwords_and_tracebacks_in_the_log_are_found():
    assert told_too_much("<6>127.0.0.1 one.vm.vnctoken vm=0 user=alice code=0x0000\n") == []
    assert told_too_much("<6>session alice:secret\n")
    assert told_too_much("<2>Traceback (most recent call last):\n<2>  File\n<2>builtins.ValueError: x\n")


def looks(**growing):
    """Return looks at a service of which these have grown by so much at the end."""
    steady = Look(0, 40.0, 12, 4, 9)
    return [
        replace(
            steady,
            seconds=float(n),
            **{name: getattr(steady, name) + more * n / 100 for name, more in growing.items()},
        )
        for n in range(101)
    ]


def test_a_soak_passes_where_nothing_grows_after_the_warm_up():
    steady = looks()
    assert growth(steady) == []
    warming = [replace(look, heap=30.0, files=0, descriptors=8) if look.seconds < 20 else look for look in steady]
    assert growth(warming) == []


@pytest.mark.parametrize("growing", [{"heap": 4.0}, {"descriptors": 4}, {"files": 4}])
def test_a_soak_fails_where_something_grows(growing):
    assert growth(looks(**growing)) != []


def test_the_service_of_a_soak_gives_back_what_it_does_not_use():
    held = (
        "import gc, os, signal, sys\n"
        "from faults.tidy import tidy\n"
        "from faults.vitals import vitals\n"
        "gc.disable()\n"
        "signal.signal(signal.SIGUSR2, tidy)\n"
        "kept = []\n"
        "for _ in range(2000):\n"
        "    cycle = [bytes(20000)]\n"
        "    cycle.append(cycle)\n"
        "    kept.append(bytes(600))\n"
        "before = vitals(os.getpid()).heap\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "print(before - vitals(os.getpid()).heap)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    command = [sys.executable, "-c", held]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert float(done.stdout) > 20

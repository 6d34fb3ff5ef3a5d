"""What fuzzing has found: the smallest input of each finding, and what it has to come to since."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fuzz.targets.stores import NOW, TOKEN
from outcomes import result_of
from twisted.internet.task import Clock

from vnctoken.arguments import Options
from vnctoken.client.calls import LiveToken, console
from vnctoken.client.tables import token_table
from vnctoken.config import load
from vnctoken.errors import ConfigError
from vnctoken.methods import as_entry
from vnctoken.safexml import NAMES_BYTES, DocumentError, parse
from vnctoken.sandbox.calls import array, boolean, i4, string
from vnctoken.systemd import Notifier
from vnctoken.tokens import digest
from vnctoken.tokens.folder import TokenFolder
from vnctoken.wire import read_answer, read_call, write_answer, write_call


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 (of no file system)
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_a_thread_of_its_own(work):
    """Return what comes of work in a thread that has read nothing before."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


def read_names_that_nobody_has_used(documents):
    """Read documents of 30 kB that are names, each another one; return by how many bytes that made the process grow."""
    before = resident_bytes()
    for number in range(documents):
        parse(f"<methodCall {'x' * 30_000}{number}='1'/>".encode())
    return resident_bytes() - before


# By event and call, whose processes grew. libxml2 keeps each name that a thread has ever read: 1,500 calls of 56 kB,
# without any login, cost 139 MB; with older versions a VM with a name that was new then could not be read any more.
def test_calls_full_of_invented_names_do_not_make_the_service_grow():
    assert in_a_thread_of_its_own(lambda: read_names_that_nobody_has_used(2000)) < 8 * NAMES_BYTES


def test_after_any_number_of_invented_names_a_new_one_can_be_read():
    def work():
        read_names_that_nobody_has_used(600)
        return parse(b"<VM><ANOTHER_NEW_ONE>here</ANOTHER_NEW_ONE></VM>").findtext("ANOTHER_NEW_ONE")

    assert in_a_thread_of_its_own(work) == "here"


@pytest.mark.parametrize("document", [b"", b"<a>", b"<!DOCTYPE a><a/>", b"<a" + b"<a" * 40_000])
def test_what_is_no_document_is_none_after_any_number_of_invented_names_too(document):
    def work():
        read_names_that_nobody_has_used(100)
        parse(document)

    with pytest.raises(DocumentError):
        in_a_thread_of_its_own(work)


# By call: a carriage return in a password got to oned as a line feed.
def test_a_carriage_return_gets_to_oned_as_it_is():
    call = read_call(write_call("one.vm.info", "alice:&#13;", 7))
    assert call.arguments == ["alice:&#13;", 7]
    assert read_call(write_call("one.vm.info", "alice:a\rb\r\nc", 7)).arguments == ["alice:a\rb\r\nc", 7]


def test_a_carriage_return_gets_to_the_caller_as_it_is():
    assert read_answer(write_answer([True, {"Password": "\r"}, 0])) == [True, {"Password": "\r"}, 0]


def test_a_carriage_return_gets_from_the_client_to_the_service_as_it_is():
    assert read_call(console("alice:a\rb", 7, Options()).body).arguments == ["alice:a\rb", 7]


# By answer: what oned never says was taken for an answer of its. Python's white space is more than XML's.
@pytest.mark.parametrize(
    ("written", "changed"), [(b"</params>", b"\v</params>"), (b"</params>", b"\f</params>"), (b'"1.0"', b'"1-0"')]
)
def test_an_answer_of_oned_that_is_no_xml_is_none(written, changed):
    answer = array(boolean(True), string("a VM"), i4(0))
    assert read_answer(answer) == [True, "a VM", 0]
    with pytest.raises(DocumentError):
        read_answer(answer.replace(written, changed))


# By systemd: more digits than Python reads.
def test_a_watchdog_of_thousands_of_digits_is_none():
    environment = {"WATCHDOG_USEC": "1" * 5000, "NOTIFY_SOCKET": ""}
    Notifier.from_environment(environment, Clock())
    assert environment == {}


# By hand: a time in no year that there is was a traceback of `vnctoken list`.
@pytest.mark.parametrize("second", [10**17, 2**63, 10**30])
def test_a_time_beyond_all_years_is_shown_as_a_question_mark(second):
    live = LiveToken("60ae576c", "alice", second, 0, 0, single_use=False, client="")
    assert " ? " in token_table([(7, "vm", live)], ("VM", "ISSUED", "USER"), styled=False)


# By folder: JSON can write what XML cannot. One such name in a token file, and one.vm.vnctokens had no
# answer but HTTP 500, or something that was no XML.
@pytest.mark.parametrize(("written", "told"), [("\\ud800", "\ufffd"), ("a\\u0000b", "a\ufffdb"), ("\\uffff", "\ufffd")])
def test_tokens_are_listed_whatever_name_a_token_file_has(tmp_path, written, told):
    folder = tmp_path / "tokens"
    store = TokenFolder(folder, Clock(), lambda: NOW, ttl=600, tokens_per_vm=8, wall=time.time)
    store.prepare()
    comment = f'# vnctoken {{"sha256": "{digest(TOKEN)}", "issued": {NOW}, "ttl": 600, "user": "{written}"}}'
    (folder / "one-7").write_text(f"{comment}\n{TOKEN}: h:5900\n", encoding="ascii")
    listed = [as_entry(live) for live in result_of(store.live(7))]
    ((told_of,),) = read_answer(write_answer([listed]))
    assert told_of["user"] == told


# By config: 20 kB in one word took seconds, and 64 kB half a minute, to be quoted in the message.
@pytest.mark.parametrize("value", ["x" * 65_000, "x@" * 30_000, "x" * 65_000 + " y@z"])
def test_a_long_value_of_a_setting_is_refused_at_once(tmp_path, value):
    file = tmp_path / "vnctoken-server.conf"
    file.write_text(f":port: {value}\n", encoding="ascii")
    began = time.process_time()
    with pytest.raises(ConfigError, match=":port: is"):
        load({"ONE_LOCATION": str(tmp_path)}, str(file))
    assert time.process_time() - began < 2

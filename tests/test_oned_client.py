"""How oned is asked: how many questions at once, for how long, and what is made of its answers."""

from __future__ import annotations

import gc
import inspect
from dataclasses import replace

import pyone
import pytest
from outcomes import result_of
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from vnctoken.errors import ErrorCode, OnedError
from vnctoken.oned import BATCH, QUEUE_LENGTH, REFUSALS, Oned
from vnctoken.sandbox.calls import Answer, FaultError, array, boolean, i4, i8, response, string
from vnctoken.sandbox.cloud import demo_cloud
from vnctoken.sandbox.rendering import guest_xml, pool_xml
from vnctoken.wire import read_call

VM_0 = guest_xml(demo_cloud().guest(0))
GOOD = Answer(success=True, text=VM_0).body
TIMEOUT = 25


class Line:
    """A transport to an oned that answers when the test says so. Holds the questions that are in flight."""

    def __init__(self):
        self.asked = []
        self.in_flight = {}
        self.cancelled = []

    async def post(self, body):
        vm_id = read_call(body).arguments[1]
        self.asked.append(vm_id)
        self.in_flight[vm_id] = Deferred()
        try:
            return await self.in_flight[vm_id]
        except CancelledError:
            self.cancelled.append(vm_id)
            raise
        finally:
            del self.in_flight[vm_id]

    def answer(self, vm_id, body=GOOD):
        self.in_flight[vm_id].callback(body)

    def fail(self, vm_id, error=OnedError("refused")):  # noqa: B008 (an error like any other)
        self.in_flight[vm_id].errback(error)


class Desk:
    """An Oned with its clock and its line, and the answers to what was asked."""

    def __init__(self, connections=2, timeout=TIMEOUT):
        self.clock = Clock()
        self.line = Line()
        self._oned = Oned(self.line, self.clock, timeout=timeout, connections=connections)
        self.answers = {}

    def ask(self, *vm_ids, session="alice:secret"):
        for vm_id in vm_ids:
            self.answers[vm_id] = Deferred.fromCoroutine(self._oned.vm_info(session, vm_id))

    def outcome(self, vm_id):
        return result_of(self.answers[vm_id])


def told(answer):
    """Return the VM or raise the error that an answer of oned is taken for."""
    desk = Desk()
    desk.ask(0)
    desk.line.answer(0, answer)
    return desk.outcome(0)


# Turns.


def test_the_question_is_the_session_as_it_is_and_the_vm_id_as_an_int():
    bodies = []

    class Recorder:
        async def post(self, body):
            bodies.append(body)
            return GOOD

    session = "bob:a<&>b'c \"ä東京]]>:colon"
    asked = Deferred.fromCoroutine(Oned(Recorder(), Clock(), timeout=1, connections=1).vm_info(session, 7))
    assert result_of(asked).host == "dummy-host-1"
    call = read_call(bodies[0])
    assert (call.method, call.arguments) == ("one.vm.info", [session, 7])
    assert b"<int>7</int>" in bodies[0]


def test_so_many_connections_are_used_at_once_and_the_other_questions_wait_in_their_order():
    desk = Desk(connections=2)
    desk.ask(0, 1, 2, 3, 4)
    assert desk.line.asked == [0, 1]
    desk.line.answer(1)
    assert desk.line.asked == [0, 1, 2]
    desk.line.answer(0)
    desk.line.answer(2)
    assert desk.line.asked == [0, 1, 2, 3, 4]
    desk.line.answer(4)
    desk.line.answer(3)
    assert [desk.outcome(vm_id).graphics_type for vm_id in range(5)] == ["VNC"] * 5


@pytest.mark.parametrize("connections", [1, 8])
def test_a_full_queue_refuses_at_once_and_takes_questions_again_when_there_is_room(connections):
    desk = Desk(connections=connections)
    accepted = range(connections + QUEUE_LENGTH)
    desk.ask(*accepted)
    one_more = accepted.stop
    desk.ask(one_more)
    with pytest.raises(OnedError, match=rf"^too many calls are waiting for oned \({QUEUE_LENGTH}\); try again"):
        desk.outcome(one_more)
    assert not any(desk.answers[vm_id].called for vm_id in accepted)

    desk.line.answer(0)
    desk.ask(one_more)
    while desk.line.in_flight:
        desk.line.answer(next(iter(desk.line.in_flight)))
    assert desk.line.asked == [*accepted, one_more]
    assert desk.outcome(one_more).state == 3


# The deadline.


def test_a_question_without_an_answer_is_given_up_after_its_time_and_cancelled():
    desk = Desk()
    desk.ask(0)
    desk.clock.advance(TIMEOUT - 0.1)
    assert not desk.answers[0].called
    desk.clock.advance(0.1)
    with pytest.raises(OnedError, match=r"^oned did not answer within 25 seconds$"):
        desk.outcome(0)
    assert desk.line.cancelled == [0]


def test_the_time_runs_from_the_moment_of_asking_waiting_included():
    desk = Desk(connections=1)
    desk.ask(0)
    desk.clock.advance(10)
    desk.ask(1)
    desk.clock.advance(10)
    desk.line.answer(0)
    assert desk.line.asked == [0, 1]
    desk.clock.advance(TIMEOUT - 10)  # of which it was connected for the last 15 only
    with pytest.raises(OnedError, match="within 25 seconds"):
        desk.outcome(1)
    assert desk.line.cancelled == [1]


def test_a_question_that_only_waited_is_given_up_too_and_never_takes_a_turn():
    desk = Desk(connections=1, timeout=0.5)
    desk.ask(0)
    desk.clock.advance(0.2)
    desk.ask(1)
    desk.clock.advance(0.2)
    desk.line.answer(0, GOOD)
    desk.ask(2)
    desk.clock.advance(0.3)
    with pytest.raises(OnedError, match=r"within 0\.5 seconds"):
        desk.outcome(1)
    assert desk.line.asked == [0, 1, 2]
    desk.ask(3)
    desk.answers[3].cancel()
    with pytest.raises(CancelledError):
        desk.outcome(3)
    desk.line.answer(2)
    assert desk.outcome(2).state == 3
    assert desk.line.asked == [0, 1, 2]


def test_nothing_is_left_to_the_clock_after_an_answer():
    desk = Desk()
    desk.ask(0)
    desk.line.answer(0)
    assert desk.outcome(0).state == 3
    assert desk.clock.getDelayedCalls() == []


# Slots.


def lose(desk, vm_id, how):
    if how == "success":
        desk.line.answer(vm_id)
    elif how == "refusal":
        desk.line.answer(vm_id, Answer(success=False, text="no", code=0x0400).body)
    elif how == "nonsense":
        desk.line.answer(vm_id, b"nonsense")
    elif how == "error":
        desk.line.fail(vm_id)
    elif how == "bug":
        desk.line.fail(vm_id, ZeroDivisionError())
    elif how == "cancel":
        desk.answers[vm_id].cancel()
    else:
        desk.clock.advance(TIMEOUT)


@pytest.mark.parametrize("how", ["success", "refusal", "nonsense", "error", "bug", "cancel", "timeout"])
def test_a_connection_is_free_again_however_a_question_ends(how):
    with capturedLogs() as events:
        desk = Desk(connections=1)
        for vm_id in range(4):
            desk.ask(vm_id)
            assert list(desk.line.in_flight) == [vm_id]
            lose(desk, vm_id, how)
            assert desk.answers[vm_id].called
            desk.answers[vm_id].addErrback(lambda _: None)
        desk.ask(4)
        desk.line.answer(4)
        assert desk.outcome(4).state == 3
        gc.collect()
    assert events == []


def test_giving_up_a_question_that_waits_leaves_the_others_their_turns():
    desk = Desk(connections=1)
    desk.ask(0, 1, 2, 3)
    for vm_id in (1, 2):
        desk.answers[vm_id].cancel()
        with pytest.raises(CancelledError):
            desk.outcome(vm_id)
    desk.line.answer(0)
    assert desk.line.asked == [0, 3]
    desk.line.answer(3)
    assert desk.outcome(3).state == 3


def test_when_oned_goes_away_everybody_who_waits_is_told():
    desk = Desk(connections=4)
    desk.ask(*range(100))
    while desk.line.in_flight:
        desk.line.fail(next(iter(desk.line.in_flight)), OnedError("oned refuses connections"))
    for vm_id in range(100):
        with pytest.raises(OnedError, match="refuses"):
            desk.outcome(vm_id)


# What is made of an answer.


def test_a_success_is_the_vm():
    vm = told(GOOD)
    assert (vm.state, vm.lcm_state, vm.graphics_type, vm.port, vm.host) == (3, 3, "VNC", "5900", "dummy-host-1")


@pytest.mark.parametrize(
    "body",
    [
        array(boolean(True), string(VM_0), i4(0)),
        array(boolean(True), string(VM_0), i8(0)),
        array(boolean(True), string(VM_0)),
        array(boolean(True), string(VM_0), i4(0), i4(-1), i8(-1)),
        array(boolean(True), string(VM_0), string("more"), array(string("x")).decode().partition("?>")[2]),
    ],
)
def test_of_a_success_only_the_first_two_elements_count(body):
    assert told(body).state == 3


def exceptions_of_pyone():
    """Every exception by which pyone tells a refusal: those derived from its base, the base itself aside."""
    found = [
        thing
        for _, thing in inspect.getmembers(pyone, inspect.isclass)
        if issubclass(thing, pyone.OneException) and thing is not pyone.OneException
    ]
    assert len(found) >= 6
    return found


@pytest.mark.parametrize("theirs", exceptions_of_pyone())
def test_every_refusal_that_pyone_knows_has_a_name_with_us(theirs):
    assert theirs in REFUSALS


def test_no_two_refusals_have_the_same_code():
    assert len({ours.code for ours in REFUSALS.values()}) == len(REFUSALS)


@pytest.mark.parametrize(("theirs", "ours"), REFUSALS.items())
@pytest.mark.parametrize("shape", ["five elements", "three elements", "i8"])
def test_a_refusal_keeps_oneds_code_and_its_words(theirs, ours, shape):
    words = "[one.vm.info] Näh: <VM> & [7] ]]>."
    shapes = {
        "five elements": Answer(success=False, text=words, code=int(ours.code), object_id=7).body,
        "three elements": array(boolean(False), string(words), i4(ours.code)),
        "i8": array(boolean(False), string(words), i8(ours.code), i8(7), i8(-1)),
    }
    with pytest.raises(ours) as raised:
        told(shapes[shape])
    assert type(raised.value) is ours
    assert str(raised.value) == words
    assert isinstance(raised.value.__cause__, theirs)


@pytest.mark.parametrize("code", [0x8000, 0x0101, 0, 1, -1, 2**40])
def test_a_refusal_with_an_unknown_code_is_told_by_its_code(code):
    with pytest.raises(OnedError) as raised:
        told(array(boolean(False), string("hunter2"), i8(code), i4(-1), i8(-1)))
    assert str(raised.value) == f"oned refused with a code we do not know: {code:#06x}"


@pytest.mark.parametrize("code", [-501, -503, -506, 0])
def test_a_fault_is_told_by_its_code_alone(code):
    with pytest.raises(OnedError) as raised:
        told(FaultError(code, "hunter2 in a fault").body)
    assert str(raised.value) == f"oned did not accept our question: XML-RPC fault {code}"


INCOMPLETE_FAULT = FaultError(-501, "hunter2").body.replace(b"faultCode", b"code")
NO_XML_RPC = [
    b"",
    b"hunter2",
    b"<html><body>hunter2<br></body></html>",
    b"<html><body>hunter2</body></html>",
    GOOD[:-20],
    GOOD[: len(GOOD) // 2],
    GOOD.replace(b"<string>", b"<string>\xff"),
    GOOD.replace(b"UTF-8", b"hunter2"),
    GOOD.replace(b"?>", b"?><!DOCTYPE methodResponse [<!ENTITY a 'hunter2'>]>", 1),
    GOOD.replace(b"methodResponse", b"methodCall"),
    b"<methodResponse/>",
    b"<methodResponse><params/></methodResponse>",
    b"<methodResponse><params><param>hunter2</param></params></methodResponse>",
    b"<methodResponse><fault><value>hunter2</value></fault></methodResponse>",
    INCOMPLETE_FAULT,
    FaultError(-501, "hunter2").body.replace(b"<i4>-501</i4>", b"hunter2"),
]


@pytest.mark.parametrize("body", NO_XML_RPC)
def test_what_is_no_xml_rpc_is_told_as_that_without_a_word_of_it(body):
    with pytest.raises(OnedError) as raised:
        told(body)
    assert str(raised.value) == "oned's answer is not XML-RPC"


NESTED = array(string("hunter2")).decode().partition("<param>")[2].partition("</param>")[0]
NO_ANSWER = [
    response(string("hunter2")),
    response(i4(1)),
    response(boolean(True)),
    response("<value><struct></struct></value>"),
    response("<value><nil/></value>"),
    response("<value/>"),
    array(),
    array(boolean(True)),
    array(boolean(False)),
    array(boolean(False), string("hunter2")),
    array(i4(1), string(VM_0), i4(0)),
    array(string("true"), string(VM_0), i4(0)),
    array(string(VM_0), boolean(True), i4(0)),
    array(boolean(True), i4(0), i4(0)),
    array(boolean(True), NESTED, i4(0)),
    array(boolean(True), "<value><base64>aHVudGVyMg==</base64></value>", i4(0)),
    array(boolean(False), i4(0x0400), i4(0x0400)),
    array(boolean(False), string("hunter2"), string("1024")),
    array(boolean(False), string("hunter2"), "<value><double>1024</double></value>"),
    array(boolean(False), string("hunter2"), "<value><i4>0x400</i4></value>"),
    array(boolean(False), string("hunter2"), "<value><i4>" + "9" * 4301 + "</i4></value>"),
    array(NESTED),
]


@pytest.mark.parametrize("body", NO_ANSWER)
def test_an_answer_of_another_shape_is_told_as_that_without_a_word_of_it(body):
    with pytest.raises(OnedError) as raised:
        told(body)
    assert str(raised.value) == "oned's answer is not the array that it should be"


@pytest.mark.parametrize("text", ["", "hunter2", "<VM><ID>hunter2", "<!DOCTYPE VM []><VM/>", VM_0[:-4]])
def test_a_success_whose_string_is_no_xml_is_told_as_that(text):
    with pytest.raises(OnedError) as raised:
        told(Answer(success=True, text=text).body)
    assert str(raised.value) == "oned answered with a VM that is not XML"


@pytest.mark.parametrize("text", ["<USER><ID>hunter2</ID></USER>", "<VM/>", "<VM><STATE>hunter2</STATE></VM>"])
def test_a_success_that_is_no_vm_is_told_as_that(text):
    with pytest.raises(OnedError, match=r"^oned answered with (something that is no VM|a VM without a STATE)$"):
        told(Answer(success=True, text=text).body)


def test_after_any_of_these_the_next_question_is_answered():
    desk = Desk(connections=1)
    for vm_id, body in enumerate([*NO_XML_RPC, *NO_ANSWER]):
        desk.ask(vm_id)
        desk.line.answer(vm_id, body)
        with pytest.raises(OnedError) as raised:
            desk.outcome(vm_id)
        assert raised.value.code == ErrorCode.INTERNAL
        assert "hunter2" not in repr(raised.value)
    desk.ask(1000)
    desk.line.answer(1000)
    assert desk.outcome(1000).state == 3


# Many VMs at once.


class PoolLine:
    """A transport to an oned with some VMs, asked in the short form; an older one has no one.vmpool.infoset."""

    def __init__(self, *vm_ids, older=False):
        self.calls = []
        self._guests = [replace(demo_cloud().guest(0), id=vm_id) for vm_id in vm_ids]
        self._older = older

    async def post(self, body):
        call = read_call(body)
        self.calls.append((call.method, *call.arguments))
        match call.method, call.arguments:
            case "one.vmpool.infoset", [_, str(ids), False] if not self._older:
                wanted = {int(vm_id) for vm_id in ids.split(",")}
                found = [guest for guest in self._guests if guest.id in wanted]
            case "one.vmpool.info", [_, -2, int(first), int(last), -1]:
                found = [guest for guest in self._guests if first <= guest.id <= last]
            case method, _:
                return FaultError(-506, f"Method '{method}' not defined").body
        return Answer(success=True, text=pool_xml(found)).body


def vms_by(line, *vm_ids):
    return result_of(Deferred.fromCoroutine(Oned(line, Clock(), timeout=1, connections=1).vms("one:two", vm_ids)))


def test_many_vms_are_one_question_in_the_short_form():
    line = PoolLine(0, 1, 7, 2147483647)
    found = vms_by(line, 7, 1, 4711, 2147483647)
    assert sorted(found) == [1, 7, 2147483647]
    assert (found[7].state, found[7].lcm_state, found[7].host, found[7].port) == (3, 3, "dummy-host-1", "5900")
    assert line.calls == [("one.vmpool.infoset", "one:two", "1,7,4711,2147483647", False)]


def test_very_many_vms_are_several_questions():
    line = PoolLine(*range(BATCH + 5))
    assert len(vms_by(line, *range(BATCH + 5))) == BATCH + 5
    assert [call[2].count(",") + 1 for call in line.calls] == [BATCH, 5]


def test_about_no_vms_there_is_no_question():
    line = PoolLine(1)
    assert vms_by(line) == {}
    assert line.calls == []


def test_an_older_oned_is_asked_for_the_whole_range():
    line = PoolLine(0, 3, 4, 5, 9, older=True)
    assert sorted(vms_by(line, 5, 3, 6)) == [3, 5]
    assert line.calls[-1] == ("one.vmpool.info", "one:two", -2, 3, 6, -1)


@pytest.mark.parametrize(
    "text", ["", "<VM/>", "<VM_POOL>", "<VM_POOL><VM/></VM_POOL>", "<VM_POOL><VM><ID>x</ID></VM></VM_POOL>"]
)
def test_a_pool_that_is_none_is_told_as_that(text):
    class Broken:
        async def post(self, _body):
            return Answer(success=True, text=text).body

    with pytest.raises(OnedError):
        vms_by(Broken(), 1)


def test_other_faults_are_no_sign_of_an_older_oned():
    class Faulty:
        async def post(self, _body):
            return FaultError(-501, "no").body

    with pytest.raises(OnedError, match="XML-RPC fault -501"):
        vms_by(Faulty(), 1)


def test_oned_tells_its_version():
    class Versioned:
        async def post(self, body):
            assert read_call(body).method == "one.system.version"
            return Answer(success=True, text="6.10.0").body

    asked = Oned(Versioned(), Clock(), timeout=1, connections=1).version("one:two")
    assert result_of(Deferred.fromCoroutine(asked)) == "6.10.0"


@pytest.mark.parametrize("right", [True, False])
def test_a_pool_of_users_is_read_aside_and_what_is_wrong_with_it_is_told_all_the_same(right):
    class Pool:
        async def post(self, body):
            assert read_call(body).method == "one.userpool.info"
            xml = "<USER_POOL><USER><ID>2</ID><NAME>alice</NAME><GID>1</GID></USER></USER_POOL>"
            return Answer(success=True, text=xml).body if right else b"nonsense"

    async def aside(work):
        done.append(work)
        return work()

    done = []
    asked = Deferred.fromCoroutine(Oned(Pool(), Clock(), timeout=1, connections=1, aside=aside).users("a:b"))
    if right:
        assert [user.name for user in result_of(asked)] == ["alice"]
    else:
        with pytest.raises(OnedError, match="oned's answer is not XML-RPC"):
            result_of(asked)
    assert len(done) == 1

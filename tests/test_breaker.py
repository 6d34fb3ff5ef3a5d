"""An oned that is down is spared, and asked again as soon as it is back."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from outcomes import result_of
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs

from vnctoken.breaker import FAILURES, LONGEST_PAUSE, PAUSE, PROBE_SECONDS, CircuitBreaker
from vnctoken.errors import AuthenticationError, NoExistsError, OnedError


class OnedAnsweredError(OnedError):
    """An answer that is of no use."""


class Line:
    """The way to an oned through a breaker: questions wait until they are answered."""

    def __init__(self):
        self.clock = Clock()
        self.breaker = CircuitBreaker(self.clock)
        self.questions = []
        self.given_up = []

    def ask(self):
        async def ask():
            self.questions.append(Deferred(self.given_up.append))
            return await self.questions[-1]

        return Deferred.fromCoroutine(self.breaker.guard(lambda: Deferred.fromCoroutine(ask())))

    def fails(self, reason="oned cannot be reached"):
        """Ask, and have this fail."""
        call = self.ask()
        self.questions[-1].errback(OnedError(reason))
        with pytest.raises(OnedError, match=reason):
            result_of(call)

    def answers(self, outcome=None):
        """Ask, and have this answered."""
        call = self.ask()
        self.questions[-1].callback("answer")
        assert result_of(call) == "answer"

    def is_refused(self, match="has failed"):
        """Ask, and be refused at once without a question."""
        before = len(self.questions)
        with pytest.raises(OnedError, match=match):
            result_of(self.ask())
        assert len(self.questions) == before

    def shut(self):
        for _ in range(FAILURES):
            self.fails()
        assert self.breaker.shut


@pytest.fixture
def line():
    return Line()


def test_an_oned_that_answers_is_asked_by_everybody(line):
    calls = [line.ask() for _ in range(20)]
    for number, question in enumerate(line.questions):
        question.callback(number)
    assert [result_of(call) for call in calls] == [*range(20)]


def test_after_five_failures_in_a_row_calls_are_refused_at_once_and_told_why_and_until_when(line):
    line.shut()
    text = "^oned has failed 5 times in a row, lastly: oned cannot be reached; it is asked again in 1 second$"
    line.is_refused(text)


@pytest.mark.parametrize(
    "answer", ["answer", NoExistsError("no VM"), AuthenticationError("no"), OnedAnsweredError("?")]
)
def test_an_answer_of_oned_be_it_a_refusal_ends_the_row(line, answer):
    for _ in range(3):
        for _ in range(FAILURES - 1):
            line.fails()
        call = line.ask()
        call.addErrback(lambda failure: failure.trap(NoExistsError, AuthenticationError, OnedAnsweredError))
        line.questions[-1].callback(answer) if answer == "answer" else line.questions[-1].errback(answer)
    assert not line.breaker.shut


@pytest.mark.parametrize("ending", [CancelledError(), ZeroDivisionError()])
def test_who_goes_away_and_what_is_our_own_fault_tell_nothing(line, ending):
    for _ in range(FAILURES - 1):
        line.fails()
    call = line.ask()
    line.questions[-1].errback(ending)
    with pytest.raises(type(ending)):
        result_of(call)
    assert not line.breaker.shut
    line.fails()
    assert line.breaker.shut


def test_after_a_pause_one_call_is_let_through_and_its_success_lets_all_through(line):
    line.shut()
    line.clock.advance(PAUSE)
    probe = line.ask()
    for _ in range(3):
        line.is_refused("it is being asked again")
    line.questions[-1].callback("answer")
    assert (result_of(probe), line.breaker.shut) == ("answer", False)
    line.answers()


def test_the_pause_doubles_up_to_a_limit_and_is_short_again_the_next_time(line):
    line.shut()
    for pause in (PAUSE, 2 * PAUSE, 4 * PAUSE, LONGEST_PAUSE, LONGEST_PAUSE):
        line.clock.advance(pause - 0.01)
        line.is_refused("asked again in 1 second$")
        line.clock.advance(0.01)
        line.fails("still down")
    line.is_refused("has failed 10 times in a row, lastly: still down; it is asked again in 5 seconds$")
    line.clock.advance(LONGEST_PAUSE)
    line.answers()
    line.shut()
    line.clock.advance(PAUSE)
    line.answers()


def test_a_refusal_of_oned_is_as_good_a_probe_as_any(line):
    line.shut()
    line.clock.advance(PAUSE)
    probe = line.ask()
    line.questions[-1].errback(NoExistsError("no such VM"))
    with pytest.raises(NoExistsError):
        result_of(probe)
    assert not line.breaker.shut


@pytest.mark.parametrize("ending", [CancelledError(), ZeroDivisionError()])
def test_when_the_probe_comes_to_nothing_the_next_call_is_one_at_once(line, ending):
    line.shut()
    line.clock.advance(PAUSE)
    probe = line.ask()
    probe.addErrback(lambda failure: failure.trap(CancelledError, ZeroDivisionError))
    line.questions[-1].errback(ending)
    line.answers()


def test_a_probe_whose_client_has_gone_away_is_cancelled_and_the_next_call_is_one_at_once(line):
    line.shut()
    line.clock.advance(PAUSE)
    probe = line.ask()
    probe.cancel()
    with pytest.raises(CancelledError):
        result_of(probe)
    assert line.given_up == [line.questions[-1]]
    line.answers()


def test_a_probe_that_hangs_makes_room_for_another_one(line):
    line.shut()
    line.clock.advance(PAUSE)
    hanging = line.ask()
    line.clock.advance(PROBE_SECONDS - 0.01)
    line.is_refused("being asked again")
    line.clock.advance(0.01)
    line.is_refused("lastly: oned did not answer within 5 seconds; it is asked again in 2 seconds$")
    line.clock.advance(2 * PAUSE)
    line.answers()
    assert not hanging.called


def test_a_question_that_takes_oned_longer_than_a_probe_may_still_proves_that_it_answers(line):
    line.shut()
    line.clock.advance(PAUSE)
    slow = line.ask()
    line.clock.advance(PROBE_SECONDS + 1)
    line.questions[-1].callback("the users of a large cloud")
    assert (result_of(slow), line.breaker.shut) == ("the users of a large cloud", False)


def test_what_an_overdue_probe_comes_to_does_not_count_twice(line):
    line.shut()
    line.clock.advance(PAUSE)
    overdue = line.ask()
    line.clock.advance(PROBE_SECONDS)
    line.clock.advance(2 * PAUSE)
    second = line.ask()
    line.questions[-2].errback(OnedError("late"))
    with pytest.raises(OnedError, match="late"):
        result_of(overdue)
    line.is_refused("being asked again")
    line.questions[-1].callback("answer")
    assert result_of(second) == "answer"


def test_who_waits_when_oned_is_given_up_is_refused_too_and_leaves_his_place(line):
    waiting = [line.ask() for _ in range(3)]
    questions = [*line.questions]
    line.shut()
    for call in waiting:
        with pytest.raises(OnedError, match="has failed 5 times in a row"):
            result_of(call)
    assert set(line.given_up) == set(questions)


def test_who_is_refused_may_ask_again_and_is_refused_again(line):
    again = []
    waiting = line.ask()
    waiting.addErrback(lambda failure: again.append(line.ask()))
    line.shut()
    with pytest.raises(OnedError, match="has failed 5 times"):
        result_of(again[0])


def test_the_operator_hears_once_that_oned_is_down_and_once_that_it_is_back(line):
    with capturedLogs() as logs:
        line.shut()
        for _ in range(3):
            line.is_refused()
            line.clock.advance(LONGEST_PAUSE)
            line.fails()
        line.clock.advance(LONGEST_PAUSE)
        line.answers()
        line.answers()
    assert [event["log_level"] for event in logs] == [LogLevel.warn, LogLevel.info]


def test_no_timer_is_left(line):
    line.shut()
    line.clock.advance(PAUSE)
    line.answers()
    assert line.clock.getDelayedCalls() == []


class Calls(RuleBasedStateMachine):
    """Checks what must hold whatever is asked, answered and given up when."""

    def __init__(self):
        super().__init__()
        self.line = Line()
        self.open = []
        self.row = 0
        self.probe = None
        self.overdue = 0.0
        self.none_before = 0.0

    @property
    def now(self):
        return self.line.clock.seconds()

    @rule()
    def ask(self):
        before = len(self.line.questions)
        shut = self.line.breaker.shut
        call = self.line.ask()
        if len(self.line.questions) == before:
            assert shut
            with pytest.raises(OnedError, match="has failed"):
                result_of(call)
            return
        self.open.append((call, self.line.questions[-1]))
        if shut:
            assert self.now >= self.none_before, "two probes at once, or too early"
            self.probe, self.none_before = call, self.now + PROBE_SECONDS + PAUSE
            self.overdue = self.now + PROBE_SECONDS

    @precondition(lambda self: self.open)
    @rule(data=st.data(), how=st.sampled_from(["answer", "refusal", "failure", "gone"]))
    def end(self, data, how):
        call, question = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        shut = self.line.breaker.shut
        match how:
            case "answer":
                question.callback(1)
                assert result_of(call) == 1
            case "refusal":
                question.errback(NoExistsError("no"))
                with pytest.raises(NoExistsError):
                    result_of(call)
            case "failure":
                question.errback(OnedError("down"))
                with pytest.raises(OnedError, match=r"^down$"):
                    result_of(call)
            case "gone":
                call.cancel()
                with pytest.raises(CancelledError):
                    result_of(call)
        if how in {"answer", "refusal"}:
            self.row = 0
            assert not self.line.breaker.shut
        elif how == "failure" and not shut:
            self.row += 1
            if self.row == FAILURES:
                self.shut_off()
        elif call is self.probe and self.now < self.overdue:
            self.none_before = self.now if how == "gone" else self.now + PAUSE

    def shut_off(self):
        assert self.line.breaker.shut
        self.none_before = self.now + PAUSE
        for waiting, _ in self.open:
            with pytest.raises(OnedError, match="has failed 5 times"):
                result_of(waiting)
        self.open = []

    @rule(seconds=st.sampled_from([0.5, 1, 2, 5, 10]))
    def wait(self, seconds):
        self.line.clock.advance(seconds)

    @rule()
    def recover(self):
        # An oned that is back serves everybody a few seconds later, whatever has been.
        self.line.clock.advance(PROBE_SECONDS)
        self.line.clock.advance(LONGEST_PAUSE)
        self.line.answers()
        self.line.answers()
        self.row = 0

    @invariant()
    def it_is_shut_off_only_after_failures_in_a_row(self):
        assert self.line.breaker.shut == (self.row >= FAILURES)


Calls.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCalls = Calls.TestCase

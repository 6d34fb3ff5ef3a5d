"""Equal questions in flight are one question."""

import gc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from outcomes import result_of
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs

from vnctoken.errors import NoExistsError
from vnctoken.sharing import Sharing


class Asked:
    """Keeps questions until they are answered."""

    def __init__(self):
        self.keys = []
        self.open = []
        self.cancelled = 0

    def about(self, key):
        def cancel(_):
            self.cancelled += 1

        async def ask():
            self.keys.append(key)
            self.open.append(Deferred(cancel))
            return await self.open[-1]

        return ask


@pytest.fixture
def asked():
    return Asked()


@pytest.fixture
def share(asked):
    sharing = Sharing()
    return lambda key: Deferred.fromCoroutine(sharing.share(key, asked.about(key)))


def test_those_who_ask_the_same_at_the_same_time_get_the_same_answer_to_one_question(asked, share):
    waiting = [share("a"), share("a"), share("b"), share("a")]
    assert asked.keys == ["a", "b"]
    asked.open[0].callback(1)
    assert [result_of(waiting[n]) for n in (0, 1, 3)] == [1, 1, 1]
    asked.open[1].callback(2)
    assert result_of(waiting[2]) == 2


def test_a_failure_is_everybodys_and_is_not_kept(asked, share):
    waiting = [share("a") for _ in range(3)]
    asked.open[0].errback(NoExistsError("no such VM"))
    for one in waiting:
        with pytest.raises(NoExistsError, match="no such VM"):
            result_of(one)
    share("a")
    assert asked.keys == ["a", "a"]


def test_an_answer_that_comes_at_once_is_not_kept_either():
    sharing, asked = Sharing(), []

    async def ask():
        asked.append(1)
        return len(asked)

    assert [result_of(sharing.share("a", ask)) for _ in range(3)] == [1, 2, 3]


def test_what_cannot_even_be_asked_fails_and_leaves_nothing_behind():
    sharing = Sharing()

    def broken():
        raise ZeroDivisionError

    async def ask():
        return 1

    with pytest.raises(ZeroDivisionError):
        result_of(sharing.share("a", broken))
    assert result_of(sharing.share("a", ask)) == 1


def test_who_goes_away_leaves_the_question_to_the_others(asked, share):
    waiting = [share("a") for _ in range(3)]
    for gone in (waiting[0], waiting[2]):
        gone.cancel()
        with pytest.raises(CancelledError):
            result_of(gone)
    asked.open[0].callback(1)
    assert (result_of(waiting[1]), asked.cancelled) == (1, 0)


def test_with_the_last_one_the_question_is_cancelled_and_the_next_one_asks_anew(asked, share):
    waiting = [share("a"), share("a")]
    for gone in waiting:
        gone.cancel()
        with pytest.raises(CancelledError):
            result_of(gone)
    assert asked.cancelled == 1
    late = share("a")
    asked.open[1].callback(2)
    assert result_of(late) == 2


def test_a_question_that_takes_its_time_to_end_is_nobody_elses():
    sharing, ending = Sharing(), Deferred()

    async def stubborn():
        try:
            await Deferred()
        except CancelledError:
            await ending
            raise

    gone = Deferred.fromCoroutine(sharing.share("a", stubborn))
    gone.addErrback(lambda failure: failure.trap(CancelledError))
    gone.cancel()
    answer = Deferred()
    late = Deferred.fromCoroutine(sharing.share("a", lambda: answer))
    ending.callback(None)
    another = Deferred.fromCoroutine(sharing.share("a", stubborn))
    answer.callback(1)
    assert (result_of(late), result_of(another)) == (1, 1)


def test_a_call_that_comes_while_the_answer_is_given_asks_anew(asked, share):
    again = []
    first = share("a")
    first.addCallback(lambda answer: [again.append(share("a")), answer][1])
    second = share("a")
    asked.open[0].callback(1)
    assert (result_of(first), result_of(second), len(asked.keys)) == (1, 1, 2)
    asked.open[1].callback(2)
    assert result_of(again[0]) == 2


def test_one_who_is_told_may_send_the_others_away(asked, share):
    first, second = share("a"), share("a")
    first.addCallback(lambda answer: [second.cancel(), answer][1])
    asked.open[0].callback(1)
    assert (result_of(first), asked.cancelled) == (1, 0)
    with pytest.raises(CancelledError):
        result_of(second)


def test_what_is_asked_about_is_in_no_representation(asked):
    sharing = Sharing()
    Deferred.fromCoroutine(sharing.share("alice:secret", asked.about("alice:secret")))
    assert "secret" not in repr(sharing)


def test_nothing_is_said_in_the_log_about_questions_that_nobody_waits_for(asked, share):
    with capturedLogs() as logs:
        waiting = [share("a"), share("b"), share("b")]
        for one in waiting:
            one.addErrback(lambda failure: failure.trap(CancelledError, NoExistsError))
        waiting[0].cancel()
        asked.open[1].errback(NoExistsError("no such VM"))
        waiting.clear()
        asked.open.clear()
        gc.collect()
    assert logs == []


class Sharers(RuleBasedStateMachine):
    """Compares with what should be: who waits for which question."""

    def __init__(self):
        super().__init__()
        self.sharing = Sharing()
        self.asked = Asked()
        self.in_flight = {}
        self.waiting = {}
        self.answers = 0

    @rule(key=st.sampled_from("ab"))
    def share(self, key):
        if key not in self.in_flight:
            self.in_flight[key] = len(self.asked.open)
        waiting = Deferred.fromCoroutine(self.sharing.share(key, self.asked.about(key)))
        self.waiting.setdefault(key, []).append(waiting)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), good=st.booleans())
    def answer(self, data, good):
        key = data.draw(st.sampled_from(sorted(self.in_flight)))
        self.answers += 1
        question = self.asked.open[self.in_flight.pop(key)]
        if good:
            question.callback(self.answers)
        else:
            question.errback(NoExistsError(str(self.answers)))
        for one in self.waiting.pop(key):
            if good:
                assert result_of(one) == self.answers
            else:
                with pytest.raises(NoExistsError, match=f"^{self.answers}$"):
                    result_of(one)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def go_away(self, data):
        key = data.draw(st.sampled_from(sorted(self.in_flight)))
        gone = self.waiting[key].pop(data.draw(st.integers(0, len(self.waiting[key]) - 1)))
        before = self.asked.cancelled
        gone.cancel()
        with pytest.raises(CancelledError):
            result_of(gone)
        if not self.waiting[key]:
            del self.in_flight[key]
            before += 1
        assert self.asked.cancelled == before

    @invariant()
    def each_question_is_asked_once(self):
        assert len(self.asked.keys) == self.answers + self.asked.cancelled + len(self.in_flight)


Sharers.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSharers = Sharers.TestCase

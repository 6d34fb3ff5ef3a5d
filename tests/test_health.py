"""Whether the service can do its work: what is looked at, how often, and what is told of it."""

from __future__ import annotations

import pytest
from memory import Line, MemoryStore
from outcomes import result_of
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, eventAsText

from vnctoken.errors import AuthenticationError, OnedError, TokenStoreError
from vnctoken.health import CHECK_SECONDS, FRESH_SECONDS, Health, oned_answers
from vnctoken.oned import Oned
from vnctoken.sandbox import oned as sandbox
from vnctoken.sandbox.cloud import demo_cloud


class Check:
    """Stands for something to look at; its answer comes when the test says so."""

    def __init__(self):
        self.asked = []

    async def __call__(self):
        self.asked.append(Deferred())
        await self.asked[-1]


class World:
    def __init__(self, *names):
        self.clock = Clock()
        self.checks = {name: Check() for name in names}
        self.health = Health(self.checks, self.clock)

    def ask(self):
        """Ask for the report, and return where it will be."""
        reports = []
        asking = Deferred.fromCoroutine(self.health.report())
        asking.addCallback(reports.append)
        return asking, reports

    def answer(self, name, outcome=None):
        asked = self.checks[name].asked[-1]
        (asked.errback if isinstance(outcome, Exception) else asked.callback)(outcome)


def test_the_service_is_ready_if_all_checks_are_well_and_each_says_how_long_it_took():
    world = World("oned", "store")
    _, reports = world.ask()
    world.clock.advance(0.0012)
    world.answer("oned")
    world.clock.advance(0.1)
    assert reports == []
    world.answer("store")
    (report,) = reports
    assert report.ready
    assert report.as_json() == {
        "ready": True,
        "checks": {"oned": {"ok": True, "ms": 1.2}, "store": {"ok": True, "ms": 101.2}},
    }


def test_one_check_that_fails_is_enough_and_says_what_the_matter_is():
    world = World("oned", "store")
    _, reports = world.ask()
    world.answer("oned")
    world.answer("store", TokenStoreError("No space left on device"))
    (report,) = reports
    assert not report.ready
    assert report.as_json() == {
        "ready": False,
        "checks": {
            "oned": {"ok": True, "ms": 0.0},
            "store": {"ok": False, "ms": 0.0, "problem": "No space left on device"},
        },
    }


def test_a_check_that_takes_too_long_has_failed_and_the_others_count_still():
    world = World("oned", "store")
    _, reports = world.ask()
    world.answer("store")
    world.clock.advance(CHECK_SECONDS - 0.1)
    assert reports == []
    world.clock.advance(0.1)
    (report,) = reports
    assert report.checks["oned"].problem == f"no answer within {CHECK_SECONDS} seconds"
    assert report.checks["store"].ok
    assert world.clock.getDelayedCalls() == []


def test_a_bug_in_a_check_is_for_the_log_and_not_for_who_asks():
    world = World("oned")
    with capturedLogs() as events:
        _, reports = world.ask()
        world.answer("oned", ValueError("alice:secret in it"))
    (report,) = reports
    assert not report.ready
    assert report.checks["oned"].problem == "internal error; the log says more"
    (event,) = events
    assert "the check oned broke" in eventAsText(event)


def test_however_many_ask_at_a_time_they_share_one_look():
    world = World("oned")
    waiting = [world.ask()[1] for _ in range(50)]
    assert len(world.checks["oned"].asked) == 1
    world.answer("oned")
    assert len({id(report) for (report,) in waiting}) == 1


def test_a_report_is_used_again_for_a_moment_and_then_no_more():
    world = World("oned")
    world.ask()
    world.answer("oned")
    world.clock.advance(FRESH_SECONDS - 0.01)
    assert [report.ready for report in world.ask()[1]] == [True]
    assert len(world.checks["oned"].asked) == 1
    world.clock.advance(0.01)
    _, reports = world.ask()
    assert len(world.checks["oned"].asked) == 2
    world.answer("oned", OnedError("gone"))
    assert [report.ready for report in reports] == [False]


def test_who_goes_away_takes_nobody_else_s_report_along():
    world = World("oned")
    first, _ = world.ask()
    _, reports = world.ask()
    first.addErrback(lambda _: None)
    first.cancel()
    world.answer("oned")
    assert [report.ready for report in reports] == [True]
    world.clock.advance(FRESH_SECONDS)
    _, reports = world.ask()
    world.answer("oned")
    assert len(reports) == 1


# What is looked at.


@pytest.fixture
def line():
    return Line(sandbox.Oned(demo_cloud(), Clock()))


def looked_at(line, session, clock=None):
    oned = Oned(line, clock or Clock(), timeout=25, connections=8)
    return oned_answers(oned, lambda: session)


@pytest.mark.parametrize("session", ["oneadmin:opennebula", "", "alice:wrong"])
def test_any_answer_of_oned_is_one_a_refusal_too(line, session):
    result_of(looked_at(line, session))
    assert line.asked == ["one.system.version"]


def test_an_oned_that_cannot_be_reached_does_not_answer(line):
    line.cut = True
    with pytest.raises(OnedError, match="cannot be reached"):
        result_of(looked_at(line, ""))


def test_a_login_that_cannot_be_made_is_no_answer(line):
    def session():
        raise AuthenticationError("the login cannot be made")

    oned = Oned(line, Clock(), timeout=25, connections=8)
    with pytest.raises(AuthenticationError):
        result_of(oned_answers(oned, session))
    assert line.asked == []


def test_an_oned_that_hangs_holds_no_connection_after_the_check(line):
    clock = Clock()
    oned = Oned(line, clock, timeout=25, connections=1)
    health = Health({"oned": lambda: oned_answers(oned, lambda: "alice:secret"), "store": MemoryStore().check}, clock)
    line.slow = True
    reports = []
    Deferred.fromCoroutine(health.report()).addCallback(reports.append)
    clock.advance(CHECK_SECONDS)
    (report,) = reports
    assert not report.ready
    assert report.checks["store"].ok
    assert "alice" not in str(report.as_json())
    line.slow = False
    assert result_of(oned.version("alice:secret"))

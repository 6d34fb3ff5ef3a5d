"""What is counted and timed, as Prometheus reads it."""

from __future__ import annotations

import importlib
import pkgutil
import platform
import re
import subprocess

import pytest
from conftest import program
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

import twisted
import vnctoken
from vnctoken.errors import ErrorCode, LimitError, VnctokenError
from vnctoken.health import Finding, Report
from vnctoken.measures import Unmeasured, Vitals
from vnctoken.methods import CONSOLE_METHODS, SYSTEM_METHODS
from vnctoken.metrics import OUTCOMES, REASONS, STAGES, Metrics

WELL = Report({"oned": Finding(1.0, ""), "store": Finding(1.0, "")})


class World:
    """The metrics of a service whose vitals are what the test says."""

    def __init__(self):
        self.tokens = self.waiting = self.connections = self.oned_connections = 0
        self.oldest = None
        self.shut = False
        vitals = Vitals(
            live_tokens=lambda: self.tokens,
            oldest_token=lambda: self.oldest,
            connections=lambda: self.connections,
            oned_connections=lambda: self.oned_connections,
            oned_waiting=lambda: self.waiting,
            oned_shut=lambda: self.shut,
        )
        self.metrics = Metrics(vitals)

    def text(self, report=WELL):
        return self.metrics.render("", report)[0].decode()

    def samples(self, report=WELL):
        """Return the value of each series."""
        families = text_string_to_metric_families(self.text(report))
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def value(self, name, **labels):
        return self.samples()[(name, *sorted(labels.items()))]


@pytest.fixture
def world():
    return World()


def carry_out(metrics, method="one.vm.vnctoken", code=0, seconds=0.02):
    metrics.began()
    metrics.called(method, code, seconds)


def test_calls_are_counted_by_method_and_code(world):
    carry_out(world.metrics)
    carry_out(world.metrics)
    carry_out(world.metrics, code=ErrorCode.INTERNAL)
    assert world.value("vnctoken_calls_total", method="one.vm.vnctoken", code="0x0000") == 2
    assert world.value("vnctoken_calls_total", method="one.vm.vnctoken", code="0x2000") == 1
    assert world.value("vnctoken_calls_total", method="one.vm.vnc", code="0x0000") == 0


@pytest.mark.parametrize(
    ("seconds", "bucket", "below"),
    [(0.0004, "0.0005", None), (0.02, "0.025", "0.01"), (29, "30.0", "10.0"), (60, "+Inf", "30.0")],
)
def test_how_long_calls_and_their_steps_took_is_known_from_half_a_millisecond_to_half_a_minute(
    world, seconds, bucket, below
):
    carry_out(world.metrics, seconds=seconds)
    for stage in STAGES:
        world.metrics.spent(stage, seconds)
    names = [("vnctoken_call_duration_seconds", {"method": "one.vm.vnctoken"})]
    names += [("vnctoken_stage_duration_seconds", {"stage": stage}) for stage in ("queue", "oned", "store")]
    for name, labels in names:
        assert world.value(f"{name}_bucket", **labels, le=bucket) == 1
        assert below is None or world.value(f"{name}_bucket", **labels, le=below) == 0
        assert world.value(f"{name}_count", **labels) == 1
        assert world.value(f"{name}_sum", **labels) == seconds


def test_calls_in_flight_are_those_that_have_not_ended_in_either_way(world):
    for _ in range(3):
        world.metrics.began()
    assert world.value("vnctoken_calls_in_flight") == 3
    world.metrics.called("one.vm.vnctoken", 0, 0.1)
    world.metrics.given_up()
    assert world.value("vnctoken_calls_in_flight") == 1
    assert world.value("vnctoken_calls_given_up_total") == 1


def test_refusals_and_resolutions_and_failures_of_the_audit_log_are_counted(world):
    world.metrics.refused("limit_user")
    world.metrics.resolved("opened")
    world.metrics.audit_failed()
    assert world.value("vnctoken_refusals_total", reason="limit_user") == 1
    assert world.value("vnctoken_resolutions_total", outcome="opened") == 1
    assert world.value("vnctoken_audit_failures_total") == 1


def test_every_reason_and_outcome_and_stage_is_there_from_the_start_with_0(world):
    samples = world.samples()
    for name, label, values in (
        ("vnctoken_refusals_total", "reason", REASONS),
        ("vnctoken_resolutions_total", "outcome", OUTCOMES),
        ("vnctoken_stage_duration_seconds_count", "stage", STAGES),
    ):
        assert [samples[name, (label, value)] for value in values] == [0] * len(values)
    calls = {key[1:]: value for key, value in samples.items() if key[0] == "vnctoken_calls_total"}
    for method in CONSOLE_METHODS:
        for code in ErrorCode:
            assert calls[("code", f"{code:#06x}"), ("method", method)] == 0


def test_every_error_has_a_reason_that_is_counted_under_its_own_name():
    for module in pkgutil.walk_packages(vnctoken.__path__, "vnctoken."):
        if not re.search(r"\.(__main__|sandbox|client)\b", module.name):  # these are no parts of the service
            importlib.import_module(module.name)

    def below(error):
        return {error}.union(*map(below, error.__subclasses__()))

    reasons = {error.reason for error in below(VnctokenError) - {LimitError} if ".client." not in error.__module__}
    reasons |= {LimitError("", kind).reason for kind in ("user", "vm", "client", "total")}
    assert reasons | {"bug"} == set(REASONS)


def test_what_the_service_has_now_is_looked_up_at_each_scrape(world):
    names = {
        "vnctoken_live_tokens": 7,
        "vnctoken_oldest_token_age_seconds": 61.5,
        "vnctoken_connections": 3,
        "vnctoken_oned_connections": 2,
        "vnctoken_oned_waiting": 5,
        "vnctoken_oned_breaker_open": 1,
    }
    assert [world.value(name) for name in names] == [0] * len(names)
    world.tokens, world.oldest, world.connections, world.oned_connections, world.waiting, world.shut = (
        7,
        61.5,
        3,
        2,
        5,
        True,
    )
    assert {name: world.value(name) for name in names} == names


def test_what_the_checks_found_is_told(world):
    samples = world.samples(Report({"oned": Finding(1.0, ""), "store": Finding(2.0, "disk full")}))
    assert samples[("vnctoken_ready",)] == 0
    assert samples["vnctoken_check_success", ("check", "oned")] == 1
    assert samples["vnctoken_check_success", ("check", "store")] == 0
    assert world.value("vnctoken_ready") == 1


def test_the_build_and_the_process_are_described(world):
    versions = {"version": vnctoken.__version__, "python": platform.python_version(), "twisted": twisted.__version__}
    assert world.value("vnctoken_build_info", **versions) == 1
    assert 0 < world.value("process_open_fds") < world.value("process_max_fds")
    assert world.value("process_resident_memory_bytes") > 2**20


HOSTILE = st.text() | st.sampled_from(
    ['alice:secret"} 1\nforged_total 1', "one.vm.vnctoken ", "", "system.x", "0" * 10_000]
)


@settings(deadline=None)
@given(HOSTILE, st.integers(-(2**40), 2**40))
def test_whatever_it_is_told_there_are_never_other_series(name, code):
    world = World()

    def series():
        return {line.rpartition(" ")[0] for line in world.text().splitlines() if not line.startswith("#")}

    before = series()
    carry_out(world.metrics, name, code)
    world.metrics.refused(name)
    world.metrics.resolved(name)
    world.metrics.spent(name, 1)
    known = {f'vnctoken_calls_total{{code="{one:#06x}",method="unknown"}}' for one in ErrorCode}
    assert series() - before <= known
    assert name in REASONS or 'vnctoken_refusals_total{reason="bug"} 1.0' in world.text()


def test_the_number_of_series_has_a_bound_however_many_callers_invent_names(world):
    for number in range(3000):
        carry_out(world.metrics, f"one.vm.{number}", number)
    for method in (*CONSOLE_METHODS, *SYSTEM_METHODS):
        for code in ErrorCode:
            carry_out(world.metrics, method, code)
    assert len(world.samples()) < 400


def test_services_in_one_process_count_apart_and_leave_the_global_registry_alone(world):
    before = [metric.name for metric in REGISTRY.collect()]
    carry_out(world.metrics)
    other = World()
    assert other.value("vnctoken_calls_total", method="one.vm.vnctoken", code="0x0000") == 0
    assert [metric.name for metric in REGISTRY.collect()] == before


def test_promtool_finds_nothing_to_complain_of(world):
    carry_out(world.metrics)
    done = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=world.text(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_takes_all_that_can_be_measured():
    measured = [name for name in vars(Unmeasured) if not name.startswith("_")]
    assert measured
    assert [name for name in measured if not callable(getattr(Metrics, name, None))] == []

"""Prometheus' metrics of the service. docs/monitoring.md lists them.

Every value of a label is from a fixed set, so there are so many series and never one more.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

import twisted
from vnctoken import __version__
from vnctoken.errors import ErrorCode
from vnctoken.methods import CONSOLE_METHODS, SYSTEM_METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

    from vnctoken.health import Report
    from vnctoken.measures import Vitals

UNKNOWN = "unknown"
METHODS = (*CONSOLE_METHODS, *SYSTEM_METHODS, UNKNOWN)
CODES = tuple(f"{code:#06x}" for code in ErrorCode)
BUG = "bug"
REASONS = (
    *("authentication", "authorization", "no_exists", "action", "api", "oned", "store", "audit", "internal"),
    *("limit_user", "limit_vm", "limit_client", "limit_total"),
    BUG,
)
STAGES = ("queue", "oned", "store")
OUTCOMES = ("opened", "admitted", "refused", UNKNOWN)

# From a token in a folder at hand to the longest that oned may take by default.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_OPENMETRICS = "application/openmetrics-text"


class Metrics:
    """Counts and times what it is told (a Measures), and looks up the vitals whenever it is asked."""

    def __init__(self, vitals: Vitals) -> None:
        self._registry = registry = CollectorRegistry()
        calls = Counter("vnctoken_calls_total", "Calls answered.", ["method", "code"], registry=registry)
        # From the start, so that rate() sees the first one; but not what no system method ever answers.
        pairs = [(method, code) for method in CONSOLE_METHODS for code in CODES]
        pairs += [(method, CODES[0]) for method in SYSTEM_METHODS]
        self._calls = {pair: calls.labels(*pair) for pair in pairs}
        self._call = calls.labels
        durations = Histogram(
            *("vnctoken_call_duration_seconds", "How long calls took in all.", ["method"]),
            buckets=_BUCKETS,
            registry=registry,
        )
        self._durations = {method: durations.labels(method) for method in METHODS}
        stages = Histogram(
            *("vnctoken_stage_duration_seconds", "How long the steps of calls took.", ["stage"]),
            buckets=_BUCKETS,
            registry=registry,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._in_flight = Gauge("vnctoken_calls_in_flight", "Calls being carried out.", registry=registry)
        self._given_up = Counter(
            "vnctoken_calls_given_up_total", "Calls whose client went away before the answer.", registry=registry
        )
        refusals = Counter("vnctoken_refusals_total", "Calls refused.", ["reason"], registry=registry)
        self._refusals = {reason: refusals.labels(reason) for reason in REASONS}
        resolutions = Counter("vnctoken_resolutions_total", "Answers of the resolver.", ["outcome"], registry=registry)
        self._resolutions = {outcome: resolutions.labels(outcome) for outcome in OUTCOMES}
        self._audit_failures = Counter(
            "vnctoken_audit_failures_total", "Lines that could not be written to the audit log.", registry=registry
        )
        self._ready = Gauge("vnctoken_ready", "Whether /readyz says that it is ready.", registry=registry)
        self._checks = Gauge(
            "vnctoken_check_success", "Whether a check of /readyz passed.", ["check"], registry=registry
        )
        Info("vnctoken_build", "The versions that run.", registry=registry).info(
            {"version": __version__, "python": platform.python_version(), "twisted": twisted.__version__}
        )
        _look_up(vitals, registry)
        ProcessCollector(registry=registry)

    def began(self) -> None:
        """Count a call in."""
        self._in_flight.inc()

    def called(self, method: str, code: int, seconds: float) -> None:
        """Count a call out, by its method and code."""
        self._in_flight.dec()
        if method not in self._durations:
            method = UNKNOWN
        written = f"{code:#06x}"
        counter = self._calls.get((method, written))
        if counter is None:
            counter = self._call(method, written if written in CODES else f"{ErrorCode.INTERNAL:#06x}")
        counter.inc()
        self._durations[method].observe(seconds)

    def given_up(self) -> None:
        """Count a call out that nobody waits for any more."""
        self._in_flight.dec()
        self._given_up.inc()

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        self._refusals.get(reason, self._refusals[BUG]).inc()

    def spent(self, stage: str, seconds: float) -> None:
        """Take the time of a step."""
        if stage in self._stages:
            self._stages[stage].observe(seconds)

    def resolved(self, outcome: str) -> None:
        """Count an answer of the resolver."""
        self._resolutions.get(outcome, self._resolutions[UNKNOWN]).inc()

    def audit_failed(self) -> None:
        """Count a line that is missing in the audit log."""
        self._audit_failures.inc()

    def render(self, accept: str, report: Report) -> tuple[bytes, str]:
        """Return all metrics and their media type: OpenMetrics if the Accept header names it, else Prometheus' text."""
        self._ready.set(report.ready)
        for name, finding in report.checks.items():
            self._checks.labels(name).set(finding.ok)
        # Nothing else of the header is handed on: not every version forgives a parameter that it cannot read.
        encode, media_type = choose_encoder(_OPENMETRICS if _OPENMETRICS in accept else "")
        return encode(_WithoutBirthdays(self._registry)), media_type


class _WithoutBirthdays(Collector):
    """The metrics without the moments at which counters were made: they double the series, and nobody asks for them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def _look_up(vitals: Vitals, registry: CollectorRegistry) -> None:
    def gauge(name: str, documentation: str, value: Callable[[], float]) -> None:
        Gauge(name, documentation, registry=registry).set_function(value)

    gauge("vnctoken_live_tokens", "Tokens that open a console now.", vitals.live_tokens)
    gauge(
        "vnctoken_oldest_token_age_seconds",
        "The age of the oldest token that opens a console now, 0 without one.",
        lambda: vitals.oldest_token() or 0,
    )
    gauge("vnctoken_connections", "Connections of clients that are open.", vitals.connections)
    gauge("vnctoken_oned_connections", "Connections to oned in use.", vitals.oned_connections)
    gauge("vnctoken_oned_waiting", "Questions waiting for a connection to oned.", vitals.oned_waiting)
    gauge("vnctoken_oned_breaker_open", "Whether oned is left alone, as it is down.", vitals.oned_shut)

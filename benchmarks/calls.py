#!/usr/bin/env python3
"""How many console calls per second, beside something to compare with, in one run.

    benchmarks/calls.py ceiling            the service's own cost: nginx plays oned with one canned answer, and the
                                           yardstick is a bare twisted.web.xmlrpc.XMLRPC that returns a constant
    benchmarks/calls.py cloud              the service in front of the sandbox's oned, beside that oned asked directly
    benchmarks/calls.py cloud --oned URL --session USER:PASSWORD --vm ID
                                           the same in front of a real oned
    ... --also NAME=URL                    another service, asked the same, such as an older one

The machine is noisy: the URLs take turns in every round, and a figure is the median over the rounds. wrk makes the
load. CPU and memory are those of processes started here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import xmlrpc.client
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vnctoken.sandbox.calls import Answer
from vnctoken.sandbox.cloud import demo_cloud
from vnctoken.sandbox.programs import free_port, program, running, sandbox, vnctoken_server, wait_for
from vnctoken.sandbox.rendering import guest_xml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

YARDSTICK = """
import sys
from twisted.internet import reactor
from twisted.web import server, xmlrpc

class Constant(xmlrpc.XMLRPC):
    def lookupProcedure(self, path):
        return lambda *arguments: [True, "0123456789abcdef0123456789abcdef", 0]

port = reactor.listenTCP(0, server.Site(Constant()), interface="127.0.0.1")
print(f"listens on http://127.0.0.1:{port.getHost().port}/RPC2", flush=True)
reactor.run()
"""

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_timeout 0; default_type text/xml;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; location = /RPC2 {{ return 200 '{answer}'; }} }}
}}
"""

# Stands where each call has a number of its own.
EACH = "#each#"
UNLIMITED = ":calls_per_user: none\n:calls_per_vm: none\n"

# wrk counts in microseconds.
WRK = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "text/xml"
-- Passwords that differ, where nobody looks at them: identical calls at the same time would share a question to oned.
local head, tail = [[{head}]], [[{tail}]]
local requests, number = {{}}, 0
function init()
    for each = 1, 997 do
        requests[each] = wrk.format(nil, nil, nil, head .. ({vary} and each or "") .. tail)
    end
end
function request()
    number = number % #requests + 1
    return requests[number]
end
done = function(summary, latency, requests)
    local e = summary.errors
    io.write(string.format("figures %d %d %d %d %d\\n", summary.requests, summary.duration,
        latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Candidate:
    """Something to ask, and the process that answers if we started it."""

    name: str
    url: str
    body: bytes
    pid: int | None = None


@dataclass(frozen=True)
class Figures:
    """What one round showed."""

    calls_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    memory_mb: float


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=("ceiling", "cloud"))
    parser.add_argument("--oned", metavar="URL", help="a real oned for the cloud setting (default: the sandbox's)")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds the sandbox's oned waits before it answers")
    parser.add_argument("--session", default="alice:secret")
    parser.add_argument("--vm", type=int, default=0)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="length of a round")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vnctoken-benchmark-")))
        candidates = _candidates(options, folder, stack)
        for clients in options.clients:
            _compare(candidates, clients, options.rounds, options.seconds, folder)


def _candidates(options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> list[Candidate]:
    session = options.session + (EACH if options.setting == "ceiling" else "")
    call = xmlrpc.client.dumps((session, options.vm), "one.vm.vnctoken").encode()
    info = xmlrpc.client.dumps((options.session, options.vm), "one.vm.info").encode()
    if options.setting == "ceiling":
        oned = stack.enter_context(_nginx(folder))
        started = stack.enter_context(program([sys.executable, "-c", YARDSTICK]))
        candidates = [Candidate("yardstick", started.url, call, started.pid)]
    else:
        oned, pid = options.oned, None
        if oned is None:
            started = stack.enter_context(sandbox("--max-connections", "15", "--delay", str(options.delay)))
            oned, pid = started.url, started.pid
        candidates = [Candidate("oned", oned, info, pid)]
    service = stack.enter_context(vnctoken_server(folder, oned, UNLIMITED))
    others = [other.partition("=") for other in options.also]
    return [
        *candidates,
        Candidate("vnctoken", service.url, call, service.pid),
        *(Candidate(n, u, call) for n, _, u in others),
    ]


@contextlib.contextmanager
def _nginx(folder: Path) -> Iterator[str]:
    guest = demo_cloud().guest(0)
    assert guest is not None
    answer = Answer(True, guest_xml(guest)).body.decode()
    port = free_port()
    quoted = answer.replace("\\", "\\\\").replace("'", "\\'")
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, answer=quoted), encoding="utf-8")
    command = [_path("nginx"), "-e", f"{folder}/nginx.log", "-c", str(folder / "nginx.conf")]
    with running(command) as process:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}/RPC2"


def _compare(candidates: Sequence[Candidate], clients: int, rounds: int, seconds: int, folder: Path) -> None:
    figures: dict[str, list[Figures]] = defaultdict(list)
    for _ in range(rounds):
        for candidate in candidates:
            figures[candidate.name].append(_round(candidate, clients, seconds, folder))
    print(f"\n{clients} client{'s' if clients > 1 else ''}, medians of {rounds} rounds of {seconds} s")
    print(
        f"{'':12}{'calls/s':>9}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}{'ratio':>8}{'CPU ms/call':>13}{'memory MB':>11}"
    )
    first = _median(figures[candidates[0].name])
    for candidate in candidates:
        it = _median(figures[candidate.name])
        print(
            f"{candidate.name:12}{it.calls_per_second:9.0f}{it.calls_per_second / first.calls_per_second:8.2f}"
            f"{it.p50_ms:9.2f}{it.p99_ms:9.2f}{it.p99_ms / first.p99_ms:8.2f}{it.cpu_ms:13.3f}{it.memory_mb:11.1f}",
            flush=True,
        )


def _round(candidate: Candidate, clients: int, seconds: int, folder: Path) -> Figures:
    script = folder / f"{candidate.name}.lua"
    head, each, tail = candidate.body.decode().partition(EACH)
    script.write_text(WRK.format(head=head, tail=tail, vary=str(bool(each)).lower()), encoding="utf-8")
    cpu = _cpu_seconds(candidate.pid)
    wrk = [_path("wrk"), "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), candidate.url]
    output = subprocess.run(wrk, capture_output=True, text=True, check=True).stdout
    match = re.search(r"figures (\d+) (\d+) (\d+) (\d+) (\d+)", output)
    if match is None:
        sys.exit(f"wrk said: {output}")
    calls, duration, p50, p99, errors = map(int, match.groups())
    if errors or not calls:
        sys.exit(f"{candidate.name}: {errors} of {calls} calls failed: {output}")
    cpu_ms = (_cpu_seconds(candidate.pid) - cpu) / calls * 1000
    return Figures(calls / duration * 1e6, p50 / 1000, p99 / 1000, cpu_ms, _memory_mb(candidate.pid))


def _median(figures: Sequence[Figures]) -> Figures:
    return Figures(*(statistics.median(values) for values in zip(*(vars(f).values() for f in figures), strict=True)))


def _cpu_seconds(pid: int | None) -> float:
    if pid is None:
        return float("nan")
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def _memory_mb(pid: int | None) -> float:
    if pid is None:
        return float("nan")
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(match[1]) / 1024 if match else float("nan")


def _path(program: str) -> str:
    path = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
    if path is None:
        sys.exit(f"{program} is not installed; on Debian: apt install {program}")
    return path


if __name__ == "__main__":
    main()

"""Health and metrics of a running service; alerts and dashboard in a real Prometheus; and the document about them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
import xmlrpc.client
from dataclasses import dataclass

import pytest
import yaml
from conftest import ROOT, Service, free_port, program, running, vnctoken_server
from prometheus_client.parser import text_string_to_metric_families
from webservers import until, write_nginx_main

from vnctoken.health import CHECK_SECONDS, FRESH_SECONDS
from vnctoken.metrics import OUTCOMES, REASONS, STAGES

DOCUMENT = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
ALERTS = ROOT / "docs" / "alerts.yml"
DASHBOARD = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8"))
DOCUMENTED = "127.0.0.1:2646"
# What histograms and counters are called in queries, and what Prometheus and its functions are.
SUFFIXES = re.compile("_(bucket|count|sum)$")
NAMES = re.compile(r"\b(?:vnctoken|process)_[a-z_]+\b")


def get(url):
    """Return the status and the body of a page."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@dataclass
class Monitored:
    """A running service and where it is watched."""

    service: Service
    port: int

    def get(self, path):
        return get(f"http://127.0.0.1:{self.port}{path}")

    def call(self, vm_id=0, session="alice:secret"):
        with xmlrpc.client.ServerProxy(self.service.url) as proxy:
            return proxy.one.vm.vnctoken(session, vm_id)

    def families(self):
        return {family.name: family for family in text_string_to_metric_families(self.get("/metrics")[1])}

    def value(self, name, **labels):
        samples = (sample for family in self.families().values() for sample in family.samples)
        (value,) = [sample.value for sample in samples if (sample.name, sample.labels) == (name, labels)]
        return value


@contextlib.contextmanager
def monitored(place, oned_url, settings="", environment=()):
    port = free_port()
    settings = f":monitor_listen: 127.0.0.1:{port}\n{settings}"
    with vnctoken_server(place, oned_url, settings, environment) as service:
        yield Monitored(service, port)


@pytest.fixture(scope="module")
def monitor(tmp_path_factory, cloud):
    with monitored(tmp_path_factory.mktemp("one"), cloud.url) as running_service:
        running_service.call()
        yield running_service


def rows(heading):
    """Return the table whose first column has this heading."""
    table = DOCUMENT.split(f"\n| {heading} |")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def queries():
    """Return the dashboard's queries by their panels' titles, for every instance and the last 10 seconds."""
    return [
        (panel["title"], re.sub(r"\$(job|instance)", ".*", target["expr"]).replace("$__rate_interval", "10s"))
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]


def alerts():
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return group["rules"]


# The running service.


def test_a_service_is_alive_and_ready_and_counts_what_it_does(monitor):
    assert monitor.get("/healthz") == (200, "ok\n")
    status, body = monitor.get("/readyz")
    assert status == 200
    assert json.loads(body)["ready"] is True
    before = monitor.value("vnctoken_calls_total", method="one.vm.vnctoken", code="0x0000")
    refused = monitor.value("vnctoken_refusals_total", reason="authentication")
    assert monitor.call()[0]
    assert not monitor.call(session="alice:wrong")[0]
    assert monitor.value("vnctoken_calls_total", method="one.vm.vnctoken", code="0x0000") == before + 1
    assert monitor.value("vnctoken_refusals_total", reason="authentication") == refused + 1
    assert monitor.value("vnctoken_live_tokens") >= 1
    assert monitor.value("vnctoken_calls_in_flight") == 0
    for stage in STAGES:
        assert monitor.value("vnctoken_stage_duration_seconds_count", stage=stage) >= 1


def test_no_session_user_vm_or_token_is_in_the_metrics(monitor):
    token = monitor.call()[1]["Token"]
    text = monitor.get("/metrics")[1]
    for secret in ("alice", "secret", token, token[:8], "127.0.0.1"):
        assert secret not in text


def test_a_service_that_cannot_write_tokens_is_alive_but_not_ready_until_it_can(tmp_path, cloud):
    with monitored(tmp_path / "one", cloud.url) as monitor:
        aside = tmp_path / "aside"
        monitor.service.tokens.rename(aside)
        status, body = monitor.get("/readyz")
        assert status == 503
        assert json.loads(body)["checks"]["oned"]["ok"]
        assert (
            json.loads(body)["checks"]["store"]["problem"] == "No token can be written now. No such file or directory"
        )
        assert monitor.get("/healthz") == (200, "ok\n")
        assert monitor.value("vnctoken_ready") == 0
        aside.rename(monitor.service.tokens)
        until(lambda: monitor.get("/readyz")[0] == 200)


def test_a_service_without_an_oned_is_not_ready_and_without_prometheus_client_it_has_no_metrics(tmp_path):
    (tmp_path / "prometheus_client.py").write_text("raise ImportError\n", encoding="ascii")
    environment = {"PYTHONPATH": str(tmp_path)}.items()
    with monitored(tmp_path / "one", f"http://127.0.0.1:{free_port()}/RPC2", environment=environment) as monitor:
        status, body = monitor.get("/readyz")
        assert status == 503
        assert "oned refuses connections" in json.loads(body)["checks"]["oned"]["problem"]
        assert json.loads(body)["checks"]["store"]["ok"]
        status, body = monitor.get("/metrics")
        assert (status, "install vnctoken[metrics]" in body) == (501, True)
        assert monitor.get("/healthz") == (200, "ok\n")


# What the document says.


def test_the_document_lists_every_metric_with_its_type_and_labels(monitor):
    documented = {}
    for name, kind, labels, meaning in rows("Metric"):
        assert meaning
        documented[name.strip("`")] = (kind, frozenset(re.findall("`([a-z]+)`", labels)))
    scraped = {}
    for name, family in monitor.families().items():
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        scraped[f"{name}_total" if family.type == "counter" else name] = (family.type, labels)
    assert documented == scraped


def test_the_document_names_every_stage_outcome_reason_and_check(monitor):
    def named(cell):
        return re.findall("`([a-z_]+)`", cell)

    meanings = {name.strip("`"): meaning for name, _, _, meaning in rows("Metric")}
    assert named(meanings["vnctoken_stage_duration_seconds"]) == list(STAGES)
    assert named(meanings["vnctoken_resolutions_total"]) == list(OUTCOMES)
    assert {name for cell, _ in rows("Reason") for name in named(cell)} == set(REASONS)
    checks = [name for cell, _ in rows("Check") for name in named(cell)]
    assert checks == [*json.loads(monitor.get("/readyz")[1])["checks"], "audit"]


def test_the_documents_example_is_what_readyz_answers(monitor):
    example = json.loads(re.search(r"\n(\{.*\})\n", DOCUMENT)[1])
    checks = json.loads(monitor.get("/readyz")[1])["checks"]
    assert [*example["checks"]] == [*checks]
    assert example["checks"]["oned"].keys() == checks["oned"].keys()
    assert f"A check has {CHECK_SECONDS:g} seconds" in DOCUMENT
    assert f"is used for {FRESH_SECONDS:g} seconds" in DOCUMENT


def test_a_load_balancer_asks_through_nginx_as_the_document_shows(monitor, tmp_path):
    (snippet,) = re.findall(r"^```nginx\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert DOCUMENTED in snippet
    port = free_port()
    location = snippet.replace(DOCUMENTED, f"127.0.0.1:{monitor.port}")
    (tmp_path / "site.conf").write_text(
        f"server {{ listen 127.0.0.1:{port}; server_name cloud.example.org; access_log off;\n{location}}}\n"
    )
    with running(program("nginx"), "-e", "stderr", "-c", write_nginx_main(tmp_path, ["site"]), "-p", tmp_path):
        until(lambda: _status(f"http://127.0.0.1:{port}/readyz") == 200)
        assert _status(f"http://127.0.0.1:{port}/metrics") == 404


def _status(url):
    try:
        return get(url)[0]
    except urllib.error.URLError:
        return None


# Alerts and dashboard.


def promtool(*args, **options):
    done = subprocess.run(
        [program("promtool"), *args], capture_output=True, text=True, timeout=30, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_finds_nothing_wrong_with_the_metrics_and_the_alerts(monitor):
    assert promtool("check", "metrics", input=monitor.get("/metrics")[1]) == ""
    promtool("check", "rules", "--lint-fatal", ALERTS)


def test_the_alerts_fire_when_they_should_and_only_then():
    promtool("test", "rules", ROOT / "tests" / "alerts_test.yml")
    tested = (ROOT / "tests" / "alerts_test.yml").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in alerts() if f'alertname="{rule["alert"]}"' not in tested] == []


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_each_alert_says_what_it_is_and_what_to_do(alert):
    assert alert["alert"].startswith("Vnctoken")
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert all(len(alert["annotations"][name]) > 20 for name in ("summary", "description", "action"))


def test_alerts_and_dashboard_use_metrics_that_there_are_with_labels_that_they_have(monitor):
    names = {sample.name for family in monitor.families().values() for sample in family.samples}
    used = {name for _, query in queries() for name in NAMES.findall(query)}
    used |= {name for rule in alerts() for name in NAMES.findall(rule["expr"])}
    used |= {name for rule in alerts() for name in NAMES.findall(" ".join(rule["annotations"].values()))}
    assert {name for name in used if name not in names and f"{name}_count" not in names} == set()
    variables = DASHBOARD["templating"]["list"]
    assert [name for variable in variables for name in NAMES.findall(str(variable["query"])) if name not in names] == []


def test_what_is_measured_is_on_the_dashboard(monitor):
    shown = {SUFFIXES.sub("", name) for _, query in queries() for name in NAMES.findall(query)}
    ours = {name.strip("`") for name, *_ in rows("Metric") if "vnctoken_" in name}
    assert ours - shown == set()


def test_the_dashboard_can_be_imported_anywhere():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "job": "query", "instance": "query"}
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"vnctoken", "${datasource}"}
    assert DASHBOARD["id"] is None
    squares = [
        (x, y)
        for panel in panels
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(squares)) == len(squares)
    assert max(x for x, _ in squares) < 24


def test_a_prometheus_set_up_as_documented_has_data_for_every_panel_and_no_alarm(monitor, tmp_path):
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    configuration = yaml.safe_load(snippet.replace(DOCUMENTED, f"127.0.0.1:{monitor.port}"))
    assert configuration["rule_files"] == ["/etc/prometheus/vnctoken-alerts.yml"]
    configuration["rule_files"] = [str(ALERTS)]
    configuration["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    port = free_port()
    options = {
        "config.file": tmp_path / "prometheus.yml",
        "storage.tsdb.path": tmp_path / "data",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    command = (program("prometheus"), *(f"--{name}={value}" for name, value in options.items()))

    def ask(path, **parameters):
        status, body = get(f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        assert status == 200, body
        return json.loads(body)["data"]

    def empty():
        """Return the panels without data, with some calls made meanwhile."""
        monitor.call()
        monitor.call(session="alice:wrong")
        answers = [(title, ask("query", query=query)["result"]) for title, query in queries()]
        return [title for title, result in answers if all(one["value"][1] == "NaN" for one in result)]

    with running(*command, ready="Server is ready to receive web requests"):
        until(lambda: ask("query", query="up")["result"] != [])
        until(lambda: empty() == [])
        (group,) = ask("rules")["groups"]
        assert [(rule["name"], rule["health"]) for rule in group["rules"]] == [
            (rule["alert"], "ok") for rule in alerts()
        ]
        # What is pending may be a scrape that was late on a busy machine.
        assert [alert for alert in ask("alerts")["alerts"] if alert["state"] == "firing"] == []

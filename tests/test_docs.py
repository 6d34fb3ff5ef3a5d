"""What the documents say, held against what the service does. Every snippet is run as it is written."""

import re
import shlex
import subprocess
import sys
import xmlrpc.client

import pytest
import yaml
from conftest import ROOT, program, running

from vnctoken.config import DEFAULT_CONSOLE_STATES, INHERITED, Config
from vnctoken.errors import ErrorCode

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
DOCUMENTED_URL = "http://127.0.0.1:2644/RPC2"


def snippets(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)


def snippet(document, language, containing=""):
    (found,) = (text for text in snippets(document, language) if containing in text)
    assert DOCUMENTED_URL in found
    return found


def rows(document, heading):
    """Return the table below a heading as lists of cells without backquotes."""
    table = document.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def output(command, text, service, **options):
    """Run a snippet against the service and return the last line that it printed."""
    text = text.replace(DOCUMENTED_URL, service.url)
    done = subprocess.run([*command], input=text, capture_output=True, text=True, timeout=60, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def issued_token(service, vm_id=20):
    return (service.tokens / f"one-{vm_id}").read_text(encoding="utf-8").partition(":")[0]


@pytest.mark.parametrize(
    ("language", "command"),
    [
        ("python", (sys.executable, "-")),
        ("ruby", ("ruby", "-")),
        ("php", ("php",)),
        ("javascript", ("node", "--input-type=module", "-")),
    ],
)
def test_a_reader_who_copies_the_readmes_program_gets_a_token(language, command, service):
    program(command[0])
    assert output(command, snippet(README, language), service) == issued_token(service)


def test_a_reader_who_copies_the_readmes_curl_line_gets_a_token(service):
    program("curl")
    answer = output(("sh",), snippet(README, "sh", "alice:secret"), service)
    assert f"<string>{issued_token(service)}</string>" in answer


def test_the_installations_curl_line_lists_the_methods(service):
    program("curl")
    (line,) = (line for line in snippet(README, "sh", "make install").splitlines() if line.startswith("curl"))
    assert "one.vm.vnctoken" in output(("sh",), line, service)


def test_the_readme_shows_what_the_demo_prints():
    with running(sys.executable, "-m", "vnctoken.sandbox.demo", "--once") as demo:
        assert demo.process.wait(60) == 0

    def stable(text):
        return re.sub(r"[0-9a-f]{32}|:\d{5}/|(?<=Port      )\d+", "#", text)

    shown = stable(next(text for text in snippets(README, "console") if "make demo" in text))
    printed = [stable(line) for line in demo.lines]
    for line in shown.splitlines()[1:]:
        assert line in printed or line == "..."


def test_the_readme_lists_every_setting_with_its_default_and_where_it_may_come_from():
    defaults = yaml.safe_load(Config().to_yaml())
    del defaults[":log"]
    listed = {}
    for name, default, _ in rows(README, "Configuration"):
        listed[name.removesuffix("*").strip(" `").strip(":")] = default, name.endswith("*")
    assert {f":{key}" for key in listed} == set(defaults)
    assert {key for key, (_, inherited) in listed.items() if inherited} == INHERITED - {"log"}
    for key, (default, _) in listed.items():
        if key == "console_states":
            assert default == f"{len(DEFAULT_CONSOLE_STATES)} states, see the file"
        else:
            assert yaml.safe_load(default) == defaults[f":{key}"]


def test_the_readme_lists_every_error_code():
    assert {(int(code, 16), name) for code, name, _ in rows(README, "Error codes")} == {
        (code.value, code.name) for code in ErrorCode
    }


def test_the_protocols_multicall_answers_for_each_vm(service):
    answers = snippet(PROTOCOL, "python", "MultiCall").replace(DOCUMENTED_URL, service.url)
    done = subprocess.run([sys.executable, "-"], input=answers, capture_output=True, text=True, timeout=60, check=True)
    first, second, third = (line.split(" ", 1) for line in done.stdout.splitlines())
    assert [first[0], second[0], third[0]] == ["True", "False", "True"]
    assert second[1] == "Graphics type 'SPICE' but 'VNC' expected 1024"


def test_the_protocols_call_on_the_wire_is_answered_with_the_bytes_shown(service):
    program("curl")
    call, answer = (text for text in snippets(PROTOCOL, "xml") if "<method" in text)
    curl = ("curl", "-s", "--data-binary", "@-", service.url)
    done = subprocess.run(curl, input=call, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == answer


def test_the_protocols_xml_of_a_console_is_what_one_vm_vnc_answers(service):
    with xmlrpc.client.ServerProxy(service.url) as portal:
        _, answered, _ = portal.one.vm.vnc("alice:secret", 20)
    (shown,) = (text.strip() for text in snippets(PROTOCOL, "xml") if text.startswith("<VM>"))
    assert re.sub("[0-9a-f]{32}", "#", answered) == re.sub("[0-9a-f]{32}", "#", shown)


@pytest.mark.parametrize(
    ("vm_id", "message"), [(3, "Graphics type"), (7, "Unsupported VM state"), (10, "GRAPHICS/PORT is '22'")]
)
def test_the_protocols_refusals_are_those_that_clients_get(vm_id, message, service):
    with xmlrpc.client.ServerProxy(service.url) as portal:
        _, answered, code = portal.one.vm.vnctoken("alice:secret", vm_id)
    assert message in answered
    assert [f"{code:#06x}", answered] in rows(PROTOCOL, "The refusals")


def test_the_operations_commands_options_are_the_programs():
    usage = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    shown = next(text for text in snippets(usage, "") if text.startswith("vnctoken-server"))
    done = subprocess.run(
        shlex.split(f"{sys.executable} -m vnctoken.server --help"),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for option in re.findall(r"\[(--[a-z-]+)", shown):
        assert option in done.stdout

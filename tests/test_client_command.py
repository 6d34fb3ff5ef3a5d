"""The `vnctoken` command and its document, with the real service and the sandbox's oned."""

import contextlib
import csv
import http.server
import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import ROOT, free_port, program, vnctoken_server

from vnctoken import __version__
from vnctoken.client import LiveToken, VnctokenError, errors
from vnctoken.client.command import main
from vnctoken.client.pool import MOST_VMS
from vnctoken.client.tables import COLUMNS, token_csv, token_table
from vnctoken.tokens import fingerprint
from vnctoken.wire import write_answer

COMMAND = (sys.executable, "-m", "vnctoken.client.command")
DOCUMENT = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
DOCUMENTED_URL = "http://127.0.0.1:2644/RPC2"
PAGE = "https://cloud.example.org/console.html#host={host}&path={path}"


@pytest.fixture(scope="module")
def service(tmp_path_factory, cloud):
    settings = f":resolver_listen: 127.0.0.1:{free_port()}\n:console_url: {PAGE}\n:tokens_per_vm: 100\n"
    with vnctoken_server(tmp_path_factory.mktemp("service"), cloud.url, settings) as running_service:
        yield running_service


@pytest.fixture
def home(tmp_path, monkeypatch, service, cloud):
    """Be alice, at a home of her own, with the service and oned in the environment."""
    login = tmp_path / ".one" / "one_auth"
    login.parent.mkdir()
    login.write_text("alice:secret\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ONE_VNCTOKEN", service.url)
    monkeypatch.setenv("ONE_XMLRPC", cloud.url)
    for name in ("ONE_AUTH", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def vnctoken(home, capsys):
    """Run the command in this process; return the exit code, and the lines on stdout and on stderr."""

    def run(line):
        try:
            code = main(shlex.split(line))
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err.splitlines()

    return run


def printed(vnctoken, line):
    code, out, err = vnctoken(line)
    assert (code, err) == (0, [])
    return out


# Consoles


def test_show_has_all_of_a_console_one_value_in_a_line(vnctoken):
    header, *lines = printed(vnctoken, "show 1 --ttl 60")
    assert header == "VIRTUAL MACHINE 1 CONSOLE"
    shown = dict(re.fullmatch(r"(\w+) *: ?(.*)", line).groups() for line in lines)
    token = shown.pop("TOKEN")
    assert re.fullmatch("[0-9a-f]{32}", token)
    assert shown == {
        "ID": "1",
        "HOST": "dummy-host-1",
        "TYPE": "VNC",
        "PORT": "5901",
        "LISTEN": "0.0.0.0",
        "PASSWORD": "s3cr3tpw",
        "WSS": "NO",
        "TTL": "60 s",
        "URL": f"https://cloud.example.org/console.html#host=dummy-host-1&path=websockify%3Ftoken%3D{token}",
    }


def test_token_prints_the_token_and_nothing_else(vnctoken):
    (token,) = printed(vnctoken, "token 2 --single-use --client 192.0.2.7 --ttl 77")
    (live,) = (one for one in json.loads("".join(printed(vnctoken, "list 2 -j"))) if one["single_use"])
    assert (live["fingerprint"], live["client"]) == (fingerprint(token), "192.0.2.7")
    assert live["expires"] - live["issued"] == 77


def test_json_is_an_object_for_one_vm_and_an_array_for_several(vnctoken):
    assert json.loads("".join(printed(vnctoken, "show 20 --json")))["VmId"] == 20
    assert [one["VmId"] for one in json.loads("".join(printed(vnctoken, "show 20,27 -j")))] == [20, 27]
    code, out, _ = vnctoken("show 3,20 -j")
    assert (code, [one["VmId"] for one in json.loads("".join(out))]) == (1, [20])


def test_xml_is_a_vm_for_one_vm_and_a_pool_for_several(vnctoken):
    vm = ET.fromstring("\n".join(printed(vnctoken, "show 5 --xml")))
    assert (vm.tag, vm.findtext("PASSWORD")) == ("VM", "a<&>b'c")
    code, out, _ = vnctoken("show 3,20 -x")
    pool = ET.fromstring("\n".join(out))
    assert (code, pool.tag, [vm.findtext("ID") for vm in pool]) == (1, "VM_POOL", ["20"])


def test_vms_are_called_by_ids_lists_ranges_and_names(vnctoken):
    assert len(printed(vnctoken, "token 0..2,20,1")) == 4
    shown = printed(vnctoken, "show host-ipv6,größe-東京")
    assert [line.split()[2] for line in shown if line.startswith("ID ")] == ["13", "27"]


def test_what_is_refused_is_told_and_the_other_vms_are_done(vnctoken):
    code, out, err = vnctoken("token 3,20,9")
    assert (code, len(out)) == (1, 1)
    assert err[0] == "vnctoken: VM 3: Graphics type 'SPICE' but 'VNC' expected"
    assert err[1].startswith("vnctoken: VM 9: [one.vm.info] ")
    assert len(err) == 2


def test_a_name_that_nobody_has_or_that_several_have_is_refused(vnctoken):
    assert vnctoken("show nobodys") == (
        1,
        [],
        ["vnctoken: no VM that you may see is named 'nobodys'; call it by its id"],
    )


@pytest.mark.parametrize("what", ["9..3", "", "7,,8", f"0..{MOST_VMS}", f"0..999,{MOST_VMS}", "2147483648"])
def test_what_names_no_vms_is_wrong_usage(vnctoken, what):
    code, out, err = vnctoken(f"token '{what}'")
    assert (code, out) == (2, [])
    assert "argument VM" in err[-1]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "shew 7",
        "show",
        "show 7 -j -x",
        "token 7 --ttl 0",
        "token 7 --ttl 1e3",
        "token 7 --ttl 99999999999",
        "list -l VM,NIX",
        "show 7 --password x",
        "show 7 --endpoint ftp://x",
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(vnctoken, line):
    code, out, err = vnctoken(line)
    assert (code, out) == (2, [])
    assert "error:" in err[-1]


def test_a_service_without_a_page_cannot_open_consoles(vnctoken, tmp_path, cloud, monkeypatch):
    with vnctoken_server(tmp_path / "one", cloud.url) as bare:
        monkeypatch.setenv("ONE_VNCTOKEN", bare.url)
        code, out, err = vnctoken("open 20")
        assert (code, out) == (1, [])
        assert "no page that shows consoles" in err[0]
        assert ":console_url:" in err[0]
        assert printed(vnctoken, "show 20")[-1] == f"{'URL':<20}: -"


# Tokens


def test_tokens_are_listed_by_fingerprint_and_taken_back(vnctoken):
    printed(vnctoken, "revoke 21")
    first, second = (printed(vnctoken, "token 21")[0] for _ in range(2))
    header, *rows = printed(vnctoken, "list 21")
    assert header.split() == ["VM", "TOKEN", "USER", "ISSUED", "EXPIRES", "USED"]
    assert [row.split()[:3] for row in rows] == [["21", fingerprint(token), "alice"] for token in (first, second)]
    assert all(re.search(r" (\d\d/\d\d \d\d:\d\d:\d\d ){2}-$", row) for row in rows)
    assert first not in "".join(rows)
    assert printed(vnctoken, f"revoke 21 {fingerprint(first)}") == ["VM 21: 1 token revoked"]
    assert printed(vnctoken, f"revoke 21 {second}") == ["VM 21: 1 token revoked"]
    assert printed(vnctoken, "revoke 21,22") == ["VM 21: 0 tokens revoked", "VM 22: 0 tokens revoked"]


def test_a_list_without_vms_has_those_that_the_user_may_see_with_their_names(vnctoken):
    bob = "--user bob --password secret"
    (token,) = printed(vnctoken, f"token bobs-own {bob}")
    header, *rows = printed(vnctoken, f"list {bob}")
    assert header.split()[:3] == ["VM", "NAME", "TOKEN"]
    assert ["9", "bobs-own", fingerprint(token), "bob"] in [row.split()[:4] for row in rows]


def test_the_columns_of_a_list_can_be_chosen_and_be_csv(vnctoken):
    (token,) = printed(vnctoken, "token 23 --client 192.0.2.7")
    lines = printed(vnctoken, "list 23 --csv -l token,client,once,vm")
    assert list(csv.reader(lines)) == [["TOKEN", "CLIENT", "ONCE", "VM"], [fingerprint(token), "192.0.2.7", "NO", "23"]]


def test_a_list_is_xml_too(vnctoken):
    (token,) = printed(vnctoken, "token in-hotplug")
    pool = ET.fromstring("\n".join(printed(vnctoken, "list in-hotplug -x")))
    (live,) = pool
    assert [live.findtext(name) for name in ("VMID", "NAME", "FINGERPRINT", "USER", "SINGLE_USE")] == [
        "24",
        "in-hotplug",
        fingerprint(token),
        "alice",
        "false",
    ]


def test_refusals_of_a_list_that_are_alike_are_told_once(vnctoken):
    code, out, err = vnctoken("list 9,20,35,36")
    assert code == 1
    assert len(err) == 3
    code, out, err = vnctoken("list 4711,4712,4713")
    assert (code, len(out)) == (1, 1)
    assert [line.split(":")[1] for line in err] == [" VM 4711", " VM 4712", " VM 4713"]


class Answering(http.server.BaseHTTPRequestHandler):
    """A service that took three tokens back."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = write_answer([True, 3, 0])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


def test_what_is_done_is_told_though_the_service_goes_away_then(vnctoken):
    def once():
        with service:
            service.handle_request()

    service = http.server.HTTPServer(("127.0.0.1", 0), Answering)
    serving = threading.Thread(target=once)
    serving.start()
    code, out, err = vnctoken(f"revoke 1,2,3 --endpoint http://127.0.0.1:{service.server_port}/")
    serving.join()
    assert (code, out) == (1, ["VM 1: 3 tokens revoked"])
    assert len(err) == 1


# Logins


def test_one_auth_names_the_file_with_the_login(vnctoken, home, monkeypatch):
    file = home / "bobs"
    file.write_text("bob:secret  \nmore\n", encoding="utf-8")
    monkeypatch.setenv("ONE_AUTH", str(file))
    assert len(printed(vnctoken, "token 9")) == 1


@pytest.mark.parametrize("content", [None, b"", b"alice", b"alice:\xff"])
def test_a_login_that_cannot_be_read_is_said_so_with_what_to_do(vnctoken, home, content):
    file = home / ".one" / "one_auth"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    code, out, (problem,) = vnctoken("token 20")
    assert (code, out) == (1, [])
    assert problem.startswith(f"vnctoken: {file} ")
    assert problem.endswith("user:password in its first line is expected; or give --user")


def test_a_wrong_password_is_one_failed_attempt_whatever_was_asked(vnctoken, service):
    before = service.log.read_text().count("code=0x0100")
    for line in ("token 20,27,28", "list 20,27,28", "list"):
        code, out, (problem,) = vnctoken(f"{line} --user alice --password wrong")
        assert (code, out) == (1, [])
        assert "couldn't be authenticated" in problem
    # The third is judged by oned alone.
    assert service.log.read_text().count("code=0x0100") == before + 2


def test_the_endpoint_may_be_given(vnctoken, service, monkeypatch):
    monkeypatch.setenv("ONE_VNCTOKEN", "http://127.0.0.1:1/")
    assert vnctoken("token 20")[2] == ["vnctoken: http://127.0.0.1:1/: the connection is refused: nobody listens there"]
    assert len(printed(vnctoken, f"token 20 --endpoint {service.url}")) == 1
    monkeypatch.setenv("ONE_VNCTOKEN", "127.0.0.1:2644")
    assert vnctoken("token 20")[2][0].startswith(
        "vnctoken: ONE_VNCTOKEN: the endpoint is '127.0.0.1:2644'; expected http"
    )


def test_oneds_address_may_be_in_a_file(vnctoken, home, cloud, monkeypatch):
    monkeypatch.delenv("ONE_XMLRPC")
    (home / ".one" / "one_endpoint").write_text(cloud.url + "\n", encoding="utf-8")
    assert len(printed(vnctoken, "token vnc-plain")) == 1
    (home / ".one" / "one_endpoint").write_text("http://127.0.0.1:1/RPC2", encoding="utf-8")
    assert "http://127.0.0.1:1/RPC2: the connection is refused" in vnctoken("token vnc-plain")[2][0]


def test_the_address_of_the_service_is_not_taken_for_that_of_oned(vnctoken, service, monkeypatch):
    monkeypatch.setenv("ONE_XMLRPC", service.url)
    code, _, (problem,) = vnctoken("list")
    assert code == 1
    assert "one.vmpool.info" in problem


def test_a_password_is_asked_for_without_showing_it(home):
    keyboard, terminal = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "token", "9", "--user", "bob"],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        start_new_session=True,
    ) as asking:
        os.close(terminal)
        seen = b""
        while not seen.endswith(b"Password: "):
            seen += os.read(keyboard, 1024)
        os.write(keyboard, b"secret\n")
        out, _ = asking.communicate(timeout=30)
        with contextlib.suppress(OSError):  # a terminal that nobody has open any more
            seen += os.read(keyboard, 1024)
        os.close(keyboard)
    assert asking.returncode == 0
    assert re.fullmatch(rb"[0-9a-f]{32}\n", out)
    assert b"secret" not in seen


def test_a_scripts_password_comes_from_stdin(home):
    done = run("token", "9", "--user", "bob", input="secret\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"[0-9a-f]{32}\n", done.stdout)


@pytest.mark.parametrize("stdin", ["</dev/null", "<&-"])
def test_a_password_that_nobody_gives_is_not_an_empty_one(home, service, stdin):
    before = service.log.read_text().count("code=0x0100")
    done = subprocess.run(
        [program("sh"), "-c", f"exec {shlex.join(COMMAND)} token 9 --user bob {stdin}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "vnctoken: no password was given\n")
    assert service.log.read_text().count("code=0x0100") == before


@pytest.mark.parametrize("line", ["token 20", "list"])
def test_a_login_that_nobody_can_type_is_said_to_be_the_trouble(vnctoken, home, line):
    (home / ".one" / "one_auth").write_bytes(b"alice:secret\x1b[D")
    code, out, (problem,) = vnctoken(line)
    assert (code, out) == (1, [])
    assert problem == "vnctoken: the session and all other texts must be Unicode, without control characters"


# As a process


def run(*arguments, **options):
    options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
    if options["stdin"] is None:
        del options["stdin"]
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, encoding="utf-8", timeout=60, check=False, **options
    )


@pytest.mark.parametrize("option", ["-V", "-v", "--version"])
def test_the_version_is_printed(vnctoken, option):
    assert vnctoken(option) == (0, [f"vnctoken {__version__}"], [])


def browser(folder):
    """Make a browser that follows where it is sent, and keeps what it was given and where it came."""
    script = folder / "browser"
    script.write_text(
        f'#!/bin/sh\necho "$1" >{folder}/given\n'
        f"{program('curl')} -s -o /dev/null -w '%{{redirect_url}}' \"$1\" >{folder}/came\n"
        f"{program('curl')} -s -o /dev/null -w '%{{http_code}}' \"$1\" >{folder}/again\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    return script


def test_open_leads_the_browser_to_the_console_and_shows_the_token_to_nobody_else(home):
    done = run("open", "20", env={**os.environ, "BROWSER": str(browser(home))})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    came = (home / "came").read_text()
    token = re.fullmatch(
        r"https://cloud\.example\.org/console\.html#host=dummy-host-2\.example\.org&path=websockify%3Ftoken%3D(\w{32})",
        came,
    ).group(1)
    given = (home / "given").read_text().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}", given)
    assert token not in given
    assert (home / "again").read_text() == "404"


def test_open_says_so_where_no_browser_can_be_started(home):
    done = run("open", "20", env={**os.environ, "BROWSER": "/bin/false", "PATH": "/nowhere"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "vnctoken: no browser can be started here; set BROWSER to the command that starts yours\n"


def test_a_reader_who_goes_away_is_no_trouble(home):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "show", "20"], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_output_that_is_closed_is_no_trouble(home):
    done = subprocess.run(
        [program("sh"), "-c", f"exec {shlex.join(COMMAND)} token 20 >&-"], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_is_told_without_a_traceback(home):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "show", "20"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "vnctoken: the output cannot be written: No space left on device\n"


def test_a_terminal_of_few_letters_gets_what_it_can_show(home):
    done = run("list", "größe-東京", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_it_quietly(home):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with subprocess.Popen(
            [*COMMAND, "token", "20", "--endpoint", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as waiting:
            silent.settimeout(30)
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(1) == b"P"
                waiting.send_signal(signal.SIGINT)
                out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, out, err) == (130, b"", b"")


def test_names_of_vms_cannot_steer_a_terminal():
    row = (7, "a\x9b2Jb\x1b]0;c\x07", LiveToken("60ae576c", "d\ne", 1, 0, 0, False, ""))
    for shown in (token_table([row], [*COLUMNS], styled=False), token_csv([row], [*COLUMNS])):
        assert "a?2Jb?]0;c?" in shown
        assert "d?e" in shown
        assert len(shown.splitlines()) == 2
    assert token_table([], ["VM"], styled=True).startswith("\033[1m")


def test_columns_stand_below_each_other_whatever_is_in_them():
    """Names may have characters that are two columns wide, and such as have no width."""
    live = LiveToken("60ae576c", "alice", 1, 0, 0, False, "")
    names = {"web": 0, "größe-東京": 2, "gro\u0308ße": -1, "💻": 1}
    _, *lines = token_table([(7, name, live) for name in names], ["VM", "NAME", "TOKEN"], styled=False).splitlines()
    assert [line.index("60ae576c") + wider for line, wider in zip(lines, names.values(), strict=True)] == [28] * 4


# The document


def snippets(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


def rows(heading):
    """Return the cells of the tables below a heading, without their first rows."""
    below = re.split(r"\n#{2,3} ", re.split(rf"\n#{{2,3}} {heading}\n", DOCUMENT)[1])[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in below.splitlines() if line[:1] == "|"]
    return [row for row in cells if row[1] and not set(row[0]) <= set("-")]


def sessions():
    """Return what is typed and what is answered in the document's consoles."""
    for text in snippets("console"):
        for part in text.split("$ ")[1:]:
            command, _, answer = part.partition("\n")
            yield command, answer


def unvarying(text):
    return re.sub(
        r"\b[0-9a-f]{8}\b",
        "FINGERPRINT",
        re.sub(r"\b(3D)?[0-9a-f]{32}\b", r"\1TOKEN", re.sub(r"\d\d/\d\d \d\d:\d\d:\d\d", "TIME", text)),
    )


def test_the_documented_commands_print_what_is_shown(vnctoken):
    printed(vnctoken, "revoke 20")
    live = ""
    answers = 0
    for command, shown in sessions():
        name, _, arguments = re.sub("60ae576c", live, command).partition(" ")
        assert name == "vnctoken"
        told = "\n".join(printed(vnctoken, arguments)) + "\n"
        assert unvarying(told) == unvarying(shown)
        live = next(iter(re.findall(r"\b[0-9a-f]{8}\b", told)), live)
        answers += 1
    assert answers == 3


@pytest.mark.parametrize("number", [0, 1])
def test_a_reader_who_copies_the_documented_programs_gets_a_console(number, service, vnctoken):
    printed(vnctoken, "revoke 20")
    text = snippets("python")[number]
    assert DOCUMENTED_URL in text
    done = subprocess.run(
        [sys.executable, "-"],
        input=text.replace(DOCUMENTED_URL, service.url),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert re.fullmatch([r"[0-9a-f]{32}\n", r"[0-9a-f]{8} alice\n1\n"][number], done.stdout)


def test_the_documented_errors_are_those_that_there_are():
    named = {name.strip("`"): code.strip("`") for name, code, _ in rows("What is raised") if name[0] == "`"}
    there = [getattr(errors, name) for name in errors.__all__ if name not in ("ErrorCode", "refusal", "VnctokenError")]
    assert named == {error.__name__: f"{error.code:#06x}" for error in there}
    assert all(issubclass(error, VnctokenError) for error in there)


def test_the_documented_exit_codes_are_those_of_the_help(vnctoken):
    told = " ".join("\n".join(printed(vnctoken, "--help")).split("Exit codes:")[1].split())
    assert re.findall(r"\b\d+\b", told) == [code for code, _ in rows("Exit codes") if code.isdigit()]


def test_the_documented_commands_and_options_are_those_of_the_help(vnctoken):
    help_ = printed(vnctoken, "--help")
    documented = {cell[0].strip("`").split()[0] for cell in rows("Commands") if cell[0][0] == "`"}
    assert documented == set(re.findall(r"^    (\w+) ", "\n".join(help_), re.MULTILINE))
    options = set(re.findall(r"--[a-z][a-z-]*", DOCUMENT.split("## Options")[1].split("\n## ")[0]))
    told = {"--version"}
    for command in documented:
        told |= set(re.findall(r"--[a-z-]+", "\n".join(printed(vnctoken, f"{command} --help"))))
    assert options == told

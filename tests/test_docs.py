"""What the documents say, held against what the service does. Every snippet is run as it is written."""

import configparser
import contextlib
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
import xmlrpc.client
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from authorities import Authority
from callers import admission, caller
from conftest import ROOT, free_port, program, running, tokens_in, vnctoken_server
from jwcrypto.jwk import JWK
from memory import MemoryStore
from outcomes import result_of
from test_admission import BOTH
from test_admission import MemoryOned as KnownOned
from test_consoles import RUNNING, MemoryOned, consoles_of
from test_reverse_proxies import HASHED, LOGIN, LOGINS, SOCKETS
from twisted.internet.task import Clock
from webservers import CERTIFICATES, HOST, Upstreams, open_folder, set_to, web_server

from vnctoken.accessvalues import DOORS
from vnctoken.audit import AuditLog
from vnctoken.auth import ASSERTIONS, Caller
from vnctoken.auth.basic import BasicDoor
from vnctoken.auth.ec2 import Ec2Door
from vnctoken.auth.onegate import OneGateDoor
from vnctoken.auth.remote import RemoteDoor
from vnctoken.auth.x509 import X509Door
from vnctoken.config import DEFAULT_CONSOLE_STATES, DOORS_AS_SERVER, INHERITED, Config, load
from vnctoken.decisions import Decision
from vnctoken.doctor import NAMES
from vnctoken.errors import ActionError, AuditError, AuthorizationError, ErrorCode
from vnctoken.measures import UNMEASURED
from vnctoken.readers import token_options
from vnctoken.tokens import Grant
from vnctoken.tokens.jwt import JwtStore
from vnctoken.tokens.redis import RedisStore

DOCUMENTS = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
README, PROTOCOL, OPERATIONS, TOKENS, AUTHENTICATION = (
    (ROOT / path).read_text(encoding="utf-8")
    for path in (
        "README.md",
        "docs/protocol.md",
        "docs/operations.md",
        "docs/tokens.md",
        "docs/authentication.md",
    )
)
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
    (token,) = tokens_in(service.tokens / f"one-{vm_id}")
    return token


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


def test_a_reader_who_types_the_readmes_command_gets_a_token(service, tmp_path):
    (tmp_path / "one_auth").write_text("alice:secret\n", encoding="utf-8")
    environment = {**os.environ, "ONE_AUTH": str(tmp_path / "one_auth"), "ONE_VNCTOKEN": service.url}
    (text,) = (text for text in snippets(README, "sh") if text.startswith("vnctoken token"))
    command = text.replace("vnctoken", f"{sys.executable} -m vnctoken.client.command", 1)
    assert output(("sh",), command, service, env=environment) == issued_token(service)


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


def test_the_operators_document_lists_every_setting_with_its_default_and_where_it_may_come_from():
    defaults = yaml.safe_load(Config().to_yaml())
    del defaults[":log"]
    listed = {}
    for name, default, _ in rows(OPERATIONS, "Configuration"):
        listed[name.removesuffix("*").strip(" `").strip(":")] = default, name.endswith("*")
    assert {f":{key}" for key in listed} == set(defaults)
    assert {key for key, (_, inherited) in listed.items() if inherited} == INHERITED - {"log"}
    for key, (default, _) in listed.items():
        if key == "console_states":
            assert default == f"{len(DEFAULT_CONSOLE_STATES)} states, see the file"
        elif key == "permissions":
            assert default == "all `true`, see the file"
            assert {*defaults[":permissions"][":vm"].values()} == {True}
        else:
            assert yaml.safe_load(default) == defaults[f":{key}"]


def test_the_readmes_few_settings_have_the_defaults_of_the_whole_list():
    everywhere = {name.removesuffix("*").strip(" `"): default for name, default, _ in rows(OPERATIONS, "Configuration")}
    few = rows(README, "Configuration")
    assert 5 <= len(few) <= 8
    for name, default, _ in few:
        assert everywhere[name] == default


def test_the_operators_document_lists_every_extra():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = set(setup["options.extras_require"]) - {"demo", "test", "fuzz", "lint"}
    assert {name for name, _ in rows(OPERATIONS, "Extras")} == extras


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


def test_the_protocols_refusals_are_those_that_clients_get(service):
    calls = {
        "Graphics type": ("one.vm.vnctoken", 3),
        "Unsupported VM state": ("one.vm.vnctoken", 7),
        "GRAPHICS/PORT is '22'": ("one.vm.vnctoken", 10),
        "The options single_use and client need a resolver": ("one.vm.vnctoken", 20, {"single_use": True}),
        "Unknown method 'x'": ("x",),
        "Argument 2 is missing": ("one.vm.vnctoken",),
        "Argument 2, the VM id, must be": ("one.vm.vnctoken", True),
        "there is no option 'tll'": ("one.vm.vnctoken", 20, {"tll": 60}),
        "the option ttl must be": ("one.vm.vnctoken", 20, {"ttl": "60"}),
        "Argument 3, the token or its fingerprint, must be": ("one.vm.vncrevoke", 20, ""),
    }
    with xmlrpc.client.ServerProxy(service.url) as portal:
        for message, (method, *arguments) in calls.items():
            _, answered, code = getattr(portal, method)("alice:secret", *arguments)
            assert message in answered
            assert [f"{code:#06x}", answered] in rows(PROTOCOL, "The refusals")


def refusals():
    """Return codes and messages as documented, without what explains them."""
    documented = rows(PROTOCOL, "The refusals")
    return {(int(code, 16), told.split("`:")[0]) for code, told in documented if re.fullmatch("0x[0-9]{4}", code)}


def refused(url, session, method="vnctoken", vm_id=0, **headers):
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    with xmlrpc.client.ServerProxy(url, headers=named) as portal:
        success, message, code = getattr(portal.one.vm, method)(session, vm_id)
    assert success is False
    return code, message


def test_the_protocol_says_how_callers_are_refused_at_the_doors(tmp_path, cloud):
    settings = """
:auth: [opennebula, basic]
:auth_failures: 1/hour
:permissions: {vm: {vnc: false}}
:restricted_groups: users
"""
    basic = "Basic YWxpY2U6c2VjcmV0"
    with vnctoken_server(tmp_path, cloud.url, settings) as service:
        told = [
            refused(service.url, "alice:secret", "vnc"),
            refused(service.url, "alice:secret"),
            refused(service.url, ""),
            refused(service.url, "", Authorization=basic),
            refused(service.url, "", X_Auth_Username="alice"),
            refused(service.url, "", Origin="https://portal.example.org"),
        ]
        assert refused(service.url, "bob:wrong")[0] == 0x0100
        code, message = refused(service.url, "bob:wrong")
    with vnctoken_server(tmp_path, cloud.url, ":auth: basic\n:allowed_groups: [oneadmin, 100]") as service:
        told.append(refused(service.url, "alice:secret"))
    with vnctoken_server(tmp_path, cloud.url, ":allowed_groups: [oneadmin, 100]") as service:
        told.append(refused(service.url, "alice:secret"))
        told.append(refused(service.url, ""))
    assert len({*told}) == 9
    assert refusals().issuperset(told)
    assert (code, re.sub(r"\d+ seconds", "6 seconds", message)) in refusals()


def test_the_protocol_says_what_is_too_much(tmp_path, cloud):
    with vnctoken_server(tmp_path / "calls", cloud.url, ":calls_per_user: 1/min") as service:
        with xmlrpc.client.ServerProxy(service.url) as portal:
            assert portal.one.vm.vnctoken("alice:secret", 0)[0] is True
        assert refused(service.url, "alice:secret") in refusals()
    with vnctoken_server(tmp_path / "tokens", cloud.url, ":tokens_per_user: 1") as service:
        with xmlrpc.client.ServerProxy(service.url) as portal:
            assert portal.one.vm.vnctoken("alice:secret", 0)[0] is True
        assert refused(service.url, "alice:secret") in refusals()


def test_the_protocol_says_what_happens_without_an_audit_log_that_is_required():
    log = AuditLog(Path("/dev/full"), lambda: 0, required=True, measures=UNMEASURED)
    with pytest.raises(AuditError) as caught:
        log.record(Decision("issued"))
    assert (caught.value.code, str(caught.value)) in refusals()


def test_the_protocol_says_how_a_vm_is_refused():
    guest = Caller("onegate", "alice", "alice:secret", "192.0.2.7", vm_id=0)
    with pytest.raises(AuthorizationError) as caught:
        result_of(admission(MemoryOned(RUNNING)).vm_info(guest, 9))
    assert (caught.value.code, str(caught.value)) in refusals()


def test_the_protocol_says_what_somebody_gets_whose_groups_oned_does_not_name():
    oned = KnownOned(BOTH, names={1: "users"})
    with pytest.raises(AuthorizationError) as caught:
        result_of(admission(oned, restricted=["guests"]).vm_info(caller("alice:secret"), 7))
    assert (caught.value.code, str(caught.value)) in refusals()


def test_the_protocol_says_what_two_vms_at_one_port_get():
    vm = replace(RUNNING, host="dummy-host-2.example.org", port="5920")
    consoles = consoles_of(MemoryOned(vm), MemoryStore(), presence=True)
    result_of(consoles.open(caller("bob:secret"), 7))
    with pytest.raises(ActionError) as caught:
        result_of(consoles.open(caller("alice:secret"), 20))
    assert [f"{caught.value.code:#06x}", str(caught.value)] in rows(PROTOCOL, "The refusals")


@pytest.mark.parametrize("store", ["jwt", "redis"])
def test_the_protocol_says_what_a_store_refuses(store, tmp_path):
    if store == "jwt":
        key = tmp_path / "jwt.key"
        key.write_text("a" * 43)
        refused = JwtStore([str(key)], lambda: 0).revoke(20)
    else:
        settings = {"servers": [("127.0.0.1", 1)], "namespace": "n", "timeout": 1, "tokens_per_vm": 8, "db": 0}
        redis = RedisStore(Clock(), sentinel=None, password=None, tls=None, **settings)
        refused = redis.issue(Grant(20, "2001:db8::1", 5920, 0, 60))
    with pytest.raises(ActionError) as caught:
        result_of(refused)
    assert [f"{caught.value.code:#06x}", str(caught.value)] in rows(PROTOCOL, "The refusals")


def test_the_protocols_token_of_a_minute_has_a_minute(service):
    assert output((sys.executable, "-"), snippet(PROTOCOL, "python", '"ttl": 60'), service) == "60"


def test_a_reader_who_copies_the_protocols_revocation_takes_all_tokens_back(service):
    with xmlrpc.client.ServerProxy(service.url) as portal:
        for _ in range(2):
            portal.one.vm.vnctoken("alice:secret", 20)
        (listed, _) = portal.one.vm.vnctokens("alice:secret", 20)[1]
        shown = output((sys.executable, "-"), snippet(PROTOCOL, "python", "vncrevoke"), service)
        assert portal.one.vm.vnctokens("alice:secret", 20) == [True, [], 0]
    assert re.fullmatch(r"[0-9a-f]{8} alice \d+", shown)
    members = re.findall(
        r"^\| `(\w+)` \| \w+ \|", PROTOCOL.split("### Taking tokens back")[1].split("\n## ")[0], re.MULTILINE
    )
    assert set(members) == set(listed)


def section(name):
    """Return what docs/authentication.md says below a heading, without what is below the next one of its kind."""
    return re.split("\n#{2,3} ", re.split(f"\n#{{2,3}} {re.escape(name)}\n", AUTHENTICATION)[1])[0]


def test_every_door_is_documented_and_listed_with_what_it_takes():
    needs = {name: takes for name, _, _, takes in rows(AUTHENTICATION, "Which door for whom")}
    assert tuple(needs) == DOORS
    assert {name for name, takes in needs.items() if "trusted proxy" in takes} == {
        door.name for door in (BasicDoor, X509Door, RemoteDoor, Ec2Door, OneGateDoor) if door.needs_tls
    }
    assert {name for name, takes in needs.items() if "server login" in takes} == DOORS_AS_SERVER
    for name in DOORS:
        assert "*It takes for granted*" in section(name)


@pytest.mark.parametrize("settings", snippets(AUTHENTICATION, "yaml"))
def test_the_documented_settings_of_doors_are_taken(settings, tmp_path):
    file = tmp_path / "vnctoken-server.conf"
    file.write_text(settings, encoding="utf-8")
    config, warnings = load({}, str(file), os.devnull)
    assert warnings == []
    # Which would not be so if one of them stood there for nothing; that of the failures is the default.
    assert config != Config() or settings == ":auth_failures: 10/min\n"


def test_the_headers_that_count_from_trusted_proxies_alone_are_documented():
    named = re.findall("`([A-Za-z_-]+)`", section("Trusted proxies").split(". Anybody can")[0])
    assert sorted(named) == sorted(ASSERTIONS)


@contextlib.contextmanager
def service_with(one_location, cloud, settings):
    """Run the service with a server login, as the sandbox's oned knows it."""
    login = one_location / "var" / ".one" / "sunstone_auth"
    login.parent.mkdir(parents=True)
    login.write_text("serveradmin:serveradmin-secret-for-tests\n", encoding="utf-8")
    with vnctoken_server(one_location, cloud.url, settings) as running_service:
        yield running_service


def console_of(folder, vm_id, text, **environment):
    """Run a documented call for a VM and return the token that it is answered with."""
    (call,) = (found for found in snippets(AUTHENTICATION, "sh") if "console.xml <<" in found)
    assert "<int>20<" in call
    done = subprocess.run(
        ("sh", "-ec", call.replace("<int>20<", f"<int>{vm_id}<") + text),
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    ((success, result, _),), _ = xmlrpc.client.loads(done.stdout)
    assert success, result
    return result["Token"]


@pytest.mark.parametrize(
    ("door", "user", "vm_id"),
    [("basic", "alice", 20), ("x509", "xenia", 35), ("remote", "remy", 36), ("ec2", "alice", 20)],
)
def test_a_reader_who_copies_a_doors_example_gets_a_console_through_nginx(door, user, vm_id, tmp_path, cloud):
    program("curl")
    (settings,), (call,) = snippets(section(door), "yaml"), snippets(section(door), "sh")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(open_folder("service"))
        changes = set_to(SOCKETS["nginx"], folder / "proxy.sock")
        if door == "x509":
            authority = Authority(tmp_path)
            shutil.copy(authority.issue().file, tmp_path / "xenia.pem")
            changes += set_to(CERTIFICATES["nginx"], authority.file)
        if door == "remote":
            (folder / "htpasswd").write_text(f"{LOGIN[0]}:{HASHED}\n", encoding="utf-8")
            changes += set_to(LOGINS["nginx"], folder / "htpasswd")
        settings = settings.replace("/run/vnctoken/proxy.sock", str(folder / "proxy.sock"))
        service = stack.enter_context(service_with(tmp_path / "one", cloud, settings))
        front = stack.enter_context(web_server("nginx", Upstreams(1, 2, 3), changes))
        (tmp_path / ".curlrc").write_text(
            f'connect-to = "{HOST}:443:127.0.0.1:{front.https_port}"\ncacert = "{front.certificate}"\n',
            encoding="utf-8",
        )
        token = console_of(tmp_path, vm_id, call, CURL_HOME=str(tmp_path))
        assert token == issued_token(service, vm_id)
        assert f"one.vm.vnctoken vm={vm_id} user={user} door={door} " in service.log.read_text()


def test_a_reader_who_copies_the_example_with_botocore_gets_a_console(tmp_path, cloud):
    (settings,), (call,) = snippets(section("ec2"), "yaml"), snippets(section("ec2"), "python")
    here = f"http://127.0.0.1:{free_port()}"
    with open_folder("service") as folder:
        settings = settings.replace("/run/vnctoken", str(folder)).replace(f"https://{HOST}", here)
        with service_with(tmp_path / "one", cloud, f"{settings}:port: {here.rpartition(':')[2]}") as service:
            told = output((sys.executable, "-"), call.replace(f"https://{HOST}", here), service)
            assert told == issued_token(service)


def test_a_portal_that_says_whom_it_calls_for_as_documented_is_believed(tmp_path, cloud):
    (call,) = snippets(section("Trusted proxies"), "python")
    with vnctoken_server(tmp_path / "one", cloud.url, ":trusted_proxies: 127.0.0.1") as service:
        assert output((sys.executable, "-"), call, service) == issued_token(service)
        assert "192.0.2.7 one.vm.vnctokenonly vm=20 user=alice" in service.log.read_text()


def stores():
    """Return what docs/tokens.md sets in the service's file, and the line for the proxy's that goes with it."""
    settings, lines = (snippets(TOKENS, language) for language in ("yaml", "sh"))
    return list(zip(settings, (text.strip() for text in lines if text.startswith("TOKENS=")), strict=True))


@pytest.mark.parametrize(("settings", "line"), stores())
def test_the_settings_of_each_store_go_with_the_proxys(settings, line, tmp_path):
    file = tmp_path / "vnctoken-server.conf"
    file.write_text(settings, encoding="utf-8")
    config, warnings = load({}, str(file), os.devnull)
    assert warnings == []
    assert line.removeprefix("TOKENS=") in token_options(config)


def test_the_documented_key_is_one_that_the_service_and_websockify_take(tmp_path):
    (text,) = (text for text in snippets(TOKENS, "sh") if "basenc" in text)
    run_in(tmp_path, text)
    key = tmp_path / "keys" / "jwt.key"
    store = JwtStore([str(key)], lambda: 1_800_000_000)
    assert store.prepare() == []
    assert (key.stat().st_mode & 0o777, [*key.parent.iterdir()]) == (0o600, [key])
    assert len(JWK(k=key.read_text(), kty="oct").export()) > 0


def test_a_key_that_is_changed_as_documented_loses_no_token(tmp_path):
    (make,) = (text for text in snippets(TOKENS, "sh") if "basenc" in text)
    (keep,) = (text for text in snippets(TOKENS, "sh") if "jwt.key.old" in text)
    run_in(tmp_path, make, keep)
    files = [str(tmp_path / "keys" / name) for name in ("jwt.key", "jwt.key.old")]
    store = JwtStore(files, lambda: 1_800_000_000)
    grant = Grant(7, "node-1", 5907, 1_800_000_000, 600)
    before = issued(store, grant)
    run_in(tmp_path, keep, make)
    after = issued(store, grant)
    assert [result_of(store.find(token)).grant.vm_id for token in (before, after)] == [7, 7]
    run_in(tmp_path, keep, make)
    assert result_of(store.find(before)) is None


def issued(store, grant):
    return result_of(store.issue(grant))


def run_in(folder, *texts):
    """Run a document's commands about keys in a folder of ours, as who we are."""
    for text in texts:
        ours = text.replace("/etc/vnctoken", str(folder / "keys")).replace(
            "oneadmin", pwd.getpwuid(os.geteuid()).pw_name
        )
        assert "/etc" not in ours
        subprocess.run(["sh", "-ec", ours], timeout=60, check=True)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_document_leads_there(path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", path.read_text(encoding="utf-8")):
        there = path.parent / target if target else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_folders_of_the_installation_that_documents_name_are_in_the_operators_list():
    named = {
        folder
        for path in DOCUMENTS
        for folder in re.findall(r"/usr/share/vnctoken/\w+/", path.read_text(encoding="utf-8"))
    }
    assert named == {path for cell, _ in rows(OPERATIONS, "What is where") for path in cell.split("`") if path in named}


def diagnosed(text):
    """Tell whether docs/operations.md has a row for what the log, an answer or the command says."""
    shown = [re.findall("`([^`]+)`", cell) for cell, _, _ in rows_as_written(OPERATIONS, "When something is wrong")]
    return any(
        re.search(".*".join(map(re.escape, message.split("..."))), text)
        for messages in shown
        for message in messages
        if " " in message
    )


def rows_as_written(document, heading):
    table = document.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize("setting", [":port:", ":monitor_listen:"])
def test_the_operators_table_and_the_exit_codes_have_a_port_that_is_taken(setting, tmp_path, cloud):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = {":port:": 0, ":one_xmlrpc:": cloud.url, ":monitor_listen:": "none"}
        settings[setting] = port if setting == ":port:" else f"127.0.0.1:{port}"
        (tmp_path / "etc").mkdir()
        (tmp_path / "var").mkdir()
        (tmp_path / "etc" / "vnctoken-server.conf").write_text(yaml.safe_dump(settings), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "vnctoken.server"],
            env={**os.environ, "ONE_LOCATION": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert diagnosed(done.stderr), done.stderr
    (meaning,) = (meaning for code, meaning in rows(OPERATIONS, "The command") if code == str(done.returncode))
    assert f"`{setting}`" in meaning


def test_the_operators_table_has_the_limits(tmp_path, cloud):
    settings = ":calls_per_user: 2/min\n:tokens_per_user: 1\n:max_connections: 1"
    with vnctoken_server(tmp_path, cloud.url, settings) as service:
        with xmlrpc.client.ServerProxy(service.url) as portal:
            told = [portal.one.vm.vnctoken("alice:secret", 0)[1] for _ in range(3)][1:]
            assert len(set(told)) == 2
            with pytest.raises(xmlrpc.client.ProtocolError) as caught:
                refused(service.url, "alice:secret")
        assert caught.value.errcode == 503
        told += [line for line in service.log.read_text().splitlines() if ":max_connections:" in line]
    assert len(told) == 3
    for text in told:
        assert diagnosed(text), text


def test_the_configuration_file_says_what_a_client_too_many_gets():
    text = (ROOT / "etc" / "one" / "vnctoken-server.conf").read_text(encoding="utf-8")
    (comment,) = re.findall(r"# (Clients connected.*)\n#:max_connections:", text)
    assert "503" in comment


def test_the_rubys_unit_that_is_taken_away_as_documented_leaves_ours_in_effect(tmp_path):
    """Systemd takes a unit in /etc before one of the same name in /usr/lib."""
    systemctl = program("systemctl")
    old, ours = tmp_path / "etc/systemd/system", tmp_path / "usr/lib/systemd/system"
    (old / "opennebula-sunstone.service.wants").mkdir(parents=True)
    ours.mkdir(parents=True)
    shutil.copy(ROOT / "systemd" / "vnctoken.service", ours)
    (old / "vnctoken.service").write_text("[Service]\nExecStart=/usr/bin/ruby\n", encoding="utf-8")
    (old / "opennebula-sunstone.service.wants" / "vnctoken.service").symlink_to("../vnctoken.service")
    (commands,) = (text for text in snippets(README, "sh") if "disable" in text and "rm -f" in text)
    (command,) = (line for line in commands.splitlines() if line.startswith("rm"))
    subprocess.run(["sh", "-ec", command.replace(" /etc", f" {tmp_path}/etc")], check=True, timeout=60)
    done = subprocess.run(
        [systemctl, f"--root={tmp_path}", "enable", "vnctoken"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "/usr/lib/systemd/system/vnctoken.service" in done.stdout + done.stderr
    assert {path.resolve().parent for path in old.glob("*/vnctoken.service")} <= {Path("/usr/lib/systemd/system"), ours}


def test_the_doctors_checks_are_the_documented_ones():
    shown = next(text for text in snippets(OPERATIONS, "console") if "--doctor" in text)
    assert [line.split()[1] for line in shown.splitlines()[1:]] == list(NAMES)
    assert f"oned accepts the server login in {Config().server_login}\n" in shown


def test_the_operations_commands_options_are_the_programs():
    shown = next(text for text in snippets(OPERATIONS, "") if text.startswith("vnctoken-server"))
    done = subprocess.run(
        shlex.split(f"{sys.executable} -m vnctoken.server --help"),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for option in re.findall(r"\[(--[a-z-]+)", shown):
        assert option in done.stdout

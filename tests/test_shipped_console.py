"""What nginx/console.conf promises beyond what every web server does (test_reverse_proxies.py), in a real nginx."""

from __future__ import annotations

import re
import secrets
import subprocess

import pytest
from conftest import ROOT, free_port, program
from test_shipped_nginx import Nginx, write_configuration
from webservers import HOST, Front, Upstreams, make_certificate, nginx, recorder, web_server, write_nginx_main
from wsclient import HandshakeRefusedError, WebSocket, websockify

NAMES = ("vnctoken", "opennebula-rpc", "console")
HSTS_OFF, HSTS_ON = "#add_header Strict-Transport-Security", "add_header Strict-Transport-Security"


def checked(folder, changes=(), names=("console",)):
    """Return what nginx says about the shipped files."""
    make_certificate(folder, HOST)
    (folder / "log").mkdir()
    write_configuration(Nginx(folder, free_port(), free_port()), 2644, 2633, [n for n in names if n != "console"])
    nginx(Front("nginx", folder, free_port(), free_port(), Upstreams(2633, 2644, 29877)), changes)
    main = write_nginx_main(folder, names)
    tried = subprocess.run(
        [program("nginx"), "-t", "-p", folder, "-e", "stderr", "-c", main], capture_output=True, text=True, check=False
    )
    assert tried.returncode == 0, tried.stderr
    return [line for line in tried.stderr.splitlines() if "syntax is ok" not in line and "is successful" not in line]


@pytest.mark.parametrize("names", [("console",), NAMES, NAMES[::-1]])
def test_nginx_takes_it_alone_and_with_the_other_two_without_a_warning(tmp_path, names):
    assert checked(tmp_path, names=names) == []


def test_hsts_is_off_until_the_operator_switches_it_on(tmp_path):
    with web_server("nginx", Upstreams(1, 2, 3)) as front:
        assert "strict-transport-security" not in front.request("GET", "/console.html").headers
    with web_server("nginx", Upstreams(1, 2, 3), [(HSTS_OFF, HSTS_ON)]) as front:
        for path in ("/console.html", "/novnc/core/rfb.js", "/no.html"):
            headers = front.request("GET", path).headers
            assert headers["strict-transport-security"] == "max-age=31536000"
            assert headers["referrer-policy"] == "no-referrer"
        assert "strict-transport-security" not in front.request("GET", "/", secure=False).headers


def test_a_portal_elsewhere_may_embed_consoles_once_it_is_named():
    named = "frame-ancestors 'self' https://portal.example.org"
    shipped = (ROOT / "nginx" / "console.conf").read_text(encoding="utf-8")
    assert f'# "{named}".' in shipped, "the comment shows what to write"
    with web_server("nginx", Upstreams(1, 2, 3), [("\"frame-ancestors 'self'\" always", f'"{named}" always')]) as front:
        assert front.request("GET", "/console.html").headers["content-security-policy"] == named


def failed_console(front):
    """Ask for a console with a wrong token and return the line about it in the access log."""
    with pytest.raises(HandshakeRefusedError) as caught:
        WebSocket.connect(front.open(), f"/websockify?token={secrets.token_hex(16)}", {"Host": HOST})
    assert caught.value.status == 502
    front.process.stop()
    return next(line for line in front.written.splitlines() if "/websockify" in line)


def test_the_access_log_tells_a_proxy_that_is_down_from_a_token_it_does_not_know(tmp_path):
    with web_server("nginx", Upstreams(1, 2, free_port())) as front:
        assert re.search(r'"GET /websockify" 502 .* upstream 502 -$', failed_console(front))
    port = free_port()
    with websockify(tmp_path, port), web_server("nginx", Upstreams(1, 2, port)) as front:
        assert re.search(r'"GET /websockify" 502 .* upstream 502 \d\.\d{3}$', failed_console(front))


@pytest.mark.parametrize(
    ("upgrade", "connection"), [("websocket", "upgrade"), ("WebSocket", "upgrade"), ("h2c", "close"), (None, "close")]
)
def test_just_websockets_are_upgraded(upgrade, connection):
    asked = {"Upgrade": upgrade, "Connection": "upgrade"} if upgrade else {}
    with recorder() as (port, seen), web_server("nginx", Upstreams(1, 2, port)) as front:
        front.request("POST", "/websockify?token=x", b"", asked)
    ((path, headers, _),) = seen
    assert path == "/websockify?token=x"
    assert headers.get_all("Connection") == [connection]


@pytest.mark.parametrize("setting", ["error_log", "access_log"])
def test_no_log_is_a_device_that_nginx_would_give_to_its_own_user_when_logs_are_reopened(setting):
    shipped = (ROOT / "nginx" / "console.conf").read_text(encoding="utf-8")
    places = re.findall(rf"^ *{setting} (\S+)", shipped, re.MULTILINE)
    assert places
    assert {place.rpartition("/")[0] for place in places} == {"/var/log/nginx"}


@pytest.mark.parametrize(("secure", "status"), [(True, 200), (False, 301)])
def test_both_ports_answer_over_ipv6_as_well(secure, status):
    with web_server("nginx", Upstreams(1, 2, 3)) as front:
        assert front.request("GET", "/console.html", secure=secure, address="::1").status == status

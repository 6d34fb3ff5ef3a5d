"""The link to a portal's page that shows a console."""

from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnctoken.links import checked_template, console_link, token_gets_logged

TOKEN = "0123456789abcdef" * 2
PAGE = "https://cloud.example.org/console.html"


def link(template, host="dummy-host-1"):
    return console_link(checked_template(template), vm_id=7, host=host, port=5900, token=TOKEN)


def test_the_documented_template_gives_a_link_with_everything_url_encoded():
    assert link(f"{PAGE}#host={{host}}&path={{path}}", host="2001:db8::1") == (
        f"{PAGE}#host=2001%3Adb8%3A%3A1&path=websockify%3Ftoken%3D{TOKEN}"
    )


def test_every_value_but_the_password_can_stand_in_it():
    fragment = urlsplit(link(f"{PAGE}#id={{id}}&host={{host}}&port={{port}}&token={{token}}&path={{path}}")).fragment
    assert parse_qs(fragment) == {
        "id": ["7"],
        "host": ["dummy-host-1"],
        "port": ["5900"],
        "token": [TOKEN],
        "path": [f"websockify?token={TOKEN}"],
    }


@given(st.text(min_size=1))
def test_no_value_breaks_out_of_its_place(host):
    fragment = urlsplit(link(f"{PAGE}#host={{host}}&path={{path}}", host)).fragment
    assert parse_qs(fragment, encoding="utf-8") == {"host": [host], "path": [f"websockify?token={TOKEN}"]}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (f"{PAGE}#path={{path}}&password={{password}}", "no other braces than {id}, {host}, {port}, {token}, {path}"),
        (f"{PAGE}#path={{path}}&x={{host.__class__}}", "no other braces"),
        (f"{PAGE}#path={{path}}{{", "no other braces"),
        (f"{PAGE}#path={{{{path}}}}", "no other braces"),
        (f"{PAGE}#path={{}}{{path}}", "no other braces"),
        (PAGE, "{path} or {token} in it"),
        (f"{PAGE}#host={{host}}", "{path} or {token} in it"),
        ("/console.html#{path}", "an http or https URL"),
        ("javascript:alert('{path}')", "an http or https URL"),
        ("https:///#{path}", "an http or https URL"),
        ("https://[::1/#{path}", "an http or https URL"),
        ("https://{host}/#{path}", "an http or https URL"),
        ("https://alice@cloud.example.org/#{path}", "an http or https URL"),
        ("https://clöud.example.org/#{path}", "an http or https URL"),
        ("https://cloud.example.org/ #{path}", "an http or https URL"),
    ],
)
def test_a_template_that_would_not_do_is_refused_with_what_would(template, expected):
    with pytest.raises(ValueError, match="URL") as refused:
        checked_template(template)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("template", "logged"),
    [
        (f"{PAGE}#path={{path}}", False),
        (f"{PAGE}?vm={{id}}#{{token}}", False),
        (f"{PAGE}?path={{path}}", True),
        ("https://cloud.example.org/console/{token}#vm={id}", True),
    ],
)
def test_it_is_known_whether_web_servers_will_log_the_token(template, logged):
    assert token_gets_logged(checked_template(template)) is logged

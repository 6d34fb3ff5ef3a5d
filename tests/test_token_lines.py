"""What is in a token file, read and written; held against both kinds of reader."""

import io
import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from readers import opens

from vnctoken.tokens import Grant, LiveToken, digest
from vnctoken.tokens.lines import Entry, read_entries, write_entries

TOKEN, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2
ISSUED, MODIFIED, TTL = 1_795_316_218.5, 1_795_316_000.25, 600


def read(content):
    return read_entries(content, 7, modified=MODIFIED, ttl=TTL)


def entry_of(token, host="h", port=5900, ttl=60, *, used=0, **options):
    grant = Grant(7, host, port, ISSUED, ttl, **options)
    line = "" if grant.restricted else f"{token}: {host}:{port}"
    return Entry(LiveToken(digest(token), grant, used), line, ours=True)


def comment(token=TOKEN, **changed):
    """Return a comment as it is written, with other values; None leaves one out."""
    values = {"sha256": digest(token), "issued": ISSUED, "ttl": 60, **changed}
    return "# vnctoken " + json.dumps({name: value for name, value in values.items() if value is not None}) + "\n"


def seen_in(content):
    """Return what a reader understands that knows both readers' rules: its tokens, and host and port for each."""
    found = {}
    for line in map(str.strip, io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="replace")):
        parts = line.split(": ")
        if line.isascii() and line.isprintable() and not line.startswith("#") and parts == re.split(r":\s", line):
            match parts:
                case [token, target]:
                    found[token] = target.strip().rsplit(":", 1)
    return found


def test_a_token_is_a_line_as_websockify_reads_it_with_a_comment_above():
    assert write_entries([entry_of(TOKEN, user="alice")]).decode() == (
        f'# vnctoken {{"sha256": "{digest(TOKEN)}", "issued": 1795316218.5, "ttl": 60, "user": "alice"}}\n'
        f"{TOKEN}: h:5900\n"
    )


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [entry_of(TOKEN)],
        [entry_of(TOKEN, host="2001:db8::1", user="größe 東京 \"'\\#: \x7f", used=ISSUED + 1)],
        [entry_of(TOKEN, single_use=True, host="2001:db8::1"), entry_of(OTHER, client="203.0.113.9", ttl=0)],
        [entry_of(TOKEN), entry_of(OTHER, single_use=True, client="2001:db8::9"), entry_of("third", port=65535)],
    ],
)
def test_what_is_written_is_read_again(entries):
    assert read(write_entries(entries)) == entries


def test_no_file_names_the_token_that_only_the_resolver_may_find():
    for options in ({"single_use": True}, {"client": "203.0.113.9"}):
        written = write_entries([entry_of(TOKEN, **options)])
        assert TOKEN.encode() not in written
        assert seen_in(written) == {}
        assert [entry.live.digest for entry in read(written)] == [digest(TOKEN)]


def test_a_line_of_sunstones_counts_as_issued_when_the_file_was_changed():
    (entry,) = read(b"sunstone: h:5900")
    assert entry == Entry(
        LiveToken(digest("sunstone"), Grant(7, "h", 5900, MODIFIED, TTL)), "sunstone: h:5900", ours=False
    )
    assert entry.expires == MODIFIED + TTL


def test_and_keeps_that_time_once_it_is_written_by_us():
    written = write_entries(read(b"sunstone: h:5900"))
    assert written.decode().splitlines()[1:] == ["sunstone: h:5900"]
    assert read_entries(written, 7, modified=MODIFIED + 1000, ttl=5) == read(b"sunstone: h:5900")


@pytest.mark.parametrize(
    "damaged",
    [
        comment()[:-2] + "\n",
        "# vnctoken\n",
        "# vnctoken []\n",
        "# vnctoken " + "[" * 100_000 + "\n",
        "# vnctoken " + "9" * 5000 + "\n",
        comment().replace("vnctoken ", "vnctoken\t"),
        comment().replace("# ", "#"),
        comment(sha256=None),
        comment(issued=None),
        comment(ttl=None),
        comment(sha256=digest(TOKEN).upper()),
        comment(sha256=digest(TOKEN)[:-1]),
        comment(sha256=digest(OTHER)),
        comment(issued="1795316218"),
        comment(issued=True),
        comment(issued=-1),
        comment(issued=1e300),
        comment(issued=float("nan")),
        comment(issued=float("inf")),
        comment(ttl=60.0),
        comment(ttl=-60),
        comment(ttl=2**80),
        comment(ttl=False),
        comment(user=7),
        comment(single_use=1),
        comment(client=[]),
        comment(used="now"),
        comment(used=-1),
        comment(host="h"),
        comment(port=5900),
        comment(host=7, port=5900),
        comment(unknown=1),
        comment(user="é").replace("\\u00e9", "é"),
    ],
    ids=lambda text: text[11:70].strip(),
)
def test_a_token_with_a_damaged_comment_counts_as_somebody_elses_and_still_expires(damaged):
    (entry,) = read(f"{damaged}{TOKEN}: h:5900\n".encode())
    assert entry == Entry(LiveToken(digest(TOKEN), Grant(7, "h", 5900, MODIFIED, TTL)), f"{TOKEN}: h:5900", ours=False)


@pytest.mark.parametrize("damaged", ["host", "port", "sha256", "issued", "ttl"])
def test_a_restricted_token_with_a_damaged_comment_is_gone(damaged):
    whole = comment(host="h", port=5900, single_use=True)
    assert len(read(whole.encode())) == 1
    assert read(whole.replace(f'"{damaged}"', '"x"').encode()) == []


def test_a_comment_without_its_line_is_no_token():
    assert read(comment().encode()) == []


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"   ",
        b"token",
        b"token:h:5900",
        b"token:\th:5900",
        b"token: h: 5900",
        b"\xff\xfe: h:5900",
        "größe: h:5900".encode(),
        b"\xef\xbb\xbftoken: h:5900",
        b"to\0ken: h:5900",
        b"# a note",
        b"#token: h:5900",
    ],
)
def test_what_breaks_a_reader_or_is_no_token_is_not_written_again(junk):
    content = b"first: h:5900\n" + junk + b"\nlast: h:5901\n"
    assert list(seen_in(write_entries(read(content))).items()) == [("first", ["h", "5900"]), ("last", ["h", "5901"])]


@pytest.mark.parametrize(
    ("line", "host", "port"),
    [
        ("t: h:5900", "h", 5900),
        ("t: 2001:db8::1:5900", "2001:db8::1", 5900),
        ("  t:   h:5900  ", "h", 5900),
        ("t: unix_socket:/run/x", "unix_socket", 0),
        ("t: h", "", 0),
        ("t: h:", "h", 0),
        ("t: h:-1", "h", 0),
        ("t: h:123456", "h", 0),
    ],
)
def test_where_a_line_leads_is_read_as_websockify_reads_it(line, host, port):
    (entry,) = read(line.encode())
    assert (entry.live.grant.host, entry.live.grant.port) == (host, port)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_may_end_as_the_readers_allow(ending):
    content = ending.join(["first: h:5900", "last: h:5901", ""]).encode()
    assert [entry.line for entry in read(content)] == ["first: h:5900", "last: h:5901"]


def test_of_a_token_that_is_there_twice_the_last_line_counts_as_for_websockify():
    entries = read(b"t: first:5900\nu: h:5901\nt: last:5902\n")
    assert [(entry.live.grant.host, entry.live.grant.port) for entry in entries] == [("h", 5901), ("last", 5902)]


words = st.sampled_from([TOKEN, OTHER, "t", ":", ": ", " ", "\t", "#", "h:5900", "2001:db8::1:5901", "\r", "\x0b", "é"])
lines = st.one_of(
    st.builds("{}: {}:{}".format, st.sampled_from([TOKEN, OTHER, "t"]), st.sampled_from("ab"), st.integers(0, 70000)),
    st.builds(
        lambda token, changed: comment(token, **changed).rstrip(),
        st.sampled_from([TOKEN, OTHER]),
        st.dictionaries(
            st.sampled_from(["sha256", "issued", "ttl", "user", "host", "port", "single_use", "used", "theirs", "x"]),
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("h"),
        ),
    ),
    st.lists(words, max_size=6).map("".join),
    st.text(),
).map(str.encode)
contents = st.lists(lines | st.binary(), max_size=8).flatmap(
    lambda those: st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r"]).map(lambda ending: ending.join(those))
)


@settings(deadline=None)
@example(b"a: h:1\rb: h:2")
@example(b"\x1fa: h:1\x0bb: h:2")
@example(b"a:  h:1\n: h:2")
@given(contents)
def test_whatever_is_in_a_file_its_tokens_stay_and_no_reader_stumbles_over_what_is_written(content):
    entries = read(content)
    expected = seen_in(content)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "one-7").write_bytes(write_entries(entries))
        for token, target in expected.items():
            assert opens(folder, token) == target
    assert seen_in(write_entries(entries)) == expected
    again = read(write_entries(entries))
    assert [(entry.line, entry.ours, entry.live.digest) for entry in again] == [
        (entry.line, entry.ours, entry.live.digest) for entry in entries
    ]
    public = {entry.live.digest: [entry.live.grant.host, str(entry.live.grant.port)] for entry in entries if entry.line}
    assert public.keys() == {digest(token) for token in expected}
    for token, target in expected.items():
        if re.fullmatch("[1-9][0-9]{0,4}", target[-1]):
            assert public[digest(token)] == target

"""The service's own login at oned: the session strings that OpenNebula's server_cipher driver accepts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from vnctoken.auth.server_cipher import server_session
from vnctoken.errors import AuthenticationError, ConfigError, ErrorCode
from vnctoken.login import ServerLogin

PASSWORD = "serveradmin-secret-for-tests"
AT = 1_799_998_200


@pytest.fixture
def clock():
    clock = Clock()
    clock.advance(AT)
    return clock


def load(folder, clock, *, core_auth="cipher", delta=1800, margin=300):
    return ServerLogin.load(
        core_auth, folder=folder, etc=folder / "etc", now=clock.seconds, expire_delta=delta, expire_margin=margin
    )


def written(folder, content, name="sunstone_auth"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def end_of(session, password=PASSWORD):
    """Return what a session string is good for, as oned decrypts it."""
    _user, _target, encrypted = session.split(":")
    secret = hashlib.sha256(password.encode()).hexdigest()
    decryptor = Cipher(algorithms.AES(secret[:32].encode()), modes.CBC(secret[:16].encode())).decryptor()
    decoded = subprocess.run(("base64", "-d"), input=encrypted.encode(), stdout=subprocess.PIPE, check=True).stdout
    plain = decryptor.update(decoded) + decryptor.finalize()
    assert plain[-plain[-1] :] == bytes([plain[-1]]) * plain[-1]
    return plain[: -plain[-1]].decode()


# Made with Ruby's OpenSSL as OpenNebula 6.10 makes them; a real oned accepted such ones.
RUBY = {
    ("alice", 1_800_000_000): "serveradmin:alice:3wGIzKFbnxM2QjDRIEI92w3wlt2r4lZyBHZwEZSQmVo=",
    ("serveradmin", 1_800_000_000): (
        "serveradmin:serveradmin:ay78BZPm4uJmDVERKllISq/nztrvGK2jtkO9OpmG2aTxE0X1NvUM1KHGcq96qYvS"
    ),
    ("user@example.org", 1_900_000_123): (
        "serveradmin:user@example.org:rHHcDE3RlbaG3RthsSHR6wPP7/Do/fHEPvJVj8oQU9mZODZ0DGJc/42g7LRD2nCU"
    ),
}


@pytest.mark.parametrize(("target", "expires"), RUBY)
def test_session_strings_are_those_that_opennebula_makes(target, expires):
    assert server_session("serveradmin", PASSWORD, target, expires) == RUBY[target, expires]


def test_the_service_logs_in_as_the_user_in_sunstones_file(tmp_path, clock):
    written(tmp_path, f"serveradmin:{PASSWORD}\n")
    login = load(tmp_path, clock)
    assert login.session() == RUBY["serveradmin", AT + 1800]


def test_a_login_of_its_own_goes_before_sunstones(tmp_path, clock):
    written(tmp_path, "serveradmin:another")
    written(tmp_path, f"vncadmin:with:colons and spaces{PASSWORD} \t\r\n", "vnctoken_auth")
    session = load(tmp_path, clock).session()
    assert session.startswith("vncadmin:vncadmin:")
    assert end_of(session, f"with:colons and spaces{PASSWORD}") == f"vncadmin:vncadmin:{AT + 1800}"


def test_without_a_login_there_is_none(tmp_path, clock):
    assert load(tmp_path, clock) is None
    assert load(tmp_path / "missing", clock) is None
    assert load(written(tmp_path, "a file") / "below", clock) is None


def test_the_service_acts_for_users(tmp_path, clock):
    written(tmp_path, f"serveradmin:{PASSWORD}\n")
    login = load(tmp_path, clock)
    assert login.session("alice") == RUBY["alice", AT + 1800]
    assert login.session("serveradmin") == login.session()


def test_logins_share_their_end_and_are_renewed_five_minutes_before_it(tmp_path, clock):
    written(tmp_path, f"serveradmin:{PASSWORD}")
    login = load(tmp_path, clock)
    first = login.session()
    assert end_of(first) == f"serveradmin:serveradmin:{AT + 1800}"
    clock.advance(1500)
    assert login.session() == first
    assert end_of(login.session("alice")) == f"serveradmin:alice:{AT + 1800}"
    clock.advance(1)
    assert end_of(login.session("alice")) == f"serveradmin:alice:{AT + 1501 + 1800}"
    assert end_of(login.session()) == f"serveradmin:serveradmin:{AT + 1501 + 1800}"


def test_how_long_logins_last_and_when_they_are_renewed_can_be_set(tmp_path, clock):
    written(tmp_path, f"serveradmin:{PASSWORD}")
    login = load(tmp_path, clock, delta=120, margin=20)
    assert end_of(login.session()) == f"serveradmin:serveradmin:{AT + 120}"
    clock.advance(100)
    assert end_of(login.session()) == f"serveradmin:serveradmin:{AT + 120}"
    clock.advance(1)
    assert end_of(login.session()) == f"serveradmin:serveradmin:{AT + 101 + 120}"


class Telling:
    """A driver whose session strings tell what it was asked for."""

    def refresh(self):
        pass

    def session(self, target, expires):
        return f"{target}:{expires}"


@given(
    st.integers(60, 86_400),
    st.floats(0, 1),
    st.lists(st.floats(-90_000, 90_000, allow_nan=False), max_size=8).map(tuple),
)
@example(1800, 1.0, (0.5, 0.5, 0.5))
def test_at_any_time_a_login_is_good_for_the_margin_and_no_longer_than_the_delta(delta, share, steps):
    margin, clock = int(delta * share), Clock()
    clock.advance(AT)
    login = ServerLogin(Telling(), clock.seconds, expire_delta=delta, expire_margin=margin)
    for step in (0, *steps):
        clock.rightNow += step
        target, end = login.session("alice").split(":")
        assert target == "alice"
        assert margin <= int(end) - int(clock.seconds()) <= delta


def test_a_clock_that_is_set_back_does_not_make_a_login_live_longer(tmp_path, clock):
    clock.advance(3600)
    written(tmp_path, f"serveradmin:{PASSWORD}")
    login = load(tmp_path, clock)
    login.session()
    clock.rightNow = AT
    assert end_of(login.session()) == f"serveradmin:serveradmin:{AT + 1800}"


def test_a_changed_password_counts_at_once(tmp_path, clock):
    written(tmp_path, "serveradmin:old")
    login = load(tmp_path, clock)
    login.session()
    written(tmp_path, f"serveradmin:{PASSWORD}")
    assert login.session() == RUBY["serveradmin", AT + 1800]


def test_a_file_that_goes_bad_is_logged_once_and_the_last_login_is_used_on(tmp_path, clock):
    path = written(tmp_path, f"serveradmin:{PASSWORD}")
    login = load(tmp_path, clock)
    path.write_text("unreadable-secret", encoding="utf-8")
    with capturedLogs() as events:
        assert {login.session() for _ in range(3)} == {RUBY["serveradmin", AT + 1800]}
    assert len(events) == 1
    assert str(path) in events[0]["reason"]
    assert "secret" not in repr(events)
    written(tmp_path, f"serveradmin:{PASSWORD}")
    login.session()
    path.unlink()
    with capturedLogs() as events:
        assert login.session() == RUBY["serveradmin", AT + 1800]
    assert "No such file" in events[0]["reason"]


NOBODYS_SECRET = "s3cret"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        (NOBODYS_SECRET, "has no password after a colon"),
        ("serveradmin:", "has no password after a colon"),
        (f":{NOBODYS_SECRET}", "has no user name"),
        (f"server admin:{NOBODYS_SECRET}", "one with a space or a control character"),
        (f" serveradmin:{NOBODYS_SECRET}", "one with a space or a control character"),
        (f"server\x1badmin:{NOBODYS_SECRET}", "one with a space or a control character"),
        (f"server\u00a0admin:{NOBODYS_SECRET}", "one with a space or a control character"),
        (f"serveradmin:{NOBODYS_SECRET}\nsecond:{NOBODYS_SECRET}", "has more than one line"),
        (f"serveradmin:{NOBODYS_SECRET}\rsecond:{NOBODYS_SECRET}", "has more than one line"),
        (b"serveradmin:s3cret\xff", "is no text in UTF-8"),
        (f"serveradmin:{NOBODYS_SECRET * 20_000}", "is longer than 65536 bytes"),
    ],
)
def test_a_file_without_a_login_is_refused_in_words(tmp_path, clock, content, problem):
    path = written(tmp_path, content)
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, clock)
    assert str(refused.value).startswith(f"{path}: ")
    assert problem in str(refused.value)
    assert "'serveradmin:PASSWORD' is expected" in str(refused.value)
    assert NOBODYS_SECRET not in str(refused.value)


def test_what_is_no_readable_file_is_refused_and_not_passed_over(tmp_path, clock):
    written(tmp_path, f"serveradmin:{PASSWORD}")
    path = tmp_path / "vnctoken_auth"
    path.mkdir()
    with pytest.raises(ConfigError, match=r"vnctoken_auth: is not a regular file"):
        load(tmp_path, clock)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"vnctoken_auth: is not a regular file"):
        load(tmp_path, clock)
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"vnctoken_auth: cannot be read \(No such file or directory\)"):
        load(tmp_path, clock)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ConfigError, match=r"vnctoken_auth: cannot be read \(Too many levels"):
        load(tmp_path, clock)


LOADING = """
import os, sys
from pathlib import Path
from vnctoken.errors import ConfigError
from vnctoken.login import LoginUnavailableError, ServerLogin

def load(folder):
    return ServerLogin.load("cipher", folder=folder, etc=folder, now=lambda: 0, expire_delta=1800, expire_margin=300)
"""

AS_NOBODY = f"""{LOADING}
# He need not be able to read the packages.
import vnctoken.auth.server_cipher, vnctoken.auth.server_x509
os.setuid(65534)
try:
    load(Path(sys.argv[1]))
except ConfigError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("closed", ["sunstone_auth", "."])
def test_a_login_that_the_services_user_may_not_read_is_refused(closed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        written(folder, f"serveradmin:{PASSWORD}")
        (folder / closed).chmod(0o700)
        command = (sys.executable, "-c", AS_NOBODY, folder)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "_auth: cannot be read (Permission denied); one line 'serveradmin:PASSWORD'" in done.stdout


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\nb", "a\x00b", "a\u2028b", "\ud800"])
def test_a_name_that_would_not_stay_one_never_gets_into_a_session_string(tmp_path, clock, name):
    written(tmp_path, f"serveradmin:{PASSWORD}")
    login = load(tmp_path, clock)
    attempts = (
        lambda: server_session(name, PASSWORD, "alice", AT),
        lambda: server_session("serveradmin", PASSWORD, name, AT),
        lambda: login.session(name),
    )
    for attempt in attempts:
        with pytest.raises(AuthenticationError) as refused:
            attempt()
        assert refused.value.code == ErrorCode.AUTHENTICATION


@given(st.text(), st.text(min_size=1), st.integers(0, 2**40))
@example("Zoë", "é", 1)
def test_a_session_string_has_three_parts_or_is_not_made(target, password, expires):
    try:
        session = server_session("serveradmin", password, target, expires)
    except AuthenticationError:
        return
    assert session.split(":")[:2] == ["serveradmin", target]
    assert len(session.split(":")) == 3
    assert session.isprintable()
    assert " " not in session


def test_the_password_is_in_no_representation(tmp_path, clock):
    written(tmp_path, f"serveradmin:{PASSWORD}")
    login = load(tmp_path, clock)
    assert repr(login) == f"<ServerLogin by <ServerCipher of 'serveradmin' in {tmp_path}/sunstone_auth>>"
    assert PASSWORD not in f"{login} {login!r}"


WITHOUT_CRYPTOGRAPHY = f"""{LOADING}
sys.modules["cryptography"] = None
print(load(Path(sys.argv[1], "missing")))
try:
    load(Path(sys.argv[1]))
except LoginUnavailableError as error:
    print(error)
"""


def test_without_cryptography_it_says_what_to_install(tmp_path):
    written(tmp_path, f"serveradmin:{PASSWORD}")
    command = (sys.executable, "-c", WITHOUT_CRYPTOGRAPHY, tmp_path)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "None\nOpenNebula's server login needs cryptography: install vnctoken[login]\n"


# systemd's credentials


def loaded(folder, clock, credentials):
    return ServerLogin.load(
        "cipher",
        folder=folder,
        etc=folder,
        now=clock.seconds,
        expire_delta=1800,
        expire_margin=300,
        environment={"CREDENTIALS_DIRECTORY": str(credentials)},
    )


def test_a_credential_of_systemd_goes_before_the_files(tmp_path, clock):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    written(tmp_path, f"serveradmin:{PASSWORD}", "vnctoken_auth")
    written(credentials, f"vncadmin:{PASSWORD}", "vnctoken_auth")
    assert loaded(tmp_path, clock, credentials).session().startswith("vncadmin:vncadmin:")


@pytest.mark.parametrize("credentials", ["", "missing", "empty"])
def test_without_such_a_credential_the_files_count(tmp_path, clock, credentials):
    (tmp_path / "empty").mkdir()
    written(tmp_path, f"serveradmin:{PASSWORD}")
    assert loaded(tmp_path, clock, credentials and tmp_path / credentials).session() == RUBY["serveradmin", AT + 1800]


AS_NOBODY_WITH_CREDENTIALS = f"""{LOADING}
import vnctoken.auth.server_cipher, vnctoken.auth.server_x509
os.environ["CREDENTIALS_DIRECTORY"] = sys.argv[1] + "/credentials"
os.setuid(65534)
print(load(Path(sys.argv[1])))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_credentials_that_is_roots_alone_is_passed_over():
    """That is how systemd 252 leaves it in a container where nothing can be mounted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "credentials").mkdir(mode=0o700)
        written(folder, f"serveradmin:{PASSWORD}")
        command = (sys.executable, "-c", AS_NOBODY_WITH_CREDENTIALS, folder)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "'serveradmin'" in done.stdout

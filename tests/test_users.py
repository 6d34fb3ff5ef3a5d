"""Who oned's users are: what is read of their accounts, and how often oned is asked."""

from __future__ import annotations

import contextlib
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import result_of
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from vnctoken.auth.users import CACHE_SECONDS, UserPool, Users
from vnctoken.errors import (
    ActionError,
    AuthenticationError,
    AuthorizationError,
    ErrorCode,
    NoExistsError,
    OnedError,
)
from vnctoken.oned import Oned
from vnctoken.user import User, group_names, users
from vnctoken.wire import read_call, write_answer

SESSION = "serveradmin:serveradmin:c2Vzc2lvbg=="
HASH = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"


def account(user_id=2, name="alice", **fields):
    """Return a user as oned 6.10 writes him: texts that users choose are CDATA, others are not."""
    values = {"GID": 1, "GROUPS": "<ID>1</ID>", "GNAME": "users", "PASSWORD": HASH, "AUTH_DRIVER": "core"}
    values |= {"ENABLED": 1, "TEMPLATE": "<TOKEN_PASSWORD><![CDATA[token-password]]></TOKEN_PASSWORD>", **fields}
    values |= {key: f"<![CDATA[{values[key]}]]>" for key in ("PASSWORD", "AUTH_DRIVER")}
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
    return f"<USER><ID>{user_id}</ID><NAME>{escape(name)}</NAME>{inner}</USER>"


def pool_of(*accounts):
    """Return a pool as oned writes it: the quotas of each user stand beside him."""
    quotas = "<QUOTAS><ID>2</ID><VM_QUOTA><VM><CPU><![CDATA[-1]]></CPU></VM></VM_QUOTA></QUOTAS>"
    return f"<USER_POOL>{''.join(one + quotas for one in accounts)}</USER_POOL>"


def found_in(*accounts):
    return Users(users(pool_of(*accounts)))


def test_an_account_is_read_whole():
    assert User.from_xml(account(GROUPS="<ID>1</ID><ID>100</ID>")) == User(
        id=2,
        name="alice",
        driver="core",
        enabled=True,
        group="users",
        groups=frozenset({1, 100}),
        password=HASH,
        token_password="token-password",
    )


def test_what_oned_does_not_have_is_empty_and_the_primary_group_is_one_of_the_groups():
    user = User.from_xml("<USER><ID> 3 </ID><GID>0</GID><NAME>bob</NAME></USER>")
    assert user == User(3, "bob", "", enabled=False, group="", groups=frozenset({0}), password="", token_password="")


@pytest.mark.parametrize(
    ("written", "enabled"), [("1", True), (" 1 ", True), ("0", False), ("", False), ("yes", False)]
)
def test_only_who_is_enabled_is(written, enabled):
    assert User.from_xml(account(ENABLED=written)).enabled is enabled


def test_secrets_are_in_no_representation():
    assert HASH not in repr(User.from_xml(account()))
    assert "token-password" not in repr(User.from_xml(account()))


def test_a_pool_is_read_without_the_quotas_beside_its_users():
    pool = pool_of(account(), account(3, "Zoë <&>"), account(0, "oneadmin", ENABLED=0))
    assert [(user.id, user.name) for user in users(pool)] == [(2, "alice"), (3, "Zoë <&>"), (0, "oneadmin")]
    assert users("<USER_POOL/>") == []


def test_groups_have_names():
    groups = "<GROUP><ID>0</ID><NAME>oneadmin</NAME></GROUP><GROUP><ID>100</ID><NAME>a b</NAME></GROUP>"
    assert group_names(f"<GROUP_POOL>{groups}</GROUP_POOL>") == {0: "oneadmin", 100: "a b"}


@pytest.mark.parametrize(
    "document",
    [
        "",
        "<USER>",
        "<VM/>",
        "<!DOCTYPE USER><USER/>",
        account(name=""),
        account("x"),
        account(-1),
        account(10**10),
        account(GID=""),
        account(GROUPS="<ID>a</ID>"),
    ],
)
def test_what_is_no_account_is_oneds_error_and_is_not_repeated(document):
    for read, text in ((User.from_xml, document), (users, f"<USER_POOL>{document or '<USER/>'}</USER_POOL>")):
        if document == "<VM/>" and read is users:
            continue  # Others in the pool are passed over, as quotas are.
        with pytest.raises(OnedError, match="oned answered") as refused:
            read(text)
        assert HASH not in str(refused.value)


ANY_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"))


FIELDS = st.fixed_dictionaries({key: ANY_TEXT.map(escape) for key in ("ID", "GID", "GROUPS", "ENABLED", "NAME")})
USERS = FIELDS.map(lambda fields: "".join(f"<{key}>{text}</{key}>" for key, text in fields.items()))


@given(st.text() | USERS.map("<USER>{}</USER>".format) | USERS.map("<USER_POOL><USER>{}</USER></USER_POOL>".format))
@example("<USER_POOL><USER><ID>٣</ID></USER></USER_POOL>")
@example("<USER><ID>²</ID><GID>1</GID><NAME>a</NAME></USER>")
@example("<USER><?target?><!-- comment --><ID><ID/></ID></USER>")
@example("<GROUP_POOL><GROUP><ID>1</ID></GROUP><GROUP/></GROUP_POOL>")
def test_whatever_oned_answers_is_read_or_refused(document):
    for read in (User.from_xml, users, group_names):
        with contextlib.suppress(OnedError):
            read(document)


@given(st.integers(0, 2**31 - 1), ANY_TEXT.filter(bool), ANY_TEXT, ANY_TEXT, st.frozensets(st.integers(0, 999)))
def test_what_is_written_is_read(user_id, name, password, token_password, groups):
    inner = "".join(f"<ID>{group}</ID>" for group in groups)
    xml = (
        f"<USER><ID>{user_id}</ID><GID>7</GID><GROUPS>{inner}</GROUPS><NAME>{escape(name)}</NAME>"
        f"<PASSWORD>{escape(password)}</PASSWORD><ENABLED>1</ENABLED>"
        f"<TEMPLATE><TOKEN_PASSWORD>{escape(token_password)}</TOKEN_PASSWORD></TEMPLATE></USER>"
    )
    user = User.from_xml(xml)
    assert (user.id, user.name, user.password, user.token_password) == (user_id, name, password, token_password)
    assert user.groups == groups | {7}


DN, ISSUER = "/C=XX/O=lab/CN=alice", "/C=XX/O=lab/CN=ca"


def test_users_are_found_by_name_and_id():
    found = found_in(account(), account(3, "bob"))
    assert [found.by_name("bob").id, found.by_id(2).name] == [3, "alice"]
    assert [found.by_name("Bob"), found.by_name(""), found.by_id(4), found.by_id(-1)] == [None] * 4


def test_certificates_are_found_by_each_dn_of_users_of_the_driver_x509_only():
    found = found_in(
        account(2, "alice", AUTH_DRIVER="x509", PASSWORD=f"{DN}|{ISSUER}"),
        account(3, "core", PASSWORD="/CN=core"),
        account(4, "public", AUTH_DRIVER="public", PASSWORD="/CN=public"),
        account(5, "server", AUTH_DRIVER="server_x509", PASSWORD="/CN=server"),
    )
    assert [found.by_dn(DN).name, found.by_dn(ISSUER).name] == ["alice", "alice"]
    for dn in (f"{DN}|{ISSUER}", "/CN=core", "/CN=public", "/CN=server", DN.lower(), f"{DN} "):
        assert found.by_dn(dn) is None


def test_remote_names_are_those_of_users_of_the_driver_public_only():
    found = found_in(
        account(2, "alice", AUTH_DRIVER="public", PASSWORD="alice@EXAMPLE.ORG"),
        account(3, "bob", AUTH_DRIVER="x509", PASSWORD="bob@EXAMPLE.ORG"),
        account(4, "carol", PASSWORD="carol@EXAMPLE.ORG"),
    )
    assert found.by_remote_name("alice@EXAMPLE.ORG").name == "alice"
    for name in ("alice", "bob@EXAMPLE.ORG", "carol@EXAMPLE.ORG"):
        assert found.by_remote_name(name) is None


def test_nobody_is_found_by_nothing():
    found = found_in(
        account(2, "a", AUTH_DRIVER="public", PASSWORD=""),
        account(3, "b", AUTH_DRIVER="x509", PASSWORD=""),
        account(4, "c", AUTH_DRIVER="x509", PASSWORD="|/CN=c||"),
    )
    assert (found.by_remote_name(""), found.by_dn(""), found.by_dn("/CN=c").name) == (None, None, "c")


def test_who_is_disabled_is_not_found():
    found = found_in(
        account(2, "alice", ENABLED=0),
        account(3, "bob", ENABLED=0, AUTH_DRIVER="x509", PASSWORD=DN),
        account(4, "carol", ENABLED=0, AUTH_DRIVER="public", PASSWORD="carol"),
    )
    assert [found.by_name("alice"), found.by_id(2), found.by_dn(DN), found.by_remote_name("carol")] == [None] * 4


@pytest.mark.parametrize("count", [2, 3, 4])
def test_where_two_or_more_match_nobody_does(count):
    same = [account(2 + n, f"user{n}", AUTH_DRIVER="x509", PASSWORD=f"{DN}|/CN={n}|{DN}") for n in range(count)]
    public = [account(20 + n, f"public{n}", AUTH_DRIVER="public", PASSWORD="someone") for n in range(count)]
    found = found_in(*same, *public)
    assert (found.by_dn(DN), found.by_remote_name("someone")) == (None, None)
    assert [found.by_dn(f"/CN={n}").name for n in range(count)] == [f"user{n}" for n in range(count)]


def test_a_dn_that_one_user_has_twice_is_his():
    assert found_in(account(AUTH_DRIVER="x509", PASSWORD=f"{DN}|{DN}")).by_dn(DN).name == "alice"


class Answering:
    """oned's side of a connection: keeps the questions until they are answered."""

    def __init__(self):
        self.questions = []
        self.open = []

    async def post(self, body):
        self.questions.append(read_call(body))
        self.open.append(Deferred())
        return await self.open[-1]

    def answer(self, *accounts):
        """Answer as to an administrator: with the accounts and oneadmin's."""
        self.answer_with(account(0, "oneadmin"), *accounts)

    def answer_with(self, *accounts):
        self.open.pop(0).callback(write_answer([True, pool_of(*accounts), 0]))

    def refuse(self, code, text="[one.userpool.info] no"):
        self.open.pop(0).callback(write_answer([False, text, int(code), -1, 0]))


@pytest.fixture
def clock():
    clock = Clock()
    clock.advance(1000)
    return clock


@pytest.fixture
def oned():
    return Answering()


@pytest.fixture
def pool(oned, clock):
    return UserPool(Oned(oned, clock, timeout=300, connections=4), lambda: SESSION, clock)


def asked(pool):
    """Return the outcome of a question, as it comes."""
    return Deferred.fromCoroutine(pool.users())


def names_in(deferred, *candidates):
    found = result_of(deferred)
    return [name for name in candidates if found.by_name(name)]


def test_oned_is_asked_as_the_service_itself(pool, oned):
    waiting = asked(pool)
    oned.answer(account())
    assert names_in(waiting, "alice", "bob") == ["alice"]
    assert [(call.method, call.arguments) for call in oned.questions] == [("one.userpool.info", [SESSION])]


def test_a_login_of_the_service_that_is_no_administrators_is_told_apart_from_a_cloud_without_users(pool, oned):
    waiting = asked(pool)
    oned.answer_with(account(1, "serveradmin"))
    with pytest.raises(OnedError, match="has to be in the group oneadmin"):
        result_of(waiting)


def test_an_answer_counts_for_a_minute_from_when_oned_was_asked(pool, oned, clock):
    waiting = asked(pool)
    clock.advance(20)
    oned.answer(account())
    result_of(waiting)
    clock.advance(39.9)
    assert names_in(asked(pool), "alice") == ["alice"]
    assert len(oned.questions) == 1
    clock.advance(0.1)
    waiting = asked(pool)
    oned.answer(account(ENABLED=0), account(3, "bob"))
    assert names_in(waiting, "alice", "bob") == ["bob"]
    assert len(oned.questions) == 2


def test_a_hundred_callers_at_once_are_one_question(pool, oned):
    waiting = [asked(pool) for _ in range(100)]
    assert len(oned.questions) == 1
    oned.answer(account())
    assert all(names_in(one, "alice") for one in waiting)
    assert names_in(asked(pool), "alice") == ["alice"]
    assert len(oned.questions) == 1


def test_who_goes_away_takes_neither_the_question_nor_the_others_with_him(pool, oned):
    waiting = [asked(pool) for _ in range(3)]
    for gone in (waiting[0], waiting[2]):
        gone.cancel()
        with pytest.raises(CancelledError):
            result_of(gone)
    oned.answer(account())
    assert names_in(waiting[1], "alice") == ["alice"]


def test_a_question_whose_callers_have_all_gone_serves_the_next(pool, oned):
    gone = asked(pool)
    gone.cancel()
    with pytest.raises(CancelledError):
        result_of(gone)
    waiting = asked(pool)
    oned.answer(account())
    assert names_in(waiting, "alice") == ["alice"]
    assert len(oned.questions) == 1


def test_one_who_is_told_may_send_another_away(pool, oned):
    first, second, third = asked(pool), asked(pool), asked(pool)
    first.addCallback(lambda found: [second.cancel(), found][1])
    oned.answer(account())
    assert (names_in(first, "alice"), names_in(third, "alice")) == (["alice"], ["alice"])
    with pytest.raises(CancelledError):
        result_of(second)


def test_a_failure_is_everybodys_who_waits_and_the_next_one_asks_again(pool, oned):
    waiting = [asked(pool) for _ in range(3)]
    again = []
    waiting[0].addErrback(lambda failure: [again.append(asked(pool)), failure][1])
    oned.open.pop(0).errback(OnedError("oned is down"))
    for one in waiting:
        with pytest.raises(OnedError, match="oned is down"):
            result_of(one)
    assert len(oned.questions) == 2
    oned.answer(account())
    assert names_in(again[0], "alice") == ["alice"]


def test_users_of_an_hour_ago_are_not_served_while_oned_is_down(pool, oned, clock):
    waiting = asked(pool)
    oned.answer(account())
    result_of(waiting)
    clock.advance(CACHE_SECONDS)
    waiting = asked(pool)
    oned.open.pop(0).errback(OnedError("oned is down"))
    with pytest.raises(OnedError, match="oned is down"):
        result_of(waiting)
    late = asked(pool)
    oned.answer(account())
    assert names_in(late, "alice") == ["alice"]


def test_an_answer_that_was_a_minute_under_way_is_too_old(pool, oned, clock):
    waiting = asked(pool)
    clock.advance(CACHE_SECONDS)
    oned.answer(account())
    with pytest.raises(OnedError, match="oned took longer than 60 seconds"):
        result_of(waiting)
    asked(pool)
    assert len(oned.questions) == 2


@pytest.mark.parametrize("refused", [AuthenticationError, AuthorizationError])
def test_that_oned_refuses_the_service_is_not_the_callers_fault(pool, oned, refused):
    waiting = asked(pool)
    oned.refuse(refused.code)
    with pytest.raises(OnedError, match=r"^oned refuses the service's own login$") as told:
        result_of(waiting)
    assert told.value.code == ErrorCode.INTERNAL


@pytest.mark.parametrize("refused", [NoExistsError, ActionError])
def test_other_refusals_are_oneds_error_too_without_its_words(pool, oned, refused):
    waiting = asked(pool)
    oned.refuse(refused.code, "said something")
    with pytest.raises(OnedError, match="does not answer the service's own login") as told:
        result_of(waiting)
    assert "said something" not in str(told.value)


def test_a_login_that_cannot_be_made_is_no_refusal_of_the_caller(oned, clock):
    def session():
        raise AuthenticationError("A user name with a space")

    pool = UserPool(Oned(oned, clock, timeout=5, connections=4), session, clock)
    with pytest.raises(OnedError, match="oned refuses the service's own login"):
        result_of(asked(pool))
    assert oned.questions == []


def test_oned_that_does_not_answer_keeps_nobody_waiting_for_ever(oned, clock):
    pool = UserPool(Oned(oned, clock, timeout=5, connections=4), lambda: SESSION, clock)
    waiting = [asked(pool), asked(pool)]
    clock.advance(5)
    for one in waiting:
        with pytest.raises(OnedError, match="within 5 seconds"):
            result_of(one)


def test_nonsense_is_oneds_error_and_our_own_fault_ends_the_waiting_too(oned, clock):
    def session():
        raise ZeroDivisionError

    pool = UserPool(Oned(oned, clock, timeout=5, connections=4), session, clock)
    with pytest.raises(ZeroDivisionError):
        result_of(asked(pool))
    pool = UserPool(Oned(oned, clock, timeout=5, connections=4), lambda: SESSION, clock)
    waiting = asked(pool)
    oned.open.pop(0).callback(write_answer([True, "<VM_POOL/>", 0]))
    with pytest.raises(OnedError, match="no USER_POOL"):
        result_of(waiting)

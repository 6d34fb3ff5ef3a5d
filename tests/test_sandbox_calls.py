"""Method calls as the sandbox's oned reads them, and answers as it writes them."""

import contextlib
import xmlrpc.client

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnctoken.sandbox.calls import (
    PARSE_ERROR,
    TYPE_ERROR,
    Answer,
    Call,
    FaultError,
    array,
    decode_call,
    string,
)


def call_with(*values, method="one.vm.info"):
    params = "".join(f"<param><value>{value}</value></param>" for value in values)
    return f"<methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>".encode()


def fault_of(body):
    with pytest.raises(FaultError) as caught:
        decode_call(body)
    return caught.value


def test_a_call_is_read_as_the_standard_library_writes_it():
    body = xmlrpc.client.dumps(("alice:secret", 7, True), "one.vm.info").encode()
    call = decode_call(body)
    assert (call.method, call.string(0), call.integer(1), call.boolean(2)) == (
        "one.vm.info",
        "alice:secret",
        7,
        True,
    )


@given(session=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")))
def test_any_session_arrives_as_it_was_sent(session):
    assert decode_call(xmlrpc.client.dumps((session,), "m").encode()).string(0) == session


@pytest.mark.parametrize(
    ("value", "number"), [("<int>7</int>", 7), ("<i4>-1</i4>", -1), ("<i4>+2147483647</i4>", 2147483647)]
)
def test_an_int_may_be_called_i4(value, number):
    assert decode_call(call_with(value)).integer(0) == number


@pytest.mark.parametrize("value", ["plain", "<string>plain</string>"])
def test_a_value_without_a_type_is_a_string(value):
    assert decode_call(call_with(value)).string(0) == "plain"


@pytest.mark.parametrize(
    "value",
    [
        "7",
        "<string>7</string>",
        "<i8>7</i8>",
        "<boolean>1</boolean>",
        "<double>7</double>",
        "<nil/>",
        "<array><data><value><int>7</int></value></data></array>",
    ],
)
def test_only_an_int_is_an_int(value):
    with pytest.raises(FaultError, match=r"^Parameter that is supposed to be integer is not$") as caught:
        decode_call(call_with(value)).integer(0)
    assert caught.value.code == TYPE_ERROR


def test_only_a_string_is_a_string_and_only_a_boolean_is_a_boolean():
    call = decode_call(call_with("<int>1</int>"))
    with pytest.raises(FaultError, match=r"^Parameter that is supposed to be string is not$"):
        call.string(0)
    with pytest.raises(FaultError, match=r"^Parameter that is supposed to be boolean is not$"):
        call.boolean(0)


def test_a_missing_argument_is_a_fault():
    with pytest.raises(FaultError, match=r"^Not enough parameters$") as caught:
        Call("m", ()).string(0)
    assert caught.value.code == TYPE_ERROR


def test_a_call_without_params_has_no_arguments():
    assert decode_call(b"<methodCall><methodName>m</methodName></methodCall>") == Call("m", ())


@pytest.mark.parametrize(
    "body",
    [
        b"<methodResponse/>",
        b"<methodCall/>",
        b"<methodCall><params/><methodName>m</methodName></methodCall>",
        b"<methodCall><methodName>m</methodName><params/><params/></methodCall>",
        b"<methodCall><methodName>m</methodName><params><value/></params></methodCall>",
        b"<methodCall><methodName>m</methodName><params><param/></params></methodCall>",
        call_with("<int>1</int><int>2</int>"),
        call_with("<int>seven</int>"),
        call_with("<int></int>"),
        call_with("<i4>2147483648</i4>"),
        call_with("<i4>99999999999999999999</i4>"),
        call_with("<boolean>true</boolean>"),
    ],
)
def test_xml_that_is_no_call_is_a_fault(body):
    fault = fault_of(body)
    assert fault.code == PARSE_ERROR
    assert str(fault).startswith("Call XML not a proper XML-RPC call.  ")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"<methodCall>", "no element found"),
        (b" ", "no element found"),
        (b"methodCall", "syntax error"),
        (b"<a></b>", "mismatched tag"),
        (b"<a>\xff</a>", "not well-formed (invalid token)"),
        (b'<?xml version="1.0" encoding="no-such"?><a/>', "unknown encoding"),
        (b'<?xml version="1.0" encoding="utf-7"?><a/>', "unknown encoding"),
        (b"<a>&undefined;</a>", "undefined entity"),
    ],
)
def test_what_is_no_xml_is_a_fault_that_says_why(body, problem):
    fault = fault_of(body)
    assert fault.code == PARSE_ERROR
    assert str(fault).endswith(problem)


def test_a_call_with_a_dtd_is_refused():
    bomb = b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>' + call_with("&c;")
    assert "document type declaration" in str(fault_of(bomb))


@given(st.binary())
def test_any_bytes_are_a_call_or_a_fault(body):
    with contextlib.suppress(FaultError):
        decode_call(body)


def test_a_success_has_three_elements():
    answer, method = xmlrpc.client.loads(Answer(success=True, text="a<&>'\"ü").body)
    assert answer == ([True, "a<&>'\"ü", 0],)
    assert method is None


def test_a_success_may_be_a_number():
    body = Answer(success=True, number=7).body
    assert xmlrpc.client.loads(body)[0] == ([True, 7, 0],)
    assert b"<i4>7</i4>" in body


def test_an_error_has_five_elements_the_last_an_i8():
    body = Answer(success=False, text="no", code=1024, object_id=7).body
    assert xmlrpc.client.loads(body)[0] == ([False, "no", 1024, 7, -1],)
    assert body.count(b"<i4>") == 2
    assert b"<value><i8>-1</i8></value>" in body


def test_a_fault_has_a_code_and_a_text():
    with pytest.raises(xmlrpc.client.Fault) as caught:
        xmlrpc.client.loads(FaultError(-506, "Method '<>' not defined").body)
    assert (caught.value.faultCode, caught.value.faultString) == (-506, "Method '<>' not defined")


def test_lines_end_with_crlf_and_a_carriage_return_in_a_value_survives():
    body = array(string("a\rb\nc"))
    assert body.replace(b"\r\n", b"").count(b"\r") == 0
    assert xmlrpc.client.loads(body)[0] == (["a\rb\nc"],)

"""XML-RPC as bytes, written by friends and by foes, and the XML parser beneath it."""

import contextlib
import re
import socket
import xmlrpc.client

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnctoken.safexml import DocumentError, parse
from vnctoken.wire import Fault, FaultCode, MethodCall, Unsupported, read_answer, read_call, write_answer, write_call


def call_of(*values, method="one.vm.vnc", declaration=""):
    params = "".join(f"<param>{value}</param>" for value in values)
    return f"{declaration}<methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>".encode()


def argument(value):
    """Return what the one argument of a call is read as."""
    call = read_call(call_of(value))
    assert call.method == "one.vm.vnc"
    (read,) = call.arguments
    return read


def fault_of(document):
    with pytest.raises(Fault) as caught:
        read_call(document)
    return caught.value


def nested(depth):
    return call_of("<value><array><data>" * depth + "</data></array></value>" * depth)


# Calls


def test_a_call_of_the_standard_library_is_read():
    body = xmlrpc.client.dumps(("alice:secret", 7, True, ["x", {"a": [1]}]), "one.vm.vnctoken").encode()
    assert read_call(body) == MethodCall("one.vm.vnctoken", ["alice:secret", 7, True, ["x", {"a": [1]}]])


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("<value>7</value>", "7"),
        ("<value> 7\n</value>", " 7\n"),
        ("<value/>", ""),
        ("<value><string/></value>", ""),
        ("<value><string> a b </string></value>", " a b "),
        ("<value><string>a&lt;&amp;&gt;b'c</string></value>", "a<&>b'c"),
        ("<value><string><![CDATA[a<&>b]]></string></value>", "a<&>b"),
        ("<value><string>&#x6771;京</string></value>", "東京"),
        ("<value><string>al<!-- not here -->ice<?nor here?></string></value>", "alice"),
        ("<value><!-- here --><int>7</int></value>", 7),
        ("<value>\n  <int>7</int>\n</value>", 7),
        ("<value><int>7</int></value>", 7),
        ("<value><i4>7</i4></value>", 7),
        ("<value><i8>7</i8></value>", 7),
        ("<value><int>+7</int></value>", 7),
        ("<value><int>-7</int></value>", -7),
        ("<value><int> 007\r\n</int></value>", 7),
        ("<value><i8>9223372036854775807</i8></value>", 2**63 - 1),
        ("<value><boolean>1</boolean></value>", True),
        ("<value><boolean> 0 </boolean></value>", False),
        ("<value><array><data/></array></value>", []),
        ("<value><array><data><value>a</value><value><int>1</int></value></data></array></value>", ["a", 1]),
        ("<value><array/></value>", []),
        ("<value><struct/></value>", {}),
        ("<value><struct><member><name>a</name><value>b</value></member></struct></value>", {"a": "b"}),
        ("<value><struct><member><name/><value/></member></struct></value>", {"": ""}),
    ],
)
def test_a_value_is_read_as_xml_rpc_says(value, read):
    result = argument(value)
    assert result == read
    assert type(result) is type(read)


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        ("<value><double>7</double></value>", "double"),
        ("<value><nil/></value>", "nil"),
        ("<value><base64>Nw==</base64></value>", "base64"),
        ("<value><dateTime.iso8601>20261122T04:00:00</dateTime.iso8601></value>", "dateTime.iso8601"),
        ("<value><ex:nil xmlns:ex='urn:x'/></value>", "{urn:x}nil"),
        ("<value><INT>7</INT></value>", "INT"),
        ("<value><int/></value>", "int"),
        ("<value><int>abc</int></value>", "int"),
        ("<value><int>7.0</int></value>", "int"),
        ("<value><int>0x7</int></value>", "int"),
        ("<value><int>1_000</int></value>", "int"),
        ("<value><int>- 7</int></value>", "int"),
        ("<value><int>\u0667</int></value>", "int"),
        ("<value><int>\uff17</int></value>", "int"),
        ("<value><i8>10000000000000000000</i8></value>", "i8"),
        (f"<value><int>{'9' * 4300}</int></value>", "int"),
        (f"<value><i4>{'9' * 60000}</i4></value>", "i4"),
        ("<value><boolean>true</boolean></value>", "boolean"),
        ("<value><boolean>2</boolean></value>", "boolean"),
        ("<value><boolean/></value>", "boolean"),
        ("<value><struct><member><name>a</name></member></struct></value>", "struct with an incomplete member"),
        ("<value><struct><member><value>a</value></member></struct></value>", "struct with an incomplete member"),
    ],
)
def test_a_value_that_no_method_takes_does_not_make_the_call_unreadable(value, type_name):
    assert argument(value) == Unsupported(type_name)


def test_such_a_value_may_stand_anywhere_below_another():
    assert argument("<value><array><data><value><nil/></value></data></array></value>") == [Unsupported("nil")]


@pytest.mark.parametrize(
    "document",
    [
        b"<methodCall><methodName>m</methodName></methodCall>",
        b"<methodCall><methodName>m</methodName><params/></methodCall>",
        b"<methodCall><params/><methodName>\n m </methodName></methodCall>",
        b"<methodCall><methodName>m</methodName><params><param/></params><unknown><x/></unknown></methodCall>",
        b"<?xml version='1.0'?>\r\n<!-- hello --><methodCall><methodName>m</methodName></methodCall>\r\n",
    ],
)
def test_a_call_needs_no_arguments(document):
    assert read_call(document) == MethodCall("m", [])


# Encodings

UMLAUT = "<value>pässwörd</value>"


@pytest.mark.parametrize(
    "document",
    [
        call_of(UMLAUT),
        b"\xef\xbb\xbf" + call_of(UMLAUT),
        call_of(UMLAUT, declaration='<?xml version="1.0" encoding="utf-8"?>'),
        call_of(UMLAUT).decode().encode("utf-16"),
        call_of(UMLAUT, declaration='<?xml version="1.0" encoding="UTF-16"?>').decode().encode("utf-16"),
        call_of(UMLAUT, declaration='<?xml version="1.0" encoding="iso-8859-1"?>').decode().encode("latin-1"),
    ],
    ids=["utf-8", "utf-8 with a BOM", "utf-8 declared", "utf-16 with a BOM", "utf-16 declared", "latin-1 declared"],
)
def test_every_encoding_that_says_what_it_is_is_read(document):
    assert read_call(document).arguments == ["pässwörd"]


# What is refused


def bomb(levels=9):
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, levels))
    return call_of(f"<value>&e{levels - 1};</value>", declaration=f'<!DOCTYPE x [<!ENTITY e0 "lol">{entities}]>')


def quadratic_bomb():
    declaration = f'<!DOCTYPE x [<!ENTITY a "{"x" * 20000}">]>'
    return call_of(f"<value>{'&a;' * 10000}</value>", declaration=declaration)


NOT_WELL_FORMED = {
    "nothing": b"",
    "white space": b" \r\n",
    "text": b"hello",
    "json": b'{"method": "one.vm.vnc"}',
    "a tag left open": call_of("<value>7</value>")[:-5],
    "tags crossed": b"<methodCall><methodName></methodCall></methodName>",
    "two roots": call_of() * 2,
    "an entity nobody declared": call_of("<value>&nbsp;</value>"),
    "a prefix nobody declared": call_of("<value><ex:nil/></value>"),
    "bytes that are no UTF-8": call_of("<value>pw</value>").replace(b"pw", b"\xff\xfe"),
    "overlong UTF-8": call_of("<value>pw</value>").replace(b"pw", b"\xc0\xbc"),
    "a surrogate in UTF-8": call_of("<value>pw</value>").replace(b"pw", b"\xed\xa0\x80"),
    "latin-1 not declared": call_of(UMLAUT).decode().encode("latin-1"),
    "latin-1 declared as utf-8": call_of(UMLAUT, declaration='<?xml version="1.0" encoding="utf-8"?>')
    .decode()
    .encode("latin-1"),
    "UTF-8 declared as utf-16": call_of(UMLAUT, declaration='<?xml version="1.0" encoding="utf-16"?>'),
    "an unknown encoding": call_of(UMLAUT, declaration='<?xml version="1.0" encoding="klingon"?>'),
    "an encoding with a strange name": call_of(UMLAUT, declaration='<?xml version="1.0" encoding="../../x"?>'),
    "utf-16 cut in half": call_of(UMLAUT).decode().encode("utf-16")[:-3],
    "a NUL": call_of("<value>a\0b</value>"),
    "a NUL at the end": call_of() + b"\0",
    "a control character": call_of("<value>a\x01b</value>"),
    "a control character by reference": call_of("<value>&#1;</value>"),
    "a surrogate by reference": call_of("<value>&#xD800;</value>"),
    "a character that does not exist": call_of("<value>&#x110000;</value>"),
    "a DTD with nothing in it": call_of(declaration="<!DOCTYPE methodCall>"),
    "a DTD of our own root": call_of(declaration="<!DOCTYPE methodCall []>"),
    "a DTD elsewhere": call_of(declaration='<!DOCTYPE methodCall SYSTEM "http://127.0.0.1:9/x.dtd">'),
    "a file as an entity": call_of(
        "<value>&f;</value>", declaration='<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>'
    ),
    "a parameter entity": call_of(declaration='<!DOCTYPE x [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>'),
    "a default attribute": call_of(declaration='<!DOCTYPE x [<!ATTLIST value a CDATA "b">]>'),
    "a billion laughs": bomb(),
    "a bomb without laughs": quadratic_bomb(),
    "an entity in itself": call_of("<value>&a;</value>", declaration='<!DOCTYPE x [<!ENTITY a "&a;">]>'),
    "100,000 arrays": nested(100_000),
    "100 arrays": nested(100),
    "100,000 tags": b"<a>" * 100_000,
    "10 MB of one text": call_of(f"<value>{'x' * 10_000_001}</value>"),
}


@pytest.mark.parametrize("document", NOT_WELL_FORMED.values(), ids=NOT_WELL_FORMED)
def test_what_is_no_xml_that_we_take_is_fault_32700(document):
    fault = fault_of(document)
    assert fault.faultCode == -32700
    assert fault.faultString.startswith("The request is not well-formed XML: ")
    assert "root:" not in fault.faultString


INVALID = {
    "another root": b"<methodResponse><methodName>m</methodName></methodResponse>",
    "html": b"<html><body/></html>",
    "an empty root": b"<methodCall/>",
    "no name": b"<methodCall><params/></methodCall>",
    "an empty name": b"<methodCall><methodName/></methodCall>",
    "white space for a name": b"<methodCall><methodName> \n</methodName></methodCall>",
    "a name too deep": b"<methodCall><x><methodName>m</methodName></x></methodCall>",
    "a root in a namespace": b"<methodCall xmlns='urn:x'><methodName>m</methodName></methodCall>",
    "a name in a namespace": b"<methodCall><x:methodName xmlns:x='urn:x'>m</x:methodName></methodCall>",
    "SOAP": b"<s:Envelope xmlns:s='http://schemas.xmlsoap.org/soap/envelope/'><s:Body/></s:Envelope>",
}


@pytest.mark.parametrize("document", INVALID.values(), ids=INVALID)
def test_xml_that_is_no_method_call_is_fault_32600(document):
    fault = fault_of(document)
    assert fault.faultCode == -32600
    assert fault.faultString == "The request is no methodCall with a methodName"


def test_arrays_as_deep_as_any_honest_client_sends_are_read():
    value = read_call(nested(50)).arguments[0]
    for _ in range(49):
        (value,) = value
    assert value == []


def test_faults_have_the_codes_of_the_interoperability_convention():
    assert {code.name: int(code) for code in FaultCode} == {
        "NOT_WELL_FORMED": -32700,
        "INVALID_REQUEST": -32600,
        "INVALID_PARAMETERS": -32602,
    }


# Answers


@pytest.mark.parametrize(
    "value",
    ["", "a<&>b'c", "東京", 7, -7, True, [True, "x", 0], {"Token": "t", "VmId": 7, "Wss": False}, [[], {}, [[1]]]],
)
def test_an_answer_that_was_written_is_read_by_the_standard_library_and_by_us(value):
    body = write_answer(value)
    assert xmlrpc.client.loads(body) == ((value,), None)
    assert read_answer(body) == value


def test_a_fault_that_was_written_is_raised_by_the_standard_library_and_by_us():
    body = write_answer(Fault(FaultCode.INVALID_REQUEST, "a<&>b"))
    for read in (xmlrpc.client.loads, read_answer):
        with pytest.raises(Fault) as caught:
            read(body)
        assert (caught.value.faultCode, caught.value.faultString) == (-32600, "a<&>b")


def test_what_xml_rpc_has_no_type_for_is_a_bug_of_ours_that_shows():
    with pytest.raises(TypeError):
        write_answer([object()])


def test_a_call_that_was_written_is_read_by_the_standard_library_and_by_us():
    body = write_call("one.vm.info", "alice:a<&>b'c", 7)
    assert xmlrpc.client.loads(body) == (("alice:a<&>b'c", 7), "one.vm.info")
    assert read_call(body) == MethodCall("one.vm.info", ["alice:a<&>b'c", 7])


def test_of_several_values_in_an_answer_the_first_counts():
    params = b"<params><param><value>a</value></param><param><value>b</value></param></params>"
    assert read_answer(b"<methodResponse>" + params + b"</methodResponse>") == "a"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"502 Bad Gateway",
        b"<html/>",
        b"<methodResponse/>",
        b"<methodResponse><params/></methodResponse>",
        b"<methodResponse><params><param/></params></methodResponse>",
        b"<methodResponse><fault/></methodResponse>",
        b"<methodResponse><fault><value>no</value></fault></methodResponse>",
        re.sub(rb"<(int|i4)>1</\1>", b"<string>1</string>", write_answer(Fault(1, "x"))),
        write_answer(Fault(1, "x")).replace(b"faultCode", b"faultCod"),
        write_answer(Fault(1, "x")).replace(b"<string>x</string>", b"<nil/>"),
        b"<!DOCTYPE methodResponse>" + write_answer("x").partition(b"?>")[2],
        write_call("one.vm.info", 7),
    ],
)
def test_what_is_no_answer_is_a_document_error(document):
    with pytest.raises(DocumentError):
        read_answer(document)


# Whatever comes

well_formed_text = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff")
)


def values_with(names):
    return st.recursive(
        well_formed_text | st.booleans() | st.integers(-(2**31), 2**31 - 1),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
        max_leaves=20,
    )


# The names of members in our answers are our own.
answers = values_with(st.sampled_from(["VmId", "id", "faultCode", "faultString"]))


@settings(deadline=None)
@given(st.lists(values_with(well_formed_text), max_size=4))
def test_whatever_the_standard_library_sends_arrives(arguments):
    assert read_call(xmlrpc.client.dumps(tuple(arguments), "m").encode()) == MethodCall("m", arguments)


@settings(deadline=None)
@given(answers)
def test_whatever_value_is_answered_arrives(value):
    body = write_answer(value)
    assert read_answer(body) == value
    assert xmlrpc.client.loads(body)[0] == (value,)


tags = st.sampled_from(
    [
        *["methodCall", "methodName", "methodResponse", "fault", "params", "param", "value"],
        *["int", "i8", "boolean", "string", "array", "data", "struct", "member", "name", "nil", "x"],
    ]
)
trees = st.recursive(
    st.sampled_from(
        ["", "7", "-1", "m", "faultCode", "faultString", "<!-- x -->", "<?x y?>", "<![CDATA[x]]>", "&amp;"]
    ),
    lambda inner: st.tuples(tags, st.lists(inner, max_size=4)).map(lambda t: f"<{t[0]}>{''.join(t[1])}</{t[0]}>"),
)
documents = (
    st.binary()
    | st.text().map(str.encode)
    | trees.map(str.encode)
    | trees.map(lambda tree: call_of(f"<value>{tree}</value>"))
    | trees.map(lambda tree: f"<methodResponse><fault><value>{tree}</value></fault></methodResponse>".encode())
    | st.tuples(answers, st.integers(0, 400), st.binary(max_size=3)).map(
        lambda t: write_answer(t[0])[: t[1]] + t[2] + write_answer(t[0])[t[1] :]
    )
)


@settings(deadline=None)
@given(documents)
def test_whatever_is_sent_it_is_a_call_or_one_of_two_faults(document):
    try:
        call = read_call(document)
    except Fault as fault:
        code = fault.faultCode
    else:
        code = None
        assert call.method.strip() == call.method != ""
        write_answer(call.method)
    assert code in (None, -32700, -32600)


def laid_out_as_oned_does_it(content):
    """Return oned's answer around a text that is put in as it is, escaped or not."""
    return (
        b'<?xml version="1.0" encoding="UTF-8"?>\r\n<methodResponse>\r\n<params>\r\n<param><value><array><data>\r\n'
        b"<value><boolean>1</boolean></value>\r\n<value><string>" + content + b"</string></value>\r\n"
        b"<value><i4>0</i4></value>\r\n</data></array></value></param>\r\n</params>\r\n</methodResponse>\r\n"
    )


PIECES = [
    "&lt;",
    "&gt;",
    "&amp;",
    "&quot;",
    "&apos;",
    "&#13;",
    "&#x41;",
    "&lt",
    "&",
    "&bad;",
    "]]>",
    "]]&gt;",
    ">",
    "\r\n",
]
PIECES += ["\n", "\t", "\x00", "\x1b", "\ufffe", "\uffff", "é", "\U0001f600", "VM", "&amp;lt;", "<i/>", "<!-- -->"]


def outcome_of_reading(document):
    try:
        return read_answer(document)
    except DocumentError:
        return DocumentError


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5)).map("".join))
@settings(max_examples=500)
def test_a_text_is_read_alike_whether_or_not_the_answer_is_laid_out_as_oned_does_it(text):
    """The answer with a comment in it goes through the XML parser, the other one past it where it may."""
    content = text.encode("utf-8", "surrogatepass")
    document = laid_out_as_oned_does_it(content)
    with_comment = document.replace(b"<methodResponse>", b"<!-- --><methodResponse>", 1)
    assert outcome_of_reading(document) == outcome_of_reading(with_comment)


@pytest.mark.parametrize("content", [b"&&lt;lt;", b"&l&gt;t;", b"&&amp;amp;", b"&amp&amp;", b"&a&quot;mp;", b"&&apos;"])
def test_half_an_entity_is_no_answer_even_if_another_one_is_in_it(content):
    assert outcome_of_reading(laid_out_as_oned_does_it(content)) is DocumentError


@pytest.mark.parametrize("content", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\xbc"])
def test_bytes_that_are_no_utf_8_are_no_answer_in_oneds_layout_either(content):
    assert outcome_of_reading(laid_out_as_oned_does_it(content)) is DocumentError


@settings(deadline=None)
@given(documents)
def test_whatever_is_answered_it_is_a_value_or_a_fault_or_no_answer(document):
    with contextlib.suppress(Fault, DocumentError):
        assert isinstance(read_answer(document), str | int | list | dict | Unsupported)


# The parser


def test_an_xml_document_is_parsed():
    assert parse(b"<a><b>c</b></a>").findtext("b") == "c"


def test_a_dtd_is_refused_by_name():
    with pytest.raises(DocumentError, match="DTD"):
        parse(b"<!DOCTYPE a><a/>")


def test_nothing_is_fetched_from_the_network():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        for declaration in (f'<!DOCTYPE a SYSTEM "{url}">', f'<!DOCTYPE a [<!ENTITY % p SYSTEM "{url}"> %p;]>'):
            with pytest.raises(DocumentError):
                parse(f"{declaration}<a/>".encode())
        parse(f'<a xmlns:i="http://www.w3.org/2001/XInclude"><i:include href="{url}"/></a>'.encode())
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_no_file_is_read():
    with pytest.raises(DocumentError) as caught:
        parse(b'<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]><a>&f;</a>')
    assert "root:" not in str(caught.value)


def test_depth_is_bounded():
    assert len(parse(b"<a>" * 200 + b"</a>" * 200)) == 1
    with pytest.raises(DocumentError, match="depth"):
        parse(b"<a>" * 300 + b"</a>" * 300)


def test_comments_and_processing_instructions_leave_no_trace():
    root = parse(b"<?x y?><a>b<!-- c --><?d e?>f</a>")
    assert (root.text, len(root)) == ("bf", 0)

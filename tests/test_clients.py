"""Clients in other languages: each makes the calls of a portal and prints as JSON what its library gave it."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ET

import pytest
from conftest import program, tokens_in, vnctoken_server
from test_shipped_nginx import nginx_front

RUBY = r"""
require 'json'
require 'xmlrpc/client'

server = XMLRPC::Client.new2(ARGV[0], nil, 20)
session = 'alice:secret'
puts JSON.generate(
  vnctoken: server.call('one.vm.vnctoken', session, 27),
  vnctokenonly: server.call('one.vm.vnctokenonly', session, 1),
  vnc: server.call('one.vm.vnc', session, 5),
  refused: server.call('one.vm.vnctoken', session, 7),
)
"""

PERL = r"""
use strict;
use warnings;
use JSON::PP;
use RPC::XML;
use RPC::XML::Client;

$RPC::XML::ENCODING = 'UTF-8';
my $server = RPC::XML::Client->new($ARGV[0]);
sub plain {
    my ($value) = @_;
    return [map { plain($_) } @$value] if $value->isa('RPC::XML::array');
    return {map { $_ => plain($value->{$_}) } keys %$value} if $value->isa('RPC::XML::struct');
    return $value->value ? JSON::PP::true : JSON::PP::false if $value->isa('RPC::XML::boolean');
    return ref($value) =~ /::(?:int|i4)$/ ? $value->value + 0 : $value->value;
}
sub call {
    my ($method, $id) = @_;
    my $answer = $server->send_request($method, RPC::XML::string->new('alice:secret'), RPC::XML::int->new($id));
    die ref $answer ? $answer->string : $answer if !ref $answer || $answer->is_fault;
    return plain($answer);
}
print JSON::PP->new->utf8->encode({
    vnctoken => call('one.vm.vnctoken', 27),
    vnctokenonly => call('one.vm.vnctokenonly', 1),
    vnc => call('one.vm.vnc', 5),
    refused => call('one.vm.vnctoken', 7),
});
"""

PHP_CALLS = r"""
echo json_encode([
    'vnctoken' => call('one.vm.vnctoken', 27),
    'vnctokenonly' => call('one.vm.vnctokenonly', 1),
    'vnc' => call('one.vm.vnc', 5),
    'refused' => call('one.vm.vnctoken', 7),
], JSON_THROW_ON_ERROR);
"""

PHP_POST = r"""
function post(string $body): string {
    $context = stream_context_create(['http' => [
        'method' => 'POST', 'header' => 'Content-Type: text/xml', 'content' => $body, 'timeout' => 20,
    ]]);
    return file_get_contents($_SERVER['argv'][1], false, $context);
}
"""

PHP_XMLRPC = rf"""<?php
{PHP_POST}
function call(string $method, int $id): array {{
    $options = ['encoding' => 'UTF-8', 'escaping' => 'markup'];
    return xmlrpc_decode(post(xmlrpc_encode_request($method, ['alice:secret', $id], $options)), 'UTF-8');
}}
{PHP_CALLS}"""

PHP_SIMPLEXML = rf"""<?php
{PHP_POST}
function value(SimpleXMLElement $value) {{
    foreach ($value->children() as $type => $content) {{
        switch ($type) {{
            case 'int': case 'i4': return (int) $content;
            case 'boolean': return (string) $content === '1';
            case 'string': return (string) $content;
            case 'array': return array_map('value', iterator_to_array($content->data->value, false));
            case 'struct':
                $members = [];
                foreach ($content->member as $member) {{ $members[(string) $member->name] = value($member->value); }}
                return $members;
            default: throw new Exception("unexpected type $type");
        }}
    }}
    return (string) $value;
}}
function call(string $method, int $id): array {{
    $answer = post("<methodCall><methodName>$method</methodName><params>"
        . "<param><value><string>alice:secret</string></value></param>"
        . "<param><value><int>$id</int></value></param></params></methodCall>");
    return value(simplexml_load_string($answer)->params->param->value);
}}
{PHP_CALLS}"""

JAVASCRIPT = r"""
const unescape = (text) => text.replace(/&(lt|gt|amp|quot|apos|#(\d+)|#x([0-9a-f]+));/gi, (_, name, decimal, hex) =>
  decimal ? String.fromCodePoint(decimal) : hex ? String.fromCodePoint(parseInt(hex, 16))
    : { lt: '<', gt: '>', amp: '&', quot: '"', apos: "'" }[name])

function decode (xml) {
  const tokens = xml.match(/<[^>]+>|[^<]+/g).filter((token) => token.trim() !== '' && !token.startsWith('<?'))
  let at = tokens.indexOf('<value>')
  const text = () => tokens[at].startsWith('<') ? '' : unescape(tokens[at++])
  const close = () => { if (!tokens[at].startsWith('</')) throw new Error(tokens[at]); at++ }
  function value () {
    at++
    const type = tokens[at++].slice(1, -1)
    let result
    if (type.endsWith('/')) result = ''
    else if (type === 'array') {
      result = []
      for (at++; tokens[at] === '<value>';) result.push(value())
      close(); close()
    } else if (type === 'struct') {
      result = {}
      while (tokens[at] === '<member>') {
        at += 2
        const name = text()
        close()
        result[name] = value()
        close()
      }
      close()
    } else {
      const content = text()
      result = { string: content, boolean: content === '1', int: Number(content), i4: Number(content) }[type]
      close()
    }
    close()
    return result
  }
  return value()
}

async function call (method, id) {
  const response = await fetch(process.argv[2], {
    method: 'POST',
    headers: { 'Content-Type': 'text/xml' },
    body: `<?xml version="1.0"?><methodCall><methodName>${method}</methodName><params>
      <param><value><string>alice:secret</string></value></param>
      <param><value><int>${id}</int></value></param></params></methodCall>`,
    signal: AbortSignal.timeout(20000)
  })
  if (!response.ok) throw new Error(response.status)
  return decode(await response.text())
}

(async () => {
  console.log(JSON.stringify({
    vnctoken: await call('one.vm.vnctoken', 27),
    vnctokenonly: await call('one.vm.vnctokenonly', 1),
    vnc: await call('one.vm.vnc', 5),
    refused: await call('one.vm.vnctoken', 7)
  }))
})()
"""


def need(reason, *command):
    """Skip or fail as `program` does if an interpreter lacks a library."""
    if subprocess.run(command, capture_output=True, check=False).returncode:
        program(reason)


def ruby():
    need("ruby-xmlrpc", program("ruby"), "-e", "require 'xmlrpc/client'")
    return "rb", RUBY, [program("ruby")]


def perl():
    need("librpc-xml-perl", program("perl"), "-MRPC::XML::Client", "-e", "1")
    return "pl", PERL, [program("perl")]


def php_xmlrpc():
    if subprocess.run(
        [program("php"), "-r", "exit((int) !function_exists('xmlrpc_encode_request'));"], check=False
    ).returncode:
        pytest.skip("PHP's xmlrpc extension is not here, and not in every release of Debian")
    return "php", PHP_XMLRPC, [program("php")]


def php_simplexml():
    need("php-xml", program("php"), "-r", "exit((int) !function_exists('simplexml_load_string'));")
    return "php", PHP_SIMPLEXML, [program("php")]


def node():
    return "cjs", JAVASCRIPT, [program("node")]


CLIENTS = [ruby, perl, php_xmlrpc, php_simplexml, node]
# Those that can be told on their command line or in their environment which certificate to trust.
OVER_HTTPS = [ruby, php_simplexml, node]


@pytest.fixture(scope="module")
def service(tmp_path_factory, cloud):
    with vnctoken_server(tmp_path_factory.mktemp("one"), cloud.url) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def front(tmp_path_factory, service):
    with nginx_front(tmp_path_factory.mktemp("nginx"), service.port, service.port) as nginx:
        yield nginx


def calls_of(client, folder, url, certificate=None):
    """Let the client make its calls and return what it understood."""
    suffix, source, command = client()
    script = folder / f"client.{suffix}"
    script.write_text(source, encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    if certificate is not None:
        environment |= {"SSL_CERT_FILE": str(certificate), "NODE_EXTRA_CA_CERTS": str(certificate)}
        if client is php_simplexml:
            command += ["-d", f"openssl.cafile={certificate}"]
    done = subprocess.run(
        [*command, script, url], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def token_of(service, vm_id):
    """Return token and target in a VM's token file."""
    return list(tokens_in(service.tokens / f"one-{vm_id}").items())[-1]


def check(answers, service):
    """Hold what a client understood against the token folder."""
    token, target = token_of(service, 27)
    documented = {
        "VmId": 27,
        "Host": "dummy-host-1",
        "Type": "VNC",
        "Port": 5927,
        "Listen": "0.0.0.0",
        "Password": "pässwörd-東京",
        "Wss": False,
        "Token": token,
        "Ttl": 600,
    }
    deployed = {name.lower(): value for name, value in documented.items()}
    deployed["id"] = deployed.pop("vmid")
    assert answers["vnctoken"] == [True, {**documented, **deployed}, 0]
    assert target == "dummy-host-1:5927"

    token, target = token_of(service, 1)
    assert answers["vnctokenonly"] == [True, token, 0]
    assert target == "dummy-host-1:5901"

    token, target = token_of(service, 5)
    ok, xml, code = answers["vnc"]
    assert (ok, code) == (True, 0)
    vm = {element.tag: element.text or "" for element in ET.fromstring(xml)}
    assert vm == {
        "ID": "5",
        "VMID": "5",
        "HOST": "dummy-host-1",
        "TYPE": "VNC",
        "PORT": "5905",
        "LISTEN": "0.0.0.0",
        "PASSWORD": "a<&>b'c",
        "WSS": "false",
        "TOKEN": token,
        "TTL": "600",
    }
    assert target == "dummy-host-1:5905"

    assert answers["refused"] == [False, "Unsupported VM state! STATE:8 LCM_STATE:0", 0x0800]
    assert not (service.tokens / "one-7").exists()


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_a_client_in_another_language_gets_tokens_and_refusals(client, tmp_path, service):
    check(calls_of(client, tmp_path, service.url), service)


@pytest.mark.parametrize("client", OVER_HTTPS, ids=lambda client: client.__name__)
def test_and_so_it_does_through_nginx_over_https(client, tmp_path, service, front):
    check(calls_of(client, tmp_path, front.vnctoken, front.certificate), service)


@pytest.mark.parametrize("client", OVER_HTTPS, ids=lambda client: client.__name__)
def test_a_client_that_does_not_know_the_certificate_does_not_call(client, tmp_path, front):
    with pytest.raises(AssertionError, match=r"(?i)certificate|fetch failed"):
        calls_of(client, tmp_path, front.vnctoken)

"""A reload: another configuration for a service that runs, without a call lost."""

import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest
import test_service
from test_service import answer, call, warnings_in, with_login
from twisted.logger import capturedLogs

from vnctoken.config import Config
from vnctoken.errors import ConfigError
from vnctoken.service import AT_START, make_service

network = test_service.network


@pytest.fixture
def running(tmp_path, network):
    """Return a service that has started, and its configuration."""
    config = Config(host="127.0.0.1", port=0, monitor_listen=None, var=tmp_path, subscriber_endpoint=None)
    service = make_service(config, network)
    service.startService()
    return service, config


def test_the_rules_of_the_new_configuration_count_for_the_next_call(running, network):
    service, config = running
    assert answer(network)[0] is True
    assert service.reload(replace(config, vnc_ports=range(7000, 7001))) == []
    refused = answer(network)
    assert (refused[0], refused[2]) == (False, 0x0800)
    service.reload(replace(config, permissions=frozenset({"vnctoken"})))
    assert call(network).answer[1].startswith("one.vm.vnctoken is switched off here")
    service.reload(replace(config, console_url="https://cloud.example.org/#{token}", token_ttl=77))
    opened = answer(network)[1]
    assert opened["Url"] == f"https://cloud.example.org/#{opened['Token']}"
    assert opened["Ttl"] == 77


def test_a_call_in_flight_ends_as_it_began(running, network):
    service, config = running
    wire = call(network)
    service.reload(replace(config, vnc_ports=range(7000, 7001), one_xmlrpc="http://192.0.2.8:2633/RPC2"))
    network.let_oned_answer()
    assert wire.answer[0] is True


def test_another_oned_is_asked_from_then_on(running, network):
    service, config = running
    answer(network)
    asked = len(network.tcpClients)
    service.reload(replace(config, one_xmlrpc="http://192.0.2.8:4444/RPC2"))
    call(network)
    assert [client[1] for client in network.tcpClients[asked:]] == [4444]


def test_the_limits_of_the_new_configuration_count_and_what_was_counted_stays(running, network):
    service, config = running
    for _ in range(3):
        assert answer(network)[0] is True
    service.reload(replace(config, tokens_per_user=3))
    assert ":tokens_per_user: 3" in answer(network)[1]
    service.reload(replace(config, tokens_per_user=4))
    assert answer(network)[0] is True


def test_who_has_guessed_too_often_has_to_wait_after_a_reload_too(running, network):
    service, config = running
    for _ in range(10):
        wire = call(network, method="one.vm.vnctokens", session="alice:wrong")
        network.let_oned_answer()
        assert wire.answer[2] == 0x0100
    service.reload(replace(config, token_ttl=77))
    assert call(network).answer[1].startswith("Too many failed attempts")


@pytest.mark.parametrize("key", sorted(AT_START))
def test_what_is_opened_at_the_start_is_named_and_stays_as_it_is(running, network, key):
    service, config = running
    other = {
        "host": "127.0.0.2",
        "port": 7,
        "monitor_listen": ("127.0.0.1", 7),
        "resolver_listen": ("127.0.0.1", 7),
        "max_connections": 1,
        "max_request_bytes": 1024,
        "token_store": "redis",
        "token_folder_name": "others",
        "tokens_per_vm": 1,
        "jwt_key_files": ("/nowhere",),
        "redis_servers": (("192.0.2.1", 1),),
        "redis_sentinel": "x",
        "redis_db": 7,
        "redis_namespace": "x",
        "redis_password_file": "/nowhere",
        "redis_tls": True,
        "redis_ca": "/nowhere",
        "redis_timeout": 7,
        "audit_log": "/nowhere/x",
        "audit_required": True,
        "log_system": "syslog",
    }
    name = ":log:" if key == "log_system" else f":{key}:"
    assert service.reload(replace(config, token_ttl=77, **{key: other[key]})) == [name]
    opened = answer(network)
    assert opened[0] is True
    assert opened[1]["Ttl"] == 77
    assert service.works.config == replace(config, token_ttl=77)


def test_the_sockets_of_trusted_proxies_take_a_restart_and_their_addresses_do_not(running):
    service, config = running
    sockets = (Path("/run/vnctoken/proxy.sock"),)
    assert service.reload(replace(config, trusted_proxies=sockets)) == [":trusted_proxies:"]
    assert service.works.config.trusted_proxies == ()
    address = (ipaddress.ip_network("192.0.2.7"),)
    assert service.reload(replace(config, trusted_proxies=address)) == []
    assert service.works.config.trusted_proxies == address


def test_a_configuration_that_cannot_be_used_changes_nothing(running, network, tmp_path):
    service, config = running
    before = service.works
    with pytest.raises(ConfigError, match="vnctoken"):
        service.reload(replace(config, auth=("ec2",), vnc_ports=range(7000, 7001)))
    missing = tmp_path / "no.pem"
    with pytest.raises(ConfigError, match=r"no\.pem"):
        service.reload(replace(config, one_xmlrpc="https://localhost/RPC2", one_xmlrpc_ca=str(missing)))
    with pytest.raises(ConfigError, match="subscriber_endpoint"):
        service.reload(replace(config, vnc_ports=range(7000, 7001), subscriber_endpoint="tcp://no such host:1"))
    assert service.works is before
    assert answer(network)[0] is True


def test_the_same_configuration_again_leaves_everything_as_it_is(running, tmp_path):
    service, config = running
    with_login(tmp_path)
    service.reload(config)
    assert service.works.login is not None
    before = service.works
    assert service.reload(replace(config)) == []
    assert service.works is before


def test_a_login_that_has_come_is_used(running, network, tmp_path):
    service, config = running
    with_login(tmp_path)
    with capturedLogs() as events:
        service.reload(replace(config, recheck_interval=5))
    assert warnings_in(events) == []
    answer(network)
    asked = len(network.tcpClients)
    network.advance(5)
    assert len(network.tcpClients) == asked + 1


def test_its_status_says_where_it_listens_how_many_tokens_there_are_and_how_oned_is(running, network):
    service, _ = running
    answer(network)
    assert service.status == f"Listens on {service.url}; live tokens: 1; oned answers"

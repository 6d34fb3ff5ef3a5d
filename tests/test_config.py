"""The configuration: two YAML files in, one frozen value or one sentence about what is wrong out."""

import ipaddress
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vnctoken.accessvalues import DOORS, METHODS
from vnctoken.addresses import write_address
from vnctoken.config import INHERITED, Config, Locations, from_mapping, load
from vnctoken.configfile import Source
from vnctoken.errors import ConfigError
from vnctoken.vm import LCM_STATES

SYSTEM = Locations(etc=Path("/etc/one"), var=Path("/var/lib/one"), log=Path("/var/log/one"))
KEYS = [key[1:] for key in yaml.safe_load(Config().to_yaml())]
SHIPPED = ROOT / "etc" / "one" / "vnctoken-server.conf"


def configured(sunstone=None, **ours):
    """Return the configuration and the warnings that these keys make."""
    return from_mapping(Source("ours.conf", ours), Source("sunstone.conf", sunstone or {}), SYSTEM)


def setting(key, value):
    config, warnings = configured(**{key: value})
    assert warnings == []
    return getattr(config, key)


def complaint(**ours):
    with pytest.raises(ConfigError) as caught:
        configured(**ours)
    return str(caught.value)


@pytest.fixture
def etc(tmp_path):
    """Make a self-contained installation's etc; `load_in` reads it."""
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc"


def load_in(etc, ours=None, sunstone=None):
    for name, text in (("vnctoken-server.conf", ours), ("sunstone-server.conf", sunstone)):
        if text is not None:
            (etc / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return load({"ONE_LOCATION": str(etc.parent)})


def complaint_about(etc, ours):
    with pytest.raises(ConfigError) as caught:
        load_in(etc, ours)
    return str(caught.value)


def network(text):
    return ipaddress.ip_network(text)


# Defaults and places


def test_without_any_file_the_documented_defaults_are_in_effect(tmp_path):
    config, warnings = load({"ONE_LOCATION": str(tmp_path)})
    assert warnings == []
    assert config == Config(etc=tmp_path / "etc", var=tmp_path / "var", log_folder=tmp_path / "var")
    assert (config.host, config.port) == ("127.0.0.1", 2644)
    assert config.one_xmlrpc == "http://localhost:2633/RPC2"
    assert (config.one_xmlrpc_timeout, config.one_xmlrpc_connections, config.one_xmlrpc_ca) == (25, 8, None)
    assert config.vnc_ports == range(5900, 65536)
    assert config.console_states == {3, 4, 12, 13, 16, 17, 18, 24, 25, 26, 29, 57, 58, 62, 66, 69}
    assert config.vnc_proxy_support_wss is False
    assert (config.max_request_bytes, config.max_connections, config.debug_level) == (65536, 512, 2)
    assert config.log_system == "file"
    assert (config.token_store, config.token_ttl, config.token_ttl_max, config.tokens_per_vm) == (
        "folder",
        600,
        3600,
        8,
    )
    assert (config.recheck_interval, config.subscriber_endpoint) == (15, "tcp://localhost:2101")
    assert (config.resolver_listen, config.reuse_window, config.verify_on_connect) == (None, 5, False)
    assert config.proxy_address == ("127.0.0.1", 29877)
    assert (config.auth, config.core_auth, config.trusted_proxies) == (("opennebula",), "cipher", ())
    assert (config.expire_delta, config.expire_margin) == (1800, 300)
    assert config.auth_failures == (10, 60)
    assert (config.permissions, config.restricted_groups, config.allowed_groups) == (frozenset(), (), ())
    assert (config.calls_per_user, config.calls_per_vm) == ((600, 60), (600, 60))
    assert (config.calls_per_client, config.calls_total, config.limits_exempt) == (None, None, ())
    assert (config.tokens_per_user, config.tokens_per_client, config.tokens_total) == (1000, None, 10_000)
    assert (config.audit_log, config.audit_required) == (None, False)
    assert config.monitor_listen == ("127.0.0.1", 2646)


def test_the_usual_places_are_opennebulas():
    assert Locations.from_environment({}) == SYSTEM
    assert Locations.from_environment({"ONE_LOCATION": ""}) == SYSTEM
    assert configured()[0].token_folder == Path("/var/lib/one/sunstone_vnc_tokens")
    assert configured()[0].log_folder == Path("/var/log/one")


def test_with_one_location_everything_is_below_it():
    at = Locations.from_environment({"ONE_LOCATION": "/srv/one"})
    assert at == Locations(etc=Path("/srv/one/etc"), var=Path("/srv/one/var"), log=Path("/srv/one/var"))
    config, _ = from_mapping(Source("ours.conf", {}), Source("sunstone.conf", {}), at)
    assert config.token_folder == Path("/srv/one/var/sunstone_vnc_tokens")
    assert config.log_folder == Path("/srv/one/var")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("tokens", "/var/lib/one/tokens"),
        ("vnc/tokens", "/var/lib/one/vnc/tokens"),
        ("/run/one/tokens", "/run/one/tokens"),
        ("../tokens", "/var/lib/one/../tokens"),
        ("my tokens", "/var/lib/one/my tokens"),
    ],
)
def test_the_token_folder_is_relative_to_var_or_absolute(name, folder):
    assert configured(token_folder_name=name)[0].token_folder == Path(folder)


def test_the_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        Config().port = 1


# What comes from Sunstone's file


def test_five_keys_are_inherited_from_sunstone():
    sunstone = {
        "one_xmlrpc": "http://oned:2633/RPC2",
        "one_xmlrpc_timeout": 10,
        "debug_level": 3,
        "log": {":system": "syslog"},
        "vnc_proxy_support_wss": "only",
    }
    assert set(sunstone) == INHERITED
    config, warnings = configured(sunstone)
    assert warnings == []
    assert config == Config(
        one_xmlrpc="http://oned:2633/RPC2",
        one_xmlrpc_timeout=10,
        debug_level=3,
        log_system="syslog",
        vnc_proxy_support_wss=True,
    )


def test_nothing_else_of_sunstones_counts_not_even_when_it_would_be_wrong_here():
    sunstone = {key: "nonsense !" for key in KEYS if key not in INHERITED} | {"port": 9869, "memcache_host": "x"}
    assert configured(sunstone) == (Config(), [])


@pytest.mark.parametrize("key", ["auth", "core_auth", "trusted_proxies"])
def test_sunstones_own_way_to_let_people_in_is_not_ours(etc, key):
    """Sunstone says `:auth: x509` where it sits behind a web server; that says nothing about what is in front of us."""
    written = {"auth": ":auth: x509", "core_auth": ":core_auth: x509", "trusted_proxies": ":trusted_proxies: 127.0.0.1"}
    config, warnings = load_in(etc, ":port: 1\n", written[key] + "\n")
    assert (getattr(config, key), warnings) == (getattr(Config(), key), [])


def test_our_file_wins_over_sunstones():
    sunstone = {"one_xmlrpc": "http://oned:2633/RPC2", "one_xmlrpc_timeout": 10, "debug_level": 0}
    config, _ = configured(sunstone, one_xmlrpc="https://other/RPC2", debug_level=1)
    assert (config.one_xmlrpc, config.one_xmlrpc_timeout, config.debug_level) == ("https://other/RPC2", 10, 1)


def test_a_wrong_value_that_is_inherited_is_named_with_sunstones_file():
    with pytest.raises(ConfigError, match=r"^sunstone\.conf: :debug_level: is 9, but .* 0 to 3 is expected$"):
        configured({"debug_level": 9})


# :log:


@pytest.mark.parametrize(
    ("sunstone", "ours", "level"),
    [
        ({}, {"log": {":level": 3}}, 3),
        ({}, {"log": {"level": 0}}, 0),
        ({}, {"log": {":level": 3}, "debug_level": 1}, 1),
        ({"log": {":level": 3}}, {}, 3),
        ({"log": {":level": 3}, "debug_level": 1}, {}, 1),
        ({"log": {":level": 3}}, {"debug_level": 0}, 0),
        ({"debug_level": 3}, {"log": {":level": 0}}, 0),
        ({"debug_level": 3}, {"log": {":system": "file"}}, 3),
    ],
)
def test_the_debug_level_may_stand_below_log_too(sunstone, ours, level):
    config, warnings = configured(sunstone, **ours)
    assert (config.debug_level, warnings) == (level, [])


@pytest.mark.parametrize(
    ("written", "system"), [("file", "file"), ("syslog", "syslog"), (":syslog", "syslog"), (":file:", "file")]
)
def test_the_log_goes_to_files_or_to_syslog(written, system):
    assert configured(log={":system": written})[0].log_system == system


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("file", "ours.conf: :log: is 'file', but ':level:' and ':system:' below it are expected"),
        (None, "ours.conf: :log: is None, but ':level:' and ':system:' below it are expected"),
        ({":level": 4}, "ours.conf: :log: :level: is 4, but a whole number from 0 to 3 is expected"),
        ({":system": "memcache"}, "ours.conf: :log: :system: is 'memcache', but file or syslog is expected"),
        ({":system": 1}, "ours.conf: :log: :system: is 1, but file or syslog is expected"),
    ],
)
def test_a_wrong_log_is_refused(log, message):
    assert complaint(log=log) == message


# Right values


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("host", "0.0.0.0", "0.0.0.0"),
        ("host", "::1", "::1"),
        ("host", "front-end.example.org", "front-end.example.org"),
        ("port", 0, 0),
        ("port", 65535, 65535),
        ("port", "2644", 2644),
        ("one_xmlrpc", "https://oned.example.org/RPC2", "https://oned.example.org/RPC2"),
        ("one_xmlrpc", "http://[::1]:2633/RPC2", "http://[::1]:2633/RPC2"),
        ("one_xmlrpc_timeout", 0.5, 0.5),
        ("one_xmlrpc_timeout", 3600, 3600),
        ("one_xmlrpc_timeout", "60", 60),
        ("one_xmlrpc_connections", 1, 1),
        ("one_xmlrpc_ca", None, None),
        ("one_xmlrpc_ca", "/etc/ssl/ca.pem", "/etc/ssl/ca.pem"),
        ("core_auth", "x509", "x509"),
        ("core_auth", ":cipher", "cipher"),
        ("expire_delta", 300, 300),
        ("expire_delta", "86400", 86400),
        ("expire_margin", 0, 0),
        ("expire_margin", 1800, 1800),
        ("auth_failures", "10/min", (10, 60)),
        ("auth_failures", "1/s", (1, 1)),
        ("auth_failures", "3/sec", (3, 1)),
        ("auth_failures", "999999999/hour", (999_999_999, 3600)),
        *[
            (key, written, value)
            for key in ("calls_per_user", "calls_per_vm", "calls_per_client", "calls_total")
            for written, value in (("none", None), ("1/s", (1, 1)), ("999999999/hour", (999_999_999, 3600)))
        ],
        *[
            (key, written, value)
            for key in ("tokens_per_user", "tokens_per_client", "tokens_total")
            for written, value in (("none", None), (1, 1), ("1000000", 1_000_000))
        ],
        ("limits_exempt", None, ()),
        ("limits_exempt", "192.0.2.7", (network("192.0.2.7"),)),
        ("limits_exempt", ["10.1.2.0/24", "::1"], (network("10.1.2.0/24"), network("::1/128"))),
        ("limits_exempt", "0.0.0.0/0", (network("0.0.0.0/0"),)),
        ("audit_log", None, None),
        ("audit_log", "/var/log/one/vnctoken-audit.log", "/var/log/one/vnctoken-audit.log"),
        ("monitor_listen", "none", None),
        ("monitor_listen", "127.0.0.1:0", ("127.0.0.1", 0)),
        ("monitor_listen", "[::1]:2646", ("::1", 2646)),
        ("monitor_listen", "unix:/run/vnctoken/monitor.sock", Path("/run/vnctoken/monitor.sock")),
        ("token_store", ":folder", "folder"),
        ("token_ttl", 0, 0),
        ("token_ttl", "60", 60),
        ("token_ttl_max", 600, 600),
        ("token_ttl_max", 366 * 86400, 366 * 86400),
        ("tokens_per_vm", 1, 1),
        ("tokens_per_vm", 1000, 1000),
        ("recheck_interval", 0, 0),
        ("recheck_interval", 1, 1),
        ("recheck_interval", 2.5, 2.5),
        ("recheck_interval", "3600", 3600),
        ("subscriber_endpoint", None, None),
        ("subscriber_endpoint", "tcp://oned.example.org:2101", "tcp://oned.example.org:2101"),
        ("subscriber_endpoint", "tcp://[::1]:2101", "tcp://[::1]:2101"),
        ("resolver_listen", None, None),
        ("resolver_listen", "127.0.0.1:2646", ("127.0.0.1", 2646)),
        ("resolver_listen", "127.8.7.6:0", ("127.8.7.6", 0)),
        ("resolver_listen", "[::1]:2646", ("::1", 2646)),
        ("resolver_listen", "unix:/run/vnctoken/resolver.sock", Path("/run/vnctoken/resolver.sock")),
        ("resolver_listen", "unix:/" + "x" * 106, Path("/" + "x" * 106)),
        ("verify_on_connect", False, False),
        ("redis_servers", ["127.0.0.1:6379"], (("127.0.0.1", 6379),)),
        ("redis_sentinel", None, None),
        ("redis_password_file", None, None),
        ("redis_tls", False, False),
        ("redis_ca", None, None),
        ("jwt_key_files", None, ()),
        ("jwt_key_files", [], ()),
        ("proxy_address", "proxy-1.example.org:29876", ("proxy-1.example.org", 29876)),
        ("proxy_address", "[2001:db8::1]:1", ("2001:db8::1", 1)),
        ("public_url", None, None),
        ("public_url", "https://cloud.example.org/RPC2/vnctoken", "https://cloud.example.org/RPC2/vnctoken"),
        ("vnc_ports", "1:65535", range(1, 65536)),
        ("vnc_ports", "5900:5900", range(5900, 5901)),
        ("console_states", ["RUNNING"], {3}),
        ("console_states", ["running", ":Unknown", 62, "66", 3], {3, 16, 62, 66}),
        ("console_states", ["BACKUP"], {69}),
        ("vnc_proxy_support_wss", True, True),
        ("vnc_proxy_support_wss", False, False),
        ("vnc_proxy_support_wss", "yes", True),
        ("vnc_proxy_support_wss", "only", True),
        ("vnc_proxy_support_wss", ":only", True),
        ("vnc_proxy_support_wss", "True", True),
        ("vnc_proxy_support_wss", "NO", False),
        ("vnc_proxy_support_wss", "false", False),
        ("console_url", None, None),
        ("console_url", "http://a/#{token}", "http://a/#{token}"),
        ("max_request_bytes", 1024, 1024),
        ("max_request_bytes", 2**24, 2**24),
        ("max_connections", 100_000, 100_000),
        ("debug_level", 0, 0),
    ],
)
def test_a_right_value_counts(key, written, value):
    assert setting(key, written) == value


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("redis_servers", "redis.example.org:6379", (("redis.example.org", 6379),)),
        ("redis_servers", ["a:1", "[::1]:2", "192.0.2.7:65535"], (("a", 1), ("::1", 2), ("192.0.2.7", 65535))),
        ("redis_sentinel", "mymaster", "mymaster"),
        ("redis_db", 0, 0),
        ("redis_db", "15", 15),
        ("redis_namespace", "a.b-C_9", "a.b-C_9"),
        ("redis_namespace", "x" * 64, "x" * 64),
        ("redis_password_file", "/etc/one/redis.password", "/etc/one/redis.password"),
        ("redis_tls", True, True),
        ("redis_timeout", 0.5, 0.5),
    ],
)
def test_a_right_value_for_redis_counts(key, written, value):
    config, warnings = configured(token_store="redis", **{key: written})
    assert (getattr(config, key), warnings) == (value, [])


@pytest.mark.parametrize(
    ("written", "doors"),
    [
        ("opennebula", ("opennebula",)),
        ("[opennebula, ec2]", ("opennebula", "ec2")),
        ("[onegate, opennebula]", ("onegate", "opennebula")),
        ("onegate", ("onegate",)),
        # Ruby's symbols, as the family's files have them.
        (":opennebula", ("opennebula",)),
        ("[':opennebula', \":onegate\"]", ("opennebula", "onegate")),
        ("\n  - :ec2\n  - opennebula", ("ec2", "opennebula")),
    ],
)
def test_doors_are_one_or_a_list_of_words_or_symbols(etc, written, doors):
    config, warnings = load_in(etc, f":auth: {written}\n")
    assert (config.auth, warnings) == (doors, [])


@pytest.mark.parametrize("written", ["[':opennebula', ':x509']", ":x509", "':x509'", "[x509, ':remote', basic]"])
def test_doors_behind_a_web_server_count_where_one_is_trusted(etc, written):
    config, warnings = load_in(etc, f":auth: {written}\n:trusted_proxies: 127.0.0.1\n")
    assert config.auth == tuple(re.findall(r"\w+", written))
    assert warnings == []


@pytest.mark.parametrize(
    ("written", "proxies"),
    [
        ("", ()),
        ("[]", ()),
        ("127.0.0.1", (network("127.0.0.1/32"),)),
        ("::1", (network("::1/128"),)),
        ("[127.0.0.1, '::1']", (network("127.0.0.1/32"), network("::1/128"))),
        ("[10.1.2.0/24, '2001:db8::/32']", (network("10.1.2.0/24"), network("2001:db8::/32"))),
        ("10.1.0.0/255.255.0.0", (network("10.1.0.0/16"),)),
        ("unix:/run/vnctoken/http.sock", (Path("/run/vnctoken/http.sock"),)),
        ("[127.0.0.1, 'unix:/run/one/a b.sock']", (network("127.0.0.1/32"), Path("/run/one/a b.sock"))),
    ],
)
def test_trusted_proxies_are_addresses_networks_and_sockets(etc, written, proxies):
    config, warnings = load_in(etc, f":trusted_proxies: {written}\n")
    assert (config.trusted_proxies, warnings) == (proxies, [])


@pytest.mark.parametrize(
    ("written", "off"),
    [
        ("\n  :vm:\n    :vnctoken: true\n", set()),
        ("\n  :vm:\n    :vnctoken: true\n    :vnc: false\n    :vncrevoke: no\n", {"vnc", "vncrevoke"}),
        ("\n  vm:\n    vnctokens: off\n", {"vnctokens"}),
        ("{vm: {}}", set()),
        ("{':vm': {':vnctokenonly': false}}", {"vnctokenonly"}),
    ],
)
def test_what_is_not_switched_off_is_permitted(etc, written, off):
    config, warnings = load_in(etc, f":permissions: {written}\n")
    assert (config.permissions, warnings) == (off, [])


@pytest.mark.parametrize("key", ["restricted_groups", "allowed_groups"])
@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("", ()),
        ("[]", ()),
        ("users", ("users",)),
        ("[oneadmin, 'Blue Team', 100]", ("oneadmin", "Blue Team", 100)),
        ("0", (0,)),
        ("['101', ':a:']", (101, ":a:")),
        ("[Gäste]", ("Gäste",)),
    ],
)
def test_groups_are_names_or_ids(etc, key, written, groups):
    config, warnings = load_in(etc, f":{key}: {written}\n")
    assert (getattr(config, key), warnings) == (groups, [])


@pytest.mark.parametrize("written", ["/etc/one/jwt.key", ["/etc/one/jwt.key"]])
def test_one_key_file_may_stand_by_itself(written):
    config, warnings = configured(token_store="jwt", jwt_key_files=written)
    assert (config.jwt_key_files, warnings) == (("/etc/one/jwt.key",), [])


@pytest.mark.parametrize(("reuse_window", "verify"), [(0, True), (60, False), (2.5, True)])
def test_the_resolvers_settings_count_where_there_is_one(reuse_window, verify):
    config, warnings = configured(resolver_listen="127.0.0.1:2646", reuse_window=reuse_window, verify_on_connect=verify)
    assert (config.reuse_window, config.verify_on_connect, warnings) == (reuse_window, verify, [])


# Wrong values

PORT = "a whole number from 0 to 65535"
URL = (
    "a URL such as http://localhost:2633/RPC2, http or https, without user and query, its host an address or a name of"
    " letters, digits and hyphens,"
)
SECONDS = "a number of seconds above 0, at most 3600,"
PORTS = 'two TCP ports, the lower one first, such as "5900:65535",'
HOST = "the IP address or name of this machine to listen at"
FOLDER = "the name of a folder of its own, relative to OpenNebula's var folder or absolute,"
RESOLVER = "127.0.0.1:PORT, '[::1]:PORT' or unix:/PATH of a socket"
ENDPOINT = "a ZeroMQ endpoint such as tcp://localhost:2101, or nothing,"
SERVERS = "HOST:PORT, such as 127.0.0.1:6379 or '[::1]:6379', or a list of them,"
NAME = "1 to 64 letters, digits and '_.-',"
NAMESPACE = f"what the keys begin with, {NAME}"
MASTER = f"the name that the Sentinels have for a master, {NAME}"
KEY_FILES = "the absolute path of a key file, or a list of them, the one to make tokens with first,"
PROXY = "HOST:PORT, such as 127.0.0.1:29877 or '[::1]:29877',"
PUBLIC = "a URL such as https://cloud.example.org/RPC2/vnctoken, http or https, without user and query"
CERTIFICATES = "the path of a file of CA certificates in PEM"
NO_ADDRESSES = (
    "",
    "a",
    "a:",
    ":1",
    "a:0",
    "a:65536",
    "a:x",
    "a:-1",
    "::1:1",
    "[a]:1",
    "[127.0.0.1]:1",
    "a b:1",
    "a_b:1",
)
EVERY_DOOR = "a list of opennebula, basic, x509, remote, ec2, onegate, each once at most,"
TRUSTED = "a list of IP addresses, networks such as 10.1.2.0/24, and unix:/PATH of sockets"
RATE = 'so many in a second, minute or hour, such as "10/min",'
SWITCHES = "':vm:' with 'true' or 'false' for some of vnctoken, vnctokenonly, vnc, vncrevoke, vnctokens below it"
GROUPS = "a list of names or ids of groups"
STATES = "a list of LCM states such as [RUNNING, UNKNOWN]"
WRONG = [
    *[("host", value, HOST) for value in ("", "a b", "a\nb", None, 1, True, ["127.0.0.1"], "http://a", "[::1]")],
    *[("port", value, PORT) for value in (-1, 65536, "nope", "-1", "", 2644.0, True, None, [], {}, "٢٦٤٤", "1" * 5000)],
    *[
        ("one_xmlrpc", value, URL)
        for value in (
            "localhost:2633",
            "ftp://localhost/RPC2",
            "http:///RPC2",
            "http://localhost:99999/RPC2",
            "http://localhost:0/RPC2",
            "http://localhost:x/RPC2",
            "http://[::1/RPC2",
            "http://localhost/RPC2?a=1",
            "http://localhost/RPC2#a",
            "http://local host/RPC2",
            "http://one_front/RPC2",
            "http://a..b/RPC2",
            "http://front-/RPC2",
            f"http://{'x' * 64}/RPC2",
            "http://[::1%eth0]:x/RPC2",
            "http://löcalhost/RPC2",
        )
    ],
    *[("one_xmlrpc", value, "a URL such as") for value in (None, 2633)],
    *[
        ("one_xmlrpc_timeout", value, SECONDS)
        for value in (0, -1, 3601, "soon", True, None, float("nan"), float("inf"), [25])
    ],
    *[("one_xmlrpc_connections", value, "a whole number from 1 to 1000") for value in (0, 1001, "x")],
    *[("one_xmlrpc_ca", value, CERTIFICATES) for value in ("", 1, False, "a\0b")],
    *[
        ("auth", value, EVERY_DOOR)
        for value in (
            "",
            [],
            None,
            True,
            7,
            "sunstone",
            "OpenNebula",
            "opennebula, x509",
            "x5 09",
            ["opennebula", "none"],
            ["opennebula", None],
            ["x509", ":x509"],
            [["opennebula"]],
            {"opennebula": True},
        )
    ],
    *[("core_auth", value, "cipher or x509") for value in ("", "Cipher", "opennebula", None, True, ["cipher"], 7)],
    *[("expire_delta", value, "a whole number from 1 to 86400") for value in (0, -1, 86401, "30m", None, True, 1e3)],
    *[("expire_margin", value, "a whole number from 0 to 86400") for value in (-1, 86401, "5m", None, False)],
    *[
        ("trusted_proxies", value, TRUSTED)
        for value in (
            "",
            "localhost",
            "nginx.example.org",
            "127.0.0.1:80",
            "[::1]",
            "10.1.2.3/24",
            "10.1.2.0/33",
            "127.1",
            "127.0.0.01",
            " 127.0.0.1",
            "127.0.0.1, 10.1.2.3",
            "*",
            True,
            2130706433,
            127.0,
            [None],
            [["127.0.0.1"]],
            {"127.0.0.1": 1},
            "/run/vnctoken.sock",
            "unix:",
            "unix:/",
            "unix:vnctoken.sock",
            "unix:/" + "x" * 107,
            b"\x7f\x00\x00\x01",
        )
    ],
    *[
        ("trusted_proxies", value, f"{TRUSTED} (this network is everybody)")
        for value in ("0.0.0.0/0", "::/0", ["127.0.0.1", "0.0.0.0/0.0.0.0"])
    ],
    *[
        ("limits_exempt", value, "a list of IP addresses, and networks such as 10.1.2.0/24,")
        for value in ("", "portal.example.org", "10.1.2.3/24", "unix:/run/x.sock", True, [None], 7)
    ],
    *[
        (key, value, f"none, or {RATE}")
        for key in ("calls_per_user", "calls_per_vm", "calls_per_client", "calls_total")
        for value in ("", "0/min", 600, None, False, "None", "600/day")
    ],
    *[
        (key, value, "none, or a whole number from 1 to 1000000")
        for key in ("tokens_per_user", "tokens_per_client", "tokens_total")
        for value in ("", 0, -1, 1_000_001, None, False, "None", 1.5)
    ],
    *[("audit_log", value, "the absolute path of a file, or nothing,") for value in ("", "audit.log", True, 7, [])],
    *[("audit_required", value, "yes or no") for value in ("yes", 1, None)],
    *[
        ("monitor_listen", value, "none, 127.0.0.1:PORT, '[::1]:PORT' or unix:/PATH of a socket")
        for value in (None, "", "0.0.0.0:2646", "192.0.2.7:2646", "localhost:2646", 2646, False, "unix:relative")
    ],
    *[
        ("auth_failures", value, RATE)
        for value in (
            "",
            "10",
            10,
            0,
            None,
            True,
            "0/min",
            "000/min",
            "-1/min",
            "1.5/min",
            "10/day",
            "10 / min",
            "10/Min",
            "/min",
            "10/min/",
            "10/min\n",
            "1000000000/min",
            "٣/min",
            ["10/min"],
        )
    ],
    *[
        ("permissions", value, SWITCHES)
        for value in (
            None,
            True,
            "",
            [],
            {},
            ["vnctoken"],
            {"vnctoken": False},
            {"vm": None},
            {"vm": False},
            {"vm": ["vnc"]},
            {"vm": {"vnc": "no"}},
            {"vm": {"vnc": 0}},
            {"vm": {"vnc": None}},
            {"vm": {"vncrevok": False}},
            {"vm": {"one.vm.vnc": False}},
            {"vm": {"show": False}},
            {"vm": {7: False}},
            {7: {}},
            {"vm": {}, "vnet": {}},
            # Once each: of two switches nobody knows the one that counts.
            {"vm": {}, ":vm": {}},
            {"vm": {"vnc": True, ":vnc": False}},
        )
    ],
    *[
        (key, value, GROUPS)
        for key in ("restricted_groups", "allowed_groups")
        for value in ("", True, -1, 1.5, [None], ["users", ""], ["a\nb"], [["users"]], {"users": 1}, [False])
    ],
    *[("token_folder_name", value, FOLDER) for value in ("", "/", ".", "..", "a/..", "a\nb", None, 7)],
    *[("token_store", value, "folder, redis or jwt") for value in ("", "file", "Redis", None, True, ["redis"])],
    *[("token_ttl", value, "a whole number from 0 to 31622400") for value in (-1, 1.5, "10m", None, True, 31622401)],
    *[("token_ttl_max", value, "a whole number from 1 to 31622400") for value in (0, "never", None, 31622401)],
    *[("tokens_per_vm", value, "a whole number from 1 to 1000") for value in (0, 1001, None)],
    *[
        ("recheck_interval", value, "0 or a number of seconds from 1 to 3600")
        for value in (-1, 0.5, 3601, None, False, "often", float("nan"), [15])
    ],
    *[
        ("subscriber_endpoint", value, ENDPOINT)
        for value in (
            "",
            "localhost:2101",
            "tcp://localhost",
            "tcp://*:2101",
            "tcp://localhost:0",
            "tcp://localhost:2101/",
            "tcp://localhost:2101?x",
            "ipc:///run/one.sock",
            2101,
            False,
            ["tcp://localhost:2101"],
        )
    ],
    *[
        ("resolver_listen", value, RESOLVER)
        for value in (
            *NO_ADDRESSES,
            "0.0.0.0:2646",
            "[::]:2646",
            "192.0.2.7:2646",
            "localhost:2646",
            "127.0.0.1:65536",
            "unix:",
            "unix:/",
            "unix:resolver.sock",
            "unix:/a\nb",
            "unix:/" + "x" * 107,
            "unix:/" + "ä" * 54,
            "/run/resolver.sock",
            2646,
            False,
            ["127.0.0.1:2646"],
        )
    ],
    *[("reuse_window", value, "a number of seconds from 0 to 60") for value in (-1, 61, None, True, "5 s")],
    *[("verify_on_connect", value, "yes or no") for value in ("yes", "", 1, None)],
    *[("redis_servers", value, SERVERS) for value in (*NO_ADDRESSES, None, [], 6379, [6379], {"a": 1}, ["a:1", "b"])],
    *[("redis_sentinel", value, MASTER) for value in ("", "my master", "a:b", 1, ["mymaster"])],
    *[("redis_db", value, "a whole number from 0 to 65535") for value in (-1, 65536, "x", None)],
    *[("redis_namespace", value, NAMESPACE) for value in ("", "a:b", "a b", "ä", "x" * 65, None, 7)],
    *[("redis_tls", value, "yes or no") for value in ("yes", 1, None)],
    *[("redis_ca", value, CERTIFICATES) for value in ("", 1)],
    *[("redis_timeout", value, SECONDS) for value in (0, -1, 3601, "2s", None)],
    *[("jwt_key_files", value, KEY_FILES) for value in ("", "jwt.key", 1, ["/a", "b"], ["/a", None], ["/a b"], {})],
    *[("proxy_address", value, PROXY) for value in (*NO_ADDRESSES, None, 29877, ["127.0.0.1:29877"])],
    *[("public_url", value, PUBLIC) for value in ("", "cloud.example.org", "ftp://a/RPC2", "https://a/RPC2?b=c", 1)],
    *[
        ("vnc_ports", value, PORTS)
        for value in (
            "5900",
            "5900:",
            ":5900",
            "6000:5900",
            "0:10",
            "1:65536",
            "a:b",
            "1:2:3",
            " 1:2",
            5900,
            None,
            [1, 2],
        )
    ],
    *[("console_states", value, STATES) for value in ([], None, "RUNNING", 3, {"RUNNING": 1})],
    *[("console_states", [value], "a list of numbers or names of LCM states") for value in (-1, 1000, True, None, [3])],
    *[("vnc_proxy_support_wss", value, "yes, no or only") for value in ("maybe", "", 1, 0, None, [])],
    *[("console_url", value, "a URL, or nothing,") for value in ("", "a b", 7, True, ["https://a/#{path}"])],
    *[("console_url", value, "a URL with {path} or {token} in it") for value in ("https://a", "https://a/#{host}")],
    ("console_url", "https://a/#{path}{password}", "a URL with no other braces than {id}, {host}"),
    ("console_url", "a/#{path}", "an http or https URL such as"),
    *[("max_request_bytes", value, "a whole number from 1024 to 16777216") for value in (0, 1023, 2**24 + 1, "64k")],
    *[("max_connections", value, "a whole number from 1 to 100000") for value in (0, 100_001)],
    *[("debug_level", value, "a whole number from 0 to 3") for value in (-1, 4, "INFO", True)],
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG)
def test_a_wrong_value_is_refused_with_file_key_value_and_what_is_expected(key, value, expected):
    message = complaint(**{key: value})
    assert message.startswith(f"ours.conf: :{key}: is {value!r}, but {expected}")
    assert message.endswith(" is expected")


def test_every_key_that_has_wrong_values_is_tried_with_some():
    assert {key for key, _, _ in WRONG} == set(KEYS) - {"log", "redis_password_file"}


def test_an_unknown_state_is_answered_with_the_nearest_one():
    assert "nearest to 'RUNING': RUNNING" in complaint(console_states=["RUNNING", "RUNING"])


def test_a_password_in_the_url_of_oned_is_refused_without_being_repeated():
    message = complaint(one_xmlrpc="http://alice:s3cr3tpw@localhost:2633/RPC2")
    assert ":one_xmlrpc:" in message
    assert "without user" in message
    assert "s3cr3tpw" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("one_xmlrpc", "http://s3cr3tpw@oned/RPC2"),
        ("public_url", "https://alice:s3/cr3tpw@a/RPC2"),
        ("redis_servers", "redis://:s3cr3tpw@redis:6379"),
        ("redis_servers", ["a:1", "s3cr3tpw@redis:6379"]),
        ("subscriber_endpoint", "tcp://oned:s3cr3tpw@localhost:2101"),
        ("redis_password_file", "s3cr3tpw"),
        ("redis_password_file", ["s3cr3tpw"]),
    ],
)
def test_a_password_in_the_wrong_place_is_in_no_message(key, value):
    message = complaint(**{key: value})
    assert message.startswith(f"ours.conf: :{key}: is ")
    assert message.endswith(" is expected")
    assert "cr3tpw" not in message


@pytest.mark.parametrize("value", ["", "hunter2", "redis.password", 7, ["/a"], "/a\nb"])
def test_what_stands_in_place_of_the_password_files_path_is_not_shown(value):
    assert complaint(redis_password_file=value) == (
        "ours.conf: :redis_password_file: is not shown, as it may be a password, but the absolute path of a file with"
        " the password is expected"
    )


@pytest.mark.parametrize(
    "key", ["port", "token_ttl", "recheck_interval", "debug_level", "one_xmlrpc_timeout", "console_states"]
)
def test_a_number_of_any_length_is_a_wrong_value_like_any_other(etc, key):
    """Python refuses to write integers of more than 4300 digits; YAML has them in hexadecimal."""
    number = "0x" + "f" * 5000
    message = complaint_about(etc, f":{key}: {f'[{number}]' if key == 'console_states' else number}\n")
    assert f":{key}: " in message
    assert message.endswith("is expected")


def test_a_door_that_is_no_door_leaves_none_open(etc):
    """A word that is spelt wrong does not leave the doors as they were, nor the other ones in force."""
    message = complaint_about(etc, ":auth: [opennebula, x590]\n")
    assert message == (f"{etc}/vnctoken-server.conf: :auth: is ['opennebula', 'x590'], but {EVERY_DOOR} is expected")


def test_a_method_by_a_number_of_any_length_is_a_wrong_value_like_any_other(etc):
    message = complaint_about(etc, f":permissions:\n  :vm:\n    ? 0x{'f' * 5000}\n    : false\n")
    assert message.endswith(f"but {SWITCHES} is expected")


# Keys


def test_keys_are_ruby_symbols_or_bare(etc):
    config, warnings = load_in(etc, ":port: 1\nmax_connections: 2\n:log:\n  level: 3\n  :system: syslog\n")
    assert warnings == []
    assert (config.port, config.max_connections, config.debug_level, config.log_system) == (1, 2, 3, "syslog")


def test_a_key_in_both_forms_is_refused(etc):
    message = complaint_about(etc, ":port: 1\nport: 2\n")
    assert message.startswith(f"{etc}/vnctoken-server.conf: :port: is given twice")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (":port: 2644\n:host: localhost\n:port: 2645\n", 3, ":port"),
        (":log:\n  :level: 1\n  :level: 2\n", 3, ":level"),
        ("# Ours\nport: 1\nport: 1\n", 3, "port"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_its_line(etc, text, line, key):
    message = complaint_about(etc, text)
    assert message.startswith(f"{etc}/vnctoken-server.conf, line {line}: not YAML ('{key}' is given twice;")


def test_what_one_map_takes_from_another_may_be_in_it_too(etc):
    config, _ = load_in(etc, ":log: &log\n  :level: 1\n  :system: syslog\n:other:\n  <<: *log\n  :level: 2\n")
    assert (config.debug_level, config.log_system) == (1, "syslog")


def test_in_sunstones_file_the_last_of_two_values_counts_as_in_sunstone_itself(etc):
    (etc / "sunstone-server.conf").write_text(":debug_level: 1\n:debug_level: 3\n")
    assert load_in(etc, "")[0].debug_level == 3


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("prot", "port"),
        ("hsot", "host"),
        ("one_xmlrcp", "one_xmlrpc"),
        ("token_folder", "token_folder_name"),
        ("max_connection", "max_connections"),
        ("vnc_port", "vnc_ports"),
        ("debug-level", "debug_level"),
    ],
)
def test_an_unknown_key_is_a_warning_that_names_the_nearest(key, nearest):
    config, warnings = configured(**{key: 1})
    assert config == Config()
    assert warnings == [f"ours.conf: :{key}: is not a key of this file and is ignored; the nearest one is :{nearest}:"]


def test_a_key_that_is_like_no_other_and_one_that_is_no_text_are_warnings_too(etc):
    _, warnings = load_in(etc, "zzz: 1\n2024-01-01: 2\n7: 3\n'': 4\n")
    assert [re.search(r":(\S*): is not a key", warning)[1] for warning in warnings] == ["zzz", "2024-01-01", "7", ""]


# Files


def test_yes_and_no_and_only_are_understood_as_yaml_reads_them(etc):
    for written, wss in (("yes", True), ("no", False), ("only", True), ("true", True), ('"no"', False)):
        assert load_in(etc, f":vnc_proxy_support_wss: {written}\n")[0].vnc_proxy_support_wss is wss


def test_both_files_are_read_from_etc(etc):
    config, _ = load_in(etc, ":port: 1\n", ":port: 9869\n:host: 0.0.0.0\n:debug_level: 3\n")
    assert (config.port, config.host, config.debug_level) == (1, "127.0.0.1", 3)


def test_files_that_are_named_are_read_instead(etc, tmp_path):
    load_in(etc, ":port: 1\n", ":debug_level: 1\n")
    ours, sunstone = tmp_path / "a.conf", tmp_path / "b.conf"
    ours.write_text(":port: 2\n")
    sunstone.write_text(":debug_level: 3\n")
    config, _ = load({"ONE_LOCATION": str(tmp_path)}, str(ours), str(sunstone))
    assert (config.port, config.debug_level) == (2, 3)


@pytest.mark.parametrize("which", ["config_file", "sunstone_file"])
def test_a_file_that_is_named_must_be_there(tmp_path, which):
    missing = tmp_path / "none.conf"
    with pytest.raises(ConfigError, match="there is no such file") as caught:
        load({"ONE_LOCATION": str(tmp_path)}, **{which: str(missing)})
    assert str(caught.value).startswith(f"{missing}: ")


def test_a_file_that_cannot_be_read_is_an_error_even_in_the_usual_place(etc):
    (etc / "vnctoken-server.conf").mkdir()
    assert complaint_about(etc, None) == (
        f"{etc}/vnctoken-server.conf: cannot be read (Is a directory); the service's user must be able to"
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "null"])
def test_an_empty_file_is_fine(etc, text):
    assert load_in(etc, text)[1] == []


def test_a_byte_order_mark_and_utf_16_are_yaml(etc):
    for text in (b"\xef\xbb\xbf:port: 5\n", ":port: 5\n".encode("utf-16")):
        assert load_in(etc, text)[0].port == 5


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (":port: 2644\n:host: [\n", 3),
        (":port: 2644\n\t:host: a\n", 2),
        (":port: 2644\n:host: 'a\n", 3),
        (":port: 2644\n? [a]\n: 1\n", 2),
        (":port: 2644\n:host: !!python/object:os.system x\n", 2),
        (":log: {:level: 3}\n", 1),
        # For Ruby's YAML neither: in brackets symbols take quotes.
        (":port: 2644\n:auth: [:opennebula, :x509]\n", 2),
        ("a: 1\nb\n", 3),
    ],
)
def test_what_is_not_yaml_is_named_with_its_line(etc, text, line):
    message = complaint_about(etc, text)
    assert message.startswith(f"{etc}/vnctoken-server.conf, line {line}: not YAML (")
    assert message.endswith("lines such as ':port: 2644' are expected")


@pytest.mark.parametrize(
    "text",
    [
        b":host: \xff\n",
        b":host: a\x00b\n",
        b"a: 1\n--- \nb: 2\n",
        # What PyYAML's constructors fail on with errors that are not YAML's own.
        b":port: 2024-99-99\n",
        b":port: 0b_\n",
        b":port: !!int ''\n",
        b":port: !!timestamp abc\n",
        b":port: " + b"1" * 5000 + b"\n",
        b":port: " + b"[" * 5000 + b"\n",
    ],
)
def test_whatever_stands_in_the_file_the_answer_names_the_file_and_what_is_expected(etc, text):
    message = complaint_about(etc, text)
    assert message.startswith(f"{etc}/vnctoken-server.conf")
    assert message.endswith("expected")


@pytest.mark.parametrize(
    ("text", "what"), [("- 1\n", "list"), ("hello\n", "str"), ("7\n", "int"), ("!!set {a}\n", "set")]
)
def test_a_file_that_is_no_mapping_is_refused(etc, text, what):
    assert complaint_about(etc, text) == (
        f"{etc}/vnctoken-server.conf: holds a {what}; lines such as ':port: 2644' are expected"
    )


# The shipped file


def test_the_shipped_file_as_it_is_changes_nothing():
    assert load({}, str(SHIPPED)) == (Config(), [])


def test_the_shipped_file_documents_every_key_with_its_default(tmp_path):
    """With every `#:key:` uncommented it is still exactly the defaults, and nobody warns."""
    text = re.sub(r"(?m)^#((?:  )*:\w+:)", r"\1", SHIPPED.read_text(encoding="utf-8"))
    uncommented = tmp_path / "vnctoken-server.conf"
    uncommented.write_text(text, encoding="utf-8")
    written = yaml.safe_load(text)
    assert {key.strip(":") for key in written} == set(KEYS) - {"log"}
    assert len(re.findall(r"(?m)^:\w+:", text)) == len(written)
    assert [*written[":permissions"][":vm"]] == [f":{method}" for method in METHODS]
    assert load({}, str(uncommented)) == (Config(), [])


def test_a_console_url_that_lets_web_servers_log_the_token_is_warned_about():
    config, (warning,) = configured(console_url="https://a/console?path={path}")
    assert config.console_url == "https://a/console?path={path}"
    assert warning.startswith("ours.conf: :console_url: has the token before a '#'")
    assert configured(console_url="https://a/console#path={path}")[1] == []


# What settings say together


def test_tokens_that_carry_their_target_need_a_key():
    assert complaint(token_store="jwt") == (
        "ours.conf: :jwt_key_files: is empty, but with :token_store: jwt the absolute path of a key file is expected"
    )


def test_tokens_that_can_neither_end_nor_be_taken_back_are_refused():
    message = complaint(token_store="jwt", jwt_key_files="/etc/one/jwt.key", token_ttl=0)
    assert message.startswith("ours.conf: :token_ttl: is 0, but with :token_store: jwt")
    assert message.endswith("a number of seconds above 0 is expected")


@pytest.mark.parametrize(("delta", "margin"), [(299, 300), (60, 86400)])
def test_server_logins_that_would_have_to_be_renewed_before_they_are_made_are_refused(delta, margin):
    assert complaint(expire_delta=delta, expire_margin=margin) == (
        f"ours.conf: :expire_delta: is {delta}, but a number of seconds not below :expire_margin:, which is {margin},"
        " is expected"
    )


def test_a_delta_below_the_usual_margin_is_refused_too():
    assert ":expire_margin:, which is 300, is expected" in complaint(expire_delta=60)
    assert configured(expire_delta=60, expire_margin=60)[1] == []


@pytest.mark.parametrize(
    ("doors", "shut"),
    [
        (["opennebula", "x509"], "x509"),
        ("remote", "remote"),
        (["remote", "onegate", "basic", "ec2", "x509"], "remote, basic, x509"),
    ],
)
@pytest.mark.parametrize("proxies", [None, []])
def test_doors_that_can_open_behind_a_trusted_proxy_only_are_warned_about_where_there_is_none(doors, shut, proxies):
    config, (warning,) = configured(auth=doors, trusted_proxies=proxies)
    assert warning == (
        f"ours.conf: without effect: {shut} in :auth:; they take requests that came over TLS only, as a proxy says that"
        " :trusted_proxies: names, and it names none"
    )
    assert config.auth == (tuple(doors) if isinstance(doors, list) else (doors,))


def test_signed_requests_through_a_web_server_that_nobody_trusts_are_warned_about():
    url = {"public_url": "https://cloud.example.org/RPC2/vnctoken"}
    _, (warning,) = configured(auth=["opennebula", "ec2"], **url)
    assert warning.startswith("ours.conf: without effect: ec2 in :auth: for who calls :public_url:")
    for more in (url | {"trusted_proxies": "127.0.0.1"}, {}):
        assert configured(auth=["opennebula", "ec2"], **more)[1] == []


@pytest.mark.parametrize("text", ["? {digits}\n: 1\n", ":log:\n  ? {digits}\n  : 1\n"])
def test_a_key_that_is_a_number_of_thousands_of_digits_is_no_traceback(tmp_path, text):
    file = tmp_path / "vnctoken-server.conf"
    # In hexadecimal: Python reads that at any length, and writes no decimal number of it.
    file.write_text(text.format(digits="0x" + "f" * 5000))
    load({}, str(file), None)


@pytest.mark.parametrize("proxy", ["127.0.0.1", "unix:/run/vnctoken/http.sock"])
def test_every_door_can_be_open_at_once(proxy):
    assert configured(auth=[*DOORS], trusted_proxies=proxy)[1] == []


@pytest.mark.parametrize(
    ("written", "needs"),
    [
        ({}, []),
        ({"auth": ["opennebula", "basic"], "verify_on_connect": True}, []),
        ({"auth": ["ec2", "basic", "x509"]}, [":auth: has ec2", ":auth: has x509"]),
        ({"auth": ["remote", "onegate"]}, [":auth: has remote", ":auth: has onegate"]),
        ({"verify_on_connect": True, "resolver_listen": "127.0.0.1:2647"}, [":verify_on_connect: is yes"]),
    ],
)
def test_what_takes_a_login_of_the_services_own_is_known(written, needs):
    assert configured(**written)[0].needs_login == needs


@pytest.mark.parametrize(
    ("core_auth", "place"),
    [
        ("cipher", "vnctoken_auth or sunstone_auth in /var/lib/one/.one"),
        ("x509", "/etc/one/auth/server_x509_auth.conf"),
    ],
)
def test_the_place_of_that_login_is_opennebulas(core_auth, place):
    assert configured(core_auth=core_auth)[0].server_login == place


@pytest.mark.parametrize("doors", ["opennebula", "ec2", "onegate", ["opennebula", "ec2", "onegate"]])
def test_doors_that_need_no_proxy_are_open_without_one(doors):
    assert configured(auth=doors)[1] == []


@pytest.mark.parametrize(
    ("written", "warning"),
    [
        (
            {"redis_servers": "redis:6379", "redis_tls": True},
            "without effect: :redis_servers:, :redis_tls:; :token_store: is folder and not redis",
        ),
        (
            {"token_store": "redis", "jwt_key_files": "/a"},
            "without effect: :jwt_key_files:; :token_store: is redis and not jwt",
        ),
        (
            {"token_store": "jwt", "jwt_key_files": "/a", "token_folder_name": "tokens"},
            "without effect: :token_folder_name:; :token_store: is jwt and not folder",
        ),
        ({"verify_on_connect": True}, "without effect: :verify_on_connect:; there is no resolver without"),
        ({"reuse_window": 0}, "without effect: :reuse_window:; there is no resolver without :resolver_listen:"),
        ({"token_store": "redis", "redis_ca": "/a"}, ":redis_ca: is set, but what goes to Redis is encrypted with"),
        ({"token_ttl": 7200}, ":token_ttl: is 7200, more than :token_ttl_max:, which is 3600"),
    ],
)
def test_a_setting_that_does_nothing_or_not_what_it_seems_to_is_warned_about(written, warning):
    _, (said,) = configured(**written)
    assert said.startswith(f"ours.conf: {warning}")


def test_a_setting_without_effect_that_is_the_default_anyway_is_nobodys_trouble():
    assert configured(redis_db=0, jwt_key_files=[], verify_on_connect=False, reuse_window=5)[1] == []


# Writing it down again


def round_trip(config, folder):
    file = folder / "written.conf"
    file.write_text(config.to_yaml(), encoding="utf-8")
    return load({}, str(file))


def test_the_effective_configuration_can_be_used_as_a_file(tmp_path):
    other = Config(
        host="::1",
        one_xmlrpc_timeout=1.5,
        one_xmlrpc_ca="/etc/ssl/ca.pem",
        vnc_ports=range(1, 60),
        console_states=frozenset({3, 999}),
        vnc_proxy_support_wss=True,
        console_url="https://cloud.example.org/console.html#host={host}&path={path}",
        debug_level=0,
        log_system="syslog",
        token_store="redis",
        token_ttl=0,
        subscriber_endpoint=None,
        resolver_listen=Path("/run/vnctoken/resolver.sock"),
        redis_servers=(("10", 59), ("::1", 26379)),
        redis_sentinel="mymaster",
        redis_password_file="/etc/one/redis.password",
        redis_tls=True,
        redis_ca="/etc/ssl/ca.pem",
        proxy_address=("::1", 29877),
        public_url="https://cloud.example.org/RPC2/vnctoken",
    )
    doors = Config(
        auth=("x509", "opennebula"),
        core_auth="x509",
        expire_delta=60,
        expire_margin=60,
        trusted_proxies=(network("127.0.0.1/32"), network("2001:db8::/32"), Path("/run/vnctoken/http.sock")),
        auth_failures=(3, 3600),
        permissions=frozenset({"vnc", "vncrevoke"}),
        restricted_groups=("guests", 100, "no", "12345678901"),
        allowed_groups=("Blue Team",),
    )
    limited = Config(
        calls_per_user=None,
        calls_per_vm=(1, 1),
        calls_per_client=(20, 60),
        calls_total=(5000, 3600),
        tokens_per_user=None,
        tokens_per_client=5,
        tokens_total=1_000_000,
        limits_exempt=(network("192.0.2.0/24"), network("::1/128")),
        audit_log="/var/log/one/vnctoken-audit.log",
        audit_required=True,
        monitor_listen=None,
    )
    stateless = Config(token_store="jwt", jwt_key_files=("/etc/one/new.key", "/etc/one/old.key"))
    for config in (Config(), other, doors, limited, stateless):
        assert round_trip(config, tmp_path) == (config, [])


def test_states_are_written_by_name_where_they_have_one():
    text = replace(Config(), console_states=frozenset({3, 69, 999})).to_yaml()
    assert yaml.safe_load(text)[":console_states"] == ["RUNNING", "BACKUP", 999]


def test_an_audit_that_is_required_and_kept_nowhere_is_warned_of():
    (warning,) = configured(audit_required=True)[1]
    assert warning == "ours.conf: without effect: :audit_required:; there is no audit log without :audit_log:"
    assert configured(audit_required=True, audit_log="/var/log/one/vnctoken-audit.log")[1] == []


def test_the_effective_configuration_is_in_the_files_own_syntax():
    config = Config(resolver_listen=("::1", 2646), redis_servers=(("redis", 6379), ("::1", 6379)))
    written = yaml.safe_load(config.to_yaml())
    assert written[":resolver_listen"] == "[::1]:2646"
    assert written[":auth"] == ["opennebula"]
    assert written[":auth_failures"] == "10/min"
    assert (written[":calls_per_vm"], written[":calls_total"]) == ("600/min", "none")
    assert (written[":tokens_total"], written[":tokens_per_client"]) == (10_000, "none")
    assert written[":monitor_listen"] == "127.0.0.1:2646"
    assert written[":permissions"] == {":vm": {f":{method}": True for method in METHODS}}
    assert written[":redis_servers"] == ["redis:6379", "[::1]:6379"]
    assert written[":proxy_address"] == "127.0.0.1:29877"


printable = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, categories=("L", "N", "P")), min_size=1)
hosts = st.ip_addresses().map(str) | st.from_regex("[a-zA-Z0-9]([a-zA-Z0-9-]{0,9}[a-zA-Z0-9])?", fullmatch=True)
addresses = st.tuples(hosts, st.integers(1, 65535))
loopback = st.ip_addresses(network="127.0.0.0/8").map(str) | st.just("::1")
names = st.from_regex("[A-Za-z0-9_.-]{1,64}", fullmatch=True)
paths = printable.map(lambda text: f"/{text}")
sockets = paths.map(Path).filter(lambda path: path.name and len(str(path).encode()) <= 107)
networks = st.builds(
    lambda address, bits: ipaddress.ip_network((address, min(bits, address.max_prefixlen)), strict=False),
    st.ip_addresses(),
    st.integers(1, 128),
)
groups = st.integers(0) | printable.filter(lambda text: not re.fullmatch("[0-9]{1,9}", text, re.ASCII))
configs = st.builds(
    Config,
    host=hosts,
    port=st.integers(0, 65535),
    one_xmlrpc_timeout=st.integers(1, 3600) | st.floats(0.001, 3600),
    one_xmlrpc_connections=st.integers(1, 1000),
    one_xmlrpc_ca=st.none() | printable,
    auth=st.lists(st.sampled_from(DOORS), min_size=1, unique=True).map(tuple),
    core_auth=st.sampled_from(["cipher", "x509"]),
    expire_delta=st.integers(3600, 86400),
    expire_margin=st.integers(0, 3600),
    trusted_proxies=st.lists(networks | sockets, max_size=3).map(tuple),
    auth_failures=st.tuples(st.integers(1, 999_999_999), st.sampled_from([1, 60, 3600])),
    **dict.fromkeys(
        ("calls_per_user", "calls_per_vm", "calls_per_client", "calls_total"),
        st.none() | st.tuples(st.integers(1, 999_999_999), st.sampled_from([1, 60, 3600])),
    ),
    **dict.fromkeys(("tokens_per_user", "tokens_per_client", "tokens_total"), st.none() | st.integers(1, 1_000_000)),
    limits_exempt=st.lists(networks, max_size=3).map(tuple),
    audit_log=st.none() | paths,
    audit_required=st.booleans(),
    monitor_listen=st.none() | st.tuples(loopback, st.integers(0, 65535)) | sockets,
    permissions=st.frozensets(st.sampled_from(METHODS)),
    restricted_groups=st.lists(groups, max_size=3).map(tuple),
    allowed_groups=st.lists(groups, max_size=3).map(tuple),
    token_folder_name=printable.filter(lambda name: Path(name).name not in ("", "..")),
    vnc_ports=st.tuples(st.integers(1, 65535), st.integers(0, 99)).map(
        lambda pair: range(pair[0], min(pair[0] + pair[1], 65535) + 1)
    ),
    console_states=st.frozensets(st.sampled_from([*LCM_STATES.values(), 998]), min_size=1),
    vnc_proxy_support_wss=st.booleans(),
    debug_level=st.integers(0, 3),
    log_system=st.sampled_from(["file", "syslog"]),
    token_store=st.sampled_from(["folder", "redis", "jwt"]),
    token_ttl=st.integers(1, 31622400),
    token_ttl_max=st.integers(1, 31622400),
    tokens_per_vm=st.integers(1, 1000),
    recheck_interval=st.just(0) | st.integers(1, 3600) | st.floats(1, 3600),
    subscriber_endpoint=st.none() | addresses.map(lambda address: f"tcp://{write_address(address)}"),
    resolver_listen=st.none() | st.tuples(loopback, st.integers(0, 65535)) | sockets,
    reuse_window=st.integers(0, 60) | st.floats(0, 60),
    verify_on_connect=st.booleans(),
    redis_servers=st.lists(addresses, min_size=1, max_size=3).map(tuple),
    redis_sentinel=st.none() | names,
    redis_db=st.integers(0, 65535),
    redis_namespace=names,
    redis_password_file=st.none() | paths,
    redis_tls=st.booleans(),
    redis_ca=st.none() | paths,
    redis_timeout=st.integers(1, 3600) | st.floats(0.001, 3600),
    jwt_key_files=st.lists(paths, min_size=1, max_size=3).map(tuple),
    proxy_address=addresses,
    public_url=st.none() | addresses.map(lambda address: f"https://{write_address(address)}/RPC2"),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs)
def test_whatever_is_in_effect_can_be_used_as_a_file(tmp_path, config):
    assert round_trip(config, tmp_path)[0] == config


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary()
anything = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*KEYS, "other"]), anything))
def test_whatever_the_values_are_they_make_a_configuration_or_a_clear_error(values):
    try:
        config, warnings = configured(**values)
    except ConfigError as error:
        message = str(error)
    else:
        message = ""
        assert any("is not a key" in warning for warning in warnings) == ("other" in values)
        assert 0 <= config.port <= 65535
        assert config.vnc_ports[0] >= 1
        assert config.console_states
        assert config.host.isprintable()
        assert {*DOORS}.issuperset(config.auth)
        assert config.auth
        assert not any(getattr(proxy, "prefixlen", 1) == 0 for proxy in config.trusted_proxies)
    assert re.fullmatch(r"(ours\.conf: :\w+:.* expected)?", message, re.DOTALL)

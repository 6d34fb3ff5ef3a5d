"""The configuration: what OpenNebula's operators write in YAML, as one frozen value.

Two files are read: Sunstone's, of which a few keys are inherited, and ours over it. Keys are written as Ruby symbols,
`:port: 2644`, or bare.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vnctoken.accessvalues import METHODS, NONE, Network, Proxy, write_rate
from vnctoken.addresses import write_address
from vnctoken.combinations import contradiction, oddities
from vnctoken.configfile import Source, read_ours, read_sunstones
from vnctoken.errors import ConfigError
from vnctoken.valuekinds import integer, shown
from vnctoken.values import PARSERS, UNSHOWN, Listener, log_system
from vnctoken.vm import LCM_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_CONSOLE_STATES = (
    "RUNNING",
    "MIGRATE",
    "SHUTDOWN",
    "CANCEL",
    "UNKNOWN",
    "HOTPLUG",
    "SHUTDOWN_POWEROFF",
    "HOTPLUG_SNAPSHOT",
    "HOTPLUG_NIC",
    "HOTPLUG_SAVEAS",
    "SHUTDOWN_UNDEPLOY",
    "DISK_SNAPSHOT",
    "DISK_SNAPSHOT_REVERT",
    "DISK_RESIZE",
    "HOTPLUG_RESIZE",
    "BACKUP",
)
"""The LCM states in which the hypervisor runs the guest, so that there is a screen to see."""

DOORS_AS_SERVER = frozenset({"x509", "remote", "ec2", "onegate"})
"""The doors behind which the service acts for users, by its own login."""

INHERITED = frozenset({"one_xmlrpc", "one_xmlrpc_timeout", "debug_level", "log", "vnc_proxy_support_wss"})
"""The keys that count in sunstone-server.conf; its :host: and :port: are Sunstone's own."""


@dataclass(frozen=True)
class Config:
    """The effective configuration; the attributes are the keys of the file, which documents them.

    `one_xmlrpc_timeout` is in seconds, `max_request_bytes` in bytes. `auth_failures` and the `calls_` are a number and
    the seconds in which it may be reached; what is None has no limit. `permissions` has the methods that are switched
    off. `etc`, `var` and `log_folder` follow ONE_LOCATION.
    """

    host: str = "127.0.0.1"
    port: int = 2644
    one_xmlrpc: str = "http://localhost:2633/RPC2"
    one_xmlrpc_timeout: float = 25
    one_xmlrpc_connections: int = 8
    one_xmlrpc_ca: str | None = None
    auth: tuple[str, ...] = ("opennebula",)
    core_auth: str = "cipher"
    expire_delta: int = 1800
    expire_margin: int = 300
    trusted_proxies: tuple[Proxy, ...] = ()
    auth_failures: tuple[int, int] = (10, 60)
    permissions: frozenset[str] = frozenset()
    restricted_groups: tuple[str | int, ...] = ()
    allowed_groups: tuple[str | int, ...] = ()
    token_folder_name: str = "sunstone_vnc_tokens"  # noqa: S105 (a folder's name)
    token_store: str = "folder"  # noqa: S105 (a kind of store)
    token_ttl: int = 600
    token_ttl_max: int = 3600
    tokens_per_vm: int = 8
    recheck_interval: float = 15
    subscriber_endpoint: str | None = "tcp://localhost:2101"
    resolver_listen: Listener | None = None
    reuse_window: float = 5
    verify_on_connect: bool = False
    redis_servers: tuple[tuple[str, int], ...] = (("127.0.0.1", 6379),)
    redis_sentinel: str | None = None
    redis_db: int = 0
    redis_namespace: str = "vnctoken"
    redis_password_file: str | None = None
    redis_tls: bool = False
    redis_ca: str | None = None
    redis_timeout: float = 2
    jwt_key_files: tuple[str, ...] = ()
    calls_per_user: tuple[int, int] | None = (600, 60)
    calls_per_vm: tuple[int, int] | None = (600, 60)
    calls_per_client: tuple[int, int] | None = None
    calls_total: tuple[int, int] | None = None
    tokens_per_user: int | None = 1000
    tokens_per_client: int | None = None
    tokens_total: int | None = 10_000
    limits_exempt: tuple[Network, ...] = ()
    audit_log: str | None = None
    audit_required: bool = False
    monitor_listen: Listener | None = ("127.0.0.1", 2646)
    vnc_ports: range = range(5900, 65536)
    console_states: frozenset[int] = frozenset(LCM_STATES[name] for name in DEFAULT_CONSOLE_STATES)
    vnc_proxy_support_wss: bool = False
    console_url: str | None = None
    proxy_address: tuple[str, int] = ("127.0.0.1", 29877)
    public_url: str | None = None
    max_request_bytes: int = 65_536
    max_connections: int = 512
    debug_level: int = 2
    log_system: str = "file"
    etc: Path = Path("/etc/one")
    var: Path = Path("/var/lib/one")
    log_folder: Path = Path("/var/log/one")

    @property
    def token_folder(self) -> Path:
        """Where the websocket proxy reads tokens."""
        return self.var / self.token_folder_name

    @property
    def needs_login(self) -> list[str]:
        """The settings that mean nothing unless the service has a login of its own at oned, in words."""
        settings = [f":auth: has {door}" for door in self.auth if door in DOORS_AS_SERVER]
        if self.verify_on_connect and self.resolver_listen is not None:
            settings.append(":verify_on_connect: is yes")
        return settings

    @property
    def server_login(self) -> str:
        """Where that login is, in words."""
        if self.core_auth == "x509":
            return str(self.etc / "auth" / "server_x509_auth.conf")
        return f"vnctoken_auth or sunstone_auth in {self.var / '.one'}"

    def to_yaml(self) -> str:
        """Return the configuration in the syntax of the file."""
        names = {number: name for name, number in LCM_STATES.items()}
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name in PARSERS}
        values["auth"] = [*self.auth]
        values["trusted_proxies"] = [_written(proxy) for proxy in self.trusted_proxies]
        values["auth_failures"] = write_rate(self.auth_failures)
        values["permissions"] = {":vm": {f":{method}": method not in self.permissions for method in METHODS}}
        values["restricted_groups"] = [*self.restricted_groups]
        values["allowed_groups"] = [*self.allowed_groups]
        for key in ("calls_per_user", "calls_per_vm", "calls_per_client", "calls_total"):
            values[key] = write_rate(values[key])
        for key in ("tokens_per_user", "tokens_per_client", "tokens_total"):
            values[key] = NONE if values[key] is None else values[key]
        values["limits_exempt"] = [str(network) for network in self.limits_exempt]
        values["monitor_listen"] = _written(self.monitor_listen) or NONE
        values["vnc_ports"] = f"{self.vnc_ports[0]}:{self.vnc_ports[-1]}"
        values["console_states"] = [names.get(state, state) for state in sorted(self.console_states)]
        values["resolver_listen"] = _written(self.resolver_listen)
        values["redis_servers"] = [write_address(server) for server in self.redis_servers]
        values["jwt_key_files"] = [*self.jwt_key_files]
        values["proxy_address"] = write_address(self.proxy_address)
        values["log"] = {":system": self.log_system}
        return yaml.safe_dump({f":{key}": value for key, value in values.items()}, sort_keys=False)


@dataclass(frozen=True)
class Locations:
    """Where OpenNebula keeps things: below ONE_LOCATION in a self-contained installation, else in the system."""

    etc: Path
    var: Path
    log: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Locations:
        """Read ONE_LOCATION."""
        if location := environment.get("ONE_LOCATION"):
            var = Path(location) / "var"
            return cls(etc=Path(location) / "etc", var=var, log=var)
        return cls(etc=Path("/etc/one"), var=Path("/var/lib/one"), log=Path("/var/log/one"))


def usual_file(environment: Mapping[str, str]) -> Path:
    """Return where our configuration file is, unless another one is named."""
    return Locations.from_environment(environment).etc / "vnctoken-server.conf"


def load(
    environment: Mapping[str, str], config_file: str | None = None, sunstone_file: str | None = None
) -> tuple[Config, list[str]]:
    """Read the configuration files and return the configuration and warnings.

    Files that are named must be there; the usual ones may be missing, as OpenNebula 7 has no sunstone-server.conf.
    Raises ConfigError with file, line or key, value, and what is expected.
    """
    at = Locations.from_environment(environment)
    sunstone = read_sunstones(sunstone_file, at.etc / "sunstone-server.conf")
    ours = read_ours(config_file, usual_file(environment))
    return from_mapping(ours, sunstone, at)


def from_mapping(ours: Source, sunstone: Source, at: Locations) -> tuple[Config, list[str]]:
    """Return the configuration that two files make, ours over the inherited keys of Sunstone's, and warnings.

    Raises ConfigError for a wrong value, or values that cannot be together; it names file, key, and what is expected.
    """
    inherited = {key: value for key, value in sunstone.values.items() if key in INHERITED}
    settings = _parsed(Source(sunstone.name, inherited)) | _parsed(ours)
    warnings = [_unknown(key, ours.name) for key in ours.values if key not in PARSERS and key != "log"]
    config = Config(**settings, etc=at.etc, var=at.var, log_folder=at.log)
    if (problem := contradiction(config)) is not None:
        raise ConfigError(f"{ours.name}: {problem}")
    return config, [*warnings, *(f"{ours.name}: {oddity}" for oddity in oddities(config))]


def _parsed(source: Source) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if "log" in source.values:
        settings |= _log(source)
    for key, parse in PARSERS.items():
        if key in source.values:
            settings[key] = _checked(source.name, f":{key}:", source.values[key], parse)
    return settings


def _log(source: Source) -> dict[str, Any]:
    """Read `:log:`, the family's older way to give a level and a destination."""
    value = source.values["log"]
    if not isinstance(value, dict):
        expected = "':level:' and ':system:' below it are expected"
        raise ConfigError(f"{source.name}: :log: is {shown(value)}, but {expected}")
    log = {key.strip(":"): item for key, item in value.items() if isinstance(key, str)}
    settings: dict[str, Any] = {}
    if "level" in log:
        settings["debug_level"] = _checked(source.name, ":log: :level:", log["level"], integer(0, 3))
    if "system" in log:
        settings["log_system"] = _checked(source.name, ":log: :system:", log["system"], log_system)
    return settings


def _checked(file: str, key: str, value: Any, parse: Callable[[Any], Any]) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        given = "not shown, as it may be a password" if key.strip(":") in UNSHOWN else shown(value)
        raise ConfigError(f"{file}: {key} is {given}, but {error} is expected") from None


def _written(value: Listener | Proxy | None) -> str | None:
    match value:
        case None:
            return None
        case Path():
            return f"unix:{value}"
        case tuple():
            return write_address(value)
        case _:
            return str(value)


def _unknown(key: str, file: str) -> str:
    nearest = difflib.get_close_matches(key, PARSERS, n=1, cutoff=0)[0]
    return f"{file}: :{key}: is not a key of this file and is ignored; the nearest one is :{nearest}:"

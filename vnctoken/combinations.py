"""What settings say together: which cannot both be, and which are hardly meant."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from vnctoken.links import token_gets_logged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vnctoken.config import Config

_KEYS_OF_STORES = {"folder": "token_folder_name", "redis": "redis_", "jwt": "jwt_"}
_DOORS_BEHIND_A_PROXY = ("basic", "x509", "remote")
_KEYS_OF_THE_RESOLVER = ("reuse_window", "verify_on_connect")


def contradiction(config: Config) -> str | None:
    """Return what is wrong with a configuration as a whole, and what is expected; None if nothing is."""
    if config.token_store == "jwt" and not config.jwt_key_files:  # noqa: S105 (a kind of store)
        return ":jwt_key_files: is empty, but with :token_store: jwt the absolute path of a key file is expected"
    if config.token_store == "jwt" and not config.token_ttl:  # noqa: S105 (a kind of store)
        return (
            ":token_ttl: is 0, but with :token_store: jwt, whose tokens cannot be taken back, a number of seconds above"
            " 0 is expected"
        )
    if config.expire_delta < config.expire_margin:
        return (
            f":expire_delta: is {config.expire_delta}, but a number of seconds not below :expire_margin:, which is"
            f" {config.expire_margin}, is expected"
        )
    return None


def oddities(config: Config) -> Iterator[str]:
    """Yield a warning for what can be, but does not do what it seems to."""
    changed = [field.name for field in fields(config) if getattr(config, field.name) != field.default]
    for store, keys in _KEYS_OF_STORES.items():
        if store != config.token_store and (idle := _listed(key for key in changed if key.startswith(keys))):
            yield f"without effect: {idle}; :token_store: is {config.token_store} and not {store}"
    if config.resolver_listen is None and (idle := _listed(key for key in changed if key in _KEYS_OF_THE_RESOLVER)):
        yield f"without effect: {idle}; there is no resolver without :resolver_listen:"
    if config.audit_required and config.audit_log is None:
        yield "without effect: :audit_required:; there is no audit log without :audit_log:"
    if config.redis_ca is not None and not config.redis_tls:
        yield ":redis_ca: is set, but what goes to Redis is encrypted with ':redis_tls: yes' only"
    if not config.trusted_proxies and (shut := [door for door in config.auth if door in _DOORS_BEHIND_A_PROXY]):
        yield (
            f"without effect: {', '.join(shut)} in :auth:; they take requests that came over TLS only, as a proxy says"
            " that :trusted_proxies: names, and it names none"
        )
    if not config.trusted_proxies and config.public_url is not None and "ec2" in config.auth:
        yield (
            "without effect: ec2 in :auth: for who calls :public_url:; the web server there adds headers that count"
            " from :trusted_proxies: only, which names none"
        )
    if config.token_ttl > config.token_ttl_max:
        yield (
            f":token_ttl: is {config.token_ttl}, more than :token_ttl_max:, which is {config.token_ttl_max}: who asks"
            " for a lifetime gets less than who does not"
        )
    if config.console_url is not None and token_gets_logged(config.console_url):
        yield (
            ":console_url: has the token before a '#', so it gets into the logs of web servers; put {path} or {token}"
            " behind one"
        )


def _listed(keys: Iterator[str]) -> str:
    return ", ".join(f":{key}:" for key in keys)

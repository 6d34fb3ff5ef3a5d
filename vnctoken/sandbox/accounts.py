"""Who has an account in the sandbox's cloud: users and their groups, as oned stores them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

_ADMINISTRATORS = 0
_HASHED = ("core", "server_cipher")


@dataclass(frozen=True)
class Group:
    """A group of users."""

    id: int
    name: str


@dataclass(frozen=True)
class LoginToken:
    """What a user can log in with in the place of his password, as `oneuser token-create` makes it.

    It is good until the second `expires` of the epoch, for ever if that is -1.
    """

    token: str = field(repr=False)
    expires: int = -1


@dataclass(frozen=True)
class User:
    """Somebody with an account.

    What `password` is depends on `auth_driver`: the user's own (`core`), that of a server (`server_cipher`), the
    subject of a server's certificate (`server_x509`), those of a user's, parted by "|" (`x509`), or the name that a
    portal knows him by (`public`). With `token_password`, if he has one, oned encrypts what the VMs prove themselves
    with that he creates.
    """

    id: int
    name: str
    password: str = field(repr=False)
    group: Group
    auth_driver: str = "core"
    enabled: bool = True
    secondary_groups: tuple[Group, ...] = ()
    token_password: str = field(default="", repr=False)
    login_tokens: tuple[LoginToken, ...] = field(default=(), repr=False)

    @property
    def groups(self) -> list[Group]:
        """All groups that he is in, by id."""
        return sorted({self.group, *self.secondary_groups}, key=lambda group: group.id)

    @property
    def is_administrator(self) -> bool:
        """Whether he may use everything, whatever the permission bits say."""
        return self.id == 0 or any(group.id == _ADMINISTRATORS for group in self.groups)

    @property
    def stored_password(self) -> str:
        """What oned keeps, and shows as PASSWORD."""
        if self.auth_driver in _HASHED:
            return hashlib.sha256(self.password.encode()).hexdigest()
        return self.password

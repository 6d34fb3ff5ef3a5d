"""The methods of the sandbox's oned that are about users and groups."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vnctoken.errors import ErrorCode
from vnctoken.sandbox.accountrendering import group_pool_xml, user_pool_xml, user_xml
from vnctoken.sandbox.calls import Answer
from vnctoken.sandbox.cloud import ONEADMIN, Right
from vnctoken.sandbox.refusals import error, no_such, not_authorized, object_id

if TYPE_CHECKING:
    from vnctoken.sandbox.accounts import User
    from vnctoken.sandbox.calls import Call
    from vnctoken.sandbox.cloud import Cloud

_ONESELF = -1


class AccountMethods:
    """The methods, over the users of a cloud."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.by_name = {
            "one.user.info": self._info,
            "one.user.enable": self._enable,
            "one.userpool.info": self._pool_info,
            "one.grouppool.info": self._group_pool_info,
        }

    def _info(self, call: Call, user: User) -> Answer:
        asked_id = object_id(call)
        account = user if asked_id == _ONESELF else self._cloud.user(asked_id)
        if account is None:
            return no_such(call, "user", asked_id)
        if not self._cloud.may_read_account(user, account):
            return not_authorized(call, user, f"USER [{asked_id}]", Right.USE)
        return Answer(success=True, text=user_xml(account, self._cloud.guests_of(account)))

    def _enable(self, call: Call, user: User) -> Answer:
        """Let a user log in, or not any more."""
        asked_id = call.integer(1)
        account = self._cloud.user(asked_id)
        if account is None:
            return no_such(call, "user", asked_id)
        if not user.is_administrator:
            return not_authorized(call, user, f"USER [{asked_id}]", Right.ADMIN)
        enabled = call.boolean(2)
        if asked_id == ONEADMIN.id:
            return error(call, "Cannot enable/disable oneadmin user", ErrorCode.ACTION)
        self._cloud.change_user(replace(account, enabled=enabled))
        return Answer(success=True, number=asked_id)

    def _pool_info(self, _call: Call, user: User) -> Answer:
        accounts = self._cloud.users_for(user)
        return Answer(
            success=True, text=user_pool_xml((account, self._cloud.guests_of(account)) for account in accounts)
        )

    def _group_pool_info(self, _call: Call, user: User) -> Answer:
        groups = self._cloud.groups_for(user)
        return Answer(
            success=True,
            text=group_pool_xml((group, self._cloud.members(group), self._cloud.guests_in(group)) for group in groups),
        )

"""`twist vnctoken`: the service under Twisted's own runner."""

import os
from typing import ClassVar

from twisted.application.service import IService, IServiceMaker
from twisted.plugin import IPlugin
from twisted.python.usage import Options, UsageError
from zope.interface import implementer

from vnctoken.config import load
from vnctoken.errors import ConfigError
from vnctoken.service import make_service


class VnctokenOptions(Options):
    """What `twist vnctoken` takes."""

    optParameters: ClassVar = [
        ["config", None, None, "Instead of vnctoken-server.conf in /etc/one."],
        ["sunstone-config", None, None, "Instead of sunstone-server.conf in /etc/one."],
    ]


@implementer(IPlugin, IServiceMaker)
class VnctokenServiceMaker:
    """Makes the service for `twist`, which logs in its own way."""

    tapname = "vnctoken"
    description = "Hand out console tokens of OpenNebula virtual machines over XML-RPC."
    options = VnctokenOptions

    def makeService(self, options: VnctokenOptions) -> IService:
        """Build the service. Raises UsageError for a wrong configuration."""
        from twisted.internet import reactor  # noqa: PLC0415 (importing it installs it)

        try:
            config, _ = load(os.environ, options["config"], options["sunstone-config"])
            return make_service(config, reactor)
        except ConfigError as error:
            raise UsageError(str(error)) from None


service_maker = VnctokenServiceMaker()

"""`twist vnctoken`: the service under Twisted's own runner."""

import os
import sys
from typing import ClassVar

from twisted.application.service import IService, IServiceMaker
from twisted.logger import Logger
from twisted.plugin import IPlugin
from twisted.python.usage import Options
from zope.interface import implementer

from vnctoken.config import load
from vnctoken.errors import ConfigError
from vnctoken.server import EX_CONFIG, keep_steady_time
from vnctoken.service import make_service

_log = Logger(namespace="vnctoken")


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
        """Build the service; say what is wrong with the configuration and exit with 78 if it cannot be."""
        from twisted.internet import reactor  # noqa: PLC0415 (importing it installs it)

        keep_steady_time(reactor)
        try:
            config, warnings = load(os.environ, options["config"], options["sunstone-config"])
            for warning in warnings:
                _log.warn("{warning}", warning=warning)
            return make_service(config, reactor)
        except ConfigError as error:
            sys.stderr.write(f"twist vnctoken: {error}\n")
            sys.exit(EX_CONFIG)


service_maker = VnctokenServiceMaker()

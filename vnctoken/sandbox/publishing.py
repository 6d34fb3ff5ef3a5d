"""What oned's hook manager tells the world: every change of a VM's state, over ZeroMQ."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import zmq

from vnctoken.sandbox.lifecycle import state_names
from vnctoken.sandbox.rendering import guest_xml

if TYPE_CHECKING:
    from vnctoken.sandbox.cloud import Guest


class Publisher:
    """Publishes to whoever has subscribed; nobody is waited for, and what nobody hears is gone.

    Raises OSError if it cannot listen on the host and port; 0 takes a free one. `endpoint` tells which.
    """

    def __init__(self, host: str, port: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.linger = 0
        self._socket.ipv6 = ":" in host
        try:
            self._socket.bind(f"tcp://{f'[{host}]' if ':' in host else host}:{port}")
        except zmq.ZMQError as error:
            self.close()
            raise OSError(error.errno, error.strerror) from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def publish(self, before: Guest, after: Guest) -> None:
        """Publish that a VM has changed its state."""
        key, message = event(before, after)
        self._socket.send_multipart([key.encode(), base64.b64encode(message.encode())])

    def close(self) -> None:
        """Close the socket, and end ZeroMQ's threads."""
        self._socket.close()
        self._context.term()


def event(before: Guest, after: Guest) -> tuple[str, str]:
    """Return the two parts of an event as oned 6.10 lays them out: what it is called, and the message in XML."""
    state, lcm_state = state_names(after)
    host = f"<REMOTE_HOST>{escape(after.stays[-1].host)}</REMOTE_HOST>" if after.stays else "<REMOTE_HOST/>"
    message = (
        "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>VM</HOOK_OBJECT>"
        f"<STATE>{state}</STATE><LCM_STATE>{lcm_state}</LCM_STATE><RESOURCE_ID>{after.id}</RESOURCE_ID>{host}"
        f"{guest_xml(after, before=before, monitored=False)}</HOOK_MESSAGE>"
    )
    return f"EVENT STATE VM/{state}/{lcm_state}/{after.id} ", message

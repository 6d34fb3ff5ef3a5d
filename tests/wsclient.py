"""A console from both its ends: a websocket client that shows every byte, a screen, and a real websockify between."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import socketserver
import sys
import threading

from conftest import START_SECONDS, running
from webservers import wait_for_port

GREETING = b"RFB 003.008\n"
BINARY, CLOSE = 2, 8


class HandshakeRefusedError(Exception):
    """The server did not switch to the websocket protocol; `status` is what it said, 0 if it closed without a word."""

    def __init__(self, status, answer):
        super().__init__(answer)
        self.status = status
        self.answer = answer


class WebSocket:
    """The client's end of a websocket (RFC 6455)."""

    def __init__(self, connection):
        self._socket = connection
        self._received = b""

    @classmethod
    def connect(cls, connection, path, headers=()):
        """Shake hands over a connection that is open."""
        key = base64.b64encode(os.urandom(16)).decode()
        lines = {
            "Host": "localhost",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "binary",
            "Sec-WebSocket-Key": key,
            **dict(headers),
        }
        request = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        connection.sendall(request.encode() + b"\r\n")
        websocket = cls(connection)
        answer = websocket._take_head()
        status = int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.") else 0
        if status != 101:
            connection.close()
            raise HandshakeRefusedError(status, answer.decode("latin-1"))
        accept = base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        assert b": " + accept + b"\r\n" in answer
        return websocket

    def _take_head(self):
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in self._received and (data := self._socket.recv(65536)):
                self._received += data
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        return head + b"\r\n"

    def _take(self, count):
        # By hand, as a file made from the socket cannot be read on after a timeout.
        while len(self._received) < count and (data := self._socket.recv(65536)):
            self._received += data
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def send(self, data, kind=BINARY):
        """Send one message."""
        mask = os.urandom(4)
        length = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0x80 | 127]) + len(data).to_bytes(8, "big")
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        self._socket.sendall(bytes([0x80 | kind]) + length + mask + masked)

    def receive(self):
        """Return the next message's data, None once the console is closed; TimeoutError after the socket's timeout."""
        head = self._take(2)
        if len(head) < 2:
            return None
        length = head[1] & 0x7F
        if length >= 126:
            length = int.from_bytes(self._take(2 if length == 126 else 8), "big")
        data = self._take(length)
        return None if head[0] & 0x0F == CLOSE else data

    def receive_exactly(self, count):
        """Return so many bytes, in however many messages they come."""
        data = b""
        while len(data) < count:
            piece = self.receive()
            assert piece is not None, f"closed after {len(data)} of {count} bytes"
            data += piece
        assert len(data) == count
        return data

    def settimeout(self, seconds):
        """Bound the wait for a message."""
        self._socket.settimeout(seconds)

    def close(self):
        """Say goodbye, and wait until the other end has closed."""
        self._socket.settimeout(START_SECONDS)
        with contextlib.suppress(OSError):
            self.send(b"", CLOSE)
            while self._socket.recv(65536):
                pass
        self._socket.close()


class _Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            self.request.sendall(GREETING)
            while data := self.request.recv(65536):
                self.request.sendall(data)


@contextlib.contextmanager
def screen():
    """Run what answers at a VM's port for a block's time: it greets as VNC servers do, then echoes. Yield its port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def websockify(tokens, port):
    """Run websockify on a token folder for a block's time."""
    plugin = ("--token-plugin", "TokenFile", "--token-source", tokens)
    with running(sys.executable, "-m", "websockify", *plugin, f"127.0.0.1:{port}") as process:
        wait_for_port(port, process)
        yield

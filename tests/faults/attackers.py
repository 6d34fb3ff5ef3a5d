"""Clients that mean no good: ``python -m faults.attackers holding|slowloris|hostile HOST PORT NUMBER``, until SIGTERM.

At the end they print a line of JSON with what they were told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import sys
from collections import Counter

from faults.judging import judge_hostile

BYTE_SECONDS = 3
ANSWER_SECONDS = 30
AGAIN_SECONDS = 0.5
BODY_BYTES = 65_536

HEAD = b"POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml\r\n"


def _call(name="one.vm.vnctoken", params=""):
    return f"<methodCall><methodName>{name}</methodName><params>{params}</params></methodCall>"


def _param(value):
    return f"<param><value>{value}</value></param>"


def _filled(before, middle, after):
    """Return text of BODY_BYTES at most, with as many `middle` as there is room for."""
    room = BODY_BYTES - len(before.encode()) - len(after.encode())
    return before + middle * (room // len(middle.encode())) + after


def hostile_bodies():
    """Return bodies of up to 64 KiB that are no honest call, by what is wrong with them."""
    call = _call(params=_param("alice:wrong") + _param("<int>0</int>"))
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE methodCall [<!ENTITY e0 "lol">{levels}]>'
    quadratic = _filled('<!DOCTYPE methodCall [<!ENTITY a "', "a", f'">]>{_call(params=_param("&a;" * 5000))}')
    nested = BODY_BYTES // len("<array><data><value></value></data></array>") - 10
    structs = BODY_BYTES // len("<struct><member><name>a</name><value></value></member></struct>") - 5
    calls = "<value><struct><member><name>methodName</name><value>one.vm.vnc</value></member></struct></value>"
    texts = {
        "entities in entities": bomb + _call(params=_param("&e9;")),
        "one large entity, often": quadratic,
        "an entity from a file": '<!DOCTYPE m [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + _call(params=_param("&x;")),
        "a DTD from elsewhere": '<!DOCTYPE m SYSTEM "http://127.0.0.1:9/x.dtd">' + call,
        "20,000 elements deep": "<a>" * 20_000,
        "arrays in arrays": _call(params=_param("<array><data><value>" * nested + "</value></data></array>" * nested)),
        "structs in structs": _call(
            params=_param("<struct><member><name>a</name><value>" * structs + "</value></member></struct>" * structs)
        ),
        "one huge attribute": _filled('<methodCall a="', "x", f'">{call}</methodCall>'),
        "many attributes": "<methodCall {}></methodCall>".format(" ".join(f'a{n}="1"' for n in range(6000))),
        "the same attribute again": _filled("<methodCall ", 'a="1" ', "/>"),
        "many namespaces": "<methodCall {}></methodCall>".format(" ".join(f'xmlns:a{n}="u{n}"' for n in range(3000))),
        "many elements": _filled("<methodCall>", "<a/>", "</methodCall>"),
        "many parameters": _filled(
            "<methodCall><methodName>one.vm.vnc</methodName><params>", _param(""), "</params></methodCall>"
        ),
        "a huge name": _filled("<methodCall><methodName>", "x", "</methodName></methodCall>"),
        "a huge session": _filled(
            "<methodCall><methodName>one.vm.vnc</methodName><params><param><value>",
            "x",
            "</value></param><param><value><int>0</int></value></param></params></methodCall>",
        ),
        "a huge number": _filled(
            f"<methodCall><methodName>one.vm.vnc</methodName><params>{_param('a:b')}<param><value><int>",
            "9",
            "</int></value></param></params></methodCall>",
        ),
        "base64 that is none": _filled(
            "<methodCall><methodName>one.vm.vnc</methodName><params><param><value><base64>",
            "=*",
            "</base64></value></param></params></methodCall>",
        ),
        "many calls in one": _filled(
            "<methodCall><methodName>system.multicall</methodName><params><param><value><array><data>",
            calls,
            "</data></array></value></param></params></methodCall>",
        ),
        "a comment without an end": _filled("<methodCall><!--", "-", ""),
        "CDATA without an end": _filled("<methodCall><![CDATA[", "]", ""),
        "many instructions": _filled("", "<?a b?>", call),
        "references to characters": _filled("<methodCall><methodName>", "&#65;", "</methodName></methodCall>"),
        "references to no character": _call(params=_param("&#0;&#xFFFF;&#x110000;")),
        "an encoding that is none": '<?xml version="1.0" encoding="x-none"?>' + call,
    }
    return {name: text.encode() for name, text in texts.items()} | {
        "broken UTF-8": _call(params=_param("@")).encode().replace(b"@", b"\xff\xfe\xc0\xaf\xed\xa0\x80" * 9000),
        "UTF-16 that says UTF-8": b'<?xml version="1.0" encoding="UTF-8"?>' + call.encode("utf-16"),
        "UTF-7": b'<?xml version="1.0" encoding="UTF-7"?>' + call.encode("utf-7"),
        "zeros": bytes(BODY_BYTES),
        "a byte too many": b" " * (BODY_BYTES + 1),
    }


class Attack:
    """What is done, and what came of it."""

    def __init__(self, host, port):
        self._where = host, port
        self.told = Counter()
        self.wrong = Counter()

    async def hold(self, _number):
        """Connect, and say nothing."""
        reader, writer = await asyncio.open_connection(*self._where)
        await self._hear(reader, writer)

    async def slowloris(self, number):
        """Begin a request, and send a byte of it every few seconds."""
        reader, writer = await asyncio.open_connection(*self._where)
        hearing = asyncio.create_task(self._hear(reader, writer))
        with contextlib.suppress(OSError):
            writer.write(HEAD + b"X-%d: " % number)
            while not hearing.done():
                await asyncio.wait([hearing], timeout=BYTE_SECONDS)
                writer.write(b"x")
        await hearing

    async def _hear(self, reader, writer):
        try:
            answer = await reader.read(4096)
            self.told[answer.split(b"\r\n")[0].decode("latin-1") or "closed without a word"] += 1
        finally:
            writer.close()

    async def hostile(self, number):
        """Send all the bodies, again and again, beginning with another one than the others."""
        bodies = list(hostile_bodies().items())
        for name, body in bodies[number:] + bodies[:number]:
            reader, writer = await asyncio.open_connection(*self._where)
            try:
                writer.write(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                answer = await asyncio.wait_for(reader.read(), ANSWER_SECONDS)
            finally:
                writer.close()
            head, _, said = answer.partition(b"\r\n\r\n")
            status = head.split(b"\r\n")[0].decode("latin-1")
            verdict, problem = judge_hostile(status, said)
            self.told[verdict] += 1
            if problem:
                self.wrong[f"{name}: {problem}"] += 1


async def _again(what, number):
    while True:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await what(number)
        await asyncio.sleep(AGAIN_SECONDS if what.__name__ != "hostile" else 0)


async def main(kind, host, port, number):
    """Attack until SIGTERM."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attack = Attack(host, int(port))
    what = {"holding": attack.hold, "slowloris": attack.slowloris, "hostile": attack.hostile}[kind]
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    tasks = [asyncio.create_task(_again(what, count)) for count in range(int(number))]
    print("attacking", flush=True)  # noqa: T201 (who has started it waits for that)
    await ending.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps({"told": attack.told, "wrong": attack.wrong}), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

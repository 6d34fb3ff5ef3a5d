"""`make demo`, as the newcomer runs it; what he sees in the browser is in test_demo_in_a_browser.py."""

import re
import signal
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import free_port, running

DEMO = (sys.executable, "-m", "vnctoken.sandbox.demo")


def test_once_shows_the_answer_the_token_and_the_way_to_the_screen_and_leaves_nothing_behind():
    with running(*DEMO, "--once") as demo:
        assert demo.process.wait(60) == 0
        demo.wait_for("The portal is at http://127.0.0.1:")
        token = demo.wait_for(r"  Token +'([0-9a-f]{32})'").group(1)
        demo.wait_for(rf"    {token}: 127\.0\.0\.1:\d+")
        demo.wait_for(r"the VM's screen, which says b'RFB 003\.008")
        demo.wait_for(r"\[False, .*couldn't be authenticated.*, 256\]")
    folder = re.search(r"(/\S+/vnctoken-demo-\w+)/var", demo.output).group(1)
    assert not Path(folder).exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_curl_line_it_prints_repeats_the_call_until_everything_is_stopped(how):
    with running(*DEMO) as demo:
        demo.wait_for("Ctrl-C ends it", seconds=60)
        curl = next(line for line in demo.lines if line.startswith("  curl"))
        with running("sh", "-c", curl) as repeated:
            assert repeated.process.wait(30) == 0
            repeated.wait_for("<boolean>1</boolean>")
        screen = re.search(r"    [0-9a-f]{32}: (127\.0\.0\.1:\d+)", demo.output).group(1)
        addresses = [urlsplit(url).netloc for url in re.findall(r"listens on +(\S+)", demo.output)] + [screen]
        assert len(addresses) == 5
        demo.process.send_signal(how)
        assert demo.process.wait(30) == 0
        demo.wait_for("Stopped")
    for address in addresses:
        host, port = address.split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)


def test_what_is_no_address_of_a_vnc_server_is_refused():
    with running(*DEMO, "--vnc", "localhost") as demo:
        assert demo.process.wait(30) == 2
        demo.wait_for("argument --vnc: 'localhost' is not HOST:PORT")


def test_a_vnc_server_that_does_not_answer_is_named():
    nobody = f"127.0.0.1:{free_port()}"
    with running(*DEMO, "--once", "--vnc", nobody) as demo:
        assert demo.process.wait(60) == 0
        demo.wait_for(f"The VNC server at {nobody} does not answer. Is it running?")
        demo.wait_for(f"    [0-9a-f]{{32}}: {nobody}")

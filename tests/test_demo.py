"""`make demo`, as the newcomer runs it."""

import re
import signal
import sys
from pathlib import Path

from conftest import running

DEMO = (sys.executable, "-m", "vnctoken.sandbox.demo")


def test_once_shows_the_answer_and_the_token_and_leaves_nothing_behind():
    with running(*DEMO, "--once") as demo:
        assert demo.process.wait(60) == 0
        demo.wait_for("Repeat the call")
        token = demo.wait_for(r"  Token +'([0-9a-f]{32})'").group(1)
        demo.wait_for(rf"    {token}: dummy-host-1:5900")
        demo.wait_for(r"\[False, .*couldn't be authenticated.*, 256\]")
    folder = re.search(r"(/\S+/vnctoken-demo-\w+)/var", demo.output).group(1)
    assert not Path(folder).exists()


def test_the_curl_line_it_prints_repeats_the_call_until_ctrl_c():
    with running(*DEMO) as demo:
        demo.wait_for("Ctrl-C ends it")
        curl = next(line for line in demo.lines if line.startswith("  curl"))
        with running("sh", "-c", curl) as repeated:
            assert repeated.process.wait(30) == 0
            repeated.wait_for("<boolean>1</boolean>")
        demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(30) == 0
        demo.wait_for("Stopped")
    with running("sh", "-c", curl) as refused:
        assert refused.process.wait(30) == 7, "curl should find nobody listening"

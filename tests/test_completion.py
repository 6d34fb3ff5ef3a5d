"""What a shell offers when the tab key is pressed."""

import re
import subprocess

import pytest
from conftest import ROOT, program

from vnctoken.client.command import main
from vnctoken.client.tables import COLUMNS

BASH = ROOT / "completion" / "vnctoken.bash"
ZSH = ROOT / "completion" / "_vnctoken"

COMMANDS = ("show", "token", "open", "revoke", "list")


def offered(line):
    """Return what bash offers for the last word of a line, as it asks the function that the file names."""
    script = f"""
set -eu
source {BASH}
function=$(complete -p vnctoken | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=({line}{" ''" if line.endswith(" ") else ""}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$function
printf '%s\\n' ${{COMPREPLY[@]+"${{COMPREPLY[@]}}"}}
"""
    done = subprocess.run([program("bash"), "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def options_of(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_bash_offers_the_commands():
    assert offered("vnctoken ") == [*COMMANDS, "--help", "--version"]
    assert offered("vnctoken re") == ["revoke"]


@pytest.mark.parametrize("command", COMMANDS)
def test_bash_offers_each_commands_options_and_no_others(command, capsys):
    assert set(offered(f"vnctoken {command} 7 --")) == options_of(command, capsys)


def test_bash_offers_columns_and_users_and_nothing_for_what_only_the_user_knows():
    assert offered("vnctoken list --list ") == list(COLUMNS)
    assert offered("vnctoken list -l us") == ["USER", "USED"]
    assert "root" in offered("vnctoken show 7 --user ro")
    for line in ("vnctoken show ", "vnctoken show 7 --password ", "vnctoken token 7 --ttl ", "vnctoken nix --"):
        assert offered(line) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_zsh_knows_each_commands_options(command, capsys):
    text = ZSH.read_text(encoding="utf-8")
    parts = dict(re.findall(r"^    (\w+)=\(\n(.*?)^    \)", text, re.DOTALL | re.MULTILINE))
    (case,) = re.findall(
        rf"^ +(?:\w+ \| )?{command}(?: \| \w+)?\) (.*?);;|^ +{command}\)\n(.*?);;", text, re.DOTALL | re.MULTILINE
    )
    used = "".join(case)
    told = used + "".join(parts[name] for name in re.findall(r"\$(\w+)", used))
    assert set(re.findall(r"--[a-z-]+", re.sub(r"\[.*?\]|\(-.*?\)", "", told))) == options_of(command, capsys)
    assert f"'{command}:" in parts["commands"]


def test_zsh_can_read_its_file():
    subprocess.run([program("zsh"), "-n", ZSH], capture_output=True, timeout=60, check=True)

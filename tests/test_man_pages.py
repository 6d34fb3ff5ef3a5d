"""The man pages: made from the documents, complete, and such that man shows them."""

import os
import re
import runpy
import subprocess

import pytest
import yaml
from conftest import ROOT, program

from vnctoken import __version__
from vnctoken.client.command import main as client_main
from vnctoken.config import Config
from vnctoken.server import main as server_main

PAGES = ROOT / "docs" / "man"
NAMES = ("vnctoken.1", "vnctoken-server.8", "vnctoken-server.conf.5")


@pytest.fixture(scope="module")
def made():
    return runpy.run_path(str(PAGES / "build.py"))["pages"](ROOT)


def shown(name):
    """Return a page as man shows it, in one line."""
    done = subprocess.run(
        [program("mandoc"), "-T", "utf8", "-O", "width=500", PAGES / name], capture_output=True, check=True, timeout=60
    )
    return " ".join(re.sub(r".\x08", "", done.stdout.decode()).split())


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_what_the_documents_say_today(made, name):
    assert set(made) == set(NAMES) == {path.name for path in PAGES.glob("*.[1-9]")}
    assert (PAGES / name).read_text(encoding="utf-8") == made[name], "run docs/man/build.py"
    assert f"vnctoken {__version__}" in made[name]


@pytest.mark.parametrize("name", NAMES)
def test_mandoc_and_man_find_nothing_to_complain_of(name):
    for command in (["mandoc", "-T", "lint", "-W", "warning"], ["man", "--warnings", "-l"]):
        done = subprocess.run(
            [program(command[0]), *command[1:], PAGES / name], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stderr == ""
        assert command[0] == "man" or done.stdout == ""


def on_a_terminal(name):
    """Return a page as man lays it out in 80 columns."""
    env = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    command = [program("man"), "-l", PAGES / name]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env, check=True, timeout=60).stdout


@pytest.mark.parametrize("name", NAMES)
def test_no_word_is_broken_by_a_hyphen_that_is_not_its_own(name):
    page = on_a_terminal(name)
    assert "NAME" in page
    assert "\N{HYPHEN}\n" not in page


def test_lines_are_not_stretched_around_long_words():
    assert "list: these columns, some of\n" in on_a_terminal("vnctoken.1")


def options_in_help(run, arguments, capsys):
    with pytest.raises(SystemExit):
        run([*arguments, "--help"])
    return set(re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out))


def test_every_option_of_the_commands_is_in_their_pages(capsys):
    page = shown("vnctoken.1")
    for command in ("show", "token", "open", "revoke", "list"):
        assert re.search(rf" {command} \[?VM", page)
        for option in options_in_help(client_main, [command], capsys):
            assert option in page
    page = shown("vnctoken-server.8")
    # Of every command, and nothing that a page has to tell.
    for option in options_in_help(server_main, [], capsys) - {"--help"}:
        assert option in page


def test_every_setting_is_in_the_configurations_page_with_its_default():
    page = shown("vnctoken-server.conf.5")
    for key, default in yaml.safe_load(Config().to_yaml()).items():
        if key == ":log":
            continue
        assert f" {key}: " in page
        if isinstance(default, int | str) and not isinstance(default, bool):
            assert re.search(rf"Default: ({key}: )?\"?{re.escape(str(default))}", page), key


def test_the_exit_codes_are_in_the_pages():
    for name, codes in (("vnctoken.1", "0 1 2 130"), ("vnctoken-server.8", "0 1 78")):
        status = shown(name).split("EXIT STATUS")[1]
        for code in codes.split():
            assert f" {code} " in status


def test_a_page_shows_what_can_be_typed_as_it_is_typed():
    page = shown("vnctoken.1")
    for text in ("--single-use", "~/.one/one_auth", "user:password", "7,9,web", "$ vnctoken list 20", "7..9"):
        assert text in page

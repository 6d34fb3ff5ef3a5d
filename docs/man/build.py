"""Make the man pages from what documents the same things elsewhere: the documents in docs/, and the configuration file.

Run it after a change of those, and of the version: python docs/man/build.py. It takes markdown-it-py (vnctoken[test]).
"""

# ruff: noqa: INP001

from __future__ import annotations

import re
import textwrap
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

from vnctoken import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from markdown_it.token import Token

HERE = Path(__file__).resolve().parent
DATE = "2026-11-22"
"""Of the pages, whenever they are made; it goes with the version."""

_MARKDOWN = MarkdownIt().enable("table")
_EVERYWHERE = {"\\": r"\e", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}


def pages(root: Path = HERE.parent.parent) -> dict[str, str]:
    """Return the text of each page by its file's name, made from the tree at `root`."""
    client = sections((root / "docs" / "client.md").read_text(encoding="utf-8"))
    operations = sections((root / "docs" / "operations.md").read_text(encoding="utf-8"))
    settings = (root / "etc" / "one" / "vnctoken-server.conf").read_text(encoding="utf-8")
    made = {
        "vnctoken.1": [
            name("vnctoken", "open the consoles of OpenNebula's virtual machines"),
            *command(client["The command"]),
            *(chapter(title, client[title]) for title in ("Commands", "Options", "Environment")),
            chapter("Exit status", client["Exit codes"]),
            chapter("Completion", client["Completion"]),
            also("vnctoken-server(8)", "onevm(1)"),
        ],
        "vnctoken-server.8": [
            name("vnctoken-server", "console tokens for OpenNebula's virtual machines, over XML-RPC"),
            *command(operations["The command"]),
            chapter("Files", operations["What is where"]),
            chapter("Logs", operations["Logs"]),
            chapter("The doctor", operations["Is everything right?"]),
            chapter("Diagnostics", operations["When something is wrong"]),
            also("vnctoken-server.conf(5)", "vnctoken(1)"),
        ],
        "vnctoken-server.conf.5": [
            name("vnctoken-server.conf", "configuration of vnctoken-server"),
            *configuration(settings),
            also("vnctoken-server(8)"),
        ],
    }
    return {file: laid_out([head(file), *parts]) for file, parts in made.items()}


# The documents


def sections(document: str) -> dict[str, str]:
    """Return what is below each heading of the second level."""
    parts = re.split(r"^## (.*)\n", document, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def command(section: str) -> Iterator[str]:
    """Make the synopsis of a section's first code, the exit status of its table, and prose of the rest."""
    _, synopsis, prose = re.split(r"^```\n(.*?)^```$", section, maxsplit=1, flags=re.DOTALL | re.MULTILINE)
    table = re.search(r"^\| Exit code \|.*?(?=^[^|])", prose, re.DOTALL | re.MULTILINE)
    yield f".SH SYNOPSIS\n.nf\n{code(synopsis.rstrip())}\n.fi"
    yield chapter("Description", prose if table is None else prose.replace(table[0], ""))
    if table is not None:
        yield chapter("Exit status", table[0])


def chapter(title: str, markdown: str) -> str:
    """Make a section of the page."""
    return "\n".join([f".SH {plain(title.upper())}", *blocks(_MARKDOWN.parse(markdown))])


def blocks(tokens: Sequence[Token]) -> Iterator[str]:
    """Make requests and text of the blocks of a document."""
    within: list[str] = []
    for token, content in zip(tokens, [*tokens[1:], None], strict=True):
        match token.type:
            case "paragraph_open" if "list_item" in within:
                yield filled(inline(content))
            case "paragraph_open":
                yield f".PP\n{filled(inline(content))}"
            case "heading_open":
                yield f".SS {inline(content)}"
            case "list_item_open":
                within.append("list_item")
                yield r".IP \(bu 2"
            case "list_item_close":
                within.pop()
            case "fence":
                yield f".PP\n.RS 4\n.nf\n{code(token.content.rstrip())}\n.fi\n.RE"
            case "table_open":
                rest = tokens[tokens.index(token) :]
                end = next(number for number, one in enumerate(rest) if one.type == "table_close")
                yield from table(rest[:end])


def table(tokens: Sequence[Token]) -> Iterator[str]:
    """Make tagged paragraphs of a table's rows: the first cell is the tag."""
    cells = [inline(content) for opening, content in pairwise(tokens) if opening.type in ("th_open", "td_open")]
    columns = sum(token.type == "th_open" for token in tokens)
    header, *lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    for tag, *others in lines:
        told = [
            f"{title}: {cell}." if title else cell
            for title, cell in zip(header[1:-1], others[:-1], strict=True)
            if cell
        ]
        last = f"{header[-1]}: {others[-1]}." if header[-1] and told else others[-1]
        yield f".TP\n{tag}\n{filled(' '.join([*told, last]))}"


def inline(content: Token | None) -> str:
    """Make text of what is in a line: code and strong words are bold, and links keep their text."""
    made = []
    for token in (content and content.children) or ():
        match token.type:
            case "text":
                made.append(plain(token.content))
            case "softbreak":
                made.append(" ")
            case "code_inline":
                made.append(rf"\fB{code(token.content)}\fR")
            case "strong_open" | "em_open":
                made.append(r"\fI")
            case "strong_close" | "em_close":
                made.append(r"\fR")
    return "".join(made)


# The configuration file


def configuration(settings: str) -> Iterator[str]:
    """Make the description of the file's first comment, and sections and tagged paragraphs of the others."""
    yield ".SH SYNOPSIS\n.B /etc/one/vnctoken\\-server.conf"
    yield ".SH DESCRIPTION"
    titles = re.compile(r"#{80}\n# (.*)\n#{80}\n")
    first, *rest = titles.split(settings)
    yield from comment(first.splitlines()[1:])
    for title, text in zip(rest[::2], rest[1::2], strict=True):
        yield f".SH {plain(title.partition(';')[0].upper())}"
        for block in filter(None, text.strip().split("\n\n")):
            yield from setting(block.splitlines())


def setting(lines: Sequence[str]) -> Iterator[str]:
    """Make a tagged paragraph of a comment and the settings below it, which stand there with their defaults."""
    explained = [line for line in lines if not re.match("#( *):", line)]
    given = [line[1:] for line in lines if re.match("#( *):", line)]
    defaults = [line.partition(" ")[::2] for line in given if line[0] == ":"]
    for number, (key, _) in enumerate(defaults):
        yield f"{'.TQ' if number else '.TP'}\n\\fB{code(key)}\\fR"
    # The first paragraph stands beside the tag.
    first, *rest = comment(explained, paragraph=".IP")
    yield first.removeprefix(".IP\n")
    yield from rest
    if len(given) > len(defaults):
        yield ".IP\nDefault:\n.nf\n" + code("\n".join(given)) + "\n.fi"
        return
    for key, value in defaults:
        shown = f"{key} {value or '(unset)'}" if len(defaults) > 1 else value
        yield ".IP\n" + filled("Default: " + (rf"\fB{code(shown)}\fR" if shown else "unset"))


def comment(lines: Sequence[str], paragraph: str = ".PP") -> Iterator[str]:
    """Make paragraphs of a comment; what is indented in it stays as it is."""
    texts = [line[2:] for line in lines if line.startswith("#")]
    for (indented, empty), group in groupby(texts, lambda text: (text.startswith("  "), not text.strip())):
        if indented:
            yield f"{paragraph}\n.nf\n{code(chr(10).join(group))}\n.fi"
        elif not empty:
            marked = re.split("`([^`]*)`", " ".join(group))
            text = "".join(rf"\fB{code(part)}\fR" if number % 2 else plain(part) for number, part in enumerate(marked))
            yield f"{paragraph}\n{filled(text)}"


# roff


def laid_out(parts: Sequence[str]) -> str:
    """Put a page together; a section's first paragraph begins with its heading."""
    return re.sub(r"^(\.S[HS] .*\n)\.PP\n", r"\1", "\n".join([*parts, ""]), flags=re.MULTILINE)


def head(file: str) -> str:
    """Make the first lines of a page."""
    title, _, section = file.rpartition(".")
    release = f'{DATE} "vnctoken {__version__}"'
    made = '.\\" Made by docs/man/build.py; change what it reads.'
    # Neither hyphenated, as nobody can copy an option with a hyphen that is none, nor stretched around long words.
    return f"{made}\n.TH {title.upper()} {section} {release} vnctoken\n.nh\n.ad l"


def name(of: str, does: str) -> str:
    """Make the section that apropos reads."""
    return f".SH NAME\n{code(of)} \\- {plain(does)}"


def also(*others: str) -> str:
    """Make the last section: other pages, and where the documents are."""
    named = [f".BR {code(other[:-3])} {other[-3:]}" for other in others]
    return "\n".join([".SH SEE ALSO", ",\n".join(named), ".PP", "/usr/share/doc/vnctoken/docs"])


def filled(text: str) -> str:
    """Break a paragraph into lines, none of which begins as a request does."""
    lines = textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False)
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in lines)


def plain(text: str) -> str:
    """Write prose."""
    escaped = "".join(_EVERYWHERE.get(character, character) for character in text)
    # What looks like an option has a minus that can be copied.
    escaped = re.sub(r"(?<!\w)--?(?=\w)", lambda dashes: dashes[0].replace("-", r"\-"), escaped)
    return "".join(character if character.isascii() else rf"\[u{ord(character):04X}]" for character in escaped)


def code(text: str) -> str:
    """Write what can be typed: each character is itself."""
    escaped = plain(text).replace(r"\-", "-").replace("-", r"\-")
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in escaped.split("\n"))


if __name__ == "__main__":
    for file, text in pages().items():
        (HERE / file).write_text(text, encoding="utf-8")

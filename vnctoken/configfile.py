"""A configuration file in YAML, read into its keys and values; what these mean is the matter of others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vnctoken.errors import ConfigError
from vnctoken.valuekinds import shown

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping


@dataclass(frozen=True)
class Source:
    """A configuration file as read: its name for messages, and its keys without colons."""

    name: str
    values: Mapping[str, Any]


class _Once(yaml.SafeLoader):
    """Reads YAML in which no key is given twice; PyYAML by itself takes the last one and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 (PyYAML's)
        written = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in written:
                    problem = f"{shown(key.value)} is given twice; keep one of them"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                written.add(key.value)
        return super().construct_mapping(node, deep)


def read_ours(named: str | None, usual: Path) -> Source:
    """Read the file that is named, or else the usual one, which may be missing.

    Raises ConfigError with file, line, and what is expected.
    """
    return _read(named, usual, _Once)


def read_sunstones(named: str | None, usual: Path) -> Source:
    """Read a file of Sunstone's, as `read_ours`. A key may be in it twice, as Sunstone starts with such a file too."""
    return _read(named, usual, yaml.SafeLoader)


def _read(named: str | None, usual: Path, loader: type[yaml.SafeLoader]) -> Source:
    path = Path(named) if named is not None else usual
    try:
        content = yaml.load(path.read_bytes(), loader)  # noqa: S506 (both are safe)
    except FileNotFoundError:
        if named is None:
            return Source(str(path), {})
        raise ConfigError(f"{path}: there is no such file; a configuration file in YAML is expected") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); the service's user must be able to") from None
    except Exception as error:  # noqa: BLE001 (PyYAML's constructors let anything out: of a date such as 2024-99-99, say)
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
        raise ConfigError(f"{path}{where}: not YAML ({problem}); lines such as ':port: 2644' are expected") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; lines such as ':port: 2644' are expected")
    values: dict[str, Any] = {}
    for written, value in content.items():
        # Python writes no number of thousands of digits.
        key = shown(written) if isinstance(written, int) else str(written).strip(":")
        if key in values:
            raise ConfigError(f"{path}: :{key}: is given twice, with and without its first colon; keep one of them")
        values[key] = value
    return Source(str(path), values)

"""What makes the inputs: Atheris, which keeps those that go a way in the code that none went before, or chance."""
# ruff: noqa: T201 (they print)

from __future__ import annotations

import os
import time
import traceback
from random import Random
from typing import TYPE_CHECKING

from fuzz.mutation import changed, vocabulary
from fuzz.target import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fuzz.target import Target

FOUND = 3
"""The exit code of an engine that has found something."""

_SMALLER_SECONDS = 20.0


def by_chance(target: Target, seconds: float, folder: Path) -> int:
    """Try the seeds, and for so many seconds what chance makes of them; return the exit code."""
    words, random = vocabulary(target), Random()
    last = being_tried(folder, target.name)
    last.parent.mkdir(parents=True, exist_ok=True)
    tried, began = 0, time.monotonic()
    with last.open("wb", buffering=0) as file:
        while (so_far := time.monotonic() - began) < seconds or tried < len(target.seeds):
            seed = target.seeds[tried % len(target.seeds)]
            data = seed if tried < len(target.seeds) else changed(seed, words, random)
            tried += 1
            file.seek(0)
            file.write(data)
            file.truncate()
            if (error := _failure(target, data)) is not None:
                last.unlink()
                return _report(target, data, error, folder)
    last.unlink()
    print(f"{target.name}: {tried} inputs, {tried / so_far:.0f} a second", flush=True)
    return 0


def being_tried(folder: Path, name: str) -> Path:
    """Return where the input is that `by_chance` tries now: what is left there has killed the process."""
    return folder / "trying" / name


def with_atheris(load: Callable[[], Target], seconds: float, folder: Path) -> None:
    """Try inputs for so many seconds, and end the process. `load` imports the target, and what is under test."""
    import atheris  # noqa: PLC0415 (there is none for every machine)

    with atheris.instrument_imports(include=["vnctoken"], enable_loader_override=False):
        target = load()
    corpus = folder / "corpus" / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = vocabulary(target)

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        random = Random(seed)
        made = changed(data, words, random) if random.random() < 1 / 2 else atheris.Mutate(data, size)
        return made[:size]

    def attempt(data: bytes) -> None:
        try:
            target.run(data)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (each is a finding)
            _report(target, data, error, folder)
            os._exit(FOUND)

    found = folder / "found"
    found.mkdir(exist_ok=True)
    options = [f"-max_total_time={max(1, int(seconds))}", f"-max_len={MAX_BYTES}", "-timeout=60"]
    # Where libFuzzer writes what has killed it.
    options.append(f"-artifact_prefix={found}/{target.name}-")
    atheris.Setup([target.name, *options, str(corpus)], attempt, custom_mutator=mutate)
    atheris.Fuzz()


def _report(target: Target, data: bytes, error: BaseException, folder: Path) -> int:
    """Write down the smallest input that fails in the same way, and say so; return the exit code."""
    smallest = smaller(data, lambda other: _alike(_failure(target, other), error))
    found = folder / "found" / target.name
    found.parent.mkdir(parents=True, exist_ok=True)
    found.write_bytes(smallest)
    traceback.print_exception(error)
    print(f"{target.name}: FOUND {smallest[:500]!r}, {len(smallest)} bytes, in {found}", flush=True)
    return FOUND


def _failure(target: Target, data: bytes) -> BaseException | None:
    try:
        target.run(data)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (as above)
        return error
    return None


def _alike(one: BaseException | None, other: BaseException) -> bool:
    return one is not None and _place(one) == _place(other)


def _place(error: BaseException) -> tuple[type, str, int | None]:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return type(error), last.filename, last.lineno


def smaller(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """Return what is left of data that fails when all is taken away that can be, as long as there is time."""
    end = time.monotonic() + _SMALLER_SECONDS
    size = max(len(data) // 2, 1)
    while size:
        begin = 0
        while begin < len(data) and time.monotonic() < end:
            shorter = data[:begin] + data[begin + size :]
            if fails(shorter):
                data = shorter
            else:
                begin += size
        size //= 2
    return data

"""The program: each target in a process of its own, one after the other.

Ends with 1 if something was found; it is in build/fuzz/found, made as small as could be.
"""
# ruff: noqa: T201 (it prints)

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz.engines import being_tried, by_chance, with_atheris

FOLDER = Path(__file__).resolve().parents[2] / "build" / "fuzz"
# Beyond its time an engine has what a last input may take, and what it takes to make a finding smaller.
_GRACE_SECONDS = 120
_MEMORY = Path("/dev/shm")


def _targets():
    # Not before Atheris looks on: it follows what is imported from then on.
    from fuzz.targets import TARGETS  # noqa: PLC0415

    return {target.name: target for target in TARGETS}


def main(arguments=None):
    """Fuzz the targets that the command line names, or all; return the exit code."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Try inputs that nobody would write.")
    parser.add_argument("--seconds", type=float, default=60, help="how long each target is tried")
    parser.add_argument("--engine", choices=("atheris", "chance"), help="atheris, where it is installed")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where inputs and findings are kept")
    parser.add_argument("--here", action="store_true", help="no process for each target, of which there is one")
    parser.add_argument("target", nargs="*", help="the targets; without any, all")
    options = parser.parse_args(arguments)
    engine = options.engine or ("atheris" if importlib.util.find_spec("atheris") else "chance")
    if options.here:
        (name,) = options.target
        if engine == "atheris":
            with_atheris(lambda: _targets()[name], options.seconds, options.folder)
        return by_chance(_targets()[name], options.seconds, options.folder)
    print(f"Fuzzing with {engine}; what is found is kept in {options.folder}", flush=True)
    known = _targets()
    if unknown := [name for name in options.target if name not in known]:
        parser.error(f"there is no target {unknown[0]}; there are {', '.join(known)}")
    results = [_tried(name, engine, options) for name in options.target or known]
    return 1 if any(results) else 0


def _tried(name, engine, options):
    command = [sys.executable, "-m", "fuzz", "--here", "--engine", engine, "--seconds", str(options.seconds)]
    command += ["--folder", str(options.folder), name]
    last = being_tried(options.folder, name)
    last.unlink(missing_ok=True)
    # Some thousand files a second: in memory, where that is possible. The engines end without tidying up.
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "TMPDIR": folder},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=options.seconds + _GRACE_SECONDS,
                check=False,
            )
            output, code = done.stdout.decode(errors="replace"), done.returncode
        except subprocess.TimeoutExpired as late:
            output, code = (late.stdout or b"").decode(errors="replace") + "\nit does not end", 1
    # Of what libFuzzer tells, its last line about the way it has come is enough.
    summary = [line for line in output.splitlines() if "\tDONE " in line or line.startswith(f"{name}: ")]
    if code or not summary:
        summary = [line for line in output.splitlines() if not line.startswith("INFO: Instrumenting ")]
        print("\n".join(summary), flush=True)
        # Atheris has written down by itself what has killed it.
        if last.exists():
            found = options.folder / "found" / name
            found.parent.mkdir(exist_ok=True)
            last.replace(found)
            print(f"{name}: FOUND what ends the process (exit code {code}), in {found}", flush=True)
    else:
        print(f"{name:14} {' '.join(summary[-1].removeprefix(f'{name}: ').split())}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""``python -m faults.tidy``: vnctoken-server, which gives back the memory that it does not use, at SIGUSR2.

What is left then is what it keeps. Without that a leak is hard to tell from room between the pieces of memory that are
in use: the C library keeps some MB of it, which come and go.
"""

from __future__ import annotations

import ctypes
import gc
import signal
import sys

from vnctoken.server import main


def tidy(*_):
    """Free what is garbage, and let go of the pages that hold nothing."""
    gc.collect()
    # Only glibc has it, and only there it is needed.
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, tidy)
    sys.exit(main())

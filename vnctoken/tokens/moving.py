"""Move a finished file to where readers look, in one step that leaves no gap and does not wait for the disk."""

import ctypes
import errno
import os

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def move_in(source: str, target: str) -> None:
    """Give `target` the file that `source` is, and forget the file that it was. Raises OSError.

    A plain rename(2) over an existing file makes ext4 (auto_da_alloc) and btrfs write the new one to disk before it
    returns: 0.12 ms on the reactor thread instead of 0.01, and far more while the disk is busy. A token is not worth
    that. So the two files change places (renameat2(2), Linux 3.15), and the old one is removed outside the folder.
    """
    if not _exchanged(source, target):
        os.replace(source, target)
        return
    os.unlink(source)


def _exchanged(source: str, target: str) -> bool:
    """Let two files change places; False where there is no second one, or the filesystem or libc cannot."""
    if _renameat2 is None:
        return False
    arguments = (
        _AT_FDCWD,
        os.fsencode(source),
        _AT_FDCWD,
        os.fsencode(target),
        ctypes.c_uint(_RENAME_EXCHANGE),
    )
    if _renameat2(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOENT, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number))

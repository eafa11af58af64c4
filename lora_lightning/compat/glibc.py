"""glibc's memory allocator, through `ctypes` and the environment: nothing in Python or PyTorch reaches it."""

import ctypes
import os
import sys
from contextlib import suppress

VARIABLE = "GLIBC_TUNABLES"
# PyTorch asks for aligned blocks. glibc takes a longer one and frees the few bytes before the aligned address into a
# cache, where they never merge with their neighbors; so a freed block is too short to serve the same size again, and
# resident memory grows to a multiple of what lives. Without caches they merge. The thresholds are the highest that
# glibc would choose itself after a while; given one, it adapts none, so both are needed.
TUNABLES = (
    "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:"
    f"glibc.malloc.mmap_threshold={32 * 2**20}:glibc.malloc.trim_threshold={2**40}"
)


def restart_with_tunables() -> None:
    """Replaces this process by the same command with `TUNABLES`, which glibc reads only when a program starts.

    The process keeps its id, its files and which signals it ignores. Nothing happens with another C library, if the
    user has set `GLIBC_TUNABLES` (an empty value switches this off), or if another program, such as a notebook, runs
    ours: then the command is not ours to repeat.
    """
    words = sys.argv[1:]
    is_ours = bool(words) and sys.orig_argv[-len(words) :] == words
    if not is_ours or VARIABLE in os.environ or not _has_glibc():
        return
    with suppress(OSError):  # such as a command line that is just as long as the system allows
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, VARIABLE: TUNABLES})  # noqa: S606


def give_back_free_memory() -> bool:
    """Gives the memory that this process has freed back to the system, wherever it lies; costs milliseconds.

    glibc keeps freed blocks of up to 32 MiB for later ones, between blocks that still live and at any age.

    Returns:
        Whether the system has such a function; False on macOS, on Windows and with musl.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return False
    trim(ctypes.c_size_t(0))
    return True


def _has_glibc() -> bool:
    return "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ())

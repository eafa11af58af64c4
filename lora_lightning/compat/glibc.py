"""glibc's memory allocator, through `ctypes` and the environment: nothing in Python or PyTorch reaches it."""

import ctypes
import os
import sys
from contextlib import suppress

VARIABLE = "GLIBC_TUNABLES"
# PyTorch asks for aligned blocks. glibc takes a longer one and frees the few bytes before the aligned address into a
# cache, where they never merge with their neighbors; so a freed block is too short to serve the same size again, and
# resident memory grows to a multiple of what lives. Without caches they merge. The threshold of mappings is the highest
# that glibc would choose itself after a while; given one threshold, it adapts none, so both are needed. The top of the
# heap is kept: what a step frees, the next one takes again.
TUNABLES = (
    "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:"
    f"glibc.malloc.mmap_threshold={32 * 2**20}:glibc.malloc.trim_threshold={2**40}"
)


OF_THE_USER = (VARIABLE, "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")  # what `TUNABLES` would override
RESTARTED = "lora_lightning_restarted"  # an option -X, which nothing strips, unlike variables in a privileged process


def restart_with_tunables() -> None:
    """Replaces this process by the same command with `TUNABLES`, which glibc reads only when a program starts.

    The process keeps its id, its files and which signals it ignores. Nothing happens with another C library, if the
    user has set `GLIBC_TUNABLES` (an empty value switches this off) or one of the thresholds, under a debugger, or if
    another program, such as a notebook, runs ours: then the command is not ours to repeat.
    """
    if RESTARTED in sys._xoptions or not _can_be_repeated() or not _has_glibc():
        return
    if any(name in os.environ for name in OF_THE_USER):
        return
    words = [sys.executable, "-X", RESTARTED, *sys.orig_argv[1:]]
    with suppress(OSError):  # such as a command line that is just as long as the system allows
        os.execve(sys.executable, words, {**os.environ, VARIABLE: TUNABLES})  # noqa: S606


def _can_be_repeated() -> bool:
    """Whether the command line alone makes this process: no program from standard input, no debugger, no caller."""
    words, main = sys.argv[1:], sys.modules["__main__"]
    is_ours = bool(words) and sys.orig_argv[-len(words) :] == words
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    has_source = (spec is not None and spec.name == "lora_lightning.__main__") or (
        spec is None and file is not None and os.path.isfile(file)  # noqa: PTH113  # imports nothing before the restart
    )
    return bool(sys.executable) and is_ours and has_source and sys.gettrace() is None


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
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # no POSIX, or musl
        return False

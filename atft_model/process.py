"""What this process asks of its operating system: how memory is kept, when it has to end, what
the processor can do."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's ``mallopt`` (malloc.h)."""
LARGEST = 2**31 - 1
TOP_PAD = 256 << 20
CPU_FACTS = Path("/proc/cpuinfo")


def keep_freed_memory() -> None:
    """Keeps glibc from giving a step's large buffers back to the kernel and fetching them anew.

    Every step frees and allocates the same buffers; by default each comes back as fresh, zeroed
    pages. Measured on 2 cores (54 features, hidden 32): 2,200 windows/s without, 4,000 with.
    Does nothing where the C library is not glibc, or where the environment tunes malloc itself.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, LARGEST)
    mallopt(M_TOP_PAD, TOP_PAD)


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32; no where Linux does not say.

    By matrix units (AMX) or dot products (AVX-512), which double the rate of float32 on AMD Zen 4.
    """
    flags = CPU_FACTS.read_text().split() if CPU_FACTS.exists() else []
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def die_with_parent() -> None:
    """Ends this process when the one that started it dies, so that no GPU is orphaned.

    Linux is asked to signal it at once. A thread looks too, each second, because the signal was
    once seen not to come.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, ctypes.c_ulong(signal.SIGTERM))
    threading.Thread(target=_end_without, args=(parent,), daemon=True).start()


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(128 + signal.SIGTERM)

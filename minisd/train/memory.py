"""Memory that a step frees and that the next one needs again."""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4                 # of glibc's mallopt(3)
LARGEST = 2 ** 31 - 1


def hold() -> None:
    """From now on the C library (glibc) keeps what is freed until `heap.trim` gives it back.

    By itself it returns every large tensor to the system at once, which clears its pages anew: of a step of
    distillation at full size that is some tenth of the time. Without the trim, what lies between may let the heap grow.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, LARGEST)

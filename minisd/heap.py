"""Memory that was freed and that the C library keeps."""

import ctypes
import platform
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4                 # of glibc's mallopt(3)
LARGEST = 2 ** 31 - 1


def trim() -> None:
    """Give it back to the system where that can be asked for (glibc); it takes some hundredths of a second.

    Otherwise what some activations have left stays beside larger ones, or beside gradients, and the peak is up to a
    quarter of a GiB higher.
    """
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except AttributeError:                    # another C library
            return


def hold() -> None:
    """From now on the C library (glibc) keeps what is freed until `trim` gives it back.

    By itself it returns every large tensor to the system at once, which clears its pages anew: of a step of
    distillation at full size that is some tenth of the time. Without the trim, what lies between may let the heap grow.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, LARGEST)

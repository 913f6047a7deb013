"""Memory that was freed and that the C library keeps."""

import ctypes
import sys


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

"""The memory of a process of tests."""

import ctypes


def return_free_memory() -> None:
    """Gives what the heap keeps free back to the system, where the C library (glibc) can do that.

    Tensors of changing sizes leave gaps in the heap.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)

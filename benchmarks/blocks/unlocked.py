"""Let threads run what torch.compile makes for the CPU at the same time.

The function that calls a compiled kernel from Python keeps Python's lock while the kernel runs (torch 2.13), so that
two training threads used 1.4 cores. Parsing arguments needs the lock; the kernel itself, C++ on plain memory, does not.
"""

from torch._inductor.codecache import CppPythonBindingsCodeCache

LOCKED = "kernel({}); Py_RETURN_NONE;"
UNLOCKED = (
    "auto unlocked = [](auto... each) {{ Py_BEGIN_ALLOW_THREADS kernel(each...); Py_END_ALLOW_THREADS }}; "
    "unlocked({}); Py_RETURN_NONE;"
)


def unlock_compiled_kernels() -> bool:
    """Have kernels that are compiled from now on give up Python's lock; return whether this torch lets them."""
    if CppPythonBindingsCodeCache.call_entry_function == LOCKED:
        CppPythonBindingsCodeCache.call_entry_function = UNLOCKED
    return CppPythonBindingsCodeCache.call_entry_function == UNLOCKED

"""A second name for a loaded shared library, for code that asks the dynamic loader for a name that no file has.

TensorRT-RTX opens itself as ``libtensorrt_rtx.so`` when a plugin is added; its wheel holds ``libtensorrt_rtx.so.1``
alone, and the process ends with "terminate called without an active exception". Opening the library by its path does
not help: glibc compares the name asked for with the SONAMEs of what is loaded. So an empty library is loaded whose
SONAME is the name asked for, and whose one dependency is the library itself, where symbols are then found.
"""

import ctypes
import os
import struct
from pathlib import Path

PAGE = 0x10000  # alignment of segments: the largest page size of the platforms TensorRT runs on
EI_CLASS_64, EI_DATA_LITTLE = 2, 1
ET_DYN, PT_LOAD, PT_DYNAMIC, PT_GNU_STACK = 3, 1, 2, 0x6474E551
READ, READ_WRITE = 4, 6
NEEDED, HASH, STRTAB, SYMTAB, STRSZ, SYMENT, SONAME = 1, 4, 5, 6, 10, 11, 14
SYMBOL = 24  # bytes of an ELF64 symbol


def add_name(library: Path, name: str) -> None:
    """Make the dynamic loader find the loaded ``library`` under ``name`` too, for the rest of the process.

    Raises: OSError if ``library`` is not a 64-bit little-endian ELF file or cannot be loaded.
    """
    with library.open("rb") as stream:
        head = stream.read(20)
    if head[:6] != bytes((0x7F, *b"ELF", EI_CLASS_64, EI_DATA_LITTLE)):
        raise OSError(f"{library} is not a 64-bit little-endian ELF library")
    (machine,) = struct.unpack_from("<H", head, 18)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    stub = os.memfd_create(name)  # in memory: a temporary folder may be mounted noexec
    try:
        os.write(stub, empty_library(name, needed=library.name, machine=machine))
        ctypes.CDLL(f"/proc/self/fd/{stub}", mode=ctypes.RTLD_GLOBAL)
    finally:
        os.close(stub)


def empty_library(soname: str, *, needed: str, machine: int) -> bytes:
    """Return an ELF64 shared library without symbols: its SONAME, and one library that it needs.

    Args:
        machine: e_machine, such as 62 for x86-64 and 183 for AArch64.
    """
    strings = b"\0" + soname.encode() + b"\0" + needed.encode() + b"\0"
    headers = 64 + 3 * 56
    hash_at = headers
    symbols_at = hash_at + 16
    strings_at = symbols_at + SYMBOL
    dynamic_at = -(-(strings_at + len(strings)) // 8) * 8
    entries = (
        (NEEDED, 2 + len(soname)), (SONAME, 1), (HASH, hash_at), (STRTAB, strings_at), (SYMTAB, symbols_at),
        (STRSZ, len(strings)), (SYMENT, SYMBOL), (0, 0),
    )  # fmt: skip
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    size = dynamic_at + len(dynamic)
    ident = bytes((0x7F, *b"ELF", EI_CLASS_64, EI_DATA_LITTLE, 1)) + bytes(9)
    file = ident + struct.pack("<HHIQQQIHHHHHH", ET_DYN, machine, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    segments = ((PT_LOAD, READ_WRITE, 0, size, PAGE), (PT_DYNAMIC, READ_WRITE, dynamic_at, len(dynamic), 8))
    for kind, flags, offset, length, align in segments:
        file += struct.pack("<IIQQQQQQ", kind, flags, offset, offset, offset, length, length, align)
    file += struct.pack("<IIQQQQQQ", PT_GNU_STACK, READ_WRITE, 0, 0, 0, 0, 0, 16)
    file += struct.pack("<4I", 1, 1, 0, 0) + bytes(SYMBOL) + strings
    return file.ljust(dynamic_at, b"\0") + dynamic

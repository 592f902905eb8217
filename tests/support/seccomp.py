"""Simulates file systems without hard links or locks (FAT, FUSE, some network shares) and unreadable directories."""

import ctypes
import errno
import os
import platform
import struct

_LINK_CALLS = {"x86_64": (86, 265), "aarch64": (37,)}
"""The numbers of the system calls link and linkat."""
_LOCK_CALLS = {"x86_64": (73,), "aarch64": (32,)}
"""The number of the system call flock."""
_LOAD, _EQUALS, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2


def can_refuse_hard_links() -> bool:
    """Whether this machine can be made to refuse hard links."""
    return platform.system() == "Linux" and platform.machine() in _LINK_CALLS


def refuse_hard_links(error: int) -> None:
    """Make every hard link of this thread and its children fail with `error`; this cannot be undone.

    The kernel rejects the calls (seccomp), because stores create links in native code. OSError if the kernel does not
    accept the filter.
    """
    _refuse(_LINK_CALLS[platform.machine()], error)


def refuse_locks() -> None:
    """Like `refuse_hard_links` for every `flock`, as on NFS without a lock service."""
    _refuse(_LOCK_CALLS[platform.machine()], errno.ENOLCK)


def _refuse(calls: tuple[int, ...], error: int) -> None:
    lines = [(_LOAD, 0, 0, 0)]
    lines += [(_EQUALS, len(calls) - position, 0, number) for position, number in enumerate(calls)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _FAIL | error)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(program)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or prctl(_SECCOMP, _FILTER, header, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter")


def drop_root() -> None:
    """Drop the capabilities of root for this thread and its children, so that file modes apply as for any user."""
    if os.geteuid() != 0:
        return
    header = struct.pack("Ii", 0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")

"""Runs a command in which no process can reach a network, and notes each attempt.

A seccomp filter hands each `connect`, and each `socket` that can send without one, to this process,
which writes a line and has it fail. (A mere stream socket is urllib3's way to see whether there is
IPv6.) Native code and grandchildren are under it too, and nothing needs installing or root. Run as
a file; argv: where the lines go, and the command.

Source: seccomp_unotify(2), linux/seccomp.h, linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import socket
import struct
import subprocess
import sys
from pathlib import Path

UNSUPPORTED = 75
# By machine: AUDIT_ARCH_…, and the numbers of the system calls seccomp, socket and connect.
_CALLS = {"x86_64": (0xC000003E, 317, 41, 42), "aarch64": (0xC00000B7, 277, 198, 203)}
_LOAD, _AND, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_…
_NOTIFICATION = struct.Struct("=QII iIQ6Q")  # id, pid, flags; call, arch, ip, arguments


def main(log: Path, command: list[str]) -> int:
    """Run it, and return its exit code; UNSUPPORTED: this system has no such filter."""
    machine = platform.machine()
    if not sys.platform.startswith("linux") or machine not in _CALLS:
        print(f"no filter for {sys.platform} on {machine}", file=sys.stderr)
        return UNSUPPORTED
    try:
        listener = _install(*_CALLS[machine])
    except OSError as error:
        print(f"no filter here: {error.strerror}", file=sys.stderr)
        return UNSUPPORTED
    with log.open("a", buffering=1) as lines, subprocess.Popen(command) as child:
        while child.poll() is None:
            if select.select([listener], [], [], 0.05)[0]:
                lines.write(_refuse(listener))
    return child.returncode


def _install(arch: int, seccomp: int, socket_call: int, connect_call: int) -> int:
    """Filter this process and all that it starts; the descriptor that tells of their calls."""
    program = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_JUMP_IF_EQUAL, 0, 9, arch),
        (_LOAD, 0, 0, 0),  # the call
        (_JUMP_IF_EQUAL, 6, 0, connect_call),
        (_JUMP_IF_EQUAL, 0, 6, socket_call),
        (_LOAD, 0, 0, 16),  # its first argument: the family
        (_JUMP_IF_EQUAL, 4, 0, socket.AF_UNIX),
        (_LOAD, 0, 0, 24),  # its second: the type, and flags above it
        (_AND, 0, 0, 0xF),
        (_JUMP_IF_EQUAL, 1, 0, socket.SOCK_STREAM),
        (_RETURN, 0, 0, _NOTIFY),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    listener = libc.syscall(seccomp, _SET_MODE_FILTER, _NEW_LISTENER, filter_)
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return listener


def _refuse(listener: int) -> str:
    """Let the next call fail, and say whose it was; '' if its process has gone meanwhile."""
    from fcntl import ioctl  # not on Windows

    notification = bytearray(_NOTIFICATION.size)
    try:
        ioctl(listener, _RECEIVE, notification, True)
        call_id, pid, _, call, _, _, first, *_ = _NOTIFICATION.unpack(notification)
        who = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        ioctl(listener, _SEND, bytearray(struct.pack("=QqiI", call_id, 0, -errno.EACCES, 0)), True)
    except OSError:
        return ""
    what = "connect" if call == _CALLS[platform.machine()][3] else f"socket of family {first}"
    return f"{what}: {who}\n"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

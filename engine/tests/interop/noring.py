"""Runs a program on a host that forbids io_uring: `noring.py ERRNO CALL[,CALL] PROGRAM ...`.

The named system calls fail with ERRNO by a seccomp filter, as under a container runtime's
profile.
"""

import ctypes
import errno
import os
import struct
import sys

# The same numbers on every architecture.
CALLS = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_WORD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
RETURN_ERRNO, RETURN_ALLOW = 0x00050000, 0x7FFF0000


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def forbid(numbers, error):
    # struct seccomp_data begins with the call's number.
    steps = [struct.pack("HBBI", LOAD_WORD, 0, 0, 0)]
    for number in numbers:
        steps.append(struct.pack("HBBI", JUMP_EQUAL, 0, 1, number))
        steps.append(struct.pack("HBBI", RETURN, 0, 0, RETURN_ERRNO | error))
    steps.append(struct.pack("HBBI", RETURN, 0, 0, RETURN_ALLOW))
    program = Program(len(steps), b"".join(steps))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")


if __name__ == "__main__":
    name, calls, *command = sys.argv[1:]
    forbid([CALLS[call] for call in calls.split(",")], getattr(errno, name))
    os.execvp(command[0], command)

"""Becomes another program that ends when the process that started it does.

Run by path, isolated, as ``launcher.py PARENT PROGRAM ARGUMENTS...``: asks the kernel for
SIGTERM at the parent's death (Linux; kept across exec, see prctl(2), PR_SET_PDEATHSIG),
makes sure that the parent is still there, and turns into the program, under the same
process id. The program's files are private: the umask is 077. A child's ``preexec_fn``
could do the same, but not safely beside threads. Elsewhere than on Linux nothing is
asked of the kernel.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, program = int(arguments[0]), arguments[1]
    os.umask(0o077)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() == parent:
        os.execv(program, arguments[1:])  # noqa: S606  # its whole purpose


if __name__ == "__main__":
    main(sys.argv[1:])

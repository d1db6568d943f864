"""Care for the process that the library runs in: its memory allocator, and its threads after a fork."""

from __future__ import annotations

import os

import torch

_forked = False  # in a forked child, until its threads have been limited


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def limit_threads_after_fork() -> None:
    """Compute with one thread in a forked child.

    The OpenMP threads of the parent do not exist in the child: an operation that used them would wait forever. Call
    this before any computation; it does nothing in a process that was not forked.
    """
    global _forked
    if _forked:
        torch.set_num_threads(1)
        _forked = False


def keep_freed_memory() -> None:
    """Let glibc's malloc keep up to 62 MB of freed memory for the next batch.

    glibc keeps at most twice the size of the largest block freed so far (up to 32 MB). What it returns to the system
    comes back zeroed, which took a tenth of the time of each batch; freeing one large block raises the limit. Other
    allocators are not affected.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")

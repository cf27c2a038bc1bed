"""What the kernels really ran."""

from __future__ import annotations

from typing import TypedDict

from stopgrad_op._library import load_kernels

_kernels = load_kernels()


class PassStats(TypedDict):
    """Counts of one pass.

    Attributes
    ----------
    products
        Matrix products that ran; a batched one counts once.
    flops
        Their floating-point operations: 2 m n k for each matrix, 8 m n k where it is complex.
    """

    products: int
    flops: int


class KernelStats(TypedDict):
    """Counts of the forward and the backward pass since the last reset."""

    forward: PassStats
    backward: PassStats


def kernel_stats() -> KernelStats:
    """Return what ran in this process, on all threads, since it began or the last reset.

    A product that was blocked, skipped or empty is not counted, because it did not run.
    """
    stats: KernelStats = _kernels.kernel_stats()
    return stats


def reset_kernel_stats() -> None:
    """Set all counts to 0."""
    _kernels.reset_kernel_stats()

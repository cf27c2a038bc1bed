"""NumPy, which has products and no gradients."""

from __future__ import annotations

import numpy as np

from peers import Work
from workloads import Array, Arrays, Case, Mode

_BLAS_DTYPES = ("float32", "float64", "complex64", "complex128")


class Peer:
    """`np.matmul`. Its threads are set in the worker's environment."""

    def __init__(self, name: str, threads: int, device: str) -> None:
        del name, threads, device

    def missing(self) -> str:
        """NumPy needs nothing else."""
        return ""

    def supports(self, case: Case) -> bool:
        """Take bare products in the dtypes that NumPy hands to a BLAS; others are plain loops."""
        return case.is_product and case.dtype in _BLAS_DTYPES

    def build(self, case: Case, mode: Mode, arrays: Arrays) -> Work:
        """Build the case."""
        del mode
        (layer,), (w,) = case.layers, arrays.weights
        w = np.swapaxes(w, -1, -2) if layer.transposed else w

        def run() -> Array:
            result: Array = np.matmul(arrays.x, w)
            return result

        return Work(run, lambda: {"y": run()})

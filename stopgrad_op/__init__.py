"""Train a part of a network in TensorFlow without paying for the rest.

`import stopgrad_op as sg`, then `sg.matmul`: matrix product, bias and activation in one operation,
whose blocked gradients cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stopgrad_op._library import build_info, load_ops
from stopgrad_op._stats import kernel_stats, reset_kernel_stats

if TYPE_CHECKING:
    from stopgrad_op._frozen import keep_frozen
    from stopgrad_op._matmul import matmul
    from stopgrad_op._regions import columns, rows
    from stopgrad_op._stock import stock_ops

__version__: str = build_info()["version"]

__all__ = [
    "build_info",
    "columns",
    "keep_frozen",
    "kernel_stats",
    "matmul",
    "reset_kernel_stats",
    "rows",
    "stock_ops",
]

if build_info()["tensorflow"] is not None:
    load_ops()  # first, because it says what to type if TensorFlow is missing or another one
    import stopgrad_op._flops
    import stopgrad_op._higher_order
    import stopgrad_op._vectorized  # noqa: F401 - these register what TensorFlow calls
    from stopgrad_op._frozen import keep_frozen
    from stopgrad_op._matmul import matmul
    from stopgrad_op._regions import columns, rows
    from stopgrad_op._stock import stock_ops


def __getattr__(name: str) -> Any:
    """Say why a part is missing from a build without TensorFlow."""
    if name in __all__:
        load_ops()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

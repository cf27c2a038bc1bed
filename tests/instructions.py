"""What depends on the processor's instructions."""

from __future__ import annotations

import numpy as np
from reference import Array, numpy_dtype

from stopgrad_op import _kernels


def as_multiplied(x: Array) -> Array:
    """Return the numbers that a product computes with.

    Processors that multiply bfloat16 themselves take subnormal numbers for zeros.
    """
    if x.dtype != numpy_dtype("bfloat16"):
        return x
    if _kernels.build_info()["instructions"] not in ("avx512_bf16", "amx_bf16"):
        return x
    has_no_exponent = np.ascontiguousarray(x).view(np.uint16) & 0x7F80 == 0
    return np.where(has_no_exponent, x.dtype.type(0), x)

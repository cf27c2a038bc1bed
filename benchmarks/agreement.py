"""Whether two peers computed the same. One that did not would make the ratio a lie."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from workloads import Array

# Distance of neighbouring numbers near 1, and of the type that sums are kept in.
_EPSILON = {
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "tf32": 2.0**-10,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
}
_PART = {"complex64": "float32", "complex128": "float64"}
_SUMMED_IN = {"float16": "float32", "bfloat16": "float32", "tf32": "float32"}

# Sums of some thousand terms in another order differ by some dozen units in the last place.
_UNITS = 256
# A sum that is rounded to the other side of zero switches a relu, and with it one row's part in
# every gradient. A gradient of something else is further off than this.
_GRADIENTS = 0.02
# With short factors that happens all the time, to so large a share of the sums in each layer as
# they are rounded by, and in few rows to one or two of them.
_SWITCHED_ROWS = 2


def disagreement(
    ours: Mapping[str, Array],
    theirs: Mapping[str, Array],
    dtype: str,
    *,
    layers: int = 1,
    rows: int | None = None,
) -> str | None:
    """Compare results by name, in the root mean square over each array.

    Gradients must also have the same rows and columns of exact zeros: what does not learn.

    Parameters
    ----------
    dtype
        What products are computed in, as `workloads.multiplied_in` names it.
    layers, rows
        How many the network has, and its input; `None` stands for very many.

    Returns
    -------
    What differs, or `None`.
    """
    if ours.keys() != theirs.keys():
        return f"computes {', '.join(sorted(theirs))}; due is {', '.join(sorted(ours))}"
    for name, due in ours.items():
        found = theirs[name]
        if found.shape != due.shape:
            return f"{name} has shape {found.shape}; due is {due.shape}"
        if dtype.startswith("int"):
            allowed = 0.0
        else:
            part = _PART.get(dtype, dtype)
            epsilon, of_sums = _EPSILON[part], _EPSILON[_SUMMED_IN.get(part, part)]
            allowed = layers * (_UNITS * of_sums + 2 * epsilon)
            if name != "y":
                allowed = max(allowed, _GRADIENTS)
                if epsilon > of_sums:
                    switched = layers * epsilon + (_SWITCHED_ROWS / rows if rows else 0)
                    allowed = max(allowed, math.sqrt(switched))
        wide = np.complex128 if np.iscomplexobj(due) else np.float64
        due, found = due.astype(wide), found.astype(wide)
        off, size = np.linalg.norm(found - due), np.linalg.norm(due)
        if not off <= allowed * size:
            return f"{name} is off by {off / size if size else off:.2g}; {allowed:.2g} is allowed"
        if name != "y" and due.ndim >= 2:
            for axis, lines in ((-1, "rows"), (-2, "columns")):
                # The mean square would not see one row of noise among many that learn.
                found_zero, due_zero = ~found.any(axis=axis), ~due.any(axis=axis)
                if (found_zero != due_zero).any():
                    return (
                        f"{name} has other {lines} of exact zeros: {found_zero.sum()} of them, and"
                        f" {due_zero.sum()} are due"
                    )
    return None

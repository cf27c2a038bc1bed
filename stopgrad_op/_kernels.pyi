"""The kernels of stopgrad_op on NumPy arrays, without TensorFlow."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, TypedDict, overload

import numpy.typing as npt

from stopgrad_op._library import BuildInfo
from stopgrad_op._stats import KernelStats

_Array = npt.NDArray[Any]
_Layout = Literal["normal", "transpose", "adjoint"]
# Of one axis: begin, end and step of a slice, or ascending indices.
_Region = tuple[int, int | None, int] | npt.NDArray[Any]

# The same functions on arrays in a GPU's memory; missing where `build_info()["cuda_missing"]` says
# why it was not built.
cuda: ModuleType

class _Product(TypedDict):
    m: int
    n: int
    k: int
    outputs: int
    terms: int
    alpha: float

class _Plan(TypedDict):
    pass_over_dy: bool
    writes_dz: bool
    sums_bias: bool
    masks_dz: bool
    masks_da: bool
    compacts_dz: bool
    products: dict[str, list[_Product]]

@overload
def matmul(
    a: _Array,
    b: _Array,
    bias: _Array | None = None,
    *,
    layout_a: _Layout = "normal",
    layout_b: _Layout = "normal",
    activation: str = "linear",
    return_preactivation: Literal[False] = False,
    threads: int = 1,
    poison: bool = False,
) -> _Array: ...
@overload
def matmul(
    a: _Array,
    b: _Array,
    bias: _Array | None = None,
    *,
    layout_a: _Layout = "normal",
    layout_b: _Layout = "normal",
    activation: str = "linear",
    return_preactivation: Literal[True],
    threads: int = 1,
    poison: bool = False,
) -> tuple[_Array, _Array]: ...
def matmul_gradient(
    dy: _Array,
    a: _Array | None = None,
    b: _Array | None = None,
    saved: _Array | None = None,
    *,
    needed: Sequence[str],
    layout_a: _Layout = "normal",
    layout_b: _Layout = "normal",
    activation: str = "linear",
    a_shape: Sequence[int] | None = None,
    b_shape: Sequence[int] | None = None,
    scales: Mapping[str, float] = ...,
    rows: npt.ArrayLike | None = None,
    regions: Mapping[str, _Region] = ...,
    compact: Sequence[str] = ...,
    threads: int = 1,
    poison: bool = False,
) -> dict[str, _Array]: ...
def plan(
    a_shape: Sequence[int],
    b_shape: Sequence[int],
    *,
    layout_a: _Layout = "normal",
    layout_b: _Layout = "normal",
    activation: str = "linear",
    needed: Sequence[str],
    scales: Mapping[str, float] = ...,
    rows: npt.ArrayLike | None = None,
    regions: Mapping[str, _Region] = ...,
) -> _Plan: ...
def activations() -> dict[str, Literal["nothing", "output", "preactivation"]]: ...
def kernel_stats() -> KernelStats: ...
def reset_kernel_stats() -> None: ...
def build_info() -> BuildInfo: ...

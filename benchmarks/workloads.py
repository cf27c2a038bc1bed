"""What is measured: one table of workloads, and the arrays that they start from.

A workload is a chain of dense layers, one of them in most. Every peer builds it from the same
description and the same arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

# forward    y = network(x)
# backward   the gradients of what learns, from a given upstream gradient; forward ran before
# gradients  forward and backward
# train      forward, a loss, backward, and one step of gradient descent
Kind = Literal["forward", "backward", "gradients", "train"]
# How this package runs it: eager, in a tf.function, or in one that XLA compiles.
Mode = Literal["eager", "function", "xla"]

EAGER: tuple[Mode, ...] = ("eager",)
FUNCTION: tuple[Mode, ...] = ("function",)
XLA: tuple[Mode, ...] = ("xla",)
BOTH: tuple[Mode, ...] = (*EAGER, *FUNCTION)
MODES: tuple[Mode, ...] = (*BOTH, *XLA)

CPU = ("cpu",)
GPU = ("gpu",)
ANY = (*CPU, *GPU)


class Part(NamedTuple):
    """A share of the weights' rows or columns: the last ones, or by index some drawn at random."""

    axis: Literal["rows", "columns"]
    share: float
    by_index: bool = False


def count(extent: int, share: float) -> int:
    """Return how many of so many a share is."""
    return round(extent * share)


@dataclass(frozen=True)
class Layer:
    """`activation(h @ weights + bias)`.

    Attributes
    ----------
    weights
        Shape `[..., k, n]`, or `[..., n, k]` where they are transposed.
    activation
        As `sg.matmul` names it.
    learns
        Whether weights and bias get a gradient.
    trainable
        The part of the weights that learns, a matrix not transposed; the rest gets zeros.
    active_rows
        The share of the output's rows that send a gradient back, as a mask which is read at each
        step; `None` stands for no mask.
    gradient_scale, scaled
        A factor which is read at each step, and what it is for: the weights' gradient, or all.
    """

    weights: Shape
    bias: bool = False
    activation: str = "linear"
    learns: bool = True
    transposed: bool = False
    trainable: Part | None = None
    active_rows: float | None = None
    gradient_scale: float | None = None
    scaled: Literal["weights", "all"] = "all"

    @property
    def is_controlled(self) -> bool:
        """Whether a part of a gradient is switched off or scaled."""
        return (self.trainable, self.active_rows, self.gradient_scale) != (None, None, None)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes
    ----------
    x
        Shape of the input.
    x_learns
        Whether the input gets a gradient, as in a layer with others below it.
    variables
        Whether the weights are variables; else they are tensors, as in a bare product.
    loss
        "squares", their mean, or "difference", which the blog's network has.
    threads
        `None` means as many as the run has.
    group
        Cases of one group are measured in turn with each other, because they are compared; each
        mode in turns of its own.
    devices
        Where it is measured. A size says something on one of them, in most cases.
    """

    suite: str
    name: str
    kind: Kind
    x: Shape
    layers: tuple[Layer, ...]
    modes: tuple[Mode, ...] = BOTH
    dtype: str = "float32"
    x_learns: bool = False
    variables: bool = True
    loss: Literal["squares", "difference"] = "squares"
    rate: float = 0.003  # small enough for no network here to diverge
    threads: int | None = None
    group: str | None = None
    devices: tuple[str, ...] = CPU

    @property
    def key(self) -> str:
        """What names the case."""
        return f"{self.suite}/{self.name}"

    def needs(self, index: int) -> tuple[str, ...]:
        """Return the operands of a layer that need a gradient: of "a", "b" and "bias"."""
        layer = self.layers[index]
        below = self.x_learns or any(below.learns for below in self.layers[:index])
        own = ("b", "bias") if layer.bias else ("b",)
        return (("a",) if below else ()) + (own if layer.learns else ())

    def blocked(self, index: int) -> tuple[str, ...]:
        """Return the others."""
        operands = ("a", "b", "bias") if self.layers[index].bias else ("a", "b")
        return tuple(name for name in operands if name not in self.needs(index))

    @property
    def is_product(self) -> bool:
        """Whether it is a bare product: one layer, forward, no bias and no activation."""
        layer = self.layers[0]
        return (
            self.kind == "forward"
            and len(self.layers) == 1
            and not layer.bias
            and layer.activation == "linear"
        )

    @property
    def flops(self) -> int:
        """Floating-point operations of the products that must run, on what of them must."""
        each = 8 if self.dtype.startswith("complex") else 2
        total, rows = 0, self.x[:-1]
        for index, layer in enumerate(self.layers):
            k, n = layer.weights[-2:]
            if layer.transposed:
                k, n = n, k
            rows = (*np.broadcast_shapes(rows[:-1], layer.weights[:-2]), rows[-1])
            share = 1 if layer.active_rows is None else layer.active_rows
            active = math.prod(rows[:-1]) * count(rows[-1], share)
            learning = {"rows": k, "columns": n}
            if layer.trainable is not None:
                axis, share, _ = layer.trainable
                learning[axis] = count(learning[axis], share)
            backward = {"a": active * k * n, "b": active * math.prod(learning.values())}
            if layer.gradient_scale == 0:
                backward = {"a": backward["a"]} if layer.scaled == "weights" else {}
            if self.kind != "backward":
                total += each * math.prod(rows) * k * n
            if self.kind != "forward":
                total += each * sum(backward.get(name, 0) for name in self.needs(index))
        return total


class Arrays(NamedTuple):
    """What a case starts from; `None` stands for no bias, no mask.

    Attributes
    ----------
    upstream
        Of the output's shape: the gradient that comes from above, or what a loss compares with.
    learning
        For each layer, which of its weights learn: bool, of the weights' shape.
    active
        For each layer, which rows of its output send a gradient back: bool, a vector.
    """

    x: Array
    weights: list[Array]
    biases: list[Array | None]
    upstream: Array
    learning: list[Array | None]
    active: list[Array | None]


def numpy_dtype(name: Any) -> np.dtype[Any]:
    """Return NumPy's dtype of a name, bfloat16 included."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def multiplied_in(dtype: str, device: str) -> str:
    """Return the precision of a dtype's products, which those of complex numbers consist of.

    On a GPU, float32 is TF32: TensorFlow's default, which the other peers are set to.
    """
    part = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    return "tf32" if (part, device) == ("float32", "gpu") else part


# How many random numbers an array has before they repeat, so that large ones are made in no time:
# a prime, so that no two rows are the same.
_DRAWN = 4_194_301


def _draw_mask(random: np.random.Generator, extent: int, share: float) -> Array:
    """Return a mask that is true at random places, so many as the share says."""
    return random.permutation(extent) < count(extent, share)


def _learning_mask(random: np.random.Generator, layer: Layer) -> Array | None:
    if layer.trainable is None:
        return None
    axis, share, by_index = layer.trainable
    k, n = layer.weights
    extent = k if axis == "rows" else n
    if by_index:
        mask = _draw_mask(random, extent, share)
    else:
        mask = np.arange(extent) >= extent - count(extent, share)
    learning: Array = np.empty((k, n), bool)
    learning[:] = mask[:, None] if axis == "rows" else mask
    return learning


def make_arrays(case: Case) -> Arrays:
    """Make random arrays, the same in every process."""
    random = np.random.default_rng(20)
    dtype = numpy_dtype(case.dtype)

    def draw(shape: Shape, scale: float = 1.0) -> Array:
        size = min(math.prod(shape), _DRAWN)
        if dtype.kind == "i":
            return np.resize(random.integers(-8, 8, size).astype(dtype), shape)
        values: Array = random.standard_normal(size, np.float32)
        if dtype.kind == "c":
            values = values + 1j * random.standard_normal(size, np.float32)
        return np.resize(np.asarray(values * np.float32(scale), dtype), shape)

    x = draw(case.x)
    weights, biases, learning, active = [], [], [], []
    rows = case.x[:-1]
    for layer in case.layers:
        k, n = layer.weights[-2:]
        if layer.transposed:
            k, n = n, k
        rows = (*np.broadcast_shapes(rows[:-1], layer.weights[:-2]), rows[-1])
        # With this scale all layers put out numbers about 1, where activations bend.
        weights.append(draw(layer.weights, 1 / math.sqrt(k)))
        biases.append(draw((n,), 0.1) if layer.bias else None)
        learning.append(_learning_mask(random, layer))
        share = layer.active_rows
        active.append(None if share is None else _draw_mask(random, rows[-1], share))
    return Arrays(x, weights, biases, draw((*rows, n)), learning, active)


# --- The table --------------------------------------------------------------------------------

ACTIVATIONS = (
    "linear",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "gelu_tanh",
    "sigmoid",
    "tanh",
    "silu",
    "softplus",
)
# Each suite has more of them, so that a short name tells the size: rows × inputs × units.
DENSE = ((16, 64, 64), (128, 512, 512), (256, 1024, 1024), (512, 768, 3072), (2048, 1024, 1024))
ACTIVATIONS_AT = (256, 1024, 1024)
BARE_AT = (512, 768, 3072)
BLOCKED_AT = DENSE[2:]
DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128", "int32", "int64")
SQUARES = (64, 128, 256, 512, 1024, 2048, 4096)
DEPTHS = (1, 2, 4, 8, 16)
CONTROL_AT = (512, 1024, 1024)
SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 15 / 16, 1)


# On a GPU; float32 is TF32 there.
GPU_DTYPES = ("bfloat16", "float32")
GPU_DENSE = ((8192, 1024, 4096), (8192, 4096, 1024), (8192, 4096, 16384), (8192, 16384, 4096))
GPU_SQUARES = (1024, 2048, 4096, 8192, 16384)
GPU_CONTROL_AT = (8192, 4096, 4096)


class Mlp(NamedTuple):
    """Networks of so many units, each at a batch of rows."""

    widths: str
    batch: int
    activation: str = "relu"
    dtypes: tuple[str, ...] = ("float32",)
    devices: tuple[str, ...] = CPU


_DLRM_TOP = "479-1024-1024-512-256-1"
MLPS = (
    Mlp("784-512-512-10", 128),
    Mlp("784-512-512-10", 1024),
    Mlp(_DLRM_TOP, 2048),
    Mlp("1024-4096-1024", 8192, "gelu", GPU_DTYPES, GPU),
    Mlp("4096-16384-4096", 8192, "gelu", GPU_DTYPES, GPU),
    Mlp(_DLRM_TOP, 32768, "relu", GPU_DTYPES, GPU),
)


def size_name(size: Shape) -> str:
    """Return "16×64×64"."""
    return "×".join(map(str, size))


def _dense(size: Shape, activation: str, kind: Kind, name: str = "", **options: Any) -> Case:
    m, k, n = size
    return Case(
        "dense",
        name or f"{size_name(size)} {activation}, {kind}",
        kind,
        (m, k),
        (Layer((k, n), options.pop("bias", True), activation, options.pop("learns", True)),),
        x_learns=options.pop("x_learns", kind != "forward"),
        **options,
    )


def _dense_suite() -> list[Case]:
    kinds: tuple[Kind, ...] = ("forward", "gradients")
    cases = [
        # The smallest tell what launches cost on a GPU.
        _dense(size, "relu", kind, devices=ANY if size in DENSE[:2] else CPU)
        for size in DENSE
        for kind in kinds
    ]
    cases += [
        _dense(
            size, "gelu", kind, f"{size_name(size)} {dtype} gelu, {kind}", dtype=dtype, devices=GPU
        )
        for size in GPU_DENSE
        for dtype in GPU_DTYPES
        for kind in kinds
    ]
    cases += [
        _dense(ACTIVATIONS_AT, activation, kind, modes=FUNCTION)
        for activation in ACTIVATIONS
        if activation != "relu"  # which is above
        for kind in kinds
    ]
    # What blocking one operand saves of the backward pass, in this package and in others.
    for size in BLOCKED_AT:
        group = f"backward {size_name(size)}"
        cases += [
            _dense(size, "linear", "backward", f"{group}, full", modes=EAGER, group=group),
            _dense(
                size,
                "linear",
                "backward",
                f"{group}, input blocked",
                modes=EAGER,
                group=group,
                x_learns=False,
            ),
            _dense(
                size,
                "linear",
                "backward",
                f"{group}, weights blocked",
                modes=EAGER,
                group=group,
                learns=False,
            ),
        ]
    # What bias and activation add to the product.
    group = f"epilogue {size_name(BARE_AT)}"
    cases.append(
        _dense(BARE_AT, "linear", "forward", f"{group}, bare", modes=EAGER, group=group, bias=False)
    )
    cases += [
        _dense(BARE_AT, name, "forward", f"{group}, {name}", modes=EAGER, group=group)
        for name in ("relu", "gelu")
    ]
    return cases


def _mlp_cases(mlp: Mlp, dtype: str) -> list[Case]:
    sizes = [int(width) for width in mlp.widths.split("-")]
    depth = len(sizes) - 1
    of_dtype = f" {dtype}" if mlp.devices == GPU else ""
    # Half of two layers is all but the head.
    labels = {0: "nothing frozen", depth // 2: "half frozen", depth - 1: "all but the head frozen"}
    cases = []
    for frozen, label in labels.items():
        layers = tuple(
            Layer(
                (sizes[i], sizes[i + 1]),
                bias=True,
                activation=mlp.activation if i < depth - 1 else "linear",
                learns=i >= frozen,
            )
            for i in range(depth)
        )
        name = f"{mlp.widths} at {mlp.batch}{of_dtype}, {label}"
        x = (mlp.batch, sizes[0])
        cases.append(Case("mlp", name, "train", x, layers, dtype=dtype, devices=mlp.devices))
    return cases


def _overhead_suite() -> list[Case]:
    layer = Layer((32, 32), bias=True, activation="relu")
    bare = Layer((32, 32))

    def small(name: str, kind: Kind, layers: tuple[Layer, ...], variables: bool = True) -> Case:
        return Case("overhead", name, kind, (16, 32), layers, variables=variables, devices=ANY)

    return [
        small("16×32×32 relu, forward", "forward", (layer,)),
        small("16×32×32 product", "forward", (bare,), variables=False),
        small("16×32×32 product, variable", "forward", (bare,)),
        *(small(f"tape step, layers: {depth}", "gradients", (layer,) * depth) for depth in DEPTHS),
    ]


def _product(suite: str, name: str, x: Shape, weights: Shape, **options: Any) -> Case:
    layer = Layer(weights, transposed=options.pop("transposed", False))
    return Case(suite, name, "forward", x, (layer,), variables=False, **options)


def _batched_suite() -> list[Case]:
    heads = (32, 12, 128, 64)
    scores = Layer(heads, transposed=True)
    shared = Layer((64, 64))

    def gradients(name: str, layer: Layer) -> Case:
        return Case("batched", name, "gradients", heads, (layer,), x_learns=True, devices=ANY)

    return [
        _product("batched", "queries × keys, forward", heads, heads, transposed=True, devices=ANY),
        gradients("queries × keys, gradients", scores),
        _product("batched", "scores × values, forward", (32, 12, 128, 128), heads, devices=ANY),
        _product("batched", "shared weights, forward", heads, shared.weights, devices=ANY),
        gradients("shared weights, gradients", shared),
    ]


def _control_steps(size: Shape, prefix: str = "", group: str = "control", **of: Any) -> list[Case]:
    """Return a step in which all learns, and those in which a part does."""

    def step(name: str, kind: Kind = "gradients", **control: Any) -> Case:
        return _control_step(size, prefix + name, group, kind, control, **of)

    return [
        step("full step"),
        step("forward alone", "forward"),
        step("a tenth of the columns", trainable=Part("columns", 0.1)),
        step("a tenth of the rows, by index", trainable=Part("rows", 0.1, by_index=True)),
        step("a quarter of the output rows", active_rows=0.25),
        step("98 % of the output rows", active_rows=0.98),
        step("scale 0 on the weights", gradient_scale=0.0, scaled="weights"),
        step("scale 0 on all", gradient_scale=0.0),
    ]


def _control_step(
    size: Shape, name: str, group: str, kind: Kind, control: dict[str, Any], **of: Any
) -> Case:
    m, k, n = size
    # No bias: floors are those of the products alone.
    layer = Layer((k, n), **control)
    learns = kind != "forward"
    return Case("control", name, kind, (m, k), (layer,), x_learns=learns, group=group, **of)


def _control_suite() -> list[Case]:
    def swept(name: str, control: Callable[[float], dict[str, Any]]) -> list[Case]:
        shares = {
            "unrestricted": {},
            **{str(Fraction(share)): control(share) for share in SHARES},
        }
        return [
            _control_step(
                CONTROL_AT, f"{name}: {share}", name, "gradients", of_share, modes=FUNCTION
            )
            for share, of_share in shares.items()
        ]

    return [
        *_control_steps(CONTROL_AT),
        *_control_steps(
            GPU_CONTROL_AT,
            f"{size_name(GPU_CONTROL_AT)} bfloat16, ",
            "control, bfloat16",
            dtype="bfloat16",
            devices=GPU,
        ),
        *swept("output rows active", lambda share: {"active_rows": share}),
        *swept("columns trainable", lambda share: {"trainable": Part("columns", share)}),
    ]


def _memory_suite() -> list[Case]:
    """Return a stack with a head so small that a layer below it holds the most memory."""
    rows, width, depth = 8192, 4096, 8

    def stack(name: str, kind: Kind, frozen: int) -> Case:
        layers = [
            Layer((width, width), bias=True, activation="gelu", learns=i >= frozen)
            for i in range(depth)
        ]
        head = Layer((width, 16), bias=True)
        return Case(
            "memory",
            name,
            kind,
            (rows, width),
            (*layers, head),
            dtype="bfloat16",
            group="memory",
            devices=GPU,
        )

    return [
        stack("inference", "forward", 0),
        stack("all but the head frozen", "train", depth),
        stack("nothing frozen", "train", 0),
    ]


def _xla_suite(suites: Iterable[Suite]) -> list[Case]:
    """Return their cases that run in a `tf.function`, to be compiled; not what sweeps a share.

    They are compared with peers alone, not with each other, so they have no group.
    """
    return [
        replace(case, suite="xla", modes=XLA, group=None)
        for suite in suites
        for case in suite.cases
        if "function" in case.modes and (case.group is None or case.group.startswith("control"))
    ]


@dataclass(frozen=True)
class Suite:
    """Cases under one heading."""

    about: str
    cases: list[Case] = field(default_factory=list)


SUITES = {
    "blog": Suite(
        "A network of two products, the first one blocked: a training step",
        [
            Case(
                "blog",
                "3×2 → 3 → 4, first product blocked",
                "train",
                (3, 2),
                (Layer((2, 3), learns=False), Layer((3, 4))),
                loss="difference",
                rate=1.0,
            )
        ],
    ),
    "dense": Suite(
        "One layer, rows × inputs × units, with a bias: forward, and with all gradients",
        _dense_suite(),
    ),
    "mlp": Suite(
        "Networks: a training step by gradient descent",
        [case for mlp in MLPS for dtype in mlp.dtypes for case in _mlp_cases(mlp, dtype)],
    ),
    "dtypes": Suite(
        "A square product in every dtype, of 512×512 matrices unless it says otherwise",
        [
            *(_product("dtypes", name, (512, 512), (512, 512), dtype=name) for name in DTYPES),
            *(
                _product(
                    "dtypes", f"{name}, 4096³", (4096,) * 2, (4096,) * 2, dtype=name, devices=GPU
                )
                for name in DTYPES
                if not name.startswith("int")  # which TensorFlow multiplies on the CPU
            ),
        ],
    ),
    "batched": Suite("Batches of matrices, 32×12×128×64", _batched_suite()),
    "overhead": Suite("Small work: what a call costs", _overhead_suite()),
    "control": Suite(
        f"One layer, {size_name(CONTROL_AT)} unless it says otherwise, of which a part learns:"
        " forward and gradients",
        _control_suite(),
    ),
    "scaling": Suite(
        "Products of square matrices, on one thread and on all",
        [
            *(
                _product(
                    "scaling",
                    f"{n}³, {'one thread' if threads else 'all threads'}",
                    (n, n),
                    (n, n),
                    threads=threads,
                )
                for threads in (1, None)
                for n in SQUARES
            ),
            *(
                _product("scaling", f"{n}³, {dtype}", (n, n), (n, n), dtype=dtype, devices=GPU)
                for dtype in GPU_DTYPES
                for n in GPU_SQUARES
            ),
        ],
    ),
    "memory": Suite("A stack of eight layers and a small head: how much memory", _memory_suite()),
}

SUITES["xla"] = Suite(
    "The steps of `dense`, `mlp` and `control`, compiled by XLA: this package's ops and stock ones",
    _xla_suite(SUITES[name] for name in ("dense", "mlp", "control")),
)

CASES = {case.key: case for suite in SUITES.values() for case in suite.cases}

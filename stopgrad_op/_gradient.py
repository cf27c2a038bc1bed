"""The gradient of `sg.matmul`: what backward keeps, and which gradient ops it runs."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import tensorflow as tf

from stopgrad_op import _tensorflow
from stopgrad_op._activations import SAVED
from stopgrad_op._library import load_ops
from stopgrad_op._options import OPERANDS, GradientPolicy, MatMulOptions, operand_of

_ops = load_ops()

# What is run eagerly and recorded aside has a gradient of its own.
ASIDE_GRADIENT = "StopgradOp>FusedMatMul/aside"


class Kept(NamedTuple):
    """What backward needs of one call.

    Attributes
    ----------
    options
        Those of the call; of the policy its regions alone.
    learning
        The operands that may get a gradient.
    factors
        a and b; the shape alone where backward does not read the numbers.
    saved
        None or one: y or z, as the activation's derivative wants it.
    scales
        By operand.
    rows
        None or one.
    indices
        By axis.
    bias
        None or one, where a gradient may be differentiated through the activation.
    """

    options: MatMulOptions
    learning: Sequence[str]
    factors: Sequence[tf.Tensor | tf.TensorShape]
    saved: Sequence[tf.Tensor]
    scales: Mapping[str, tf.Tensor]
    rows: Sequence[tf.Tensor]
    indices: Mapping[str, tf.Tensor]
    bias: Sequence[tf.Tensor] = ()


def is_known_zero(scale: tf.Tensor | float) -> bool:
    """Return whether a scale is 0, as far as that is known now."""
    value = scale if isinstance(scale, float) else tf.get_static_value(scale)
    return value is not None and not value


def _is_known(scale: tf.Tensor) -> bool:
    return tf.get_static_value(scale) is not None


@functools.lru_cache(maxsize=4096)
def product_attributes(layout_a: str, layout_b: str, activation: str) -> tuple[str, ...]:
    """Return what both ops take of the options, as names and values in turn, but for defaults."""
    attributes: tuple[str, ...] = ()
    if layout_a != "normal":
        attributes += ("layout_a", layout_a)
    if layout_b != "normal":
        attributes += ("layout_b", layout_b)
    if activation != "linear":
        attributes += ("activation", activation)
    return attributes


@tf.RegisterGradient("StopgradOp>FusedMatMul")
def _recorded_gradient(op: tf.Operation, dy: tf.Tensor | None, *dz: Any) -> list[Any]:
    def names(attribute: str) -> tuple[str, ...]:
        return tuple(tf.compat.as_str(name) for name in op.get_attr(attribute))

    blocked, scaled, indexed = names("blocked"), names("scaled"), names("indexed")
    options = MatMulOptions(
        layout_a=tf.compat.as_str(op.get_attr("layout_a")),
        layout_b=tf.compat.as_str(op.get_attr("layout_b")),
        activation=tf.compat.as_str(op.get_attr("activation")),
        policy=GradientPolicy(
            blocked=blocked,
            sliced=names("sliced"),
            slices=tuple(op.get_attr("slices")),
            indexed=indexed,
            # A tangent is computed by transposing the gradient, which has to be one tensor there.
            indexed_slices=() if _tensorflow.computes_tangents() else names("indexed_slices"),
        ),
    )
    num_operands = 2 + op.get_attr("num_bias")
    num_rows = len(op.get_attr("row_types"))
    inputs = iter(op.inputs)

    def take(count: int) -> list[tf.Tensor]:
        return [next(inputs) for _ in range(count)]

    skipped = _tensorflow.skipped_inputs(op)
    learning = [
        name
        for index, name in enumerate(OPERANDS[:num_operands])
        if name not in blocked and (skipped is None or index not in skipped)
    ]
    operands = take(num_operands)
    kept = Kept(
        options,
        learning,
        factors=operands[:2],
        saved=op.outputs[1:] if options.saves_preactivation else op.outputs[:1],
        scales=dict(zip(scaled, take(len(scaled)), strict=True)),
        rows=take(num_rows),
        indices=dict(zip(indexed, take(len(indexed)), strict=True)),
        bias=operands[2:],
    )
    # Only derivatives of higher order give z a gradient; what tapes give otherwise is zeros.
    if dz and not _tensorflow.is_known_zeros(dz[0]):
        dy, kept = _at_preactivation(dy, dz[0], kept)
    results = run_gradients(learning, dy, kept, all_used=skipped is not None)
    gradients: list[Any] = [results.get(name) for name in OPERANDS[:num_operands]]
    return gradients + [None] * (len(op.inputs) - num_operands)


def _at_preactivation(dy: tf.Tensor | None, dz: tf.Tensor, kept: Kept) -> tuple[tf.Tensor, Kept]:
    """Return all of the gradient at z, `dz` included, and what is left to do behind it."""
    if dy is not None:
        without_rows = kept._replace(rows=[])
        (of_y,) = run_gradient_op(["z"], dy, kept.options.activation, without_rows)
        dz = weigh_rows(of_y, kept.rows) + dz
    options = replace(kept.options, activation="linear")
    return dz, kept._replace(options=options, saved=[], rows=[])


@tf.RegisterGradient(ASIDE_GRADIENT)
def _aside_gradient(op: Any, dy: tf.Tensor) -> list[Any]:
    kept: Kept = _tensorflow.recorded_note(op)
    skipped = _tensorflow.skipped_inputs(op) or ()
    needed = [name for index, name in enumerate(kept.learning) if index not in skipped]
    results = run_gradients(needed, dy, kept, all_used=True)
    return list(map(results.get, kept.learning))


def weigh_rows(dz: tf.Tensor, rows: Sequence[tf.Tensor]) -> tf.Tensor:
    """Multiply by the rows' weights, if there are any; 0 gives zeros whatever comes."""
    if not rows:
        return dz
    r = rows[0][..., tf.newaxis]
    if r.dtype == tf.bool:
        return tf.where(r, dz, tf.zeros_like(dz))
    return tf.where(tf.equal(r, 0), tf.zeros_like(dz), tf.cast(r, dz.dtype) * dz)


def run_gradients(
    needed: list[str], dy: tf.Tensor, kept: Kept, *, all_used: bool
) -> dict[str, tf.Tensor | tf.IndexedSlices]:
    """Return the gradients of the operands that are `needed`.

    With z = a b + bias, y = f(z) and upstream dy:
    dz = r dy f'(z),  da = s_a dz b^H,  db = s_b a^H dz,  dbias = s_bias sum over rows of dz,
    where r are the gradient rows, and outside the region that learns all is 0.
    """
    results: dict[str, Any] = {}
    if kept.scales:
        # A scale that is known to be 0 needs no kernel.
        results = {
            name: _zeros(name, dy, kept)
            for name in needed
            if name in kept.scales and is_known_zero(kept.scales[name])
        }
        needed = [name for name in needed if name not in results]

    def run(needed: Sequence[str], dy: tf.Tensor, activation: str) -> None:
        gradients = run_gradient_op(needed, dy, activation, kept)
        results.update(zip(needed, gradients, strict=True))

    if all_used or len(needed) == 1:
        if needed:
            run(needed, dy, kept.options.activation)
    elif kept.rows or not all(map(_is_known, kept.scales.values())):
        # Nobody knows here which gradients will be used, so each gets a node of its own, and
        # TensorFlow prunes the others away. Each computes dz for itself as it reads it: with a
        # scale of 0, or no row that is not 0, nothing runs then. A node for dz before them would
        # run all the same. The price is a second pass over dy where several are used.
        for name in needed:
            run([name], dy, kept.options.activation)
    else:
        # Here nothing is left out at run time, and the pass over dy is a node before the products.
        products = [name for name in needed if name != "bias"]
        first = [name for name in needed if name == "bias"]
        if products and kept.options.activation != "linear":
            first.append("z")
        if first:
            run(first, dy, kept.options.activation)
        dz = results.get("z", dy)
        for name in products:
            run([name], dz, "linear")
    for name in kept.options.policy.indexed_slices:
        if name in results:
            # The identity, because a compiled function cannot return a constant of the one before
            # it as it got it.
            indices = tf.identity(kept.indices[f"{name}_rows"])
            sizes = _sizes(_factor(name, kept))
            results[name] = tf.IndexedSlices(results[name], indices, sizes)
    return results


def _factor(name: str, kept: Kept) -> tf.Tensor | tf.TensorShape:
    return kept.factors[OPERANDS.index(name)]


def _shape(operand: tf.Tensor | tf.TensorShape) -> tf.TensorShape:
    return operand if isinstance(operand, tf.TensorShape) else operand.shape


def _sizes(operand: tf.Tensor | tf.TensorShape) -> tf.Tensor:
    """Return the shape as a tensor."""
    shape = _shape(operand)
    if shape.is_fully_defined():
        return tf.constant(shape.as_list(), tf.int64)
    return tf.shape(operand, tf.int64)


def _zeros(name: str, dy: tf.Tensor, kept: Kept) -> tf.Tensor:
    """Return the gradient of an operand whose scale is known to be 0."""
    shape = dy.shape[-1:] if name == "bias" else _shape(_factor(name, kept))
    if name in kept.options.policy.indexed_slices:
        shape = kept.indices[f"{name}_rows"].shape.concatenate(shape[1:])

    def sizes() -> Any:
        if shape.is_fully_defined():
            return shape
        sizes = _sizes(dy)[-1:] if name == "bias" else _sizes(_factor(name, kept))
        if name in kept.options.policy.indexed_slices:
            selected = tf.shape(kept.indices[f"{name}_rows"], tf.int64)
            sizes = tf.concat([selected, sizes[1:]], axis=0)
        return sizes

    factors, curved = _read_for(name, dy, kept)
    if any(map(_tensorflow.may_be_differentiated, factors + curved)):
        # A product times 0 has gradients in every order, which are zeros, and so must this. It
        # reads none of the elements of what the product would read: a graph holds none for it.
        zero = functools.reduce(operator.mul, map(_zero_of, factors))
        if curved:
            zero *= tf.exp(tf.add_n(list(map(_zero_of, curved))))
        return tf.broadcast_to(zero, sizes())
    return _tensorflow.run_op(
        "StopgradOp>Zeros",
        (),
        ("T", dy.dtype, "shape", shape),
        lambda: tf.zeros(sizes(), dy.dtype),
    )


def _read_for(name: str, dy: tf.Tensor, kept: Kept) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Return what an operand's gradient is a product of, and what its f' depends on."""
    learning = {
        other: x
        for other, x in zip(OPERANDS, (*kept.factors, *kept.bias), strict=False)
        # What was recorded aside is known by its shape alone: nobody else watches it.
        if other not in kept.options.policy.blocked and not isinstance(x, tf.TensorShape)
    }
    partner = {"a": "b", "b": "a"}.get(name)
    factors = [dy, learning[partner]] if partner in learning else [dy]
    return factors, [] if kept.options.activation == "linear" else list(learning.values())


def _zero_of(x: tf.Tensor) -> tf.Tensor:
    """Return the sum of none of a tensor's elements."""

    def sum_of_none() -> tf.Tensor:
        return tf.reduce_sum(tf.reshape(x, [-1])[:0])

    if tf.executing_eagerly() or x.graph is tf.compat.v1.get_default_graph():
        return sum_of_none()
    # Where backward is another function than forward, the sum is made there, so that it is what
    # forward hands over, and not the tensor. It is made once: while forward grows, TensorFlow
    # builds backward anew.
    known = _tensorflow.notes_of(x.graph)
    if x.ref() not in known:
        with x.graph.as_default():
            known[x.ref()] = sum_of_none()
    return known[x.ref()]


def run_gradient_op(
    needed: Sequence[str], dy: tf.Tensor, activation: str, kept: Kept
) -> list[tf.Tensor]:
    """Run the gradient op with no other inputs than it will read."""
    a, b = kept.factors
    steered: Sequence[str] = needed
    policy = kept.options.policy
    if policy.blocked or kept.scales or policy.sliced or policy.indexed:
        (a, b), steered = _steer_further(needed, kept)
    needs_a, needs_b = "a" in needed, "b" in needed
    shape_a: list[tf.Tensor] = []
    shape_b: list[tf.Tensor] = []
    # The gradient of each factor reads the other one, and of itself the shape. Where one of the two
    # is a matrix, the op knows it without.
    if needs_a != needs_b and _shape(a).rank != 2 and _shape(b).rank != 2:
        if needs_a:
            shape_a = [_sizes(a)]
        else:
            shape_b = [_sizes(b)]
    scaled = [name for name in steered if name in kept.scales]
    options = kept.options
    indices, region_attributes = _regions(steered, kept)
    inputs = (
        dy,
        [a] if needs_b else [],
        [b] if needs_a else [],
        kept.saved if SAVED[activation] != "nothing" else [],
        shape_a,
        shape_b,
        [kept.scales[name] for name in scaled],
        kept.rows,
        indices,
    )
    attributes = (
        *("num_needed", len(needed), "needed", needed),
        *(("scaled", scaled) if scaled else ()),
        *region_attributes,
        *product_attributes(options.layout_a, options.layout_b, activation),
    )
    gradients: list[tf.Tensor] = _tensorflow.run_op(
        "StopgradOp>FusedMatMulGrad",
        inputs,
        attributes,
        lambda: _ops.stopgrad_op_fused_mat_mul_grad(
            *inputs, **dict(zip(attributes[::2], attributes[1::2], strict=True))
        ),
    )
    return gradients


def _steer_further(
    needed: Sequence[str], kept: Kept
) -> tuple[list[tf.Tensor | tf.TensorShape], Sequence[str]]:
    """Return the factors, and the operands of which the op must know how they are steered.

    These are the needed ones, and those that it reads, if it may be differentiated itself: the
    gradient of `a` depends on `b`, and that dependence is blocked, scaled and restricted as `b` is.
    """
    factors, steered = list(kept.factors), list(needed)
    for index, (name, other) in enumerate((("a", "b"), ("b", "a"))):
        if other in needed and _tensorflow.may_be_differentiated(factors[index]):
            if name in kept.options.policy.blocked:
                factors[index] = tf.stop_gradient(factors[index])
            elif name not in steered:
                steered.append(name)
    return factors, steered


def _regions(needed: Sequence[str], kept: Kept) -> tuple[list[tf.Tensor], tuple[Any, ...]]:
    """Return the indices and the attributes of the regions of what is needed."""
    policy = kept.options.policy
    if not (policy.sliced or policy.indexed):
        return [], ()
    sliced = [i for i, axis in enumerate(policy.sliced) if operand_of(axis) in needed]
    indexed = [axis for axis in policy.indexed if operand_of(axis) in needed]
    attributes: dict[str, Any] = {
        "sliced": [policy.sliced[i] for i in sliced],
        "slices": [number for i in sliced for number in policy.slices[3 * i : 3 * i + 3]],
        "indexed": indexed,
        "indexed_slices": [name for name in policy.indexed_slices if name in needed],
    }
    given = tuple(part for item in attributes.items() if item[1] for part in item)
    return [kept.indices[axis] for axis in indexed], given

"""`tf.vectorized_map`, `tape.jacobian` and the like: a batched product in place of a loop.

TensorFlow's parallel for asks what each op becomes where inputs are stacked: they have the loop's
axis in front. That axis becomes one more batch dimension, before those that there are. An input
that is the same in all steps stays as it is, and broadcasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from stopgrad_op import _stock, _tensorflow
from stopgrad_op._gradient import weigh_rows
from stopgrad_op._higher_order import GradientCall
from stopgrad_op._library import load_ops
from stopgrad_op._options import operand_of
from stopgrad_op._restricted import restrict

_ops = load_ops()

_register = _tensorflow.pfor.RegisterPFor
# What the parallel for hands in: a tensor `t`, and whether it `is_stacked`.
Input: TypeAlias = Any

_POLICY = ("blocked", "scaled", "sliced", "slices", "indexed", "indexed_slices")


@_register("StopgradOp>FusedMatMul")
def _convert_product(steps: Any) -> Any:
    inputs = iter(steps.inputs)
    a, b = next(inputs), next(inputs)
    bias, scales, rows, indices = (
        [next(inputs) for _ in range(count)]
        for count in (
            steps.get_attr("num_bias"),
            steps.get_attr("num_scales"),
            len(steps.get_attr("row_types")),
            steps.get_attr("num_indices"),
        )
    )
    attributes = {name: steps.get_attr(name) for name in _POLICY}
    if not _suits([a, b, *bias, *rows], fixed=[*scales, *indices]):
        return _in_a_loop(steps)
    bias_apart = any(x.is_stacked for x in bias)
    if bias_apart and (rows or b"bias" in _operands_of(attributes)):
        return _in_a_loop(steps)
    if not (a.is_stacked or b.is_stacked or bias_apart):  # but the rows are
        steps.stack_inputs([0])
        a = steps.input(0)
    # The gradient of a stacked operand is that of a batch, which has no tf.IndexedSlices.
    attributes["indexed_slices"] = [
        name for name in attributes["indexed_slices"] if not {b"a": a, b"b": b}[name].is_stacked
    ]
    rank = max(_rank(a), _rank(b))
    activation = tf.compat.as_str(steps.get_attr("activation"))
    y, z = _ops.stopgrad_op_fused_mat_mul(
        a=_in_front(a, rank),
        b=_in_front(b, rank),
        bias=[] if bias_apart else [x.t for x in bias],
        scales=[x.t for x in scales],
        rows=[_in_front(x, rank - 1) for x in rows],
        indices=[x.t for x in indices],
        num_z=0 if bias_apart else steps.get_attr("num_z"),
        layout_a=steps.get_attr("layout_a"),
        layout_b=steps.get_attr("layout_b"),
        activation="linear" if bias_apart else activation,
        **attributes,
    )
    if bias_apart:
        # The op has one bias for all of a batch.
        z = [y + _in_front(bias[0], rank)]
        y = _stock.activate(activation, z[0])
        z = z[: steps.get_attr("num_z")]
    return [_tensorflow.pfor.wrap(x, True) for x in (y, *z)]


def _operands_of(attributes: dict[str, Any]) -> set[bytes]:
    """Return the operands that a policy says something about."""
    axes = (*attributes["sliced"], *attributes["indexed"])
    named = {operand_of(tf.compat.as_str(axis)).encode() for axis in axes}
    return named.union(attributes["blocked"], attributes["scaled"])


@_register("StopgradOp>FusedMatMulGrad")
def _convert_gradient(steps: Any) -> Any:
    steps.stack_inputs([0])  # each step has a dz, if only because another input is stacked
    call = GradientCall(steps)
    shapes = [*call.shapes["a"], *call.shapes["b"]]
    if not _suits(
        [call.dy, *call.factors["a"], *call.factors["b"], *call.saved, *call.rows],
        fixed=[*shapes, *call.scales.values(), *call.indices.values()],
    ) or not all(x.t.shape.is_fully_defined() for x in shapes):
        return _in_a_loop(steps)
    gradients = _Gradients(steps, call)
    results = gradients.all()
    return [_tensorflow.pfor.wrap(results[name], True) for name in call.needed]


class _Gradients:
    """The gradients of all steps at once, each with the loop's axis in front.

    An operand that is the same in all steps has a gradient in each, of which the op must be told by
    its shape: given the operand itself, it would add them up. So the gradients of `a` and `b` come
    from one op only where both are stacked.
    """

    def __init__(self, steps: Any, call: GradientCall) -> None:
        self.call = call
        self.rank = _rank(call.dy)
        length = steps.pfor.loop_len_vector
        known = tf.get_static_value(length)
        self.length = tf.cast(length[0], tf.int64) if known is None else int(known[0])
        self.rows = [_in_front(x, self.rank - 1) for x in call.rows]
        self.scales = {name: x.t for name, x in call.scales.items()}
        self.indices = {name: x.t for name, x in call.indices.items()}

    def all(self) -> dict[str, tf.Tensor]:
        """Return the gradients that are needed, by name."""
        call, results = self.call, {}
        factors = [name for name in call.needed if name in ("a", "b")]
        groups: list[list[str]] = [[name] for name in factors]
        if len(factors) == 2 and all(call.factors[name][0].is_stacked for name in factors):
            groups = [factors]
        dz, activation, saved = call.dy.t, call.activation, [x.t for x in call.saved]
        several = len(groups) + len(call.needed) - len(factors) > 1
        if activation != "linear" and (several or not groups or not call.saved[0].is_stacked):
            dz, activation, saved = self._elementwise(), "linear", []
        if "z" in call.needed:
            results["z"] = dz
        if "bias" in call.needed:
            results["bias"] = self._bias(dz)
        for names in groups:
            results.update(self._products(names, dz, activation, saved))
        return results

    def _elementwise(self) -> tf.Tensor:
        """Return dy f'(z) of all rows."""
        call, (saved,) = self.call, self.call.saved

        def run(dy: tf.Tensor) -> tf.Tensor:
            (dz,) = _ops.stopgrad_op_fused_mat_mul_grad(
                dy=dy,
                a=[],
                b=[],
                saved=[saved.t],
                shape_a=[],
                shape_b=[],
                scales=[],
                rows=[],
                indices=[],
                num_needed=1,
                needed=["z"],
                activation=call.activation,
            )
            return dz

        # The derivative of what is the same in all steps is computed once.
        return run(call.dy.t) if saved.is_stacked else call.dy.t * run(tf.ones_like(saved.t))

    def _bias(self, dz: tf.Tensor) -> tf.Tensor:
        dz = weigh_rows(dz, self.rows)
        narrow = dz.dtype in (tf.float16, tf.bfloat16)
        axes = list(range(1, self.rank))
        total = tf.reduce_sum(tf.cast(dz, tf.float32) if narrow else dz, axes)
        return restrict(
            "bias", tf.cast(total, dz.dtype), self.call.policy, self.scales, self.indices
        )

    def _products(
        self, names: Sequence[str], dz: tf.Tensor, activation: str, saved: Sequence[tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        call, policy = self.call, self.call.policy
        # And of the operands that it reads, for derivatives of higher order.
        steered = [*names, *(_other(name) for name in names if _other(name) not in names)]
        sliced = [i for i, axis in enumerate(policy.sliced) if operand_of(axis) in steered]
        indexed = [axis for axis in policy.indexed if operand_of(axis) in steered]
        scaled = [name for name in steered if name in call.scales]
        own = {name: self._shape_of(name) for name in names}
        shapes: dict[str, list[tf.Tensor]] = {"a": [], "b": []}
        for name in names if len(names) == 1 else ():
            other = call.factors[_other(name)][0]
            if other.is_stacked or _rank(other) > 2:  # else the op knows it
                ones = [1] * (self.rank - len(own[name]))
                shapes[name] = [_to_tensor([self.length, *ones, *own[name]])]
        gradients = _ops.stopgrad_op_fused_mat_mul_grad(
            dy=dz,
            a=[_in_front(x, self.rank) for x in call.factors["a"] if "b" in names],
            b=[_in_front(x, self.rank) for x in call.factors["b"] if "a" in names],
            saved=saved,
            shape_a=shapes["a"],
            shape_b=shapes["b"],
            scales=[self.scales[name] for name in scaled],
            rows=self.rows,
            indices=[self.indices[axis] for axis in indexed],
            num_needed=len(names),
            needed=list(names),
            activation=activation,
            scaled=scaled,
            sliced=[policy.sliced[i] for i in sliced],
            slices=[number for i in sliced for number in policy.slices[3 * i : 3 * i + 3]],
            indexed=indexed,
            **call.layouts,
        )
        results = {}
        for name, gradient in zip(names, gradients, strict=True):
            inserted = list(range(1, 1 + self.rank - len(own[name])))
            result = tf.squeeze(gradient, inserted) if inserted else gradient
            if name in policy.indexed_slices:  # a batch has none, and each step has
                result = tf.gather(result, self.indices[f"{name}_rows"], axis=-2)
            results[name] = result
        return results

    def _shape_of(self, name: str) -> list[Any]:
        """Return an operand's extents in each step, numbers or tensors."""
        call = self.call
        if call.factors[name]:
            return _extents(call.factors[name][0])
        if call.shapes[name]:
            shape = call.shapes[name][0].t
            known = tf.get_static_value(shape)
            return tf.unstack(shape) if known is None else [int(extent) for extent in known]
        # As the op finds it: of two batches it would have been told.
        other = call.factors[_other(name)][0]
        dy, of_other = _extents(call.dy), _extents(other)
        batch = dy[:-2] if len(of_other) == 2 else []
        other_is_normal = call.layouts[f"layout_{_other(name)}"] == "normal"
        inner = of_other[-1 if other_is_normal == (name == "b") else -2]
        matrix = [dy[-2], inner] if name == "a" else [inner, dy[-1]]
        return batch + (matrix if call.layouts[f"layout_{name}"] == "normal" else matrix[::-1])


def _other(name: str) -> str:
    return "b" if name == "a" else "a"


def _in_a_loop(steps: Any) -> Any:
    return _tensorflow.pfor._fallback_converter(steps)


def _suits(inputs: Sequence[Input], fixed: Sequence[Input]) -> bool:
    """Return whether one batched op can take these inputs, the `fixed` ones not stacked."""
    return (
        not any(x.is_stacked for x in fixed)
        and not any(x.is_sparse_stacked for x in inputs)
        and all(x.t.shape.rank is not None for x in inputs)
    )


def _rank(x: Input) -> int:
    """Return the rank in each step."""
    return int(x.t.shape.rank) - int(x.is_stacked)


def _in_front(x: Input, rank: int) -> tf.Tensor:
    """Return the tensor with the loop's axis, if it has one, in front of `rank` others."""
    tensor = x.t
    for _ in range(rank - _rank(x) if x.is_stacked else 0):
        tensor = tf.expand_dims(tensor, 1)
    return tensor


def _extents(x: Input) -> list[Any]:
    """Return the shape in each step, of numbers, and tensors where they are not known."""
    extents: list[Any] = x.t.shape.as_list()
    if None in extents:
        sizes = tf.shape(x.t, tf.int64)
        extents = [sizes[i] if extent is None else extent for i, extent in enumerate(extents)]
    return extents[1:] if x.is_stacked else extents


def _to_tensor(extents: Sequence[Any]) -> tf.Tensor:
    if all(isinstance(extent, int) for extent in extents):
        return tf.constant(extents, tf.int64)
    return tf.stack([tf.cast(extent, tf.int64) for extent in extents])

"""`tf.vectorized_map`, `tape.jacobian` and the like: a batched product in place of a loop.

TensorFlow's parallel for asks what each op becomes where inputs are stacked: they have the loop's
axis in front. That axis becomes one more batch dimension, before those that there are. An input
that is the same in all steps stays as it is, and broadcasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from stopgrad_op import _stock, _tensorflow
from stopgrad_op._gradient import weigh_rows
from stopgrad_op._higher_order import GradientCall
from stopgrad_op._library import load_ops
from stopgrad_op._options import GradientPolicy, operand_of
from stopgrad_op._restricted import restrict, steer

_ops = load_ops()

_register = _tensorflow.pfor.RegisterPFor
# What the parallel for hands in: a tensor `t`, and whether it `is_stacked`.
Input: TypeAlias = Any
# A shape or a part of it: numbers, and tensors where they are not known; where their number is not
# known either, one tensor.
Extents: TypeAlias = Any


@_register("StopgradOp>FusedMatMul")
def _convert_product(steps: Any) -> Any:
    def names(attribute: str) -> tuple[str, ...]:
        return tuple(map(tf.compat.as_str, steps.get_attr(attribute)))

    _know_shapes(steps)
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
    if not _suits([a, b, *bias, *scales, *rows], fixed=indices):
        return _in_a_loop(steps)
    policy = GradientPolicy(
        blocked=names("blocked"),
        sliced=names("sliced"),
        slices=tuple(steps.get_attr("slices")),
        indexed=names("indexed"),
    )
    scale_of = dict(zip(names("scaled"), scales, strict=True))
    index_of = {axis: x.t for axis, x in zip(policy.indexed, indices, strict=True)}
    a, b = (_scale_apart(name, x, scale_of) for name, x in (("a", a), ("b", b)))
    # The op has one bias for all of a batch.
    bias_apart = any(x.is_stacked or _is_apart("bias", scale_of) for x in bias)
    if not (a.is_stacked or b.is_stacked or bias_apart):  # but the rows are
        steps.stack_inputs([0])
        a = steps.input(0)
    rank = _larger(_rank(a), _rank(b))
    activation = tf.compat.as_str(steps.get_attr("activation"))
    rows = [_in_front(x, rank - 1) for x in rows]
    in_op = ["a", "b"] if bias_apart else ["a", "b", "bias"]
    y, z = _ops.stopgrad_op_fused_mat_mul(
        a=_in_front(a, rank),
        b=_in_front(b, rank),
        bias=[] if bias_apart else [x.t for x in bias],
        rows=[] if bias_apart else rows,
        num_z=0 if bias_apart else steps.get_attr("num_z"),
        layout_a=steps.get_attr("layout_a"),
        layout_b=steps.get_attr("layout_b"),
        activation="linear" if bias_apart else activation,
        blocked=[name for name in policy.blocked if name in in_op],
        # The gradient of a stacked operand is that of a batch, which has no tf.IndexedSlices.
        indexed_slices=[
            name for name in names("indexed_slices") if not {"a": a, "b": b}[name].is_stacked
        ],
        **_steering(in_op, policy, scale_of, index_of),
    )
    if bias_apart:
        own = bias[0].t if bias[0].is_stacked else bias[0].t[tf.newaxis]
        factors = {name: _in_front(x, 1) for name, x in scale_of.items()}
        own = _tensorflow.pfor.wrap(steer("bias", own, policy, factors, index_of), True)
        z = [y + _in_front(own, rank)]
        y = _stock.activate(activation, z[0])
        frozen = tf.stop_gradient(y)
        # The rows' weights count once: behind the activation, whose derivative they would reach.
        y = frozen + weigh_rows(y - frozen, rows) if rows else y
        z = z[: steps.get_attr("num_z")]
    return [_tensorflow.pfor.wrap(x, True) for x in (y, *z)]


def _is_apart(name: str, scales: Mapping[str, Input]) -> bool:
    """Return whether an operand has a scale of its own in each step, where the op has one."""
    return name in scales and scales[name].is_stacked


def _scale_apart(name: str, x: Input, scales: Mapping[str, Input]) -> Input:
    """Return an operand for each step where its scale is one for each."""
    if not _is_apart(name, scales):
        return x
    own = x.t if x.is_stacked else x.t[tf.newaxis]
    factors = {name: _in_front(scales[name], _rank(x))}
    return _tensorflow.pfor.wrap(steer(name, own, GradientPolicy(), factors, {}), True)


def _steering(
    names: Sequence[str],
    policy: GradientPolicy,
    scales: Mapping[str, Input],
    indices: Mapping[str, tf.Tensor],
) -> dict[str, Any]:
    """Return what an op is told of how some operands are steered, in all steps alike."""
    sliced = [i for i, axis in enumerate(policy.sliced) if operand_of(axis) in names]
    indexed = [axis for axis in policy.indexed if operand_of(axis) in names]
    scaled = [name for name in names if name in scales and not _is_apart(name, scales)]
    return {
        "scales": [scales[name].t for name in scaled],
        "indices": [indices[axis] for axis in indexed],
        "scaled": scaled,
        "sliced": [policy.sliced[i] for i in sliced],
        "slices": [number for i in sliced for number in policy.slices[3 * i : 3 * i + 3]],
        "indexed": indexed,
    }


@_register("StopgradOp>FusedMatMulGrad")
def _convert_gradient(steps: Any) -> Any:
    _know_shapes(steps)
    steps.stack_inputs([0])  # each step has a dz, if only because another input is stacked
    call = GradientCall(steps)
    if not _suits(
        [call.dy, *call.factors["a"], *call.factors["b"], *call.saved, *call.rows],
        fixed=[*call.shapes["a"], *call.shapes["b"], *call.indices.values()],
    ):
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
        self.indices = {name: x.t for name, x in call.indices.items()}
        # What goes back through an operand that is read is scaled as the operand is.
        self.factors = {
            name: [_scale_apart(name, x, call.scales) for x in call.factors[name]]
            for name in ("a", "b")
        }

    def all(self) -> dict[str, tf.Tensor]:
        """Return the gradients that are needed, by name."""
        call, results = self.call, {}
        factors = [name for name in call.needed if name in ("a", "b")]
        groups: list[list[str]] = [[name] for name in factors]
        if len(factors) == 2 and all(self.factors[name][0].is_stacked for name in factors):
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
                rows=self.rows,  # which count in derivatives of higher order alone
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
        axes = tf.range(1, self.rank)
        total = tf.reduce_sum(tf.cast(dz, tf.float32) if narrow else dz, axes)
        scales = {name: _in_front(x, 1) for name, x in self.call.scales.items()}
        return restrict("bias", tf.cast(total, dz.dtype), self.call.policy, scales, self.indices)

    def _products(
        self, names: Sequence[str], dz: tf.Tensor, activation: str, saved: Sequence[tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        call, policy = self.call, self.call.policy
        # And of the operands that it reads, for derivatives of higher order.
        steered = [*names, *(_other(name) for name in names if _other(name) not in names)]
        own = {name: self._shape_of(name) for name in names}
        shapes: dict[str, list[tf.Tensor]] = {"a": [], "b": []}
        for name in names if len(names) == 1 else ():
            other = self.factors[_other(name)][0]
            if other.is_stacked or not _is_matrix(other):  # else the op knows it
                missing = self.rank - _count(own[name])
                shapes[name] = [_to_tensor(_join([self.length], _ones(missing), own[name]))]
        gradients = _ops.stopgrad_op_fused_mat_mul_grad(
            dy=dz,
            a=[_in_front(x, self.rank) for x in self.factors["a"] if "b" in names],
            b=[_in_front(x, self.rank) for x in self.factors["b"] if "a" in names],
            saved=saved,
            shape_a=shapes["a"],
            shape_b=shapes["b"],
            rows=self.rows,
            num_needed=len(names),
            needed=list(names),
            activation=activation,
            **_steering(steered, policy, call.scales, self.indices),
            **call.layouts,
        )
        results = {}
        for name, gradient in zip(names, gradients, strict=True):
            result = self._without_ones(gradient, own[name])
            if _is_apart(name, call.scales):
                factors = {name: _in_front(call.scales[name], _count(own[name]))}
                result = restrict(name, result, GradientPolicy(), factors, {})
            if name in policy.indexed_slices:  # a batch has none, and each step has
                result = tf.gather(result, self.indices[f"{name}_rows"], axis=-2)
            results[name] = result
        return results

    def _without_ones(self, gradient: tf.Tensor, own: Extents) -> tf.Tensor:
        """Return a gradient in an operand's own shape, the loop's axis in front."""
        inserted = self.rank - _count(own)
        if isinstance(inserted, int):
            return tf.squeeze(gradient, list(range(1, 1 + inserted))) if inserted else gradient
        return tf.reshape(gradient, _to_tensor(_join([self.length], own)))

    def _shape_of(self, name: str) -> Extents:
        """Return an operand's shape in each step."""
        call = self.call
        if self.factors[name]:
            return _extents(self.factors[name][0])
        if call.shapes[name]:
            shape = call.shapes[name][0].t
            known = tf.get_static_value(shape)
            if known is not None:
                return [int(extent) for extent in known]
            return tf.unstack(shape) if shape.shape.is_fully_defined() else shape
        # As the op finds it. Where neither operand is known to be a matrix it has been told.
        other = self.factors[_other(name)][0]
        dy, of_other = _extents(call.dy), _extents(other)
        batch = dy[:-2] if _is_matrix(other) else []
        other_is_normal = call.layouts[f"layout_{_other(name)}"] == "normal"
        inner = of_other[-1 if other_is_normal == (name == "b") else -2]
        matrix = [dy[-2], inner] if name == "a" else [inner, dy[-1]]
        is_normal = call.layouts[f"layout_{name}"] == "normal"
        return _join(batch, matrix if is_normal else matrix[::-1])


def _other(name: str) -> str:
    return "b" if name == "a" else "a"


def _in_a_loop(steps: Any) -> Any:
    return _tensorflow.pfor._fallback_converter(steps)


def _know_shapes(steps: Any) -> None:
    """Note of the inputs what was known of them in the loop's body."""
    for x, in_step in zip(steps.inputs, steps.op.inputs, strict=True):
        axis = tf.TensorShape([None] if x.is_stacked else [])
        x.t.set_shape(axis.concatenate(in_step.shape))


def _suits(inputs: Sequence[Input], fixed: Sequence[Input]) -> bool:
    """Return whether one batched op can take these inputs, the `fixed` ones not stacked."""
    return not any(x.is_stacked for x in fixed) and not any(x.is_sparse_stacked for x in inputs)


# --- Ranks and shapes --------------------------------------------------------------------------
# A rank that is not known is a tensor, and so is what is computed from it.
def _rank(x: Input) -> Any:
    """Return the rank in each step."""
    known = x.t.shape.rank
    return (tf.rank(x.t) if known is None else int(known)) - int(x.is_stacked)


def _is_matrix(x: Input) -> bool:
    """Return whether it is known that each step has a matrix."""
    rank = _rank(x)
    return isinstance(rank, int) and rank == 2


def _larger(one: Any, other: Any) -> Any:
    known = isinstance(one, int) and isinstance(other, int)
    return max(one, other) if known else tf.maximum(one, other)


def _in_front(x: Input, rank: Any) -> tf.Tensor:
    """Return the tensor with the loop's axis, if it has one, in front of `rank` others."""
    if not x.is_stacked:
        return x.t
    missing = rank - _rank(x)
    if isinstance(missing, int):
        tensor = x.t
        for _ in range(missing):
            tensor = tf.expand_dims(tensor, 1)
        return tensor
    sizes = tf.shape(x.t, tf.int64)
    return tf.reshape(x.t, tf.concat([sizes[:1], _ones(missing), sizes[1:]], axis=0))


def _extents(x: Input) -> Extents:
    """Return the shape in each step."""
    if x.t.shape.rank is None:
        return tf.shape(x.t, tf.int64)[int(x.is_stacked) :]
    extents: list[Any] = x.t.shape.as_list()
    if None in extents:
        sizes = tf.shape(x.t, tf.int64)
        extents = [sizes[i] if extent is None else extent for i, extent in enumerate(extents)]
    return extents[1:] if x.is_stacked else extents


def _count(extents: Extents) -> Any:
    return len(extents) if isinstance(extents, list) else tf.size(extents)


def _ones(count: Any) -> Extents:
    return [1] * count if isinstance(count, int) else tf.ones([count], tf.int64)


def _join(*parts: Extents) -> Extents:
    if all(isinstance(part, list) for part in parts):
        return [extent for part in parts for extent in part]
    return tf.concat([_to_tensor(part) for part in parts], axis=0)


def _to_tensor(extents: Extents) -> tf.Tensor:
    if not isinstance(extents, list):
        return extents
    if all(isinstance(extent, int) for extent in extents):
        return tf.constant(extents, tf.int64)
    return tf.stack([tf.cast(extent, tf.int64) for extent in extents])

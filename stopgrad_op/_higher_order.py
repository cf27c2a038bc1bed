"""The gradient of the gradient op, made of operations that have gradients themselves.

So derivatives of any order come from one function: the products are those of this package, and what
is elementwise is TensorFlow's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from stopgrad_op import _tensorflow
from stopgrad_op._activations import SAVED, derivative
from stopgrad_op._gradient import Kept, run_gradients, weigh_rows
from stopgrad_op._library import load_ops
from stopgrad_op._options import GradientPolicy, MatMulOptions, operand_of
from stopgrad_op._restricted import restrict

_ops = load_ops()


@tf.RegisterGradient("StopgradOp>FusedMatMulGrad")
def _second_gradient(op: Any, *upstream: Any) -> list[tf.Tensor | None]:
    """Return the gradients of the gradient op's inputs.

    The op computes, with e = dy f'(z) and dz = r e,
    da = s_a dz b^H,  db = s_b a^H dz,  dbias = s_bias sum over rows of dz,  and z's, which is e.
    For upstream ga, gb, gbias and ge let the first three be scaled, and 0 outside their regions.
    What comes of them is then the inner product of dz and
        t = ga b + a gb + gbias,
    which is two products like the forward one. dz gets t; e gets u = r t + ge, and passes it on to
    dy and what f' is read from; a and b get the gradients of the products with upstream dz.
    """
    call = GradientCall(op)
    skipped = _tensorflow.skipped_inputs(op) or ()
    wanted = [index not in skipped for index in range(len(op.inputs))]
    gradients: list[tf.Tensor | None] = [None] * len(op.inputs)
    given = {
        name: call.restrict(name, tf.convert_to_tensor(g))
        for name, g in zip(call.needed, upstream, strict=True)
        if g is not None
    }
    if not given:
        return gradients
    weighted = {name: g for name, g in given.items() if name != "z"}

    # What is elementwise: e, and what comes back through it.
    saved_index = call.first["saved"]
    reads_saved = call.activation != "linear"
    wants_e = wanted[0] or (reads_saved and wanted[saved_index])
    t = call.product(weighted) if weighted and wants_e else None
    with tf.GradientTape() as tape:
        watched = [call.dy, *call.saved] if reads_saved else [call.dy]
        tape.watch(watched)
        e = call.dy
        if reads_saved:
            saved = call.saved[0]
            if SAVED[call.activation] == "output":
                saved = _before_rows(saved, call.rows)
            e = _times_derivative(call.dy, call.activation, saved)
    if wants_e:
        u = given.get("z")
        if t is not None:
            r_t = weigh_rows(t, call.rows)
            u = r_t if u is None else u + r_t
        # The slope of a relu depends on nothing; its gradient is zeros, as that of TensorFlow's is.
        gradients[0], *to_saved = tape.gradient(
            e, watched, output_gradients=u, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        if to_saved:
            gradients[saved_index] = to_saved[0]

    dz = weigh_rows(e, call.rows) if weighted else None
    for name, partner in (("a", "b"), ("b", "a")):
        # The gradient of `a` is a product with b, and so on.
        if name in weighted and wanted[call.first[partner]]:
            gradients[call.first[partner]] = call.gradient_of_factor(partner, weighted[name], dz)
    return gradients


def _before_rows(y: tf.Tensor, rows: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return y as it is before its rows are weighted, which is the same number.

    What f' reads is not the weighted y, but all that comes back to y is multiplied by the weights.
    So it is divided by them here, in every order. Where a weight is 0 nothing comes back.
    """
    if not rows or rows[0].dtype == tf.bool:
        return y
    frozen = tf.stop_gradient(y)
    return frozen + tf.math.divide_no_nan(y - frozen, tf.cast(rows[0], y.dtype)[..., tf.newaxis])


def _times_derivative(dy: tf.Tensor, activation: str, saved: tf.Tensor) -> tf.Tensor:
    """Return dy f'(z), computed in float32 for types of 16 bits, as the kernels do."""
    wide = tf.float32 if dy.dtype in (tf.bfloat16, tf.float16) else dy.dtype
    product = tf.cast(dy, wide) * derivative(activation, tf.cast(saved, wide))
    return tf.cast(product, dy.dtype)


class GradientCall:
    """One gradient op, read back: its inputs and attributes."""

    def __init__(self, op: Any) -> None:
        def names(attribute: str) -> tuple[str, ...]:
            return tuple(map(tf.compat.as_str, _tensorflow.attribute(op, attribute, ())))

        def name_of(attribute: str, default: str) -> str:
            return str(tf.compat.as_str(_tensorflow.attribute(op, attribute, default)))

        def count(attribute: str) -> int:
            return int(_tensorflow.attribute(op, attribute, 0))

        self.needed = names("needed")
        self.activation = name_of("activation", "linear")
        self.policy = GradientPolicy(
            sliced=names("sliced"),
            slices=tuple(_tensorflow.attribute(op, "slices", ())),
            indexed=names("indexed"),
            indexed_slices=names("indexed_slices"),
        )
        self.layouts = {name: name_of(name, "normal") for name in ("layout_a", "layout_b")}
        inputs = list(op.inputs)
        self.first = {"dy": 0}
        at = 1
        lists: dict[str, list[tf.Tensor]] = {}
        for name, length in (
            ("a", count("num_a")),
            ("b", count("num_b")),
            ("saved", count("num_saved")),
            ("shape_a", count("num_shape_a")),
            ("shape_b", count("num_shape_b")),
            ("scales", count("num_scales")),
            ("rows", len(_tensorflow.attribute(op, "row_types", ()))),
            ("indices", count("num_indices")),
        ):
            self.first[name] = at
            lists[name] = inputs[at : at + length]
            at += length
        self.dy: tf.Tensor = inputs[0]
        self.factors = {"a": lists["a"], "b": lists["b"]}
        self.shapes = {"a": lists["shape_a"], "b": lists["shape_b"]}
        self.saved = lists["saved"]
        self.rows = lists["rows"]
        self.scales = dict(zip(names("scaled"), lists["scales"], strict=True))
        self.indices = dict(zip(self.policy.indexed, lists["indices"], strict=True))

    def restrict(self, name: str, g: tf.Tensor) -> tf.Tensor:
        """Return an upstream gradient, scaled and of the operand's shape, 0 outside the region."""
        if name == "z":
            return g
        if name in self.policy.indexed_slices:
            # The rows alone; the columns have no region then.
            rows = self.indices[f"{name}_rows"]
            shape = tf.concat([self._rows_of(name)[tf.newaxis], tf.shape(g, tf.int64)[1:]], axis=0)
            g = tf.scatter_nd(rows[:, tf.newaxis], g, shape)
        return restrict(name, g, self.policy, self.scales, self.indices)

    def _rows_of(self, name: str) -> tf.Tensor:
        """Return how many rows an operand has as it is stored, in int64."""
        if self.factors[name]:
            return tf.shape(self.factors[name][0], tf.int64)[-2]
        if self.shapes[name]:
            return self.shapes[name][0][-2]
        # The other operand or dy has it: `a` is m x k and `b` k x n as they are read.
        normal = self.layouts[f"layout_{name}"] == "normal"
        if name == "a" and normal:
            return tf.shape(self.dy, tf.int64)[-2]
        if name == "b" and not normal:
            return tf.shape(self.dy, tf.int64)[-1]
        other = "b" if name == "a" else "a"
        other_normal = self.layouts[f"layout_{other}"] == "normal"
        k_is_row = other_normal == (other == "b")
        return tf.shape(self.factors[other][0], tf.int64)[-2 if k_is_row else -1]

    def product(self, g: dict[str, tf.Tensor]) -> tf.Tensor:
        """Return ga b + a gb + gbias, of what there is, in the shape of dy."""
        bias = [g["bias"]] if "bias" in g else []
        terms = []
        if "a" in g:
            terms.append(self._multiply(g["a"], self._factor("b"), bias, "b"))
            bias = []
        if "b" in g:
            terms.append(self._multiply(self._factor("a"), g["b"], bias, "a"))
            bias = []
        if not terms:
            return tf.broadcast_to(bias[0], tf.shape(self.dy))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def _factor(self, name: str) -> tf.Tensor:
        return self.factors[name][0]

    def _multiply(self, a: tf.Tensor, b: tf.Tensor, bias: list[tf.Tensor], read: str) -> tf.Tensor:
        """Multiply an upstream gradient by the operand that the op reads, which stays steered."""
        policy = self._policy_of(read)
        y, _ = _ops.stopgrad_op_fused_mat_mul(
            a=a,
            b=b,
            bias=bias,
            scales=[self.scales[name] for name in policy.scaled],
            rows=[],
            indices=[self.indices[axis] for axis in policy.indexed],
            num_z=0,
            scaled=policy.scaled,
            sliced=policy.sliced,
            slices=policy.slices,
            indexed=policy.indexed,
            indexed_slices=policy.indexed_slices,
            **self.layouts,
        )
        return y

    def gradient_of_factor(self, name: str, other: tf.Tensor, dz: tf.Tensor) -> Any:
        """Return the gradient of an operand that the op reads, from its product with `other`."""
        policy = self._policy_of(name)
        options = MatMulOptions(**self.layouts, activation="linear", policy=policy)
        factor = self._factor(name)
        factors = (factor, other) if name == "a" else (other, factor)
        scales = {name: self.scales[name] for name in policy.scaled}
        indices = {axis: self.indices[axis] for axis in policy.indexed}
        kept = Kept(options, [name], factors, [], scales, [], indices)
        return run_gradients([name], dz, kept, all_used=True)[name]

    def _policy_of(self, name: str) -> GradientPolicy:
        """Return the part of the policy that is about one operand."""
        policy = self.policy
        sliced = [i for i, axis in enumerate(policy.sliced) if operand_of(axis) == name]
        compact = name in policy.indexed_slices and not _tensorflow.computes_tangents()
        return GradientPolicy(
            scaled=(name,) if name in self.scales else (),
            sliced=tuple(policy.sliced[i] for i in sliced),
            slices=tuple(x for i in sliced for x in policy.slices[3 * i : 3 * i + 3]),
            indexed=tuple(axis for axis in policy.indexed if operand_of(axis) == name),
            indexed_slices=(name,) if compact else (),
        )

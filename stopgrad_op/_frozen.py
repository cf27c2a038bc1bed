"""`sg.keep_frozen`: a part of a variable that no optimizer changes."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from stopgrad_op._regions import Indices, check_extent, parse_region, select


def keep_frozen(
    variable: Any, region: Any = None, *, trainable: Any = None
) -> keras.constraints.Constraint:
    """Keep a part of a variable as it is now, bit for bit, whatever an optimizer does to it.

    `trainable` of `sg.matmul` makes the gradient of the frozen part exactly zero. That is not
    enough for an optimizer with momentum, Adam's moments or weight decay, which change a weight
    whose gradient is zero: they remember earlier gradients, or shrink every weight. This takes a
    copy of the frozen part, and writes it back after each step.

    Parameters
    ----------
    variable
        `keras.Variable`, such as `layer.kernel` of a built layer, or `tf.Variable`; of rank 1 or
        more and any dtype.
    region
        The part that stays: rows, columns or a rectangle, written as for `trainable` of
        `sg.matmul`. It lies on the last two axes, in each matrix of a batch the same.
    trainable
        Instead of `region`, the part that learns. All else stays.

    Returns
    -------
    keras.constraints.Constraint
        Called with a value of the variable's shape, it returns that value with the frozen part as
        it was. Its `restore()` writes the frozen part back into the variable.

        A `keras.Variable` gets it as its `constraint`, which Keras's optimizers apply at the end
        of every step: in `fit` and in loops of your own, eager, in a `tf.function` and compiled by
        XLA, with loss scaling, gradient accumulation and `tf.distribute`. A constraint that was
        there before is applied first, also that of an earlier call, so that several regions hold.
        A call for a region that is kept already takes the place of the earlier one. To end it, set
        `variable.constraint` to what it was.

        A `tf.Variable` has no such place: call `restore()` after every step of the optimizer.

    Raises
    ------
    TypeError, ValueError
        For what is not a variable with a value and a shape, both or neither of `region` and
        `trainable`, and a region that is wrong or out of range.
    RuntimeError
        In a `tf.function` or graph, where there are no values to copy.

    Notes
    -----
    The copy is as large as the frozen part. At each step the constraint or `restore()` makes a
    copy of the variable, or a few where the frozen part is not rows in a run. To write the frozen
    part alone would cost more: after a sparse or sliced assignment TensorFlow copies the variable
    whenever it is read.

    What is kept are the values of the time of this call. Values that are loaded or assigned later
    last until the next step; call `keep_frozen` again after them. It is no part of a layer's
    configuration either: call it again for a model that was saved and loaded.

    With `use_ema=True` an optimizer overwrites the variable with its moving average, which is
    rounded, and does so at the end of `fit` after all constraints: call `restore()` then, and
    after `finalize_variable_values()` in a loop of your own.

    Examples
    --------
    >>> dense = keras.layers.Dense(16)
    >>> dense.build((None, 100))
    >>> kept = sg.keep_frozen(dense.kernel, np.s_[:90])  # the last ten rows learn
    """
    value = _value(variable)
    if (region is None) == (trainable is None):
        raise ValueError(
            f"`region` and `trainable` are {'both' if region is not None else 'neither'} given;"
            " due is one of them."
        )
    parts = tuple(
        _Part(rows, columns, _copy(value, rows, columns))
        for rows, columns in _frozen_rectangles(value.shape, region, trainable)
    )
    if not isinstance(variable, keras.Variable):
        return KeptFrozen(variable, parts, None)
    variable.constraint = KeptFrozen(variable, parts, _without(variable.constraint, parts))
    return variable.constraint


# Neighbours, or else indices.
_Lines = slice | Indices


class _Part(NamedTuple):
    """A frozen rectangle, and its values of shape `[..., rows, columns]`; a vector has no rows."""

    rows: _Lines | None
    columns: _Lines
    values: tf.Tensor


class KeptFrozen(keras.constraints.Constraint):
    """What `sg.keep_frozen` returns."""

    def __init__(self, variable: Any, parts: tuple[_Part, ...], before: Any) -> None:
        self._variable = variable
        self._parts = parts
        self._before = before

    def __call__(self, w: Any) -> tf.Tensor:
        """Return the value with its frozen part as it was.

        Parameters
        ----------
        w
            Tensor or variable of the variable's shape and dtype.

        Raises
        ------
        ValueError
            If it has another shape.
        """
        if self._before is not None:
            w = self._before(w)
        value = tf.convert_to_tensor(w, dtype=self._variable.dtype)
        if not value.shape.is_compatible_with(self._variable.shape):
            raise ValueError(
                f"`w` has shape {value.shape}; due is that of the variable, {self._variable.shape}."
            )
        return _with_parts(value, self._parts)

    def restore(self) -> None:
        """Write the frozen part back into the variable, at the cost of a copy of the variable."""
        variable = self._variable
        if isinstance(variable, keras.Variable):
            variable = variable.value
        # As a whole: scatter_update or a sliced assign would write less, but TensorFlow then copies
        # the variable whenever it is read, for good.
        variable.assign(_with_parts(tf.convert_to_tensor(variable), self._parts))

    def get_config(self) -> dict[str, Any]:
        """Refuse: it belongs to a variable, and configurations have none."""
        raise NotImplementedError(
            "What sg.keep_frozen returns belongs to its variable and has no configuration. A layer"
            " is saved without it; call sg.keep_frozen again for the layer that was loaded."
        )


def _value(variable: Any) -> tf.Tensor:
    """Check the variable and return its value."""
    if not isinstance(variable, (keras.Variable, tf.Variable)):
        raise TypeError(
            f"`variable` has type {type(variable).__name__}; due is a keras.Variable, such as"
            " `layer.kernel` of a built layer, or a tf.Variable."
        )
    if isinstance(variable, keras.Variable) and variable._value is None:
        raise ValueError(f"`variable` {variable.path} has no value yet; due is one that is built.")
    if not variable.shape.is_fully_defined() or variable.shape.rank == 0:
        raise ValueError(
            f"`variable` has shape {variable.shape}; due is a known one of rank 1 or more."
        )
    value = tf.convert_to_tensor(variable)
    if not hasattr(value, "numpy"):
        raise RuntimeError(
            "sg.keep_frozen copies values, and a tf.function or graph has none while it is traced."
            " Call it outside, in eager mode; what it returns works inside."
        )
    return value


def _frozen_rectangles(
    shape: tf.TensorShape, region: Any, trainable: Any
) -> list[tuple[_Lines | None, _Lines]]:
    """Return the rows and columns of rectangles that are the frozen part."""
    is_vector = shape.rank == 1
    what = f"`{'region' if trainable is None else 'trainable'}` of `variable`"
    due = region if trainable is None else trainable
    num_rows, num_columns = (1 if is_vector else shape[-2]), shape[-1]
    rows, columns = np.arange(num_rows), np.arange(num_columns)
    all_rows, all_columns = rows, columns
    for selection in parse_region(due, what, is_vector=is_vector):
        extent = num_rows if selection.axis == "rows" else num_columns
        check_extent(selection, extent, what)
        if selection.axis == "rows":
            rows = select(selection, extent)
        else:
            columns = select(selection, extent)
    if trainable is None:
        pairs = [(rows, columns)]
    else:
        # All around the part that learns: whole rows, and beside it.
        pairs = [
            (np.setdiff1d(all_rows, rows), all_columns),
            (rows, np.setdiff1d(all_columns, columns)),
        ]
    rectangles = [
        rectangle
        for some_rows, some_columns in pairs
        for rectangle in itertools.product(_runs(some_rows), _runs(some_columns))
    ]
    return [(None if is_vector else rows, columns) for rows, columns in rectangles]


def _runs(indices: Indices) -> list[_Lines]:
    """Return ascending indices as slices, or as they are where that would be many."""
    if not indices.size:
        return []
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    if len(runs) > 2:  # what is left around a slice are two
        return [indices]
    return [slice(int(run[0]), int(run[-1]) + 1) for run in runs]


def _copy(value: tf.Tensor, rows: _Lines | None, columns: _Lines) -> tf.Tensor:
    part = value if rows is None else _take(value, rows, axis=-2)
    # A slice may share the memory of the whole tensor and keep it alive; numpy() copies.
    array = _take(part, columns, axis=-1).numpy()
    with tf.device(value.device):
        return tf.constant(array)


def _without(constraint: Any, parts: tuple[_Part, ...]) -> Any:
    """Return a variable's constraint without what keeps just these parts, with older values."""
    if not isinstance(constraint, KeptFrozen):
        return constraint
    if _are_same(constraint._parts, parts):
        return constraint._before
    return KeptFrozen(constraint._variable, constraint._parts, _without(constraint._before, parts))


def _are_same(parts: tuple[_Part, ...], others: tuple[_Part, ...]) -> bool:
    """Return whether these are the same rectangles, whatever their values."""

    def written(lines: _Lines | None) -> object:
        return lines.tolist() if isinstance(lines, np.ndarray) else lines

    return [(written(part.rows), written(part.columns)) for part in parts] == [
        (written(part.rows), written(part.columns)) for part in others
    ]


def _with_parts(value: tf.Tensor, parts: tuple[_Part, ...]) -> tf.Tensor:
    """Return the value with the parts' values in their places."""
    for part in parts:
        value = _with_part(value, part)
    return value


def _with_part(value: tf.Tensor, part: _Part) -> tf.Tensor:
    if part.rows is None:
        return _replace(value, part.columns, part.values, axis=-1)
    rows = _take(value, part.rows, axis=-2)
    return _replace(value, part.rows, _replace(rows, part.columns, part.values, axis=-1), axis=-2)


def _take(value: tf.Tensor, lines: _Lines, axis: int) -> tf.Tensor:
    if isinstance(lines, slice):
        return value[(..., lines) if axis == -1 else (..., lines, slice(None))]
    return tf.gather(value, lines, axis=axis)


def _replace(value: tf.Tensor, lines: _Lines, values: tf.Tensor, axis: int) -> tf.Tensor:
    """Return the value with others at some places of an axis, by ops that XLA has too."""
    extent = value.shape[axis]
    if isinstance(lines, slice):
        if (lines.start, lines.stop) == (0, extent):
            return values
        before = _take(value, slice(0, lines.start), axis)
        behind = _take(value, slice(lines.stop, extent), axis)
        return tf.concat([before, values, behind], axis)
    source = np.arange(extent)
    source[lines] = extent + np.arange(lines.size)
    return tf.gather(tf.concat([value, values], axis), source, axis=axis)

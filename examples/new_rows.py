"""New rows of an embedding-like matrix learn, while the old ones stay bit for bit.

A vocabulary gets new words. The bag of words of a text times the matrix is its embedding, so a word
has a row. `trainable={"b": rows}` computes the gradient of the new rows alone, which is a product
of that size; AdamW's weight decay shrinks the old rows all the same, unless `sg.keep_frozen` keeps
them. With `sg.rows(..., indexed_slices=True)` the gradient is a `tf.IndexedSlices`.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import stopgrad_op as sg

OLD, NEW, WIDTH, TEXTS = 900, 100, 64, 256


class Result(NamedTuple):
    """What `main` returns of one way of training."""

    old_is_the_same: bool
    new_rows_moved: int
    first_loss: float
    last_loss: float
    gradient: str


def train(steps: int, region: Any, kept: bool) -> Result:
    """Train the new rows towards given embeddings of random texts."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    texts = rng.poisson(0.02, (TEXTS, OLD + NEW)).astype(np.float32)  # how often a word is there
    due = rng.standard_normal((TEXTS, WIDTH)).astype(np.float32)
    table = keras.Variable(rng.standard_normal((OLD + NEW, WIDTH)) / 4, dtype="float32")
    before = table.numpy()
    if kept:
        sg.keep_frozen(table, trainable=region)
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.01)
    optimizer.build([table])

    @tf.function
    def step() -> tuple[tf.Tensor, Any]:
        with tf.GradientTape() as tape:
            embeddings = sg.matmul(texts, table, trainable={"b": region})
            loss = tf.reduce_mean((embeddings - due) ** 2)
        gradient = tape.gradient(loss, table.value)
        optimizer.apply([gradient], [table])
        return loss, gradient

    losses, gradients = zip(*(step() for _ in range(steps)), strict=True)
    after = table.numpy()
    return Result(
        old_is_the_same=after[:OLD].tobytes() == before[:OLD].tobytes(),
        new_rows_moved=int(np.any(after[OLD:] != before[OLD:], axis=1).sum()),
        first_loss=float(losses[0]),
        last_loss=float(losses[-1]),
        gradient=type(gradients[0]).__name__,
    )


def main(steps: int = 200) -> dict[str, Result]:
    """Print a table and return it."""
    new = range(OLD, OLD + NEW)
    results = {
        "a slice, not kept": train(steps, np.s_[OLD:], kept=False),
        "a slice, kept": train(steps, np.s_[OLD:], kept=True),
        "rows by index, kept": train(steps, sg.rows(new), kept=True),
        "IndexedSlices, kept": train(steps, sg.rows(new, indexed_slices=True), kept=True),
    }
    print(f"{'trainable':20s}  {'old rows':9s}  new rows that moved  loss")
    for name, result in results.items():
        old = "the same" if result.old_is_the_same else "changed"
        loss = f"{result.first_loss:.2f} -> {result.last_loss:.2f}"
        print(f"{name:20s}  {old:9s}  {result.new_rows_moved:19d}  {loss}")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    main(**vars(parser.parse_args()))

"""A layer that is frozen and thawed by a variable: one trace, and no product while it is frozen."""

from __future__ import annotations

import argparse

import tensorflow as tf

import stopgrad_op as sg


def main(steps: int = 6) -> list[tuple[float, int]]:
    """Freeze the first layer in every other pair of steps; return each scale and its products."""
    tf.random.set_seed(1)
    x, due = tf.random.normal((64, 32)), tf.random.normal((64, 8))
    w1, w2 = tf.Variable(tf.random.normal((32, 16)) / 6), tf.Variable(tf.random.normal((16, 8)) / 4)
    scale = tf.Variable(1.0)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            hidden = sg.matmul(x, w1, activation="relu", gradient_scale={"b": scale})
            loss = tf.reduce_mean((sg.matmul(hidden, w2) - due) ** 2)
        for w, gradient in zip((w1, w2), tape.gradient(loss, (w1, w2)), strict=True):
            w.assign_sub(0.5 * gradient)
        return loss

    print("step  scale of w1  products in backward  loss")
    results = []
    for number in range(steps):
        scale.assign(1.0 if number // 2 % 2 == 0 else 0.0)
        sg.reset_kernel_stats()
        loss = step()
        products = sg.kernel_stats()["backward"]["products"]
        results.append((float(scale), products))
        print(f"{number:4d} {results[-1][0]:12.0f} {products:21d}  {loss:.3f}")
    assert step.experimental_get_tracing_count() == 1
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    main(**vars(parser.parse_args()))

"""Domain-adversarial training: labels of one domain, and a classifier that works on another.

Two moons have labels; the same moons, turned, have none. A head that tells the domains apart sends
its gradient back reversed, so that the features become such that it cannot. The reversal is
`gradient_scale={"a": -strength}` of the product that reads the features; the strength is a variable
that grows during training, and is read at each step: one trace.

Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 17 (2016), whose schedule of
the strength this takes.
"""

from __future__ import annotations

import argparse
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

import stopgrad_op as sg

Array = npt.NDArray[np.float32]

TURN = 35  # degrees between the domains
POINTS = 150  # of each domain
WIDTH = 32


def moons(rng: np.random.Generator, count: int, turn: float = 0) -> tuple[Array, Array]:
    """Return points of two half circles that reach into each other, and which one each is of."""
    label = np.arange(count) % 2
    angle = np.pi * rng.random(count)
    x = np.stack([np.cos(angle), np.sin(angle)], 1)
    x = np.where(label[:, None] == 1, [1, 0.5] - x, x) - [0.5, 0.25]
    x += 0.1 * rng.standard_normal(x.shape)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return (x @ [[cos, sin], [-sin, cos]]).astype(np.float32), label[:, None].astype(np.float32)


class Network:
    """Features, and on them a head for the label and one for the domain."""

    def __init__(self, strength: tf.Variable) -> None:
        self.strength = strength
        self.sizes = {"features": (2, WIDTH), "label": (WIDTH, 1)}
        self.sizes |= {"hidden": (WIDTH, WIDTH), "domain": (WIDTH, 1)}
        start = keras.initializers.GlorotUniform()
        self.w = {name: tf.Variable(start(size)) for name, size in self.sizes.items()}
        self.b = {name: tf.Variable(tf.zeros(size[1])) for name, size in self.sizes.items()}

    def layer(self, x: Any, name: str, activation: str | None = None, **options: Any) -> tf.Tensor:
        """Return one layer's output."""
        return sg.matmul(x, self.w[name], bias=self.b[name], activation=activation, **options)

    def label(self, features: tf.Tensor) -> tf.Tensor:
        """Return the logit of the label."""
        return self.layer(features, "label")

    def domain(self, features: tf.Tensor) -> tf.Tensor:
        """Return the logit of the domain; what it sends back is reversed."""
        reverse = {"a": -self.strength}
        return self.layer(self.layer(features, "hidden", "relu", gradient_scale=reverse), "domain")


def train(seed: int, steps: int, adversarial: bool) -> tuple[float, float, int]:
    """Return the accuracies on source and target after training, and the number of traces."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    (source, labels), (target, unseen) = moons(rng, POINTS), moons(rng, POINTS, TURN)
    both = np.concatenate([source, target])
    domains = np.repeat(np.array([[0], [1]], np.float32), POINTS, axis=0)
    strength = tf.Variable(0.0)
    network = Network(strength)
    variables = [*network.w.values(), *network.b.values()]
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(variables)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            features = network.layer(both, "features", "tanh")
            wrong = loss(labels, network.label(features[:POINTS]))
            wrong += loss(domains, network.domain(features))
        optimizer.apply(tape.gradient(wrong, variables), variables)

    for number in range(steps):
        if adversarial:
            strength.assign(2 / (1 + np.exp(-10 * number / steps)) - 1)
        step()

    def accuracy(x: Array, y: Array) -> float:
        return float(np.mean((network.label(network.layer(x, "features", "tanh")) > 0) == (y > 0)))

    return accuracy(source, labels), accuracy(target, unseen), step.experimental_get_tracing_count()


def main(steps: int = 2000, seeds: int = 3) -> list[tuple[float, float]]:
    """Print a table and return the target's accuracies, without reversal and with it."""
    print(f"accuracy on moons turned by {TURN} degrees, which had no labels")
    print("seed  without reversal  with reversal")
    results = []
    for seed in range(seeds):
        (_, plain, _), (_, adapted, traces) = (train(seed, steps, on) for on in (False, True))
        assert traces == 1
        results.append((plain, adapted))
        print(f"{seed:4d} {plain:17.3f} {adapted:14.3f}")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    main(**vars(parser.parse_args()))

"""What `python -m stopgrad_op demo` shows, and checks while it shows it.

First two matrix products, of which the first is blocked, as a TF1 graph, eager and in a
`tf.function`; then a small network that learns to read handwritten digits and goes on learning
with its first layer frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

import stopgrad_op as sg

Floats = npt.NDArray[np.float32]

# The op has a kernel for the CPU so far. What it is compared with runs there too, since a GPU adds
# up in another order.
DEVICE = "CPU:0"

# --- One step of gradient descent, in three modes ---------------------------------------------

# Multiples of 2^-24 that add up to 0.32864934 in every order without rounding: whoever does the
# sums, and in whatever order, w2 must come out the same to the last bit.
X: Floats = np.array([[0.25, -0.5], [0.125, 0.57864934], [-0.375, 0.25]], np.float32)
Y: Floats = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
W1: Floats = np.ones((2, 3), np.float32)
W2: Floats = np.ones((3, 4), np.float32)
RATE = 1.0
W2_AFTER = np.float32(0.67135066)  # 1 - RATE * sum(X)

OURS = "sg.matmul(x, w1, stop_gradient=True)"
STOCK = "tf.stop_gradient(tf.matmul(x, w1))"


class Weights(NamedTuple):
    """The two weights as arrays."""

    w1: Floats
    w2: Floats


class Mode(NamedTuple):
    """One way of running TensorFlow: its name, and what makes a step of gradient descent in it."""

    name: str
    step: Callable[[Callable[..., Any]], Weights]


def blocked_in_the_op(x: Any, w1: Any, w2: Any) -> Any:
    """Return the network's output; its first product is blocked."""
    hidden = sg.matmul(x, w1, stop_gradient=True)
    return sg.matmul(hidden, w2)


def blocked_by_tensorflow(x: Any, w1: Any, w2: Any) -> Any:
    """Return the same of stock TensorFlow."""
    hidden = tf.stop_gradient(tf.matmul(x, w1))
    return tf.matmul(hidden, w2)


def step_in_graph(network: Callable[..., Any]) -> Weights:
    """Make one step in a TF1 graph and return the weights after it."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), tf.device(DEVICE), v1.Session() as session:
        x = v1.placeholder(tf.float32, X.shape)
        y = v1.placeholder(tf.float32, Y.shape)
        w1 = v1.Variable(W1)
        w2 = v1.Variable(W2)
        loss = network(x, w1, w2) - y
        train = v1.train.GradientDescentOptimizer(RATE).minimize(loss)
        session.run(v1.global_variables_initializer())
        session.run(train, {x: X, y: Y})
        return Weights(*session.run([w1, w2]))


def _descend(network: Callable[..., Any], variables: list[Any]) -> None:
    with tf.GradientTape() as tape:
        loss = network(X, *variables) - Y
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        if gradient is not None:  # as an optimizer does with what is blocked
            variable.assign_sub(RATE * gradient)


def step_eagerly(network: Callable[..., Any]) -> Weights:
    """Make one step in eager mode and return the weights after it."""
    with tf.device(DEVICE):
        variables = [tf.Variable(W1), tf.Variable(W2)]
        _descend(network, variables)
    return Weights(*(variable.numpy() for variable in variables))


def step_in_function(network: Callable[..., Any]) -> Weights:
    """Make one step in a `tf.function` and return the weights after it."""
    with tf.device(DEVICE):
        variables = [tf.Variable(W1), tf.Variable(W2)]
        tf.function(lambda: _descend(network, variables))()
    return Weights(*(variable.numpy() for variable in variables))


MODES = (
    Mode("TF1 graph in a tf.compat.v1.Session", step_in_graph),
    Mode("eager, with a tf.GradientTape", step_eagerly),
    Mode("in a tf.function", step_in_function),
)


def same_bits(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    """Return whether two arrays are equal bit for bit; `==` would let -0.0 pass for 0.0."""
    return (left.shape, left.dtype, left.tobytes()) == (right.shape, right.dtype, right.tobytes())


def check_step(mode: str, ours: Weights, stock: Weights) -> list[str]:
    """Return what is wrong with the weights after the step, a line each."""
    wrong = []
    if not same_bits(ours.w1, W1):
        wrong.append(f"{mode}: the blocked w1 moved from ones to {ours.w1.tolist()}")
    if not same_bits(ours.w2, stock.w2):
        wrong.append(f"{mode}: w2 is {ours.w2.tolist()}, stock TensorFlow's {stock.w2.tolist()}")
    if not same_bits(ours.w2, np.full_like(W2, W2_AFTER)):
        wrong.append(f"{mode}: w2 is {ours.w2.tolist()} and not {W2_AFTER!s} everywhere")
    return wrong


def _print_beside(label: str, *matrices: Floats) -> None:
    """Print matrices beside each other, each in a column that fits 4 numbers."""
    for i, rows in enumerate(zip(*matrices, strict=True)):
        cells = (" ".join(f"{value:<10.8g}" for value in row) for row in rows)
        line = " ".join(f"{cell:<44}" for cell in cells)
        print(f"  {label if i == 0 else '':<2}  {line}".rstrip())


def demonstrate_step() -> list[str]:
    """Print weights before and after one step in every mode; return what is wrong."""
    print("1. Two products, the first one blocked: one step of gradient descent")
    print()
    print("   hidden = x @ w1   blocked         x [3, 2], its elements sum to", X.sum())
    print("   output = hidden @ w2              loss = output - y, rate 1")
    print()
    print("before, in every mode")
    _print_beside("w1", W1)
    _print_beside("w2", W2)
    wrong = []
    for mode in MODES:
        ours = mode.step(blocked_in_the_op)
        stock = mode.step(blocked_by_tensorflow)
        print()
        print(f"after, {mode.name}")
        print(f"      {OURS:<44} {STOCK}")
        _print_beside("w1", ours.w1, stock.w1)
        _print_beside("w2", ours.w2, stock.w2)
        wrong += check_step(mode.name, ours, stock)
    if not wrong:
        print()
        print(f"w1 is still ones, bit for bit; w2 is {W2_AFTER!s} everywhere, bit for bit as")
        print("in stock TensorFlow.")
    return wrong


# --- A network on real data -------------------------------------------------------------------

SEED = 20
TRAIN_IMAGES = 1500  # of 1797; the others measure accuracy
BATCH = 125
HIDDEN = 64
EPOCHS = 10
LEARNING_RATE = 0.1
# Both stages reach 0.94 and more, and guessing 0.1.
LEAST_ACCURACY = 0.9


@dataclass
class Digits:
    """Images of 64 pixels from 0 to 1, and the digits that they show."""

    train_images: Floats
    train_labels: npt.NDArray[np.int32]
    test_images: Floats
    test_labels: npt.NDArray[np.int32]


def load_digits() -> Digits:
    """Load scikit-learn's handwritten digits, shuffled and split.

    Raises
    ------
    ModuleNotFoundError
        Where scikit-learn is not installed.
    """
    import sklearn.datasets

    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(images))
    images = (images[order] / 16).astype(np.float32)
    labels = labels[order].astype(np.int32)
    train, test = slice(TRAIN_IMAGES), slice(TRAIN_IMAGES, None)
    return Digits(images[train], labels[train], images[test], labels[test])


class Network:
    """Two dense layers."""

    def __init__(self) -> None:
        random = np.random.default_rng(SEED)

        def variable(rows: int, cols: int) -> Any:
            values = random.standard_normal((rows, cols)) * np.sqrt(2 / rows)
            return tf.Variable(values, dtype=tf.float32)

        self.weights = {
            "w1": variable(64, HIDDEN),
            "b1": tf.Variable(tf.zeros(HIDDEN)),
            "w2": variable(HIDDEN, 10),
            "b2": tf.Variable(tf.zeros(10)),
        }

    def logits(self, images: Any, freeze_first: bool = False) -> Any:
        """Return the logarithm of how likely each digit is, up to a constant."""
        w = self.weights
        hidden = sg.matmul(
            images, w["w1"], bias=w["b1"], activation="relu", stop_gradient=freeze_first
        )
        return sg.matmul(hidden, w["w2"], bias=w["b2"])

    def loss(self, images: Any, labels: Any, freeze_first: bool = False) -> Any:
        """Return the mean cross-entropy."""
        logits = self.logits(images, freeze_first)
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        )

    def accuracy(self, digits: Digits) -> float:
        """Return which part of the test images is read rightly."""
        read = np.argmax(self.logits(digits.test_images), axis=1)
        return float(np.mean(read == digits.test_labels))

    def values(self) -> dict[str, Floats]:
        """Return a copy of the weights."""
        return {name: weight.numpy() for name, weight in self.weights.items()}


class Work(NamedTuple):
    """What one step of training ran."""

    forward_products: float
    forward_flops: float
    backward_products: float
    backward_flops: float


class Stage(NamedTuple):
    """What a stage of training led to.

    Attributes
    ----------
    loss
        On all training images.
    accuracy
        On the test images.
    changes
        The largest change of an element of each weight.
    """

    loss: float
    accuracy: float
    changes: Mapping[str, float]
    work: Work


def train(network: Network, digits: Digits, freeze_first: bool) -> Stage:
    """Train for some epochs and say what happened."""
    weights = list(network.weights.values())

    @tf.function
    def step(images: Any, labels: Any) -> None:
        with tf.GradientTape() as tape:
            loss = network.loss(images, labels, freeze_first)
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            if gradient is not None:
                weight.assign_sub(LEARNING_RATE * gradient)

    before = network.values()
    random = np.random.default_rng(SEED)
    steps = 0
    sg.reset_kernel_stats()
    for _ in range(EPOCHS):
        for batch in random.permutation(TRAIN_IMAGES).reshape(-1, BATCH):
            step(tf.constant(digits.train_images[batch]), tf.constant(digits.train_labels[batch]))
            steps += 1
    stats = sg.kernel_stats()
    after = network.values()
    return Stage(
        loss=float(network.loss(digits.train_images, digits.train_labels)),
        accuracy=network.accuracy(digits),
        changes={name: float(np.max(np.abs(after[name] - before[name]))) for name in before},
        work=Work(
            stats["forward"]["products"] / steps,
            stats["forward"]["flops"] / steps,
            stats["backward"]["products"] / steps,
            stats["backward"]["flops"] / steps,
        ),
    )


def check_training(
    learned: Mapping[str, Floats],
    final: Mapping[str, Floats],
    trained: Stage,
    frozen: Stage,
) -> list[str]:
    """Return what is wrong with the training, a line each.

    Parameters
    ----------
    learned, final
        The weights after the first and after the second stage.
    trained, frozen
        The stage in which everything learned, and the one with the first layer frozen.
    """
    wrong = []
    for name in ("w1", "b1"):
        if not same_bits(learned[name], final[name]):
            wrong.append(f"the frozen {name} moved, by up to {frozen.changes[name]:.3g}")
    for name in ("w2", "b2"):
        if same_bits(learned[name], final[name]):
            wrong.append(f"{name} did not move, though it should go on learning")
    for what, stage in (("everything learned", trained), ("the first layer was frozen", frozen)):
        if stage.accuracy < LEAST_ACCURACY:
            wrong.append(f"accuracy is {stage.accuracy:.3f} after {what}, below {LEAST_ACCURACY}")
    if frozen.loss >= trained.loss:
        wrong.append(f"the head learned nothing: loss {trained.loss:.4f} became {frozen.loss:.4f}")
    for what, with_block, without in (
        ("products", frozen.work.backward_products, trained.work.backward_products),
        ("flops", frozen.work.backward_flops, trained.work.backward_flops),
    ):
        if with_block >= without:
            wrong.append(
                f"backward ran {with_block:g} {what} a step with the first layer frozen, and"
                f" {without:g} without"
            )
    return wrong


def demonstrate_training(digits: Digits) -> list[str]:
    """Print what two stages of training did; return what is wrong."""
    print("2. A network that reads handwritten digits: everything learns, then the head alone")
    print()
    print("   hidden = sg.matmul(images, w1, bias=b1, activation='relu', stop_gradient=frozen)")
    print("   logits = sg.matmul(hidden, w2, bias=b2)")
    print(f"   images [{BATCH}, 64], w1 [64, {HIDDEN}], w2 [{HIDDEN}, 10];", end=" ")
    print(f"{len(digits.test_images)} other images measure accuracy")
    print()
    with tf.device(DEVICE):
        network = Network()
        loss = float(network.loss(digits.train_images, digits.train_labels))
        accuracy = network.accuracy(digits)
        trained = train(network, digits, freeze_first=False)
        learned = network.values()
        frozen = train(network, digits, freeze_first=True)
        final = network.values()
    width = 32
    names = tuple(network.weights)
    print(f"{'':{width}}{'loss':>7}{'accuracy':>10}    largest change of an element")
    print(f"{'':{width}}{'':17}{''.join(f'{name:>9}' for name in names)}")
    print(f"{'before training':{width}}{loss:>7.3f}{accuracy:>10.3f}")
    for label, stage in (
        (f"{EPOCHS} epochs, everything learns", trained),
        (f"{EPOCHS} more, first layer frozen", frozen),
    ):
        changes = "".join(f"{stage.changes[name]:>9.3g}" for name in names)
        print(f"{label:{width}}{stage.loss:>7.3f}{stage.accuracy:>10.3f}{changes}")
    print()
    print(f"{'':{width}}{'forward':<26}backward")
    print(f"{'what one step really ran':{width}}{'products   Mflop':<26}products   Mflop")
    for label, stage in (("everything learns", trained), ("first layer frozen", frozen)):
        work = stage.work
        print(
            f"{label:{width}}{work.forward_products:>8g}{work.forward_flops / 1e6:>8.2f}"
            f"{'':10}{work.backward_products:>8g}{work.backward_flops / 1e6:>8.2f}"
        )
    wrong = check_training(learned, final, trained, frozen)
    if not wrong:
        print()
        saved = 1 - frozen.work.backward_flops / trained.work.backward_flops
        print("The frozen w1 and b1 are the same, bit for bit. Their products did not run, nor did")
        print(f"those on the way to them: {saved:.0%} of the backward pass's arithmetic is gone.")
    return wrong


def run_demo() -> list[str]:
    """Print the demonstration and return what in it is wrong, a line each."""
    wrong = demonstrate_step()
    print()
    try:
        digits = load_digits()
    except ModuleNotFoundError as error:
        if error.name not in ("sklearn", "sklearn.datasets"):
            raise
        return [
            *wrong,
            "the second part needs scikit-learn; type: pip install 'stopgrad_op[demo]'",
        ]
    return wrong + demonstrate_training(digits)

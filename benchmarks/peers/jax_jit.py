"""JAX under `jax.jit`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peers import LONG_STEP, Work
from workloads import Array, Arrays, Case, Mode

# What JAX calls the devices. It computes on the first that it has.
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu"}

_ACTIVATIONS = {
    "linear": lambda z: z,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.2),
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
}


def _scaled(s: Any, array: Any) -> Any:
    """Multiply the gradient."""
    return s * array + jax.lax.stop_gradient((1 - s) * array)


def _selected(mask: Any, array: Any) -> Any:
    """Let the gradient through where the mask is true."""
    return jnp.where(mask, array, jax.lax.stop_gradient(array))


class Peer:
    """Functions of arrays; what does not learn is not differentiated.

    What learns in part goes through `jnp.where` and `jax.lax.stop_gradient`.
    """

    def __init__(self, name: str, threads: int, device: str) -> None:
        # Its thread pool has as many threads as the process has processors, which the worker set.
        del name, threads
        self.platforms = PLATFORMS[device]
        jax.config.update("jax_platforms", self.platforms)
        jax.config.update("jax_enable_x64", True)
        if device == "gpu":
            jax.config.update("jax_default_matmul_precision", "tensorfloat32")
        # Calls return before their results are there. On the CPU, where other frameworks wait, each
        # call waits here too, or several would share the processors.
        self.each: Callable[[Any], Any] = jax.block_until_ready if device == "cpu" else lambda y: y

    def missing(self) -> str:
        """Return whether JAX has the device."""
        try:
            jax.devices(self.platforms.partition(",")[0])
        except RuntimeError as error:
            return f"JAX sees no GPU: {error}"
        return ""

    def supports(self, case: Case) -> bool:
        """Leave out a backward pass alone, which is no function of its own under `jax.jit`."""
        return case.kind != "backward"

    def build(self, case: Case, mode: Mode, arrays: Arrays) -> Work:
        """Build the case."""
        del mode
        x, upstream = map(jnp.asarray, (arrays.x, arrays.upstream))
        rate, long_step = (jnp.asarray(value, x.dtype) for value in (case.rate, LONG_STEP))
        learning: dict[str, Any] = {}
        frozen: dict[str, Any] = {}
        for index, (layer, w, b) in enumerate(
            zip(case.layers, arrays.weights, arrays.biases, strict=True)
        ):
            parameters = learning if layer.learns else frozen
            parameters[f"dw{index}"] = jnp.asarray(w)
            if b is not None:
                parameters[f"db{index}"] = jnp.asarray(b)
            # What is given to the function may be another array at each step.
            if layer.gradient_scale is not None:
                frozen[f"scale{index}"] = jnp.asarray(layer.gradient_scale, x.dtype)
            if arrays.active[index] is not None:
                frozen[f"active{index}"] = jnp.asarray(arrays.active[index])
        masks = [None if mask is None else jnp.asarray(mask) for mask in arrays.learning]

        def call(learning: Any, frozen: Any, h: Any) -> Any:
            parameters = {**learning, **frozen}
            for index, layer in enumerate(case.layers):
                w = parameters[f"dw{index}"]
                scale = parameters.get(f"scale{index}")
                active = parameters.get(f"active{index}")
                if masks[index] is not None:
                    w = _selected(masks[index], w)
                if scale is not None and layer.scaled == "weights":
                    w = _scaled(scale, w)
                h = jnp.matmul(h, w.mT if layer.transposed else w)
                if layer.bias:
                    h = h + parameters[f"db{index}"]
                h = _ACTIVATIONS[layer.activation](h)
                if active is not None:
                    h = _selected(active[:, None], h)
                if scale is not None and layer.scaled == "all":
                    h = _scaled(scale, h)
            return h

        def gradients(learning: Any, frozen: Any, x: Any, upstream: Any) -> Any:
            if case.x_learns:
                y, pull = jax.vjp(lambda p, x: call(p, frozen, x), learning, x)
                by_name, dx = pull(upstream)
                return {"y": y, "dx": dx, **by_name}
            y, pull = jax.vjp(lambda p: call(p, frozen, x), learning)
            return {"y": y, **pull(upstream)[0]}

        def train(learning: Any, frozen: Any, x: Any, target: Any, rate: Any) -> Any:
            def loss(p: Any) -> Any:
                difference = call(p, frozen, x) - target
                if case.loss == "difference":
                    return difference.sum()
                return jnp.mean(jnp.square(difference))

            found = jax.grad(loss)(learning)
            return {name: p - rate * found[name] for name, p in learning.items()}

        if case.kind == "train":
            # The old weights' memory takes the new ones, as variables do elsewhere.
            step = jax.jit(train, donate_argnums=0)

            def run() -> Any:
                nonlocal learning
                learning = self.each(step(learning, frozen, x, upstream, rate))
                return learning

            def results() -> dict[str, Array]:
                nonlocal learning
                before = {name: np.array(p) for name, p in {**learning, **frozen}.items()}
                after = step(learning, frozen, x, upstream, long_step)
                learning = {name: jnp.asarray(before[name]) for name in learning}
                return {name: np.array(p) - before[name] for name, p in {**after, **frozen}.items()}

        else:
            function = jax.jit(call if case.kind == "forward" else gradients)
            arguments = [x] if case.kind == "forward" else [x, upstream]

            def run() -> Any:
                return self.each(function(learning, frozen, *arguments))

            def results() -> dict[str, Array]:
                found = run()
                found = found if isinstance(found, dict) else {"y": found}
                return {name: np.array(value) for name, value in found.items()}

        return Work(run, results, jax.block_until_ready)

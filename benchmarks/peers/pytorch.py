"""PyTorch, eager and under `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from peers import LONG_STEP, Work
from workloads import Array, Arrays, Case, Mode

# What PyTorch calls the devices, and what waits for one.
DEVICES: dict[str, tuple[str, Callable[[], None]]] = {
    "cpu": ("cpu", lambda: None),
    "gpu": ("cuda", torch.cuda.synchronize),
}

_ACTIVATIONS = {
    "linear": lambda z: z,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "leaky_relu": partial(functional.leaky_relu, negative_slope=0.2),
    "elu": functional.elu,
    "selu": torch.selu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": functional.silu,
    "softplus": functional.softplus,
}


def use_threads(threads: int) -> None:
    """Give PyTorch so many threads; it must not have computed anything yet."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


def _to_torch(array: Array) -> Any:
    # NumPy's bfloat16 is not PyTorch's, but has the same bits.
    if array.dtype.name == "bfloat16":
        return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(array)


def _to_numpy(tensor: Any) -> Array:
    tensor = tensor.detach().clone().cpu()
    result: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return result


def _scaled(s: Any, tensor: Any) -> Any:
    """Multiply the gradient."""
    return s * tensor + ((1 - s) * tensor).detach()


def _selected(mask: Any, tensor: Any) -> Any:
    """Let the gradient through where the mask is true."""
    return torch.where(mask, tensor, tensor.detach())


class Peer:
    """`torch.addmm` and an activation; what learns in part goes through `where` and `detach`."""

    def __init__(self, name: str, threads: int, device: str) -> None:
        use_threads(threads)
        self.place, self.synchronize = DEVICES[device]
        if device == "gpu":
            torch.set_float32_matmul_precision("high")  # TF32
        self.compiled: Callable[[Any], Any] = lambda function: function
        if name == "torch-compile":
            self.compiled = partial(torch.compile, dynamic=False)
            # How many cases it compiles the same lines for until it leaves them eager.
            torch._dynamo.config.cache_size_limit = 1000

    def missing(self) -> str:
        """Return whether PyTorch has the device."""
        sees_it = self.place == "cpu" or torch.cuda.is_available()
        return "" if sees_it else "PyTorch sees no GPU"

    def supports(self, case: Case) -> bool:
        """Take every case."""
        del case
        return True

    def build(self, case: Case, mode: Mode, arrays: Arrays) -> Work:
        """Build the case."""
        del mode  # there is one

        def placed(array: Array) -> Any:
            return _to_torch(array).to(self.place)

        x, upstream = map(placed, (arrays.x, arrays.upstream))
        x.requires_grad_(case.x_learns)
        parameters, pairs = {}, []
        for index, (layer, w, b) in enumerate(
            zip(case.layers, arrays.weights, arrays.biases, strict=True)
        ):
            weights = placed(w)
            parameters[f"dw{index}"] = weights
            bias = None if b is None else placed(b)
            if bias is not None:
                parameters[f"db{index}"] = bias
            learns = layer.learns and case.kind != "forward"
            for parameter in (weights, bias):
                if parameter is not None:
                    parameter.requires_grad_(learns)
            pairs.append((weights.mT if layer.transposed else weights, bias))
        activations = [_ACTIVATIONS[layer.activation] for layer in case.layers]
        learning = {name: p for name, p in parameters.items() if p.requires_grad}
        sources = {"dx": x, **learning} if case.x_learns else learning

        controls = [
            tuple(
                None if value is None else torch.as_tensor(value).to(self.place) for value in values
            )
            for values in zip(
                (layer.gradient_scale for layer in case.layers),
                arrays.learning,
                arrays.active,
                strict=True,
            )
        ]

        def network() -> Any:
            h = x
            for layer, (w, b), activation, (scale, learning_mask, active) in zip(
                case.layers, pairs, activations, controls, strict=True
            ):
                if learning_mask is not None:
                    w = _selected(learning_mask, w)
                if scale is not None and layer.scaled == "weights":
                    w = _scaled(scale, w)
                h = activation(torch.matmul(h, w) if b is None else torch.addmm(b, h, w))
                if active is not None:
                    h = _selected(active[:, None], h)
                if scale is not None and layer.scaled == "all":
                    h = _scaled(scale, h)
            return h

        def loss_of_network() -> Any:
            difference = network() - upstream
            return difference.sum() if case.loss == "difference" else difference.square().mean()

        @torch.no_grad()
        def descend(found: Any, rate: float) -> None:
            for parameter, gradient in zip(learning.values(), found, strict=True):
                parameter.sub_(gradient, alpha=rate)

        call, loss, update = map(self.compiled, (network, loss_of_network, descend))

        def forward() -> Any:
            with torch.inference_mode():
                return call()

        def gradients() -> Any:
            y = call()
            return y, torch.autograd.grad(y, list(sources.values()), upstream)

        def train(rate: float = case.rate) -> None:
            update(torch.autograd.grad(loss(), list(learning.values())), rate)

        if case.kind == "backward":
            y = call()

            def backward() -> Any:
                return y, torch.autograd.grad(
                    y, list(sources.values()), upstream, retain_graph=True
                )

            run: Any = backward
        else:
            run = {"forward": forward, "gradients": gradients, "train": train}[case.kind]

        def results() -> dict[str, Array]:
            if case.kind == "forward":
                return {"y": _to_numpy(run())}
            if case.kind == "train":
                before = {name: p.detach().clone() for name, p in parameters.items()}
                train(LONG_STEP)
                changes = {
                    name: _to_numpy(p) - _to_numpy(before[name]) for name, p in parameters.items()
                }
                with torch.no_grad():
                    for name, parameter in learning.items():
                        parameter.copy_(before[name])
                return changes
            y, found = run()
            gradients = {name: _to_numpy(g) for name, g in zip(sources, found, strict=True)}
            return {"y": _to_numpy(y), **gradients}

        return Work(run, results, lambda _: self.synchronize())

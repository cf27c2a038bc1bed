"""PyTorch on the CPU, eager."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from peers import Work
from workloads import Array, Arrays, Case, Mode

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


def _to_torch(array: Array) -> Any:
    # NumPy's bfloat16 is not PyTorch's; float32 holds both.
    if array.dtype.name == "bfloat16":
        return torch.tensor(array.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(array)


def _to_numpy(tensor: Any) -> Array:
    tensor = tensor.detach().clone()
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

    def __init__(self, name: str, threads: int) -> None:
        del name
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)

    def supports(self, case: Case) -> bool:
        """Take every case."""
        del case
        return True

    def build(self, case: Case, mode: Mode, arrays: Arrays) -> Work:
        """Build the case."""
        del mode  # there is one
        x, upstream, target = map(_to_torch, (arrays.x, arrays.upstream, arrays.target))
        x.requires_grad_(case.x_learns)
        parameters, pairs = {}, []
        for index, (layer, w, b) in enumerate(
            zip(case.layers, arrays.weights, arrays.biases, strict=True)
        ):
            weights = _to_torch(w)
            parameters[f"dw{index}"] = weights
            bias = None if b is None else _to_torch(b)
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
            tuple(None if value is None else torch.as_tensor(value) for value in values)
            for values in zip(
                (layer.gradient_scale for layer in case.layers),
                arrays.learning,
                arrays.active,
                strict=True,
            )
        ]

        def call() -> Any:
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

        def forward() -> Any:
            with torch.inference_mode():
                return call()

        def gradients() -> Any:
            y = call()
            return y, torch.autograd.grad(y, list(sources.values()), upstream)

        def train() -> None:
            y = call()
            loss = (y - target).sum() if case.loss == "difference" else (y - target).square().mean()
            found = torch.autograd.grad(loss, list(learning.values()))
            with torch.no_grad():
                for parameter, gradient in zip(learning.values(), found, strict=True):
                    parameter.sub_(gradient, alpha=case.rate)

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
                before = {name: _to_numpy(p) for name, p in parameters.items()}
                run()
                return {name: _to_numpy(p) - before[name] for name, p in parameters.items()}
            y, found = run()
            gradients = {name: _to_numpy(g) for name, g in zip(sources, found, strict=True)}
            return {"y": _to_numpy(y), **gradients}

        return Work(run, results)

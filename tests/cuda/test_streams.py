"""Streams, graphs and arrays of other libraries, which only a GPU has."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import devices
import numpy as np
import pytest
import reference
from reference import Problem

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda() -> ModuleType:
    return devices.cuda_module("gpu")


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def problem_of(rng: np.random.Generator, rows: int) -> Problem:
    return reference.random_problem(
        rng, (rows, 192), (192, 320), "float32", bias=True, activation="gelu"
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64"])
def test_arrays_of_pytorch(
    cuda: ModuleType, torch: Any, rng: np.random.Generator, dtype: str
) -> None:
    problem = reference.random_problem(rng, (33, 24), (24, 40), dtype)
    a, b = (torch.from_dlpack(cuda.to_device(x)) for x in (problem.a, problem.b))
    y = torch.from_dlpack(cuda.matmul(a, b, stream=torch.cuda.current_stream()))
    torch.cuda.synchronize()
    result = y.float().cpu().numpy() if dtype == "bfloat16" else y.cpu().numpy()
    reference.assert_close(
        result.astype(reference.numpy_dtype(dtype)), reference.forward(problem), dtype
    )


def test_arrays_of_cupy(cuda: ModuleType, rng: np.random.Generator) -> None:
    cupy = pytest.importorskip("cupy")
    problem = problem_of(rng, 64)
    with cupy.cuda.Stream() as stream:
        arrays = [cupy.asarray(x) for x in (problem.a, problem.b, problem.bias)]
        y = cupy.asarray(cuda.matmul(*arrays, activation="gelu", stream=stream))
        result = cupy.asnumpy(y)
    reference.assert_close(result, reference.forward(problem), "float32")


def test_arrays_of_jax(cuda: ModuleType, rng: np.random.Generator) -> None:
    """JAX has a stream of its own, and each side waits for the other's."""
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("this JAX sees no GPU")
    problem = problem_of(rng, 64)
    arrays = [jax.numpy.asarray(x) + 0 for x in (problem.a, problem.b, problem.bias)]
    y = jax.dlpack.from_dlpack(cuda.matmul(*arrays, activation="gelu")) + 0
    reference.assert_close(np.asarray(y), reference.forward(problem), "float32")


def test_two_streams_at_once(cuda: ModuleType, torch: Any, rng: np.random.Generator) -> None:
    """Products of the same shape share descriptors, into which each call writes its pointers."""
    problems = [problem_of(rng, 256) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in problems]
    arrays = [[cuda.to_device(x) for x in (p.a, p.b, p.bias)] for p in problems]
    results: list[list[Any]] = [[], []]
    for _ in range(50):
        for i, stream in enumerate(streams):
            results[i].append(cuda.matmul(*arrays[i], activation="gelu", stream=stream))
    for problem, found in zip(problems, results, strict=True):
        exact = reference.forward(problem)
        for y in found:
            reference.assert_close(y.numpy(), exact, "float32")


@pytest.mark.parametrize("steered", [False, True])
def test_capture_into_a_graph(
    cuda: ModuleType, torch: Any, rng: np.random.Generator, steered: bool
) -> None:
    """Launched again, a graph reads what is in the arrays then, and its lists as they were."""
    problem = problem_of(rng, 128)
    z = reference.preactivation(problem).value.astype(np.float32)
    a, b, saved = (torch.from_dlpack(cuda.to_device(x)) for x in (problem.a, problem.b, z))
    dy = torch.zeros(128, 320, device="cuda")
    out = {name: torch.zeros(shape, device="cuda") for name, shape in
           (("a", (128, 192)), ("b", (192, 320)), ("bias", (320,)))}  # fmt: skip
    rows = rng.random(128) < 0.4 if steered else None
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        results = cuda.matmul_gradient(
            dy, a, b, saved, needed=list(out), activation="gelu", rows=rows,
            stream=torch.cuda.current_stream(),
        )  # fmt: skip
        for name, result in results.items():
            out[name].copy_(torch.from_dlpack(result))
    for _ in range(3):
        new = reference.random_array(rng, (128, 320), "float32")
        dy.copy_(torch.from_numpy(new))
        graph.replay()
        torch.cuda.synchronize()
        exact = reference.gradients(problem, new, None, z, rows=rows)
        for name, result in out.items():
            reference.assert_close(result.cpu().numpy(), exact[name], "float32", what=name)

"""Which algorithm runs: timed once for a problem, kept, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import emulated_gpu
import numpy as np
import pytest
import reference
from reference import Array

SHAPES = ((24, 16), (16, 32))


@pytest.fixture
def arrays(rng: np.random.Generator) -> tuple[Array, Array]:
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in SHAPES)  # type: ignore


def product(cuda: ModuleType, arrays: tuple[Array, Array], **options: Any) -> Array:
    result: Array = cuda.matmul(*map(cuda.to_device, arrays), poison=True, **options).numpy()
    np.testing.assert_allclose(result, arrays[0] @ arrays[1], rtol=1e-5, atol=1e-5)
    return result


def test_a_problem_is_timed_once(cuda: ModuleType, arrays: tuple[Array, Array]) -> None:
    for _ in range(3):
        product(cuda, arrays)
    assert cuda.num_timed() == 1
    product(cuda, (arrays[0][:8], arrays[1]))
    assert cuda.num_timed() == 2


@pytest.mark.parametrize(
    "options",
    [{"allow_tf32": True}, {"activation": "relu"}, {"layout_b": "transpose"}, {"dtype": "float64"}],
    ids=str,
)
def test_what_can_change_the_choice_is_another_problem(
    cuda: ModuleType, arrays: tuple[Array, Array], options: dict[str, Any]
) -> None:
    a, b = arrays[0], np.ascontiguousarray(arrays[1][:, :16])  # a square, so that both layouts fit
    cuda.matmul(cuda.to_device(a), cuda.to_device(b))
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    cuda.matmul(cuda.to_device(a.astype(dtype)), cuda.to_device(b.astype(dtype)), **options)
    assert cuda.num_timed() == 2


def test_nothing_is_timed_where_results_must_be_the_same_everywhere(
    cuda: ModuleType, arrays: tuple[Array, Array]
) -> None:
    product(cuda, arrays, deterministic=True)
    product(cuda, arrays, deterministic=True)
    assert cuda.num_timed() == 0


def test_sizes_that_come_from_rows_are_not_timed(
    cuda: ModuleType, arrays: tuple[Array, Array], rng: np.random.Generator
) -> None:
    """The next step has other rows, and so another size."""
    dy = cuda.to_device(np.ones((24, 32), np.float32))
    a, b = map(cuda.to_device, arrays)
    for _ in range(3):
        rows = rng.random(24) < 0.5
        cuda.matmul_gradient(dy, a, b, needed=["a", "b"], rows=rows, always_gather=True)
    assert cuda.num_timed() == 0


def test_sizes_that_go_on_changing_are_not_timed_for_ever(cuda: ModuleType) -> None:
    b = cuda.to_device(np.ones((4, 8), np.float32))
    for rows in range(1, 31):
        cuda.matmul(cuda.to_device(np.ones((8 * rows, 4), np.float32)), b)
    assert cuda.num_timed() == 16
    cuda.matmul(b, b, layout_b="transpose")  # another problem
    assert cuda.num_timed() == 17


def test_the_fastest_proposal_that_runs_is_chosen(
    emulated: ModuleType, arrays: tuple[Array, Array]
) -> None:
    """Of three, the first is slow and the last one fails."""
    product(emulated, arrays)
    before = emulated_gpu.calls()
    product(emulated, arrays)
    assert np.subtract(emulated_gpu.calls(), before).tolist() == [0, 1, 0]


@pytest.mark.parametrize("slow", emulated_gpu.SLOW[1:])
@pytest.mark.parametrize("what", ["forward", "bias gradient"])
def test_an_epilogue_is_fused_where_that_is_faster(
    emulated: ModuleType, cublas_lt: Any, arrays: tuple[Array, Array], slow: str, what: str
) -> None:
    emulated_gpu.make_slow(slow)
    a, b = map(emulated.to_device, arrays)
    bias = emulated.to_device(np.ones(32, np.float32))
    dy = emulated.to_device(np.ones((24, 32), np.float32))

    def run() -> Array:
        if what == "forward":
            return emulated.matmul(a, b, bias, poison=True).numpy()  # type: ignore
        results = emulated.matmul_gradient(dy, a, needed=["b", "bias"], poison=True)
        return results["bias"].numpy()  # type: ignore

    due = arrays[0] @ arrays[1] + 1 if what == "forward" else np.full(32, 24.0)
    for _ in range(2):
        np.testing.assert_allclose(run(), due, rtol=1e-5, atol=1e-5)
    launches, fused = emulated.hooks.launches, cublas_lt.emulated_fused_calls()
    run()
    assert cublas_lt.emulated_fused_calls() - fused == int(slow == "separate")
    assert (emulated.hooks.launches > launches) == (slow == "fused")


def test_fewer_proposals_are_timed_on_demand(
    emulated: ModuleType, arrays: tuple[Array, Array]
) -> None:
    """The second, which is faster, is not among them then."""
    emulated.set_search(candidates=1)
    product(emulated, arrays)
    before = emulated_gpu.calls()
    product(emulated, arrays)
    assert np.subtract(emulated_gpu.calls(), before).tolist() == [1, 0, 0]


@pytest.mark.parametrize("slow", emulated_gpu.SLOW[1:])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_where_z_is_kept_the_product_is_written_there(
    emulated: ModuleType, cublas_lt: Any, arrays: tuple[Array, Array], activation: str, slow: str
) -> None:
    """With its bias where that is faster, and one kernel makes y of it."""
    emulated_gpu.make_slow(slow)
    bias = np.linspace(-1, 1, 32, dtype=np.float32)
    device = [emulated.to_device(x) for x in (*arrays, bias)]
    z_due = arrays[0].astype(np.float64) @ arrays[1] + bias
    for _ in range(2):
        launches, fused = emulated.hooks.launches, cublas_lt.emulated_fused_calls()
        y, z = emulated.matmul(
            *device, activation=activation, return_preactivation=True, poison=True
        )
        np.testing.assert_allclose(z.numpy(), z_due, rtol=1e-5, atol=1e-5)
        y_due = reference.activate(activation, z_due)
        np.testing.assert_allclose(y.numpy(), y_due, rtol=1e-5, atol=1e-5)
    assert emulated.hooks.launches == launches + 1
    assert cublas_lt.emulated_fused_calls() == fused + int(slow == "separate")


def test_nothing_is_timed_while_a_graph_is_captured(
    emulated: ModuleType, cublas_lt: Any, arrays: tuple[Array, Array]
) -> None:
    emulated.hooks.capturing = True
    product(emulated, arrays)
    assert emulated.num_timed() == 0
    assert emulated.hooks.synchronizations == 0
    emulated.hooks.capturing = False
    product(emulated, arrays)
    assert emulated.num_timed() == 1
    # What was timed before is used then too.
    emulated.hooks.capturing = True
    before = cublas_lt.emulated_calls(1)
    product(emulated, arrays)
    assert cublas_lt.emulated_calls(1) == before + 1


def test_only_the_first_call_waits_for_the_device(
    emulated: ModuleType, arrays: tuple[Array, Array]
) -> None:
    product(emulated, arrays)
    assert emulated.hooks.synchronizations > 0
    emulated.hooks.synchronizations = 0
    product(emulated, arrays)
    assert emulated.hooks.synchronizations == 0


def test_choices_of_a_file_are_not_timed_again(
    cuda: ModuleType, arrays: tuple[Array, Array], tmp_path: Path
) -> None:
    file = str(tmp_path / "algorithms")
    product(cuda, arrays)
    cuda.save_algorithms(file)
    cuda.forget_algorithms()
    cuda.load_algorithms(file)
    product(cuda, arrays)
    assert cuda.num_timed() == 0
    cuda.forget_algorithms()
    product(cuda, arrays)
    assert cuda.num_timed() == 1


def test_choice_of_a_file_runs_as_it_was_saved(
    emulated: ModuleType, cublas_lt: Any, arrays: tuple[Array, Array], tmp_path: Path
) -> None:
    file = tmp_path / "algorithms"
    product(emulated, arrays)
    emulated.save_algorithms(str(file))
    emulated.forget_algorithms()
    emulated.load_algorithms(str(file))
    before = cublas_lt.emulated_calls(1)
    product(emulated, arrays)
    assert cublas_lt.emulated_calls(1) == before + 1


def test_choices_of_a_file_are_used_while_a_graph_is_captured(
    emulated: ModuleType, cublas_lt: Any, arrays: tuple[Array, Array], tmp_path: Path
) -> None:
    file = tmp_path / "algorithms"
    product(emulated, arrays)
    emulated.save_algorithms(str(file))
    emulated.forget_algorithms()
    emulated.load_algorithms(str(file))
    emulated.hooks.capturing = True
    before = cublas_lt.emulated_calls(1)
    product(emulated, arrays)
    assert cublas_lt.emulated_calls(1) == before + 1
    # And written again, though nothing else was chosen.
    emulated.save_algorithms(str(file))
    assert len(file.read_text().splitlines()) == 2


def test_choice_that_the_library_refuses_is_made_again(
    emulated: ModuleType, arrays: tuple[Array, Array], tmp_path: Path
) -> None:
    file = tmp_path / "algorithms"
    product(emulated, arrays)
    emulated.save_algorithms(str(file))
    mark = str(0x57094AD0)
    text = file.read_text()
    assert mark in text
    file.write_text(text.replace(mark, "1"))
    emulated.forget_algorithms()
    emulated.load_algorithms(str(file))
    product(emulated, arrays)
    assert emulated.num_timed() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("something else\n", 'begins with "something else"; due is "stopgrad_op'),
        ("{title}1 2 3\n", 'has a line that is no algorithm: "1 2 3"'),
    ],
)
def test_file_that_is_no_file_of_choices_is_an_error(
    cuda: ModuleType, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "algorithms"
    cuda.save_algorithms(str(file))
    title = file.read_text()
    file.write_text(text.replace("{title}", title))
    with pytest.raises(ValueError, match=message) as error:
        cuda.load_algorithms(str(file))
    assert str(file) in str(error.value)


def test_file_that_cannot_be_opened_is_an_error(cuda: ModuleType, tmp_path: Path) -> None:
    file = str(tmp_path / "missing" / "algorithms")
    with pytest.raises(ValueError, match="cannot be read"):
        cuda.load_algorithms(file)
    with pytest.raises(ValueError, match="cannot be written"):
        cuda.save_algorithms(file)

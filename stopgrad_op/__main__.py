"""The command line, `python -m stopgrad_op`."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from stopgrad_op._library import build_info, cuda_info, load_gpu, load_ops, load_xla


def demo() -> int:
    """Show what blocking a gradient does; return 1 and say why if it does not do it."""
    try:
        load_ops()
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    from stopgrad_op._demo import run_demo

    wrong = run_demo()
    sys.stdout.flush()
    for line in wrong:
        print(f"demo failed: {line}", file=sys.stderr)
    return 1 if wrong else 0


def info() -> int:
    """Print what this copy was built with and what it runs on."""
    built = build_info()
    lines = {"stopgrad_op": f"{built['version']}, in {Path(__file__).parent}"}
    running = f"Python {platform.python_version()}"
    if built["tensorflow"] is None:
        lines["built for"] = "no TensorFlow; stopgrad_op._kernels only"
    else:
        import tensorflow as tf

        lines["built for"] = (
            f"TensorFlow {built['tensorflow']} ({built['tensorflow_distribution']}),"
            f" _GLIBCXX_USE_CXX11_ABI={built['cxx11_abi']}"
        )
        running = f"TensorFlow {tf.version.VERSION}, {running}"
    lines["running on"] = running
    for name in ("compiler", "instructions"):
        lines[name] = str(built[name])
    if built["tensorflow"] is not None:
        lines["XLA"] = f"none: {xla_missing}" if (xla_missing := load_xla()) else "yes"
    cuda = cuda_info()
    if cuda is None:
        lines["CUDA kernels"] = f"none: {built['cuda_missing']}"
    else:
        missing = cuda["devices_missing"]
        lines["GPUs"] = f"none: {missing}" if missing else "; ".join(cuda["devices"])
        major, minor = divmod(cuda["runtime"] // 10, 100)
        lines["CUDA kernels"] = f"of CUDA {major}.{minor}, for {cuda['architectures']}"
        lines["cublasLt"] = cuda["cublas_lt"] or f"none: {cuda['cublas_lt_missing']}"
        if built["tensorflow"] is not None:
            lines["ops on GPUs"] = load_gpu() or "yes"
    for name, text in lines.items():
        print(f"{name:<14}{text}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m stopgrad_op",
        description="Matrix products for TensorFlow that do not compute the gradients you block.",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for command, help_text in (
        (demo, "train two small networks and show what blocking a gradient does"),
        (info, "print what this copy was built with and what it runs on"),
    ):
        subparser = commands.add_parser(command.__name__, help=help_text, description=help_text)
        subparser.set_defaults(run=command)
    status: int = parser.parse_args(arguments).run()
    return status


if __name__ == "__main__":
    sys.exit(main())

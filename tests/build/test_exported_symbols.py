"""Which names the compiled libraries show to the processes that load them."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import pytest

from stopgrad_op._library import build_info, load_kernels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF, Linux's format")

FOLDER = Path(str(load_kernels().__file__)).parent

# What each library may export, as one regular expression for a whole name. Python looks for one
# function; TensorFlow for none, because ops and kernels register themselves as a library loads;
# the kernels show the two of them namespace stopgrad, and what its classes need to be recognised.
ALLOWED = {
    "_kernels": "PyInit__kernels",
    "libstopgrad_ops": "(?!)",
    "libstopgrad_xla": "(?!)",
    "libstopgrad_gpu": "(?!)",
    "libstopgrad_kernels": "_ZN[VK]*8stopgrad.*|_ZT[ISV]N8stopgrad.*",
    "libstopgrad_cuda": "_ZN[VK]*8stopgrad.*|_ZT[ISV]N8stopgrad.*",
}


def exported_symbols(library: Path) -> set[str]:
    """Return the names that a 64-bit little-endian ELF library defines for others.

    `nm -D --defined-only` prints the same, but a machine that only runs this has no nm.
    """
    data = library.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", f"{library} is not 64-bit little-endian ELF"
    table_offset, entry_size, count = (
        struct.unpack_from("<Q", data, 0x28)[0],
        *struct.unpack_from("<HH", data, 0x3A),
    )
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", data, table_offset + index * entry_size)
        for index in range(count)
    ]
    dynamic_symbols = 11
    names = set()
    for _, kind, _, _, offset, size, strings, *_ in sections:
        if kind != dynamic_symbols:
            continue
        start_of_names = sections[strings][4]
        for name, info, _, section, _, _ in struct.iter_unpack(
            "<IBBHQQ", data[offset : offset + size]
        ):
            undefined, local = section == 0, info >> 4 == 0
            if not (undefined or local):
                start = start_of_names + name
                names.add(data[start : data.index(b"\0", start)].decode())
    return names


def libraries() -> dict[str, Path]:
    return {path.name.partition(".")[0]: path for path in FOLDER.glob("*.so*")}


def test_reader_sees_the_symbols_of_a_library_that_exports_some() -> None:
    assert "_ZN8stopgrad3cpu9GetTargetEv" in exported_symbols(libraries()["libstopgrad_kernels"])


def test_every_installed_library_has_a_rule() -> None:
    expected = set(ALLOWED)
    if build_info()["tensorflow"] is None:
        expected.remove("libstopgrad_ops")
    if build_info()["tensorflow"] is None or build_info()["xla_missing"]:
        expected.remove("libstopgrad_xla")
    if build_info()["cuda_missing"]:
        expected.remove("libstopgrad_cuda")
    if build_info()["tensorflow"] is None or build_info()["cuda_missing"]:
        expected.remove("libstopgrad_gpu")
    assert set(libraries()) == expected


@pytest.mark.parametrize("name", ALLOWED)
def test_library_exports_only_what_its_users_need(name: str) -> None:
    if name not in libraries():
        info = build_info()
        assert info["tensorflow"] is None or info["xla_missing"] or info["cuda_missing"]
        pytest.skip("built without TensorFlow, without XLA or without CUDA")
    allowed = re.compile(ALLOWED[name])
    surplus = sorted(s for s in exported_symbols(libraries()[name]) if not allowed.fullmatch(s))
    assert surplus == []


def test_python_finds_the_kernels() -> None:
    assert exported_symbols(libraries()["_kernels"]) == {"PyInit__kernels"}

"""The C++ launcher's reading of its field, compiled here without TensorRT or CUDA, beside the Python launcher's."""

import os
import random
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs triton: pip install 'framert[triton]'")

from framert.kernels.plugin.frame_attention import INPUTS, kernel_values
from framert.kernels.plugin.launch import evaluate
from framert.kernels.plugin.recipe import pack_recipes, recipe

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
from attention_launches import launches, shapes  # noqa: E402

sys.path.remove(str(FOLDER))

SOURCES = FOLDER.parents[2] / "kernels" / "plugin" / "cpp"
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1")
ADDRESS = 1 << 40


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    made = tmp_path_factory.mktemp("cpp") / "recipe_numbers"
    source = FOLDER / "cpp" / "recipe_numbers.cpp"
    subprocess.run([compiler, *STRICT, f"-I{SOURCES}", str(source), "-o", str(made)], check=True)
    return made


def run(program: Path, *words: object, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, words)], input=text, capture_output=True, text=True)


def launched(program: Path, folder: Path, field: bytes, sizes: Any, address: int = ADDRESS) -> Any:
    (folder / "field").write_bytes(field)
    words = ["x".join(map(str, size)) for size in sizes]
    return run(program, "launch", folder / "field", address, *words)


@pytest.mark.parametrize("text", [True, False], ids=["with text", "without text"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize(("tokens", "sequences"), [(50, 3), (1, 1), (70000, 64)])
def test_numbers_are_the_python_launchers(
    dtype: str, tokens: int, sequences: int, text: bool, program: Path, tmp_path: Path
) -> None:
    made = [replace(one, image=one.target.encode() * 3) for one in launches(dtype, text=text)]
    sizes = shapes(tokens, sequences, text=text)
    done = launched(program, tmp_path, pack_recipes(made), sizes)
    assert done.returncode == 0, done.stderr
    assert len(sizes) == (len(INPUTS) if text else 5)
    values = kernel_values(sizes, [ADDRESS + 4096 * place for place in range(len(sizes))], ADDRESS + 4096 * len(sizes))
    numbers = {name: value for name, value in values.items() if not name.endswith("_ptr")}
    expected = []
    for one in made:
        arguments = " ".join(str(value.value) for value in one.parameters(values))
        types = " ".join(kind[1:] for _, kind in one.arguments if kind.startswith("*"))
        expected += [
            f"{one.target} {one.entry} {one.kernel_hash} {one.threads} {one.shared_memory} 0 {len(one.image)}",
            "grid " + " ".join(map(str, one.blocks(numbers))),
            "output " + " ".join(map(str, sizes[0])),
            f"types {types}",
            f"arguments {arguments}",
        ]
    assert done.stdout.splitlines() == expected


def test_any_expression_means_the_same(program: Path) -> None:
    """Random ones, with sizes so small that no intermediate result is negative or zero where it divides."""
    draw = random.Random(0)

    def expression(depth: int) -> str:
        if depth == 0 or draw.random() < 0.2:
            return draw.choice(["d0_0", "d0_1", "d1_0", str(draw.randint(1, 99))])
        sign = draw.choice("+-*/%")
        left, right = expression(depth - 1), expression(depth - 1)
        if sign == "-":
            left = f"({left} + 1000000) * 1"  # C's division and Python's differ below zero
        if sign in "/%":
            right = f"({right} + 1)"
        return draw.choice(["{} {} {}", "({} {} {})", " {}{} {} "]).format(left, sign, right)

    made = [expression(draw.randint(0, 3)) for _ in range(500)]
    known = {"d0_0": 300, "d0_1": 64, "d1_0": 5}
    wanted = [evaluate(one.strip(), known) for one in made]
    kept = [(one, value) for one, value in zip(made, wanted, strict=True) if 0 <= value < 1 << 60]
    assert len(kept) > 400
    done = run(program, "evaluate", "300x64", "5", text="\n".join(one for one, _ in kept))
    assert done.returncode == 0, done.stderr
    assert list(map(int, done.stdout.split())) == [value for _, value in kept]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1 +", "not understood at character 4"),
        ("(1", "not understood at character 3"),
        ("tokens", "not understood at character 1"),
        ("1 2", "not understood at character 3"),
        ("99999999999", "not understood"),
        ("(" * 100, "not understood at character 66"),
        ("d0_7", "there is no size d0_7"),
        ("d9_0", "there is no size d9_0"),
        ("7 / (d0_0 - 5)", "a division by zero"),
        ("7 % (5 - d0_0)", "a division by zero"),
    ],
)
def test_expressions_that_mean_nothing(expression: str, message: str, program: Path) -> None:
    done = run(program, "evaluate", "5", text=expression)
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr


def field(text: str, image: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + struct.pack("<Q", len(image)) + image


def changed(old: str, new: str) -> bytes:
    text = recipe(launches()[0])
    assert old in text
    return field(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there are no kernels"),
        (b"abc", "not whole; build again"),
        (pack_recipes(launches())[:-1], "not whole; build again"),
        (struct.pack("<Q", 1 << 63), "not whole; build again"),
        (changed("format 1", "format 2"), "format 2 is newer than this plugin"),
        (changed("threads", "clusters"), "the keyword 'clusters' is not known"),
        (changed("entry", "hash"), "lacks target, entry"),
        (changed(" ; 4 ; 1", ""), "a grid of three"),
        (changed("argument input 0", "argument pointer 0"), "a kernel argument 'pointer 0' is not understood"),
        (changed("argument output 0", "argument output 1"), "more inputs or outputs than it has"),
        (changed("input fp32 1\n", ""), "more inputs or outputs than it has"),
        (changed("require d0_1 = 4", "require d0_1 = 8"), "compiled for d0_1 = 8; given is 4"),
        (changed("require d0_1 = 4", "require d0_1"), "needs one ="),
        (changed("input i32 2", "input i32 3"), "input 3 has 2 axes, 3 expected"),
        (changed("i32 d0_0", "i32 d0_0 divisible"), "is 50, which 16 does not divide"),
        (changed("i32 d0_0", "i32 d0_0 * 99999999"), "which 32 bits do not hold"),
        (changed("i32 d0_0", "i32 0 - d0_0"), "is -50, which 32 bits do not hold"),
    ],
    ids=range(17),
)
def test_fields_that_are_refused(content: bytes, message: str, program: Path, tmp_path: Path) -> None:
    done = launched(program, tmp_path, content, shapes())
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr


def test_addresses_keep_their_promise(program: Path, tmp_path: Path) -> None:
    done = launched(program, tmp_path, pack_recipes(launches()), shapes(), ADDRESS + 8)
    assert "argument 0 is 1099511627784, which 16 does not divide" in done.stderr


def test_workspace_is_an_argument_like_others(program: Path, tmp_path: Path) -> None:
    text = recipe(launches()[0]).replace("workspace 0", "workspace d0_0 * 256") + "argument workspace\n"
    done = launched(program, tmp_path, field(text), shapes(50))
    assert done.stdout.splitlines()[0].split()[-2] == str(50 * 256)
    assert done.stdout.split()[-1] == str(ADDRESS + 4096 * (len(INPUTS) + 1))


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's library is found as Linux does")
def test_plugins_share_one_loaded_kernel(tmp_path: Path) -> None:
    """On a driver that counts: one load for one image in one context, given back with its last plugin."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    sources, driver, made = FOLDER / "cpp", tmp_path / "libcuda.so.1", tmp_path / "shared_kernels"
    for words in (
        ["-shared", "-fPIC", sources / "fake_cuda.cpp", "-o", driver],
        [f"-I{SOURCES}", sources / "shared_kernels.cpp", "-ldl", "-o", made],
    ):
        subprocess.run([compiler, *STRICT, *map(str, words)], check=True)
    done = subprocess.run([made], capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    # loads, unloads, launches: two of one image; then another image, and another context; all gone; loaded again
    assert done.stdout.splitlines() == ["1 0 1", "3 0 1", "3 3 1", "4 4 2"]


@pytest.mark.skipif("TENSORRT_INCLUDE_DIR" not in os.environ, reason="needs TensorRT's headers: TENSORRT_INCLUDE_DIR")
def test_the_plugin_compiles(tmp_path: Path) -> None:
    configure = ["cmake", "-S", str(SOURCES), "-B", str(tmp_path)]
    for command in (configure, ["cmake", "--build", str(tmp_path)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "libframert_plugin.so").is_file()

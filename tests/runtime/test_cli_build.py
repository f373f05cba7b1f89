"""``framert build``: its words become arguments, its mistakes one line and exit code 2."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framert.runtime.cli import lazy, main
from framert.runtime.errors import BackendError
from framert.runtime.profiles import Capacity


@dataclass
class Built:
    graph: str
    seconds: float
    size: int
    layers: int
    plugins: int


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main(["build", *(str(word) for word in words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for framert.export.tensorrt: what build() was called with."""
    seen: list[dict[str, Any]] = []

    def build(bundle: str, output: str, **given: Any) -> list[Built]:
        seen.append({"bundle": bundle, "output": output, **given})
        return [Built("denoiser", 12.34, 3 << 20, 700, 8), Built("vae_decoder", 1.0, 1 << 19, 9, 0)]

    def module(name: str) -> SimpleNamespace:
        return SimpleNamespace(
            build=build,
            Options=lambda **given: given,
        )

    monkeypatch.setattr(lazy, "import_module", module)
    monkeypatch.setenv("FRAMERT_CACHE", "/c")
    return seen


def test_defaults_are_the_builders(call: Any, calls: list[dict[str, Any]]) -> None:
    assert call("a.bundle", "--target", "sm_89", "-o", "b")[0] == 0
    (given,) = calls
    assert (given["bundle"], given["output"], given["targets"]) == ("a.bundle", "b", ["sm_89"])
    assert (given["backend"], given["precision"], given["capacity"]) == ("tensorrt", None, Capacity())
    assert (given["force"], given["progress"]) == (False, True)
    assert given["options"] == {
        "attention": "padded",
        "plugin_library": None,
        "weight_streaming": False,
        "compatible": "none",
        "timing_cache": Path("/c/timing"),
        "verbosity": 0,
    }


def test_every_option_arrives(call: Any, calls: list[dict[str, Any]]) -> None:
    words = (
        "a -o b --target sm_86 --target sm_120 --backend tensorrt-rtx --precision fp16 --tokens 64,256 --sequences 4"
    )
    words += " --frames 5 --rows 6 --text 400 --side 128 --attention-gib 2.5 --attention library --plugin-library p.so"
    words += " --weight-streaming --compatible version"
    assert call(*words.split(), "--timing-cache", "t", "--force", "--quiet", "-vv")[0] == 0
    (given,) = calls
    assert (given["targets"], given["backend"], given["precision"]) == (["sm_86", "sm_120"], "tensorrt-rtx", "fp16")
    assert given["capacity"] == Capacity(
        tokens=(64, 256), sequences=4, frames=5, rows=6, text=400, side=128, attention_gib=2.5
    )
    assert (given["force"], given["progress"]) == (True, False)
    assert given["options"] == {
        "attention": "library", "plugin_library": Path("p.so"), "weight_streaming": True, "compatible": "version",
        "timing_cache": Path("t"), "verbosity": 2,
    }  # fmt: skip
    call("a", "-o", "b", "--target", "sm_86", "--no-timing-cache")
    assert calls[-1]["options"]["timing_cache"] is None


def test_results_go_to_stdout_and_lines_to_stderr(call: Any, calls: list[dict[str, Any]]) -> None:
    code, out, err = call("a", "-o", "b", "--target", "sm_86")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "denoiser         12.3 s       3.0 MiB  8 plugins",
        "vae_decoder       1.0 s       0.5 MiB",
    ]
    code, out, _ = call("a", "-o", "b", "--target", "sm_86", "--json")
    assert [one["graph"] for one in json.loads(out)] == ["denoiser", "vae_decoder"]
    calls[-1]["say"]("warning: a line")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "-o", "b"], "--target is missing; give a compute capability"),
        (["a", "--target", "sm_89"], "the following arguments are required: -o/--output"),
        (
            ["a", "-o", "b", "--target", "sm_89", "--tokens", "1,x"],
            "'1,x' is not a list of whole numbers; give",
        ),
        (["a", "-o", "b", "--target", "sm_89", "--token", "1"], "(did you mean --tokens?)"),
    ],
)
def test_bad_calls(call: Any, words: list[str], message: str) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "sm_88"], "unknown target 'sm_88'; choose from sm_75"),
        (["--target", "sm_89", "--tokens", "9,3"], "token buckets are (9, 3)"),
        (["--target", "sm_89"], "no bundle at"),
    ],
)
def test_the_builders_refusals_are_one_line(call: Any, words: list[str], message: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    code, out, err = call(tmp_path / "none", "-o", tmp_path / "b", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_missing_package_is_named(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr(lazy, "import_module", missing)
    code, _, err = call("a", "-o", "b", "--target", "sm_89")
    assert code == 2
    assert "framert build needs onnx, which is not installed; pip install 'framert[export]'" in err
    assert BackendError.__name__ not in err

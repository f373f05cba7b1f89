"""``framert compile-request``: the arguments of ``framert run``, and a file."""

from pathlib import Path

import numpy as np
import pytest

from framert.runtime.bundle import Bundle
from framert.runtime.cli import main, parser, run
from framert.runtime.compiled.compiler import compile_requests
from framert.runtime.compiled.format import CompiledRequest
from framert.runtime.request import Request

PICTURE = Path(__file__).parents[1] / "golden" / "input_0.png"


@pytest.fixture
def call(capsys):
    def words(*given):
        code = main([str(word) for word in given])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return words


def test_it_writes_what_the_arguments_say(call, golden_bundle, tmp_path):
    out = tmp_path / "request.safetensors"
    code, printed, said = call(
        "compile-request", golden_bundle, "edit", "--image", PICTURE, "--prompt", "make it green", "--size", "32x32",
        "--steps", 2, "--solver", "heun", "--guidance", 2, "--seed", 5, "--count", 2, "-o", out,
    )  # fmt: skip
    assert (code, printed) == (0, f"{out}\n")
    assert "3 denoiser calls of 32 tokens" in said
    request = Request(
        task="edit", images=[PICTURE], prompt="make it green", size=(32, 32), steps=2, solver="heun", guidance=2.0
    )
    requests = [
        Request(**{name: getattr(request, name) for name in request.__slots__} | {"seed": 5 + n}) for n in (0, 1)
    ]
    expected = compile_requests(Bundle.open(golden_bundle), requests)
    got = CompiledRequest.load(out)
    assert got.metadata == expected.metadata
    for name, array in expected._arrays().items():
        np.testing.assert_array_equal(got._arrays()[name], array)


def test_every_argument_of_run_that_makes_a_request_is_taken():
    """What only says how to run it here is not."""
    commands = {}
    for module in (run, parser.compile_request):
        made = parser.Parser()
        module.add_arguments(made)
        commands[module.NAME] = {action.dest for action in made._actions}
    only_run = {"backend", "precision", "low_memory", "threads", "json", "provider"}
    assert commands["run"] - commands["compile-request"] <= only_run
    assert commands["compile-request"] <= commands["run"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], "there is no task 'nothing'"),
        (["text_to_image", "--prompt=x", "--count=0"], "count is 0"),
        (["text_to_image", "--prompt=x", "--reuse=2"], "reuse is 2"),
        (["text_to_image", "--prompt=x", "--backend=triton"], "unrecognized arguments"),
        (["text_to_image", "--prompt=x", f"--seed={2**63 - 1}", "--count=2"], "seed is"),
    ],
    ids=["task", "count", "reuse", "backend", "seed"],
)
def test_bad_calls(call, golden_bundle, tmp_path, words, says):
    code, printed, said = call("compile-request", golden_bundle, *words, "-o", tmp_path / "out.safetensors")
    assert (code, printed) == (2, "")
    assert says in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())

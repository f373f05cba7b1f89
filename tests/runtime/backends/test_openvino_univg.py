"""OpenVINO on bundles whose text tokens are part of a sequence: every graph exact, packed as alone, every precision."""

import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openvino")
torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import framert  # noqa: E402
from framert.export.checkpoint import open_checkpoint  # noqa: E402
from framert.export.families.find import find_family  # noqa: E402
from framert.export.oracle import load_model  # noqa: E402
from framert.export.pipeline import export  # noqa: E402
from framert.export.verify import TASK_BUDGETS  # noqa: E402
from framert.runtime import backends  # noqa: E402
from framert.runtime.bundle import Bundle  # noqa: E402
from framert.runtime.cli import main  # noqa: E402
from framert.runtime.cpu import cpu_features  # noqa: E402
from framert.runtime.families.univg.task_table import tasks_of  # noqa: E402

NO_HALF = not {"avx512_bf16", "amx_bf16", "bf16"} & cpu_features()
needs_half = pytest.mark.skipif(NO_HALF, reason="needs a CPU with bfloat16")


def half(word):
    """A bundle in bfloat16, where this CPU has it."""
    return pytest.param(f"{word}+bf16", marks=needs_half)


PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))
HOLE = np.zeros((64, 64), bool)
HOLE[8:30, 20:41] = True
SMALL = {"steps": 2, "size": (32, 32)}
LONG = "the red ball left of the cube on the blue sand and nothing else"
REQUESTS = [
    framert.Request(task="text_to_image", prompt="a red cube", seed=1, **SMALL),
    framert.Request(task="edit", images=[PICTURE], prompt="make it red", solver="heun", seed=2, **SMALL),
    framert.Request(task="inpaint", images=[PICTURE], hole=HOLE, negative_prompt=LONG, seed=3, steps=3),
    framert.Request(task="segment", images=[PICTURE], prompt="a cube", steps=2, size=(16, 16), seed=4, guidance=1.0),
    framert.Request(task="layout_to_image", boxes={"red cube": (0, 0, 20, 20)}, prompt=LONG, seed=5, **SMALL),
    # as long as the first one in text and picture, so that they share a run; and one alike but for its text
    framert.Request(task="text_to_image", prompt="a red cube", seed=6, **SMALL),
    framert.Request(task="text_to_image", prompt=LONG, seed=7, **SMALL),
]
ORDERS = [(0, 1, 2, 3, 4, 5, 6), (0, 5), (6, 0, 5), (3, 2, 1, 1), (4, 6, 6)]


@pytest.fixture(scope="module")
def int8_bundle(univg_bundle, tmp_path_factory):
    output = tmp_path_factory.mktemp("bundles") / "int8.bundle"
    checkpoint = univg_bundle.parent / "checkpoint"
    return export(checkpoint, output, native_side=64, precision="int8", check=False, progress=False)


@pytest.fixture(scope="module")
def load(request):
    """Return a function that loads "univg", "sd3" or "int8", with "+bf16" or without, on a backend; each once."""
    made = {}

    def one(word, backend="openvino"):
        if (word, backend) not in made:
            bundle = request.getfixturevalue(f"{word.removesuffix('+bf16')}_bundle")
            precision = {"precision": "bf16"} if word.endswith("+bf16") else {}
            made[word, backend] = framert.load(bundle, backend=backend, threads=1, **precision)
        return made[word, backend]

    return one


def asked_of(pipe):
    """The requests that a bundle can do, by their number."""
    return {number: one for number, one in enumerate(REQUESTS) if one.task in tasks_of(pipe.manifest)}


def relative(got, exact):
    return float(np.linalg.norm(np.float64(got) - exact) / np.linalg.norm(exact))


def in_doubles(plan, checkpoint, case):
    """Return the outputs of a graph's torch model in float64."""
    module = load_model(plan, checkpoint).double()
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in case.values()]
    with torch.no_grad():
        made = getattr(module, "exact", module)(*(x.double() if x.is_floating_point() else x for x in tensors))
    return [made.numpy()] if isinstance(made, torch.Tensor) else [one.numpy() for one in made]


@pytest.mark.parametrize("graph", ["text_encoder", "image_encoder", "conditioner", "denoiser", "vae_decoder"])
@pytest.mark.parametrize("name", ["sd3", "univg"])
def test_every_graph_is_as_exact_as_in_onnxruntime(name, graph, request):
    """On what ``verify`` runs: packs of several shapes in one call, with empty texts and a picture of one token."""
    bundle = Bundle.open(request.getfixturevalue(f"{name}_bundle"), check_files=False)
    if graph not in bundle.manifest.graphs:
        pytest.skip("this bundle has none")
    folder = request.getfixturevalue("sd3_checkpoint") if name == "sd3" else bundle.path.parent / "checkpoint"
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint)
    plan = next(plan for plan in family.plans(checkpoint) if plan.name == graph)
    plain, tested = (backends.create(backend, bundle, threads=1) for backend in ("onnxruntime", "openvino"))
    for case in family.cases(graph, bundle.manifest, checkpoint, lambda given: plain.run("conditioner", given)):
        low, got = plain.run(graph, case), tested.run(graph, case)
        for output, exact in zip(plan.outputs, in_doubles(plan, checkpoint, case), strict=True):
            budget = 2 * np.abs(low[output] - exact).max() + np.finfo(np.float32).eps * np.abs(exact).max()
            assert np.abs(got[output] - exact).max() <= budget, output


@pytest.mark.parametrize("word", ["univg", half("univg"), "sd3", half("sd3"), "int8", half("int8")])
def test_packed_equals_alone_bit_for_bit(word, load):
    pipe = load(word)
    asked = asked_of(pipe)
    alone = {number: pipe.engine().submit(request).result() for number, request in asked.items()}
    for chosen in filter(None, ([number for number in order if number in asked] for order in ORDERS)):
        engine = pipe.engine()
        tickets = [engine.submit(asked[number]) for number in chosen]
        engine.step()
        joined = engine.submit(asked[chosen[0]])  # one that comes later
        for number, ticket in zip((*chosen, chosen[0]), (*tickets, joined), strict=True):
            np.testing.assert_array_equal(ticket.result().latents, alone[number].latents, err_msg=str(chosen))


@pytest.mark.parametrize("word", ["univg", "sd3"])
def test_every_request_is_what_onnxruntime_makes(word, load):
    ours, theirs = load(word), load(word, "onnxruntime")
    for request in asked_of(ours).values():
        got, expected = (pipe.engine().submit(request).result() for pipe in (ours, theirs))
        assert relative(got.latents, expected.latents) < TASK_BUDGETS["float32"]
        np.testing.assert_allclose(got.pixels, expected.pixels, atol=1e-4)


@pytest.mark.parametrize("word", [half("univg"), half("sd3"), "int8"])
def test_a_lower_precision_is_that_and_no_worse(word, load):
    pipe, exact = load(word), load("sd3" if word.startswith("sd3") else "univg", "onnxruntime")
    for request in list(asked_of(pipe).values())[:4]:
        expected = exact.engine().submit(request).result().latents
        error = relative(pipe.engine().submit(request).result().latents, expected)
        if word == "int8":  # the same quantized numbers, beside which the rest of the arithmetic does not count
            theirs = relative(load(word, "onnxruntime").engine().submit(request).result().latents, expected)
            assert 1e-4 < error < 2 * theirs
        else:  # bfloat16 keeps 8 bits, and each of the few layers rounds to 2^-9 several times
            assert 1e-4 < error < 16 * 2**-8


def test_references_are_read_in_the_prompt(load):
    words = {"prompt": "a cube", "captions": ["red", ""], "images": [PICTURE, PICTURE.rotate(90)], **SMALL}
    pipes = [load("univg", backend) for backend in ("openvino", "onnxruntime")]
    ours, theirs = (pipe.run("identity", seed=1, **words).latents for pipe in pipes)
    assert relative(ours, theirs) < TASK_BUDGETS["float32"]
    other = pipes[0].run("identity", seed=1, **{**words, "images": words["images"][::-1]}).latents
    assert not np.allclose(other, ours, atol=1e-5)


def test_low_memory_makes_the_same_picture(univg_bundle):
    pipe = framert.load(univg_bundle, backend="openvino", threads=1, low_memory=True)
    asked = [REQUESTS[0], REQUESTS[2]]
    engine = pipe.engine()
    tickets = [engine.submit(request) for request in asked]
    for request, ticket in zip(asked, tickets, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, pipe.engine().submit(request).result().latents)
    assert len(pipe._backend._compiled) == 1


@needs_half
def test_auto_takes_it_once_it_was_compared(sd3_bundle, tmp_path, capsys):
    bundle = shutil.copytree(sd3_bundle, tmp_path / "sd3.bundle")
    assert framert.load(bundle, backend="auto").backend_name == "onnxruntime"
    assert main(["doctor", str(bundle), "--record", "--threads", "1"]) == 0
    assert "openvino:bf16" in capsys.readouterr().out
    pipe = framert.load(bundle, backend="auto", threads=1)
    assert (pipe.backend_name, pipe._backend.precision) == ("openvino", "bf16")

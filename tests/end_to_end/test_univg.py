"""UniVG and Stable Diffusion 3 from a checkpoint of random numbers through export and ONNX Runtime to pictures."""

import json

import numpy as np
import pytest
from PIL import Image

import framert
from framert.runtime.bundle import Bundle
from framert.runtime.cli import main
from framert.runtime.compiled.compiler import compile_requests
from framert.runtime.families import find_family

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
HOLE = np.zeros((64, 64), bool)
HOLE[8:30, 20:41] = True
PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))
REQUESTS = {
    "text_to_image": {"prompt": "a red cube", "size": (48, 64)},
    "edit": {"images": [PICTURE], "prompt": "make it red", "solver": "heun", "size": (32, 32)},
    "inpaint": {"images": [PICTURE], "hole": HOLE, "prompt": "a cube", "solver": "dpmpp_2m", "negative_prompt": "blue"},
    "outpaint": {"images": [PICTURE], "extend": (16, 0, 16, 0), "image_guidance": 1.0},
    "layout_to_image": {"boxes": {"red cube": (0, 0, 20, 20), "ball": (30, 30, 64, 64)}},
    "identity": {"images": [PICTURE, PICTURE.rotate(90)], "prompt": "a cube", "captions": ["red", ""]},
    "image_to_depth": {"images": [PICTURE], "size": (64, 32)},
    "image_to_pose": {"images": [PICTURE], "size": (16, 16)},
    "segment": {"images": [PICTURE], "prompt": "the cube left of the ball", "size": (32, 32), "guidance": 1.0},
}


def tasks_of(bundle):
    """The tasks that a bundle can do."""
    manifest = Bundle.open(bundle).manifest
    return set(find_family(manifest.family).tasks(manifest))


@pytest.fixture(scope="module")
def pipe(univg_bundle):
    return framert.load(univg_bundle, threads=1)


@pytest.fixture(scope="module")
def published(sd3_checkpoint):
    """diffusers' own pipeline on the same checkpoint."""
    parts = {"transformer": diffusers.SD3Transformer2DModel, "vae": diffusers.AutoencoderKL,
             "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
             "text_encoder": transformers.CLIPTextModelWithProjection, "tokenizer": transformers.CLIPTokenizer,
             "text_encoder_2": transformers.CLIPTextModelWithProjection, "tokenizer_2": transformers.CLIPTokenizer,
             "text_encoder_3": transformers.T5EncoderModel, "tokenizer_3": transformers.T5Tokenizer}  # fmt: skip
    made = diffusers.StableDiffusion3Pipeline(
        **{name: kind.from_pretrained(sd3_checkpoint / name) for name, kind in parts.items()}
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_stable_diffusion_3_is_diffusers_pipeline(published, sd3_bundle, guidance):
    pipe = framert.load(sd3_bundle, threads=1)
    noise = np.random.default_rng(0).standard_normal((1, 16, 8, 6)).astype(np.float32)
    words = {"prompt": "a red cube", "negative_prompt": "blue"}
    how = {"height": 64, "width": 48, "num_inference_steps": 5, "guidance_scale": guidance}
    with torch.no_grad():
        latents = published(**words, **how, latents=torch.from_numpy(noise), output_type="latent").images.numpy()
        pixels = published(**words, **how, latents=torch.from_numpy(noise), output_type="np").images
    result = pipe.run("text_to_image", **words, size=(48, 64), steps=5, guidance=guidance, noise=noise)
    assert np.linalg.norm(result.latents - latents) < 1e-4 * np.linalg.norm(latents)
    np.testing.assert_allclose(result.pixels, pixels, atol=1e-4)
    assert tasks_of(sd3_bundle) == {"text_to_image"}


def test_every_task_runs_packed_as_alone(pipe):
    asked = [framert.Request(task=task, steps=2, seed=n, **more) for n, (task, more) in enumerate(REQUESTS.items())]
    alone = [pipe.engine().submit(one).result() for one in asked]
    engine = pipe.engine()
    tickets = [engine.submit(one) for one in asked]
    for ticket, expected in zip(tickets, alone, strict=True):
        result = ticket.result()
        np.testing.assert_array_equal(result.latents, expected.latents)
        assert np.isfinite(result.latents).all()
    assert set(REQUESTS) == tasks_of(pipe._bundle.path)


def test_what_is_shown_and_where_it_is_painted_matter(pipe):
    arguments = {"images": [PICTURE], "steps": 1, "size": (64, 64), "guidance": 1.0, "image_guidance": 1.0}
    same = {"prompt": "<inpaint>"}  # three ways to show a picture under one prompt
    whole = pipe.generate(**same, **arguments).latents
    hole = pipe.run("inpaint", hole=HOLE, **arguments).latents
    other = pipe.run("inpaint", hole=HOLE[::-1], **arguments).latents
    nothing = pipe.generate(**same, steps=1, size=(64, 64), guidance=1.0).latents
    found = [whole, hole, other, nothing]
    assert all(not np.allclose(a, b, atol=1e-4) for i, a in enumerate(found) for b in found[:i])


def test_an_identity_is_that_of_its_pictures(pipe):
    arguments = {"prompt": "a cube", "steps": 1, "size": (32, 32), "guidance": 1.0}
    pictures = [PICTURE, PICTURE.rotate(90)]
    made = [
        pipe.run("identity", images=given, **arguments).latents for given in (pictures, pictures[::-1], pictures[:1])
    ]
    np.testing.assert_array_equal(pipe.run("identity", images=pictures, **arguments).latents, made[0])
    assert all(not np.allclose(a, b, atol=1e-5) for i, a in enumerate(made) for b in made[:i])


def test_the_command_line_runs_its_tasks(univg_bundle, tmp_path, capsys):
    PICTURE.save(tmp_path / "in.png")
    common = ["--steps", "1", "--size", "32x32", "--quiet", "--json"]
    words = ["segment", "--image", str(tmp_path / "in.png"), "--prompt", "the cube", "-o", str(tmp_path / "mask.png")]
    assert main(["run", str(univg_bundle), *words, *common]) == 0
    assert {file.name for file in tmp_path.glob("mask*")} == {"mask.png", "mask-the-cube.png"}
    boxes = [
        "--box",
        "red cube=0,0,16,16",
        "--box",
        "ball=8,8,32,32",
        "--color",
        "ball=gold",
        "--color",
        "red cube=red",
    ]
    words = ["layout_to_image", *boxes, "--image-guidance", "2", "-o", str(tmp_path / "layout.png")]
    assert main(["run", str(univg_bundle), *words, *common]) == 0
    with Image.open(tmp_path / "layout.png") as image:
        settings = json.loads(image.text["framert"])
    assert settings["boxes"] == {"red cube": [0, 0, 16, 16], "ball": [8, 8, 32, 32]}
    assert (settings["image_guidance"], settings["full_prompt"]) == (2.0, "<lg> <red: red cube> <gold: ball>")
    words = ["outpaint", "--image", str(tmp_path / "in.png"), "--extend", "8,0,8,0", "-o", str(tmp_path / "wide.png")]
    assert main(["run", str(univg_bundle), *words, *common]) == 0
    capsys.readouterr()
    assert (
        main(["run", str(univg_bundle), "deblur", "--image", str(tmp_path / "in.png"), "-o", str(tmp_path / "x.png")])
        == 2
    )
    assert "'deblur' is a task of onediffusion" in capsys.readouterr().err


def test_one_process_serves_real_bundles_of_both(pipe, golden_bundle):
    frames = framert.load(golden_bundle, threads=1)
    arguments = {"prompt": "a red cube", "steps": 2, "size": (32, 32), "seed": 7}
    alone = [one.run("text_to_image", **arguments) for one in (pipe, frames)]
    with pipe.engine() as first, frames.engine() as second:
        request = framert.Request(task="text_to_image", **arguments)
        tickets = [engine.submit(request) for engine in (first, second, first, second)]
        results = [ticket.result(120) for ticket in tickets]
    for result, expected in zip(results, alone * 2, strict=True):
        np.testing.assert_array_equal(result.latents, expected.latents)


def test_a_request_without_pictures_compiles(univg_bundle):
    request = framert.Request(task="text_to_image", prompt="a red cube", steps=2, size=(32, 32))
    compiled = compile_requests(Bundle.open(univg_bundle), [request])
    tables = compiled.phases[0].tables
    assert {"conditions", "condition_source", "text_source", "text_frame"} <= set(tables)

"""UniVG's requests compiled: pictures beside the noise, references inside prompts, text that is carried along."""

import numpy as np
import pytest

from framert.runtime.compiled.compiler import compile_requests
from framert.runtime.compiled.format import CompiledRequest
from framert.runtime.compiled.replay import replay
from framert.runtime.request import Request

HOLE = np.zeros((64, 64), bool)
HOLE[20:40, 8:30] = True


def requests(picture):
    small = {"steps": 2, "size": (48, 32), "seed": 2}
    return {
        "text": Request(task="text_to_image", prompt="a red cube", guidance=3.0, **small),
        "edit": Request(task="edit", images=[picture], prompt="make it blue", solver="heun", **small),
        "inpaint": Request(
            task="inpaint", images=[picture], hole=HOLE, prompt="a red sphere", solver="dpmpp_2m", **small
        ),
        "identity": Request(task="identity", images=[picture] * 2, prompt="a sphere", **small),
    }


@pytest.mark.parametrize("name", ["text", "edit", "inpaint", "identity"])
def test_replay_equals_run(name, pipe, univg, picture, tmp_path):
    bundle = pipe._bundle
    compiled = compile_requests(bundle, [requests(picture)[name]])
    loaded = CompiledRequest.load(compiled.save(tmp_path / "request.safetensors"))
    (got,) = replay(loaded, bundle, univg.NumpyBackend(bundle))
    expected = pipe.engine().submit(requests(picture)[name]).result()
    np.testing.assert_array_equal(got.latents, expected.latents)
    np.testing.assert_array_equal(got.pixels, expected.pixels)


def test_several_requests_that_leave_one_after_another(pipe, univg, picture):
    bundle = pipe._bundle
    asked = list(requests(picture).values())
    compiled = compile_requests(bundle, asked)
    assert [phase.calls for phase in compiled.phases] == [2, 1]  # Heun's third call is alone
    assert len({place[2] for place in compiled.places.tolist()}) == 2  # the edited picture is shown in both phases
    engine = pipe.engine()
    for got, request in zip(replay(compiled, bundle, univg.NumpyBackend(bundle)), asked, strict=True):
        np.testing.assert_array_equal(got.latents, engine.submit(request).result().latents)

"""UniVG through the engine: packed equals alone, guidance by its formula, and what the graphs are given."""

import numpy as np
import pytest

from framert.runtime.errors import ShapeError
from framert.runtime.pipeline import Pipeline
from framert.runtime.request import Request
from framert.runtime.schedule import Schedule

HOLE = np.zeros((64, 64), bool)
HOLE[20:40, 8:30] = True


def requests(picture):
    return [
        Request(task="text_to_image", prompt="a red cube", steps=3, size=(64, 32), seed=1, guidance=3.0),
        Request(task="edit", images=[picture], prompt="make it blue", steps=4, size=(48, 48), seed=2, solver="heun"),
        Request(task="inpaint", images=[picture], hole=HOLE, prompt="a red sphere on a blue cube", steps=2, seed=3,
                image_guidance=1.0, solver="dpmpp_2m"),
        Request(task="segment", images=[picture], prompt="a cube", steps=3, size=(32, 64), seed=4, guidance=0.0),
        Request(task="identity", images=[picture] * 2, prompt="a sphere", steps=2, size=(16, 16), seed=5),
        Request(task="layout_to_image", boxes={"red cube": (0, 0, 32, 32)}, steps=3, seed=6, negative_prompt="blue"),
    ]  # fmt: skip


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (4, 1, 3, 0), (5, 5, 2), (3, 2, 1)], ids=str)
def test_packed_equals_alone_bit_for_bit(pipe, picture, order):
    asked = requests(picture)
    alone = [pipe.engine().submit(asked[index]).result() for index in order]
    engine = pipe.engine()
    tickets = [engine.submit(asked[index]) for index in order]
    engine.step()
    joined = engine.submit(asked[order[0]])  # one that comes later
    for ticket, expected in zip([*tickets, joined], [*alone, alone[0]], strict=True):
        np.testing.assert_array_equal(ticket.result().latents, expected.latents)
        np.testing.assert_array_equal(ticket.result().pixels, expected.pixels)


@pytest.mark.parametrize("bucket", [3, 64])
def test_padding_of_image_tokens_changes_nothing(pipe, picture, monkeypatch, bucket):
    asked = requests(picture)[:4]
    alone = [pipe.engine().submit(one).result() for one in asked]
    engine = pipe.engine()
    monkeypatch.setattr(engine._pack._denoiser, "padded", lambda tokens: -(-tokens // bucket) * bucket)
    tickets = [engine.submit(one) for one in asked]
    for ticket, expected in zip(tickets, alone, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, expected.latents)


def velocities(pipe, noise, prompt, negative, conditions):
    """v(0, n), v(V, n) and v(V, p) at the first noise level, each from a call of its own, in float64."""
    texts = [pipe._components.read(words, {}).values for words in (negative, negative, prompt)]
    found = []
    for text, shown in zip(texts, (None, conditions, conditions), strict=True):
        hidden = text["hidden_states"][None]
        found.append(
            pipe.velocity(
                noise[None], np.array([1000.0]), hidden, np.ones(hidden.shape[:2]), pooled=text["pooled"][None],
                conditions=None if shown is None else shown[None],
            )[0].astype(np.float64)
        )  # fmt: skip
    return found


@pytest.mark.parametrize(("text", "image"), [(4.0, 1.5), (2.0, 2.0), (3.0, 1.0), (1.0, 2.5), (1.0, 1.0), (0.5, 0.0)])
def test_dual_guidance_is_its_formula(pipe, picture, text, image):
    noise = np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(np.float32)
    result = pipe.run(
        "edit", images=[picture], prompt="make it red", negative_prompt="blue", noise=noise, steps=1, size=(64, 64),
        guidance=text, image_guidance=image,
    )  # fmt: skip
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    mean = pipe._backend.run("vae_encoder", {"pixels": pixels.astype(np.float32)})["mean"][0]
    shown = np.concatenate([(mean - 0.25) * 1.5, np.zeros((1, 8, 8), np.float32)])  # shift, scale; nothing is blank
    zero, seen, both = velocities(pipe, noise, "<ie> make it red", "blue", shown)
    a_image, a_text = max(image, 1), max(text, 1)
    expected = zero + a_image * (seen - zero) + a_text * (both - seen)
    np.testing.assert_allclose(result.latents, noise - expected, rtol=1e-5, atol=1e-5)
    assert (result.settings["guidance"], result.settings["image_guidance"]) == (text, image)


def test_text_alone_is_guided_as_ever(pipe):
    noise = np.random.default_rng(0).standard_normal((1, 16, 4, 8)).astype(np.float32)
    result = pipe.run("text_to_image", prompt="a cube", noise=noise, steps=1, size=(64, 32), guidance=3.0)
    zero, _, plain = velocities(pipe, noise, "<t2i> a cube", "", None)
    np.testing.assert_allclose(result.latents, noise - (zero + 3 * (plain - zero)), rtol=1e-5, atol=1e-5)
    assert "image_guidance" not in result.settings


@pytest.mark.parametrize(
    ("arguments", "branches"),
    [({}, 3), ({"image_guidance": 1.0}, 2), ({"guidance": 1.0}, 3), ({"guidance": 1.0, "image_guidance": 1.0}, 1),
     ({"guidance": 2.0, "image_guidance": 2.0}, 2)],
    ids=str,
)  # fmt: skip
def test_branches_without_weight_do_not_run(pipe, picture, arguments, branches):
    engine = pipe.engine()
    engine.submit(Request(task="edit", images=[picture], prompt="make it red", steps=1, size=(32, 32), **arguments))
    tokens = []
    denoiser = engine._pack._denoiser
    step = denoiser.step
    denoiser.step = lambda row, update: (tokens.append(len(denoiser.tables["source"])), step(row, update))
    engine.step()
    assert tokens == [branches * 4]


def test_the_blank_row_is_shared_and_pictures_follow(pipe, picture):
    engine = pipe.engine()
    for one in requests(picture)[:4]:
        engine.submit(one)
    bound = []
    denoiser = engine._pack._denoiser
    bind = denoiser.bind
    denoiser.bind = lambda tables, *state: (bound.append(tables), bind(tables, *state))
    engine.step()
    tables = bound[0]
    blank = tables.conditions[0].reshape(4, 17)
    assert not blank[:, :16].any()
    assert (blank[:, 16] == 1).all()
    slots = [8, 9, 16, 8]  # tokens of each request's picture: text to image has no rows of its own
    assert len(tables.conditions) == 1 + sum(slots[1:])
    # a token reads the row of its own place or the blank one; the branches without a picture come last
    starts = {1: 1, 2: 1 + 9, 3: 1 + 9 + 16}
    token = 0
    for member, branches in ((0, (False, False)), (1, (True, True, False)), (2, (True, True)), (3, (True,))):
        for seen in branches:
            rows = tables.condition_source[token : token + slots[member]]
            expected = starts[member] + np.arange(slots[member]) if seen else np.zeros(slots[member])
            np.testing.assert_array_equal(rows, expected)
            token += slots[member]
    assert token == len(tables.condition_source)


def test_text_tokens_are_carried_with_their_sequence_s_frame(pipe, picture):
    engine = pipe.engine()
    for one in requests(picture)[:2]:
        engine.submit(one)
    denoiser = engine._pack._denoiser
    engine.step()
    tables = denoiser.tables
    lengths = [5, 1, 5, 1, 1]  # "<t2i> a red cube </s>", "</s>"; "<ie> make it blue </s>" and twice "</s>"
    np.testing.assert_array_equal(tables["text_range"][:, 1], lengths)
    np.testing.assert_array_equal(tables["text_frame"], np.repeat(np.arange(5), lengths))
    rows = np.split(tables["text_source"], np.cumsum(lengths)[:-1])
    assert rows[1].tolist() == rows[3].tolist() == rows[4].tolist()  # one prompt in the arena, carried three times
    assert not set(rows[0].tolist()) & set(rows[2].tolist())


def test_positions_are_those_of_the_middle_of_the_grid(pipe):
    engine = pipe.engine()
    engine.submit(Request(task="text_to_image", prompt="a", steps=1, size=(64, 32), guidance=1.0))
    denoiser = engine._pack._denoiser
    engine.step()
    rows, columns = np.mgrid[7:9, 6:10]  # 2 x 4 tokens in the middle of 16 x 16
    expected = np.stack([np.zeros(8), rows.ravel(), columns.ravel()], axis=1)
    np.testing.assert_array_equal(denoiser.tables["position"], expected)


def test_references_are_encoded_once_and_stand_where_the_placeholders_are(pipe, picture):
    dark = picture.point(lambda value: value // 4)
    arguments = {"prompt": "a cube", "steps": 1, "size": (32, 32)}
    result = pipe.run("identity", images=[picture, dark], captions=["red", ""], **arguments)
    assert result.settings["full_prompt"] == "<p> red <p> a cube"
    runs = pipe._backend.runs
    assert [graph for graph, _ in runs].count("image_encoder") == 2
    read = [feeds for graph, feeds in runs if graph == "text_encoder"]
    assert [feeds["feature_index"].tolist() for feeds in read] == [[0, 2], []]  # the prompt, and the empty one
    assert read[0]["input_ids"][0, [0, 2]].tolist() == [2, 2]
    assert not np.array_equal(*read[0]["feature"])
    again = pipe.run("identity", images=[picture, dark], captions=["red", ""], **arguments)
    np.testing.assert_array_equal(again.latents, result.latents)
    other = pipe.run("identity", images=[dark, picture], captions=["red", ""], **arguments)
    assert not np.array_equal(other.latents, result.latents)  # the same words, but not the same text
    assert [graph for graph, _ in runs].count("image_encoder") == 2


def test_without_condition_channels_it_is_stable_diffusion_3(univg, open_bundle):
    bundle = open_bundle(conditions=False, references=False)
    pipe = Pipeline(bundle, univg.NumpyBackend(bundle))
    result = pipe.run("text_to_image", prompt="a red cube", size=(32, 32))
    assert result.settings["full_prompt"] == "a red cube"
    assert (result.settings["steps"], result.settings["guidance"]) == (28, 7.0)
    denoiser = pipe.engine()._pack._denoiser
    assert not {"conditions", "condition_source"} & denoiser._inputs


def test_pooled_text_that_no_encoder_makes_is_zeros(univg, open_bundle):
    bundle = open_bundle(pools=False)
    pipe = Pipeline(bundle, univg.NumpyBackend(bundle))
    pipe.run("text_to_image", prompt="a", size=(32, 32), steps=1)
    fed = [feeds["pooled"] for graph, feeds in pipe._backend.runs if graph == "conditioner"]
    assert [array.tolist() for array in fed] == [[0.0] * 6] * 2


def test_pictures_are_decoded_in_the_autoencoder_s_own_scale(pipe):
    result = pipe.run("text_to_image", prompt="a", size=(32, 16), steps=1)
    own = result.latents / np.float32(1.5) + np.float32(0.25)  # scale, then shift: what encoding does, backwards
    pixels = pipe._backend.run("vae_decoder", {"latents": own})["pixels"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(result.pixels[0], np.clip(pixels / 2 + 0.5, 0, 1), atol=1e-6)


def test_warm_up_runs(pipe):
    pipe.warm_up([64, 7])


def test_previews_are_pictures(pipe, picture):
    seen = []
    pipe.run(
        "edit", images=[picture], prompt="make it red", steps=3, size=(32, 32),
        on_step=lambda info: seen.append((info.step, info.sigma, info.preview()[0].size)),
    )  # fmt: skip
    sigmas = Schedule.build(pipe.manifest.schedule, 3, 4).sigmas
    assert [step for step, *_ in seen] == [1, 2, 3]
    np.testing.assert_allclose([sigma for _, sigma, _ in seen], sigmas[1:])
    assert {size for *_, size in seen} == {(32, 32)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooled": np.zeros((1, 5))}, r"pooled has shape \(1, 5\); give \(1, 6\)"),
        ({"conditions": np.zeros((1, 16, 4, 4))}, r"conditions has shape \(1, 16, 4, 4\); give \(1, 17, 4, 4\)"),
        ({"conditions": np.full((1, 17, 4, 4), np.nan)}, "conditions holds NaN"),
    ],
)
def test_a_raw_call_checks_what_it_is_given(pipe, arguments, message):
    samples, text = np.zeros((1, 1, 16, 4, 4)), np.zeros((1, 3, 8))
    with pytest.raises(ShapeError, match=message):
        pipe.velocity(samples, np.array([500.0]), text, np.ones((1, 3)), **arguments)
    assert pipe.velocity(samples, np.array([500.0]), text, np.ones((1, 3))).shape == samples.shape


def test_a_model_without_a_place_says_so(univg, open_bundle):
    bundle = open_bundle(conditions=False, pooled=False, references=False)
    pipe = Pipeline(bundle, univg.NumpyBackend(bundle))
    samples, text = np.zeros((1, 1, 16, 4, 4)), np.zeros((1, 3, 8))
    for name, shape in (("pooled", (1, 6)), ("conditions", (1, 17, 4, 4))):
        with pytest.raises(ShapeError, match=f"{name} was given, and this model has no place for it"):
            pipe.velocity(samples, np.array([500.0]), text, np.ones((1, 3)), **{name: np.zeros(shape)})

"""The engine's promises: a request's result does not depend on who runs beside it, whatever happens to them."""

import threading
from pathlib import Path

import numpy as np
import pytest

import framert
from framert.runtime.errors import BackendError, CancelledError, ConfigError, FramertError

GOLDEN = Path(__file__).parents[1] / "golden"
INPUT = GOLDEN / "input_0.png"

REQUESTS = [
    framert.Request(task="text_to_image", prompt="a red cube", steps=3, size=(64, 96), seed=1, guidance=3.0),
    framert.Request(task="image_to_depth", images=[INPUT], steps=5, size=(48, 32), seed=2, solver="heun"),
    framert.Request(
        task="camera_pose", images=[INPUT, GOLDEN / "input_1.png"], steps=4, size=(32, 32), seed=3, solver="dpmpp_2m"
    ),
    framert.Request(
        task="image_to_semantic",
        images=[INPUT],
        colors={"cube": "cyan"},
        prompt="a cube",
        steps=2,
        size=(32, 64),
        seed=4,
        guidance=0.0,
        negative_prompt="blurry",
    ),
]


@pytest.fixture(scope="module")
def pipe(golden_bundle):
    return framert.load(golden_bundle)


@pytest.fixture(scope="module")
def alone(pipe):
    return [pipe.engine().submit(request).result() for request in REQUESTS]


def same(result, expected):
    np.testing.assert_array_equal(result.latents, expected.latents)
    np.testing.assert_array_equal(result.pixels, expected.pixels)
    assert result.settings == expected.settings


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (3, 0, 2, 1), (1, 1, 1)], ids=str)
def test_packed_equals_alone_bit_for_bit(pipe, alone, order):
    engine = pipe.engine()
    tickets = [engine.submit(REQUESTS[index]) for index in order]
    while engine.step():
        pass
    for index, ticket in zip(order, tickets, strict=True):
        assert ticket.done
        same(ticket.result(), alone[index])


@pytest.mark.parametrize("late", [1, 2, 4])
def test_joining_and_leaving_changes_nothing(pipe, alone, late):
    engine = pipe.engine()
    first = engine.submit(REQUESTS[1])
    for _ in range(late):
        engine.step()
    second, third = engine.submit(REQUESTS[0]), engine.submit(REQUESTS[2])
    same(third.result(), alone[2])
    same(first.result(), alone[1])
    same(second.result(), alone[0])


def test_small_packs_queue_without_changing_results(pipe, alone):
    engine = pipe.engine(max_tokens=64)
    tickets = [engine.submit(REQUESTS[index]) for index in (0, 2, 1)]
    for index, ticket in zip((0, 2, 1), tickets, strict=True):
        same(ticket.result(), alone[index])


@pytest.mark.parametrize("bucket", [7, 64, 1000])
def test_padding_to_a_bucket_changes_nothing(pipe, alone, monkeypatch, bucket):
    """Backends that want few token counts pad the pack; nobody may notice."""
    engine = pipe.engine()
    monkeypatch.setattr(engine._pack._denoiser, "padded", lambda tokens: -(-tokens // bucket) * bucket)
    tickets = [engine.submit(REQUESTS[index]) for index in (0, 1, 2)]
    for index, ticket in enumerate(tickets):
        same(ticket.result(), alone[index])


def test_a_request_above_max_tokens_is_refused_with_both_numbers(pipe):
    with pytest.raises(ConfigError, match=r"needs 48 tokens per call, this engine takes 32"):
        pipe.engine(max_tokens=32).submit(REQUESTS[0])


@pytest.mark.parametrize("value", [0, -64, 1.5, True])
def test_max_tokens_must_be_a_count(pipe, value):
    with pytest.raises(ConfigError, match="max_tokens is"):
        pipe.engine(max_tokens=value)


def test_cancelled_requests_leave_and_others_go_on(pipe, alone):
    engine = pipe.engine()
    running, kept, waiting = (engine.submit(REQUESTS[index]) for index in (0, 1, 2))
    engine.step()
    assert running.cancel()
    assert waiting.cancel()
    same(kept.result(), alone[1])
    for ticket in (running, waiting):
        with pytest.raises(CancelledError):
            ticket.result()
    assert not kept.cancel()


def test_a_failing_callback_fails_only_its_own_request(pipe, alone):
    def explode(info):
        raise RuntimeError("mine")

    engine = pipe.engine()
    bad = engine.submit(framert.Request(task="text_to_image", prompt="a", steps=3, size=(32, 32), on_step=explode))
    good = engine.submit(REQUESTS[0])
    same(good.result(), alone[0])
    with pytest.raises(RuntimeError, match="mine"):
        bad.result()


def test_nan_of_one_request_stays_its_own(pipe, alone):
    """A sequence whose latents are NaN from its first step on ends with an error; its neighbours are unchanged."""
    engine = pipe.engine()
    poisoned = engine.submit(framert.Request(task="text_to_image", prompt="a", steps=3, size=(32, 32)))
    others = [engine.submit(REQUESTS[index]) for index in (0, 1)]
    engine.step()
    engine._pack.collect()
    entry = next(entry for entry in engine._running if entry.ticket is poisoned)
    entry.state.latents[:] = np.nan
    for index, ticket in zip((0, 1), others, strict=True):
        same(ticket.result(), alone[index])
    with pytest.raises(BackendError, match="NaN"):
        poisoned.result()


def test_a_backend_failure_caused_by_one_member_spares_the_others(pipe, alone, monkeypatch):
    engine = pipe.engine()
    bad = engine.submit(framert.Request(task="text_to_image", prompt="a", steps=3, size=(16, 16)))
    good = engine.submit(REQUESTS[0])
    denoiser = engine._pack._denoiser
    step = denoiser.step

    def fragile(row, update):
        lengths = denoiser._tables["q_range"][:, 1]
        if (lengths == 1).any():
            raise BackendError("out of memory")
        step(row, update)

    monkeypatch.setattr(denoiser, "step", fragile)
    same(good.result(), alone[0])
    with pytest.raises(BackendError, match="out of memory"):
        bad.result()


def test_background_thread_and_many_callers(pipe, alone):
    results = {}
    with pipe.engine() as engine:

        def work(index):
            results[index] = engine.submit(REQUESTS[index]).result(timeout=60)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, result in results.items():
        same(result, alone[index])
    assert len(results) == 4


def test_one_pipeline_from_several_threads(pipe):
    expected = [pipe.run("text_to_image", prompt=f"a {n}", steps=2, size=(32, 32), seed=n) for n in range(3)]
    results = {}

    def work(n):
        results[n] = pipe.run("text_to_image", prompt=f"a {n}", steps=2, size=(32, 32), seed=n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(3):
        same(results[n], expected[n])


def test_timeout_says_so_and_the_request_lives_on(pipe, alone):
    ticket = pipe.engine().submit(REQUESTS[0])
    with pytest.raises(FramertError, match="no result after 0"):
        ticket.result(timeout=0)
    same(ticket.result(), alone[0])


def test_lists_and_counts_are_seeded_one_by_one(pipe):
    options = {"steps": 2, "size": (32, 32)}
    several = pipe.run("text_to_image", prompt="a cat", count=3, seed=5, **options)
    listed = pipe.run("text_to_image", prompt=["a cat", "a dog"], seed=6, **options)
    for n, result in enumerate(several):
        same(result, pipe.run("text_to_image", prompt="a cat", seed=5 + n, **options))
    same(listed[0], several[1])
    assert np.abs(listed[1].latents - several[2].latents).max() > 1e-3


@pytest.mark.parametrize(("solver", "calls"), [("euler", 4), ("heun", 7), ("dpmpp_2m", 4)])
def test_on_step_fires_once_per_interval_with_a_preview(pipe, solver, calls):
    seen = []
    out = pipe.run(
        "text_to_image", prompt="x", steps=4, size=(64, 32), solver=solver,
        on_step=lambda info: seen.append((info.step, info.steps, info.sigma, info.preview()[0].size)),
    )  # fmt: skip
    assert [item[0] for item in seen] == [1, 2, 3, 4]
    assert {item[1] for item in seen} == {4}
    assert seen[-1][2] == 0.0
    assert {item[3] for item in seen} == {(64, 32)}
    assert out.settings["solver"] == solver


def test_a_prompt_used_again_is_not_encoded_again(pipe, monkeypatch):
    engine = pipe.engine()
    request = framert.Request(task="text_to_image", prompt="once only", steps=2, size=(32, 32))
    first = engine.submit(request).result()
    ran = []
    run = engine._components._backend.run
    monkeypatch.setattr(
        engine._components._backend, "run", lambda graph, feeds: (ran.append(graph), run(graph, feeds))[1]
    )
    second = engine.submit(request).result()
    assert ran == ["vae_decoder"]
    same(second, first)


def test_several_results_of_one_picture_encode_it_once(golden_bundle, monkeypatch):
    pipe = framert.load(golden_bundle)
    ran = []
    run = pipe._backend.run
    monkeypatch.setattr(pipe._backend, "run", lambda graph, feeds: (ran.append(graph), run(graph, feeds))[1])
    options = {"steps": 1, "size": (32, 32)}
    several = pipe.run("image_to_depth", images=[INPUT], count=3, **options)
    assert ran.count("vae_encoder") == 1
    pipe.run("image_to_depth", images=[GOLDEN / "input_1.png"], **options)
    assert ran.count("vae_encoder") == 2
    same(several[2], framert.load(golden_bundle).run("image_to_depth", images=[INPUT], seed=2, **options))

"""What callers do to an engine that they should not: interrupts, re-entry, races, reused buffers."""

import threading
import warnings

import numpy as np
import pytest

import framert
from framert.runtime.errors import CancelledError, ConfigError, FramertError, ShapeError, TaskError

SMALL = {"task": "text_to_image", "prompt": "a", "steps": 3, "size": (32, 32)}


@pytest.fixture(scope="module")
def pipe(golden_bundle):
    return framert.load(golden_bundle)


@pytest.fixture
def engine(pipe):
    return pipe.engine()


def raising(error):
    def on_step(info):
        raise error

    return on_step


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_an_interrupt_ends_its_own_request_and_the_thread_goes_on(engine, error):
    with engine:
        bad = engine.submit(framert.Request(**SMALL, on_step=raising(error)))
        good = engine.submit(framert.Request(**SMALL, seed=1))
        with pytest.raises(CancelledError, match=type(error).__name__):
            bad.result(timeout=60)
        assert good.result(timeout=60).images
        assert engine.submit(framert.Request(**SMALL, seed=2)).result(timeout=60).images


def test_an_interrupt_reaches_who_drives_and_leaves_the_others_whole(engine):
    bad = engine.submit(framert.Request(**SMALL, on_step=raising(KeyboardInterrupt())))
    good = engine.submit(framert.Request(**SMALL, seed=1))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    with pytest.raises(CancelledError):
        bad.result()
    expected = engine.submit(framert.Request(**SMALL, seed=1)).result()
    np.testing.assert_array_equal(good.result().pixels, expected.pixels)


def test_an_interrupt_while_decoding_loses_no_ticket(engine, monkeypatch):
    first = engine.submit(framert.Request(**SMALL))
    second = engine.submit(framert.Request(**SMALL, seed=1))
    decode, calls = engine._components.decode, []

    def interrupted(latents, seconds):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return decode(latents, seconds)

    monkeypatch.setattr(engine._components, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.result()
    assert second.result().images
    with pytest.raises(CancelledError):
        first.result()


@pytest.mark.parametrize("threaded", [False, True])
def test_waiting_for_a_result_inside_a_callback_is_refused(engine, threaded):
    other = engine.submit(framert.Request(**SMALL, seed=1))
    bad = engine.submit(framert.Request(**SMALL, on_step=lambda info: other.result()))
    if threaded:
        engine.start()
    with pytest.raises(FramertError, match="inside a step"):
        bad.result(timeout=60)
    assert other.result(timeout=60).images
    engine.stop()


def test_submitting_from_a_callback_works(engine):
    tickets = []
    request = framert.Request(**SMALL, seed=1)
    engine.submit(framert.Request(**SMALL, on_step=lambda info: tickets.append(engine.submit(request)))).result()
    assert len(tickets) == 3
    assert all(ticket.result().images for ticket in tickets)


def test_submit_does_not_wait_for_the_step(engine):
    inside, leave = threading.Event(), threading.Event()

    def hold(info):
        inside.set()
        assert leave.wait(30)

    with engine:
        slow = engine.submit(framert.Request(**SMALL, on_step=hold))
        assert inside.wait(30)
        quick = engine.submit(framert.Request(**SMALL, seed=1))  # would hang here
        leave.set()
        assert slow.result(timeout=60).images
        assert quick.result(timeout=60).images


def test_stop_and_start_from_anywhere(engine):
    with engine:
        assert engine.submit(framert.Request(**SMALL, on_step=lambda info: engine.stop())).result(timeout=60).images
    engine.start()
    engine.start()
    assert sum(thread.name == "framert-engine" for thread in threading.enumerate()) <= 2
    engine.stop()
    engine.stop()
    assert engine.submit(framert.Request(**SMALL)).result().images


def test_a_request_too_big_for_memory_leaves_room_for_small_ones(engine, monkeypatch):
    denoiser = engine._pack._denoiser
    reserve = denoiser.reserve

    def limited(*, text, rows):
        if rows > 600:
            raise MemoryError(f"{rows} rows")
        reserve(text=text, rows=rows)

    monkeypatch.setattr(denoiser, "reserve", limited)
    with pytest.raises(MemoryError):
        engine.submit(framert.Request(**SMALL | {"steps": 1000})).result()
    assert engine.submit(framert.Request(**SMALL | {"prompt": "another"})).result().images


def test_buffers_may_be_reused_after_submit(engine):
    noise = np.random.default_rng(0).standard_normal((1, 16, 4, 4)).astype(np.float32)
    image = np.zeros((40, 40, 3), np.uint8)
    requests = [
        framert.Request(**SMALL, noise=noise),
        framert.Request(task="image_to_depth", images=[image], steps=2, size=(32, 32)),
    ]
    expected = [engine.submit(request).result().latents for request in requests]
    tickets = [engine.submit(request) for request in requests]
    noise += 1
    image += 200
    for ticket, latents in zip(tickets, expected, strict=True):
        np.testing.assert_array_equal(ticket.result().latents, latents)


def test_an_interrupted_run_leaves_nothing_behind(pipe):
    with pytest.raises(KeyboardInterrupt):
        pipe.run("text_to_image", prompt="b", count=3, steps=3, size=(32, 32), on_step=raising(KeyboardInterrupt()))
    engine = pipe._engine
    assert not engine._running
    assert not len(engine._scheduler)
    assert not any(span.holders for arena in (engine._store._text, engine._store._rows) for span in arena._spans)
    assert not engine._pack._members


def test_a_preview_kept_for_later_says_so(engine):
    kept = []
    engine.submit(framert.Request(**SMALL, on_step=lambda info: kept.append(info.preview))).result()
    with pytest.raises(FramertError, match="called late"):
        kept[0]()


def test_noise_is_for_one_result(pipe):
    noise = np.zeros((1, 16, 4, 4), np.float32)
    with pytest.raises(ConfigError, match="noise was given for 2 results"):
        pipe.run("text_to_image", prompt="a", count=2, noise=noise, size=(32, 32), steps=1)


def test_a_cut_prompt_warns_every_time(pipe):
    for _ in range(2):
        with pytest.warns(UserWarning, match="300"):
            pipe.run("text_to_image", prompt="word " * 2000, steps=1, size=(32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.run("text_to_image", prompt="word", steps=1, size=(32, 32))


def test_other_things_than_requests_are_refused(engine, pipe):
    with pytest.raises(ConfigError, match="on_step is 5"):
        pipe.run("text_to_image", prompt="a", on_step=5)
    with pytest.raises(TaskError, match="submit\\(\\) was given a str"):
        engine.submit("text_to_image")
    with pytest.raises(ConfigError, match="on_step is 5"):
        engine.submit(framert.Request(**SMALL, on_step=5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": "x"}, "samples is a str"),
        ({"timesteps": np.array([np.nan])}, "timesteps holds NaN"),
        ({"text_mask": np.zeros((1, 3))}, "without any text"),
        ({"samples": np.zeros((1, 1, 16, 400, 4))}, "at most"),
        ({"samples": np.zeros((1, 1, 16, 3, 4))}, "multiples"),
        ({"timesteps": np.zeros(2)}, "one per frame"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_velocity_checks_what_it_is_given(pipe, change, message):
    good = {
        "samples": np.zeros((1, 1, 16, 4, 4)),
        "timesteps": np.array([500.0]),
        "text": np.zeros((1, 3, pipe.manifest.model.text_width)),
        "text_mask": np.ones((1, 3)),
    }
    assert np.isfinite(pipe.velocity(**good)).all()
    with pytest.raises(ShapeError, match=message):
        pipe.velocity(**good | change)

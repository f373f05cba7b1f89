"""The CUDA driver behind backend "tensorrt": memory, order, staging and capturing, on an emulated device."""

import ctypes
import gc

import numpy as np
import pytest

from framert.runtime.backends.tensorrt.device import Device
from framert.runtime.backends.tensorrt.driver import Driver
from framert.runtime.backends.tensorrt.memory import Activations, DeviceArray
from framert.runtime.backends.tensorrt.staging import DEPTH, Staging
from framert.runtime.errors import BackendError


@pytest.fixture
def cuda(machine):
    return machine().cuda


@pytest.fixture
def device(cuda):
    made = Device(cuda)
    with made.use():
        yield made


def array(device, values):
    made = DeviceArray(device.driver, device.stream, values.shape, values.dtype.name, "a test")
    made.write(values)
    return made


def test_the_first_device_is_described(cuda):
    driver = Driver(cuda)
    assert (driver.gpu, driver.target) == ("Emulated GPU", "sm_89")


def test_calls_outside_of_current_are_refused(cuda):
    """Each thread has a context of its own; nothing may depend on what another one left."""
    driver = Driver(cuda)
    with pytest.raises(BackendError, match="refuses cuStreamCreate: CUDA_ERROR_INVALID_CONTEXT"):
        driver.stream()
    with driver.current():
        driver.stream()
    assert not cuda.contexts.stack


def test_arrays_come_back_as_they_were(device):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    made = array(device, values)
    np.testing.assert_array_equal(made.read(), values)
    np.testing.assert_array_equal(made.read(1), values[:1])
    made.write(np.full((1, 4), 7, np.float32), 1, 1)
    values[1, 1] = 7
    np.testing.assert_array_equal(made.read(), values)
    made.zero()
    assert not made.read().any()
    assert made.at(1, 2) - made.address == 4 * (12 + 8)


def test_what_is_written_may_change_at_once(device):
    values = np.ones(8, np.int32)
    made = array(device, values)
    values[:] = 2
    np.testing.assert_array_equal(made.read(), np.ones(8, np.int32))


def test_memory_is_freed_with_its_owner_at_the_next_chance(device, cuda):
    made = array(device, np.zeros(1 << 10, np.float32))
    used = cuda.used
    del made
    gc.collect()
    assert cuda.used == used
    kept = array(device, np.zeros(1, np.float32))
    assert cuda.used == used - 4096 + kept.nbytes


def test_nothing_is_freed_while_a_call_is_captured(device):
    """Freeing would break the capture, and owners go when the garbage collector likes."""
    values = array(device, np.ones(4, np.float32))
    target = array(device, np.zeros(4, np.float32))
    owned = [array(device, np.zeros(64, np.float32))]

    def work():
        owned.clear()
        gc.collect()
        device.driver.copy(target.address, values.address, values.nbytes, device.stream)

    graph = device.driver.capture(device.stream, work)
    assert not target.read().any()  # recorded, not done
    device.driver.launch(graph, device.stream)
    assert target.read().all()


def test_a_broken_capture_leaves_a_stream_that_works(device, cuda):
    def fails():
        raise BackendError("out of luck")

    with pytest.raises(BackendError, match="out of luck"):
        device.driver.capture(device.stream, fails)
    with pytest.raises(BackendError, match="CUDA_ERROR_STREAM_CAPTURE"):
        device.driver.capture(device.stream, lambda: device.driver.synchronize(device.stream))
    np.testing.assert_array_equal(array(device, np.ones(3, np.float32)).read(), np.ones(3))
    assert not cuda.graphs


def test_a_device_without_room_says_how_much_there_is(machine):
    device = Device(machine(memory=1 << 20).cuda)
    with device.use(), pytest.raises(BackendError, match=r"no room for a test: 2 MiB asked for, 1 of 1 MiB free"):
        device.driver.allocate(2 << 20, "a test")


def test_a_touch_outside_of_memory_is_told_when_somebody_waits(device):
    device.driver.zero(12345, 4, device.stream)
    with pytest.raises(BackendError, match="refuses cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.driver.synchronize(device.stream)


def test_staged_values_arrive_in_order_however_far_the_host_is_ahead(device, cuda):
    """The emulated device does nothing until somebody waits, so that a buffer written too early would show."""
    sends = 5 * DEPTH
    targets = [array(device, np.zeros((3, 2), np.float32)) for _ in range(sends)]
    rows = [array(device, np.zeros(5, np.int32)) for _ in range(sends)]
    values, row = np.zeros((3, 2), np.float32), np.zeros(5, np.int32)
    for number in range(sends):
        values[:], row[:] = number, -number
        device.staging.send((rows[number].address, row), (targets[number].address, values))
    assert any(stream.queue for stream in cuda.streams.values())
    for number in range(sends):
        assert (targets[number].read() == number).all()
        assert (rows[number].read() == -number).all()
    assert len(cuda.pinned) == DEPTH


def test_staging_grows_and_keeps_what_is_under_way(device, cuda):
    staging = Staging(device.driver, device.stream)
    small, large = (array(device, np.zeros(size, np.int32)) for size in (4, 4000))
    for size, target in ((4, small), (4000, large)) * DEPTH:
        staging.send((target.address, np.arange(size, dtype=np.int32)))
        np.testing.assert_array_equal(target.read(), np.arange(size))
    assert len(cuda.pinned) <= DEPTH
    staging.send((small.address, np.arange(8, dtype=np.int32)[::2]))  # not dense
    np.testing.assert_array_equal(small.read(), [0, 2, 4, 6])


def test_activations_grow_and_never_shrink(device, cuda):
    block = Activations(device.driver, device.stream)
    assert block.hold(1000)
    first = block.address
    assert not block.hold(500)
    assert block.address == first
    used = cuda.used
    assert block.hold(3000)
    assert (block.size, cuda.used) == (3000, used + 2000)
    block.drop()
    assert (block.size, cuda.used) == (0, used - 1000)


def test_a_context_changed_behind_its_graph_gives_nonsense(machine, engine_bundle):
    """The emulation itself: without this, a test of replayed graphs would prove nothing."""
    from framert.runtime.backends.tensorrt.backend import TensorRtBackend
    from framert.runtime.bundle import Bundle

    machine()
    backend = TensorRtBackend(Bundle.open(engine_bundle))
    device = backend._device
    with device.use():
        (call,) = backend.calls("vae_decoder", 1)
        latents = array(device, np.ones((1, 16, 4, 4), np.float32))
        pixels = array(device, np.zeros((1, 3, 32, 32), np.float32))
        call.shape(0, {"latents": latents.shape})
        call.address({"latents": latents.address, "pixels": pixels.address})
        call.queue()
        first = pixels.read()
        graph = device.driver.capture(device.stream, call.queue)
        latents.write(np.zeros((1, 16, 4, 4), np.float32))
        device.driver.launch(graph, device.stream)
        second = pixels.read()
        assert np.isfinite(second).all()
        assert np.abs(second - first).max() > 0  # the input's contents count, at its old address
        other = array(device, np.zeros((1, 16, 4, 4), np.float32))
        call.address({"latents": other.address})
        device.driver.launch(graph, device.stream)
        assert np.isnan(pixels.read()).all()


def test_the_emulated_engine_refuses_what_the_real_one_refuses(machine, engine_bundle):
    from framert.runtime.backends.tensorrt.backend import TensorRtBackend
    from framert.runtime.bundle import Bundle

    machine()
    backend = TensorRtBackend(Bundle.open(engine_bundle))
    device = backend._device
    with device.use():
        (call,) = backend.calls("vae_decoder", 1)
        with pytest.raises(BackendError, match="vae_decoder lacks shapes or addresses of latents"):
            call.queue()
        with pytest.raises(BackendError, match=r"refuses latents of shape .* does not satisfy \[2, 8\]"):
            call.shape(0, {"latents": (1, 16, 4, 9)})
        with pytest.raises(BackendError, match="refuses profile 7"):
            call.shape(7, {"latents": (1, 16, 4, 4)})
        call.shape(0, {"latents": (1, 16, 4, 4)})
        with pytest.raises(BackendError, match="refuses the call: Address is not set for latents"):
            call.queue()
        assert call.output_shape("pixels") == (1, 3, 32, 32)


def test_pinned_memory_is_read_late_and_other_memory_at_once(device):
    """The emulation itself."""
    pinned, pageable = device.driver.allocate_pinned(4), ctypes.create_string_buffer(4)
    targets = [array(device, np.zeros(1, np.int32)) for _ in range(2)]
    sources = (pinned, ctypes.addressof(pageable))
    for target, source in zip(targets, sources, strict=True):
        ctypes.memset(source, 1, 4)
        device.driver.upload(target.address, source, 4, device.stream)
        ctypes.memset(source, 2, 4)
    assert [int(target.read()[0]) for target in targets] == [0x02020202, 0x01010101]

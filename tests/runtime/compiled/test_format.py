"""Files that are not what they should be are refused in one sentence, and nothing is half written."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import framert
from framert.runtime.bundle import Bundle
from framert.runtime.compiled import safetensors_file
from framert.runtime.compiled.compiler import compile_requests
from framert.runtime.compiled.format import CompiledRequest
from framert.runtime.errors import CompiledRequestError, OutputError

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def bundle(golden_bundle):
    return Bundle.open(golden_bundle, check_files=False)


@pytest.fixture(scope="module")
def compiled(bundle):
    picture = GOLDEN / "input_0.png"
    request = framert.Request(task="image_to_depth", images=[picture], size=(32, 32), steps=2, seed=1)
    longer = framert.Request(task="text_to_image", prompt="a cube", size=(32, 32), steps=3, seed=1)
    return compile_requests(bundle, [request, longer])


@pytest.fixture
def file(compiled, tmp_path):
    return compiled.save(tmp_path / "request.safetensors")


def edited(compiled, **changes):
    """The arrays of a compiled request with some replaced; None takes one away."""
    arrays = compiled._arrays() | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in arrays.items() if value is not None}


def refused(path, *says):
    with pytest.raises(CompiledRequestError) as caught:
        CompiledRequest.load(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message


def test_what_is_written_is_read(compiled, file):
    read = CompiledRequest.load(file)
    assert read.metadata == compiled.metadata
    first, second = compiled._arrays(), read._arrays()
    assert list(first) == sorted(second, key=list(first).index)
    for name, array in first.items():
        assert (array.dtype, array.shape) == (second[name].dtype, second[name].shape), name
        np.testing.assert_array_equal(array, second[name])


def test_others_read_the_file_too(compiled, file):
    numpy_reader = pytest.importorskip("safetensors.numpy")
    loaded = numpy_reader.load_file(file)
    for name, array in compiled._arrays().items():
        np.testing.assert_array_equal(array, loaded[name])


def test_every_array_is_aligned_to_its_width(file):
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 8 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            width = safetensors_file.DTYPES[entry["dtype"]].itemsize
            assert entry["data_offsets"][0] % width == 0, name


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1], ids=str)
def test_a_truncated_file(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    refused(file, str(file), "truncated", "compile the request again")


def test_a_file_that_goes_on(file):
    file.write_bytes(file.read_bytes() + b"more")
    refused(file, "longer than its header says")


def test_a_missing_file_and_another_format(tmp_path):
    refused(tmp_path / "nothing.safetensors", "cannot read", "No such file")
    other = safetensors_file.write(tmp_path / "weights.safetensors", {"w": np.zeros(3, np.float32)}, {})
    refused(other, "is no compiled request")
    (tmp_path / "text.safetensors").write_text("a text that is no tensor file")
    refused(tmp_path / "text.safetensors", "truncated or no safetensors file")


@pytest.mark.parametrize(
    "damage",
    [
        lambda header: header.update(places={"dtype": "F8", "shape": [1], "data_offsets": [0, 4]}),
        lambda header: header["places"].update(shape=[-1, -2]),
        lambda header: header["places"].update(shape=[1, 3]),
        lambda header: header["places"].update(data_offsets=[0.5, 8.5]),
        lambda header: header["places"].pop("dtype"),
        lambda header: header["__metadata__"].update(version=1),
        lambda header: header.update(places=[]),
    ],
    ids=["dtype", "negative", "size", "fraction", "no dtype", "metadata", "no entry"],
)
def test_a_damaged_header(file, damage):
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    damage(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    refused(file, "damaged header")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"phase__0__row": None}, "lacks phase.0.row"),
        ({"phase__1__carry": None}, "lacks phase.1.carry"),
        ({"outputs": None}, "lacks outputs"),
        ({"extra": np.zeros(1, np.float32)}, "it holds extra, which this version does not know"),
        ({"phase__0__latents": np.zeros((2, 64), np.float32)}, "latents is float32 of shape (2, 64)"),
        ({"places": np.asarray([[5, 0, -1, 16]], np.int32)}, "places' picture points beyond 1"),
        ({"conditioner__0__to__text_k": np.asarray([999], np.int32)}, "conditioner's text_k points beyond"),
        ({"conditioner__0__to__other": np.asarray([0], np.int32)}, "other"),
        ({"phase__0__update_group": np.full(12, 9, np.int32)}, "update_group points beyond"),
    ],
    ids=["no row", "no carry", "no outputs", "unknown", "shape", "picture", "arena", "no arena", "group"],
)
def test_what_does_not_fit_together(compiled, tmp_path, changes, says):
    arrays = edited(compiled, **changes)
    refused(safetensors_file.write(tmp_path / "edited.safetensors", arrays, compiled.metadata), says)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"version": "2"}, "has version '2', this framert reads 1"), ({"mood": "good"}, "metadata mood")],
    ids=["newer", "unknown"],
)
def test_metadata_of_another_version(compiled, tmp_path, change, says):
    path = tmp_path / "edited.safetensors"
    refused(safetensors_file.write(path, compiled._arrays(), {**compiled.metadata, **change}), says)


def test_another_bundle_is_refused_and_engines_of_the_same_are_not(compiled, bundle):
    compiled.check_bundle(bundle)
    files = {name: replace(spec, sha256="0" * 64) for name, spec in bundle.manifest.files.items()}
    other = replace(bundle, manifest=replace(bundle.manifest, files=files))
    with pytest.raises(CompiledRequestError, match="compiled for another bundle"):
        compiled.check_bundle(other)
    onnx = {name: spec.sha256 for name, spec in bundle.manifest.files.items()}
    engines = replace(other, manifest=replace(other.manifest, provenance={"built": {"onnx": onnx}}))
    compiled.check_bundle(engines)


def test_a_file_in_the_way_is_kept_unless_forced(compiled, file):
    file.write_text("mine")
    with pytest.raises(OutputError, match="exists; give another -o, or --force"):
        compiled.save(file)
    assert file.read_text() == "mine"
    compiled.save(file, force=True)
    CompiledRequest.load(file)


def test_nothing_is_left_where_it_cannot_be_written(compiled, tmp_path):
    (tmp_path / "folder").mkdir()
    for bad in (tmp_path / "nowhere" / "a.safetensors", tmp_path / "folder"):
        with pytest.raises(OutputError, match="cannot write"):
            compiled.save(bad, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]

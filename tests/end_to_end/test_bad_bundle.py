"""Damaged, foreign and half written bundles are refused, with the reason and the remedy."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

import framert
from framert.runtime.bundle import Bundle, new_bundle, sha256
from framert.runtime.errors import BackendError, BundleError

SIDE = 32
GOLDEN = Path(__file__).parents[1] / "golden"


def edit_manifest(change):
    def damage(bundle):
        content = json.loads((bundle / "manifest.json").read_text())
        change(content)
        (bundle / "manifest.json").write_text(json.dumps(content))

    return damage


def put(*path, value):
    """Set an entry of the manifest; KeyError is impossible on the way there."""

    def change(content):
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = value

    return edit_manifest(change)


def drop(*path):
    def change(content):
        for name in path[:-1]:
            content = content[name]
        del content[path[-1]]

    return edit_manifest(change)


def write(name, data):
    return lambda bundle: (bundle / name).write_bytes(data)


def cut(name):
    def damage(bundle):
        data = (bundle / name).read_bytes()
        (bundle / name).write_bytes(data[: len(data) // 2])

    return damage


def flip(name):
    def damage(bundle):
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(bytes(data))

    return damage


def replace_with_file(bundle):
    shutil.rmtree(bundle)
    bundle.write_text("not a folder")


EXPORT_AGAIN = "export the checkpoint again"
BUNDLES = {
    "missing": (shutil.rmtree, ("no bundle at", "framert export CHECKPOINT -o")),
    "a file": (replace_with_file, ("is not a bundle", "made by framert export")),
    "without manifest": (lambda bundle: (bundle / "manifest.json").unlink(), ("it has no manifest.json",)),
    "manifest empty": (write("manifest.json", b""), ("cannot be read", EXPORT_AGAIN)),
    "manifest truncated": (cut("manifest.json"), ("cannot be read", EXPORT_AGAIN)),
    "manifest not text": (write("manifest.json", b"\xff\xfe\x00"), ("cannot be read", EXPORT_AGAIN)),
    "manifest a list": (write("manifest.json", b"[1]"), ("cannot be read", EXPORT_AGAIN)),
    "manifest too deep": (write("manifest.json", b"[" * 100_000), ("cannot be read", EXPORT_AGAIN)),
    "newer": (put("format", value=2), ("bundle format 2, this framert reads 1", "update framert")),
    "older": (put("format", value=0), ("bundle format 0, this framert reads 1", EXPORT_AGAIN)),
    "format a text": (put("format", value="1"), ("bundle format '1', this framert reads 1", EXPORT_AGAIN)),
    "field missing": (drop("model", "softcap"), ("damaged or edited", "softcap", EXPORT_AGAIN)),
    "field unknown": (put("model", "wheels", value=4), ("damaged or edited", "wheels", EXPORT_AGAIN)),
    "number a text": (put("native_side", value="512"), ("damaged or edited", "native_side is '512'", EXPORT_AGAIN)),
    "number NaN": (put("model", "softcap", value=float("nan")), ("damaged or edited", "softcap is nan", EXPORT_AGAIN)),
    "number zero": (put("model", "patch", value=0), ("damaged or edited", "patch is 0", EXPORT_AGAIN)),
    "graphs a list": (put("graphs", value=[]), ("damaged or edited", EXPORT_AGAIN)),
    "graph missing": (drop("graphs", "denoiser"), ("lacks the graphs denoiser", EXPORT_AGAIN)),
    "target a text": (put("target", value="onnx"), ("damaged or edited", "target is 'onnx'", EXPORT_AGAIN)),
    "target of lists": (put("target", value={"kind": []}), ("damaged or edited", "target is", EXPORT_AGAIN)),
    "records a list": (put("verified", value=[]), ("damaged or edited", "verified is []", EXPORT_AGAIN)),
    "file unlisted": (drop("files", "denoiser.onnx"), ("denoiser.onnx without listing it", "export again")),
    "file elsewhere": (
        put("files", "../other", value={"size": 1, "sha256": "0"}),
        ("'../other' outside the bundle", "export again"),
    ),
    "file missing": (lambda bundle: (bundle / "denoiser.onnx").unlink(), ("lacks denoiser.onnx", "copy the whole")),
    "file truncated": (cut("vae_decoder.onnx"), ("vae_decoder.onnx is truncated", "bytes", "copy it again")),
    "file longer": (write("denoiser.onnx", b"x" * 10**7), ("not the file that was exported", "copy it again")),
    "file edited": (flip("denoiser.onnx"), ("denoiser.onnx was changed after export", "copy it again")),
    "tokenizer edited": (flip("tokenizer.json"), ("tokenizer.json was changed after export", "copy it again")),
}


@pytest.fixture
def copy(golden_bundle, tmp_path):
    return Path(shutil.copytree(golden_bundle, tmp_path / "copy.bundle"))


@pytest.mark.parametrize(("damage", "says"), BUNDLES.values(), ids=BUNDLES.keys())
def test_damaged_bundles_are_refused(damage, says, copy, workplace, refused, refuses):
    damage(copy)
    with refuses(BundleError, *says):
        framert.load(copy)
    line = refused(copy, "text_to_image")
    for part in says:
        assert part in line


def test_checkpoint_instead_of_a_bundle_is_recognised():
    with pytest.raises(BundleError, match=r"a checkpoint\? export it first"):
        Bundle.open(GOLDEN / "checkpoint")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b"], ids=["too long", "null byte"])
def test_impossible_bundle_names_are_refused(path):
    with pytest.raises(BundleError, match="no bundle at"):
        framert.load(path)


def test_bundle_for_another_target_is_refused(copy, workplace, refused, refuses):
    put("target", value={"kind": "tensorrt", "compute_capability": "9.0"})(copy)
    with refuses(BackendError, "built for 'tensorrt'", "backend 'onnxruntime' runs kind 'onnx'"):
        framert.load(copy, backend="onnxruntime")
    assert "built for 'tensorrt'" in refused(copy, "text_to_image", "--backend", "onnxruntime")


@pytest.mark.parametrize("graph", ["text_encoder", "conditioner", "denoiser", "vae_decoder"])
def test_graph_that_cannot_be_loaded_is_named(graph, copy, refuses):
    """The digests agree, as after an edit with care, or where they are not checked."""
    file = copy / f"{graph}.onnx"
    cut(file.name)(copy)
    put("files", file.name, value={"size": file.stat().st_size, "sha256": sha256(file)})(copy)
    pipe = framert.load(copy, threads=1)
    with refuses(BackendError, "onnxruntime cannot load", file.name):
        pipe.run("text_to_image", prompt="x", size=(SIDE, SIDE), steps=1)


def test_tokenizer_that_cannot_be_loaded_is_named(copy, refuses):
    write("tokenizer.json", b"{}")(copy)
    with refuses(BundleError, "tokenizer.json is missing or damaged", "export"):
        framert.load(copy, check_files=False)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_full_disk_leaves_no_half_bundle(old, copy, tmp_path, monkeypatch, unchanged, refuses):
    target = copy if old else tmp_path / "new.bundle"
    monkeypatch.setattr(os, "fsync", no_space)
    says = (f"cannot write {target}", "No space left on device", "nothing was changed")
    with unchanged(tmp_path), refuses(BundleError, *says), new_bundle(target, force=True) as folder:
        (folder / "denoiser.onnx").write_bytes(b"half")


def test_full_disk_while_a_graph_is_written_leaves_no_half_bundle(tmp_path, unchanged, refuses):
    target = tmp_path / "new.bundle"
    with unchanged(tmp_path), refuses(BundleError, "No space left on device"), new_bundle(target) as folder:
        (folder / "denoiser.onnx").write_bytes(b"half")
        no_space()


def test_what_is_in_the_way_is_kept(copy, tmp_path, unchanged, refuses):
    (tmp_path / "file").write_text("mine")
    with unchanged(tmp_path):
        with refuses(BundleError, "exists", "give another -o, or --force to replace it"), new_bundle(copy):
            pytest.fail("entered")
        with refuses(BundleError, "is not a bundle, so it is not replaced"), new_bundle(tmp_path, force=True):
            pytest.fail("entered")
        with refuses(BundleError, "cannot write", "a folder you can write"), new_bundle(tmp_path / "file" / "new"):
            pytest.fail("entered")

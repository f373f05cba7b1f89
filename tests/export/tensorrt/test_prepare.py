"""Whole graphs as TensorRT is given them, run in ONNX Runtime beside the bundle's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from framert.export import cases, weights
from framert.export.tensorrt.lower import OPERATORS
from framert.export.tensorrt.prepare import prepare
from framert.runtime.bundle import GRAPHS, Bundle

BUDGETS = {"fp32": 1e-5, "fp16": 5e-3}
VOCABULARY = 274  # of models/blocks
Session = Callable[[Path | bytes], Any]


@pytest.fixture(scope="session")
def graph_cases(blocks_bundle: Path, open_session: Session) -> dict[str, list[cases.Case]]:
    """The inputs that ``framert verify`` compares on, by graph."""
    bundle = Bundle.open(blocks_bundle)
    model = bundle.manifest.model
    conditioner = open_session(bundle.graph_path("conditioner"))

    def condition(feeds: cases.Case) -> Any:
        names = ["text_k", "text_v", "modulation"]
        return dict(zip(names, conditioner.run(names, feeds), strict=True))

    return {
        "text_encoder": cases.text_encoder_cases(VOCABULARY),
        "vae_encoder": cases.vae_encoder_cases(model),
        "conditioner": cases.conditioner_cases(model),
        "denoiser": cases.denoiser_cases(bundle.manifest, condition),
        "vae_decoder": cases.vae_decoder_cases(model),
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_prepared_graph_gives_what_the_bundles_own_gives(
    name: str,
    precision: str,
    blocks_bundle: Path,
    graph_cases: dict[str, list[cases.Case]],
    open_session: Session,
    tmp_path: Path,
) -> None:
    bundle = Bundle.open(blocks_bundle)
    model = prepare(bundle, name, None if precision == "fp32" else precision, tmp_path)
    assert model.graph.precision == {"fp32": "float32", "fp16": "float16"}[precision]
    assert (model.content is None) == (name != "denoiser")
    outputs = list(model.graph.outputs)
    own = open_session(bundle.graph_path(name))
    session = open_session(model.content or model.file)
    assert [item.name for item in session.get_inputs()] == list(model.graph.inputs)
    for case in graph_cases[name]:
        windows = _windows(case) if name == "denoiser" else {}
        for found, expected in zip(session.run(outputs, case | windows), own.run(outputs, case), strict=True):
            assert found.dtype == expected.dtype
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            assert error <= BUDGETS[precision], (name, error)


@pytest.mark.parametrize("name", ["conditioner", "denoiser"])
def test_operators_of_opset_23_written_in_older_ones(
    name: str, blocks_bundle: Path, graph_cases: dict[str, list[cases.Case]], open_session: Session, tmp_path: Path
) -> None:
    bundle = Bundle.open(blocks_bundle)
    model = prepare(bundle, name, None, tmp_path, missing=list(OPERATORS))
    assert model.content is not None
    proto = onnx.load_from_string(model.content)
    onnx.checker.check_model(proto)
    assert not {node.op_type for node in proto.graph.node} & set(OPERATORS)
    proto.opset_import[0].version = 20  # what TensorRT 10.3 reads
    session, own = open_session(proto.SerializeToString()), open_session(bundle.graph_path(name))
    outputs = list(model.graph.outputs)
    for case in graph_cases[name]:
        windows = _windows(case) if name == "denoiser" else {}
        for found, expected in zip(session.run(outputs, case | windows), own.run(outputs, case), strict=True):
            assert np.linalg.norm(found - expected) <= BUDGETS["fp32"] * np.linalg.norm(expected)


def _windows(case: cases.Case) -> cases.Case:
    return {
        "window": np.arange(case["q_range"][:, 1].max(), dtype=np.int32),
        "text_window": np.arange(case["text_range"][:, 1].max(), dtype=np.int32),
    }


def test_a_bundle_is_not_touched(blocks_bundle: Path, tmp_path: Path) -> None:
    for name in GRAPHS:
        prepare(Bundle.open(blocks_bundle), name, "bf16", tmp_path)
        made = onnx.load(tmp_path / f"{name}.onnx")
        assert any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in made.graph.initializer)
    Bundle.open(blocks_bundle)  # checks every file's digest


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_in_a_file_of_their_own(
    precision: str,
    blocks_bundle: Path,
    graph_cases: dict[str, list[cases.Case]],
    open_session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As large models have them, small constants too; the cast graph then has a file of its own as well."""
    monkeypatch.setattr(weights, "EXTERNAL_FROM", 0)
    manifest = Bundle.open(blocks_bundle).manifest
    outside, work = tmp_path / "outside", tmp_path / "work"
    outside.mkdir()
    work.mkdir()
    proto = onnx.load(blocks_bundle / "denoiser.onnx")
    onnx.save(
        proto, outside / "denoiser.onnx", save_as_external_data=True, location="denoiser.onnx.data", size_threshold=64
    )
    model = prepare(Bundle(outside, manifest), "denoiser", None if precision == "fp32" else precision, work)
    assert model.content is not None
    assert len(model.content) < 1 << 20
    assert model.file.parent == (outside if precision == "fp32" else work)
    (model.file.parent / "prepared.onnx").write_bytes(model.content)
    case = graph_cases["denoiser"][0]
    windows = _windows(case)
    outputs = list(model.graph.outputs)
    found = open_session(model.file.parent / "prepared.onnx").run(outputs, case | windows)
    expected = open_session(blocks_bundle / "denoiser.onnx").run(outputs, case)
    for one, other in zip(found, expected, strict=True):
        assert np.linalg.norm(one - other) <= BUDGETS[precision] * np.linalg.norm(other)

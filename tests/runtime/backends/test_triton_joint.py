"""The step of UniVG and Stable Diffusion 3 on backend "triton" against ONNX Runtime, pack by pack."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("diffusers")
onnxruntime = pytest.importorskip("onnxruntime")

from framert.export import pipeline  # noqa: E402
from framert.export.checkpoint import open_checkpoint  # noqa: E402
from framert.export.families import univg_cases  # noqa: E402
from framert.export.families.find import find_family  # noqa: E402
from framert.export.quantize.prepare import _stored  # noqa: E402
from framert.export.quantize.recipe import Recipe  # noqa: E402
from framert.runtime.backends.triton import denoiser as denoiser_module  # noqa: E402
from framert.runtime.backends.triton import families, joint_attention, joint_weights, settings  # noqa: E402
from framert.runtime.backends.triton.denoiser import TritonDenoiser  # noqa: E402
from framert.runtime.backends.triton.graph_file import GraphFile  # noqa: E402
from framert.runtime.backends.triton.joint_forward import JointModel  # noqa: E402
from framert.runtime.errors import BackendError  # noqa: E402
from framert.runtime.manifest import Manifest  # noqa: E402
from framert.runtime.tables import Tables  # noqa: E402

CPU = torch.device("cpu")
T5 = ("t5 alone",)
CONFIGS = {
    "sd3": {"num_layers": 2},
    "sd3.5": {"num_layers": 3, "dual_attention_layers": [0, 2], "qk_norm": "rms_norm"},
    "univg": {"num_layers": 2, "in_channels": 33, "qk_norm": "rms_norm"},
}
TABLES = {item.name for item in fields(Tables)}


class Exported:
    """A tiny checkpoint, its denoiser's graph, and ONNX Runtime's results on ``univg_cases.PACKS``."""

    def __init__(self, folder, checkpoint):
        self.checkpoint = open_checkpoint(checkpoint)
        family = find_family(self.checkpoint)
        plans = {plan.name: plan for plan in family.plans(self.checkpoint)}
        self.manifest = Manifest(
            family=family.name, native_side=64, model=family.model(self.checkpoint), prompt_tokens=256,
            schedule=family.schedule(self.checkpoint), guidance_branches=family.guidance_branches,
            target={"kind": "onnx"}, files={},
            graphs={name: pipeline._signature(plan, "float32") for name, plan in plans.items()},
        )  # fmt: skip
        for name in ("conditioner", "denoiser"):
            recipe = Recipe(_stored(self.checkpoint, plans[name].part))
            pipeline._export_graph(plans[name], recipe, "fp32", 0.0, folder, "onnx")
        self.file = GraphFile(folder / "denoiser.onnx")
        conditioner, denoiser = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            for name in ("conditioner", "denoiser")
        )

        def condition(feeds):
            return dict(zip(("text", "modulation"), conditioner.run(["text", "modulation"], feeds), strict=True))

        self.cases = univg_cases.denoiser_cases(self.manifest, condition)
        random = np.random.default_rng(7)
        for case in self.cases:  # no row of zeros, so that every result shows all it is made of
            case["update"] = random.standard_normal(case["update"].shape, dtype=np.float32)
        names = ["next_latents", "next_history", "velocity"]
        self.expected = [denoiser.run(names, case) for case in self.cases]

    def model(self, precision="fp32", impl="reference"):
        return families.read_model(self.file, self.manifest.model, settings.choose(impl, precision))

    def run(self, case, model, tokens=None):
        """Return what ``expected`` has, by a denoiser of its own; image tokens padded to ``tokens``."""
        denoiser = TritonDenoiser(model, self.manifest.model.token_width, 3, model._settings)
        denoiser.reserve(text=len(case["text"]) + 2, rows=len(case["modulation"]) + 2)
        denoiser.write_text(1, torch.from_numpy(case["text"]))
        denoiser.write_modulation(1, torch.from_numpy(case["modulation"]))
        given = {name: value for name, value in case.items() if name in TABLES}
        given["text_source"] = case["text_source"] + 1
        tables = padded(Tables(**given, frames=len(case["row"])), tokens)
        denoiser.bind(tables, case["latents"], case["history"])
        row = np.zeros(tables.frames, np.int32)
        row[: len(case["row"])] = case["row"] + 1
        denoiser.step(row, case["update"])
        return [*denoiser.state(), denoiser.velocity()], denoiser


def padded(tables, tokens):
    """Padding as ``tables.build`` makes it: a sequence of its own, without text."""
    count = len(tables.source)
    if tokens is None or tokens == count:
        return tables
    more = tokens - count

    def extended(values, *rows):
        return np.concatenate([values, np.array(rows, np.int32).reshape(-1, *values.shape[1:])])

    shown = tables.condition_source
    return replace(
        tables,
        source=extended(tables.source, *[0] * more),
        position=extended(tables.position, *[(0, 0, 0)] * more),
        frame=extended(tables.frame, *[tables.frames] * more),
        q_range=extended(tables.q_range, (count, more)),
        kv_range=extended(tables.kv_range, (count, more)),
        text_range=extended(tables.text_range, (len(tables.text_source), 0)),
        condition_source=None if shown is None else extended(shown, *[0] * more),
        frames=tables.frames + 1,
    )


@pytest.fixture(scope="module")
def exported(two_stream_checkpoint, tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = Exported(tmp_path_factory.mktemp(name), two_stream_checkpoint(*T5, **CONFIGS[name]))
        return made[name]

    return get


def relative(actual, exact):
    return float(np.linalg.norm(np.asarray(actual, np.float64) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("pack", range(len(univg_cases.PACKS)))
@pytest.mark.parametrize("name", CONFIGS)
def test_step_equals_onnxruntimes(name, pack, exported):
    """Latents, history and velocity of ragged packs, one with an empty text among them."""
    one = exported(name)
    found, denoiser = one.run(one.cases[pack], one.model())
    assert ("conditions" in one.cases[pack]) == bool(next(iter(denoiser._steps)).shown) == (name == "univg")
    for actual, exact in zip(found, one.expected[pack], strict=True):
        assert relative(actual, exact) <= 1e-5


@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 0.01), ("bf16", 0.02), ("int8", 0.04), ("fp8", 0.1)])
@pytest.mark.parametrize("name", CONFIGS)
def test_lower_precisions_stay_near(name, precision, allowed, exported):
    """Random weights, which no precision was made for."""
    one = exported(name)
    found, _ = one.run(one.cases[2], one.model(precision))
    assert 1e-5 < relative(found[2], one.expected[2][2]) < allowed


@pytest.mark.parametrize("name", ["sd3.5", "univg"])
def test_padding_changes_nothing(name, exported, monkeypatch):
    """More image tokens, text tokens, sequences and frames; what they read is poison to whoever reads them."""
    one = exported(name)
    model, case = one.model(), one.cases[2]
    plain, _ = one.run(case, model)
    monkeypatch.setattr(denoiser_module, "LEAST_SEQUENCES", 40)
    monkeypatch.setattr(denoiser_module, "text_bucket", lambda words: 256)
    poisoned = TritonDenoiser.reserve

    def reserve(denoiser, **sizes):
        poisoned(denoiser, **sizes)
        with torch.inference_mode():
            denoiser._arenas.text[0][0] = torch.nan  # read by text tokens that only fill the bucket

    monkeypatch.setattr(TritonDenoiser, "reserve", reserve)
    found, denoiser = one.run(case, model, tokens=256)
    (key,) = denoiser._steps
    assert (key.tokens, key.words, key.sequences) == (256, 256, 40)
    for actual, expected in zip(found, plain, strict=True):
        assert relative(actual, expected) <= 1e-6  # products of other sizes may add in another order


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_step_is_the_same_twice_and_for_other_tables(precision, exported):
    """One captured step serves many packs: nothing of the last one stays behind."""
    one = exported("univg")
    model = one.model(precision)
    first, denoiser = one.run(one.cases[1], model)
    again, _ = one.run(one.cases[1], model)
    for actual, expected in zip(again, first, strict=True):
        np.testing.assert_array_equal(actual, expected)
    step, case = next(iter(denoiser._steps.values())), one.cases[0]
    given = {name: value for name, value in case.items() if name in TABLES}
    smaller = Tables(**given, frames=len(case["row"]))
    with torch.inference_mode():
        step.load(smaller)
    for name in ("source", "q_range", "text_range", "text_source", "text_frame", "conditions"):
        held, values = getattr(step.tables, name).numpy(), getattr(smaller, name)
        np.testing.assert_array_equal(held[: len(values)], values)
        assert not held[len(values) :].any()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs where Triton interprets (no CUDA)")
def test_kernels_match_the_references(name, exported, monkeypatch):
    """Every kernel in its place, in Triton's interpreter."""
    monkeypatch.setattr(denoiser_module, "LEAST_SEQUENCES", 2)  # it takes its time for empty ones too
    one = exported(name)
    for precision in ("bf16", "int8") if name == "univg" else ("fp32",):
        exact = one.expected[0][2]
        (low, _), (actual, _) = (one.run(one.cases[0], one.model(precision, impl)) for impl in ("reference", "triton"))
        assert relative(actual[2], exact) <= 2 * relative(low[2], exact) + 1e-5


@pytest.mark.parametrize("name", ["sd3.5", "univg"])
def test_the_host_never_reads_the_device(name, exported, monkeypatch):
    """On a device whose values cannot be read: what is captured must not wait for what it computes."""
    one = exported(name)
    model = one.model("bf16")
    seen = []

    def attention(query, key, value, q_range, kv_range, **options):
        seen.append((len(query), len(key), len(q_range)))
        return torch.empty_like(query)

    monkeypatch.setattr(joint_attention, "frame_attention", attention)
    weights = moved(model.weights)
    on_meta = JointModel(weights, replace(model._settings, device=torch.device("meta")))
    _, denoiser = one.run(one.cases[2], model)
    seen.clear()
    step = next(iter(denoiser._steps.values()))
    arenas = replace(step._arenas, text=moved(step._arenas.text), modulation=moved(step._arenas.modulation))
    with torch.inference_mode():
        velocity = on_meta.velocity(arenas, moved(step.tables), moved(step.state.latents))
    assert velocity.device.type == "meta"
    tokens, words, sequences = len(step.tables.source), len(step.tables.text_source), len(step.tables.q_range)
    assert velocity.shape == (tokens, one.manifest.model.token_width)
    joint, alone = (tokens + words, tokens + words, 2 * sequences), (tokens, tokens, sequences)
    last = (tokens, tokens + words, sequences)
    assert seen == ([joint, alone, joint, last, alone] if name == "sd3.5" else [joint, last])


def moved(value):
    """Return a value with all its tensors on the meta device."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, tuple):
        return tuple(moved(each) for each in value)
    if is_dataclass(value):
        return replace(value, **{item.name: moved(getattr(value, item.name)) for item in fields(value)})
    return value


@pytest.mark.parametrize(
    ("images", "texts"),
    [((3,), (2,)), ((2, 4, 1), (0, 3, 0)), ((1, 1), (5, 1)), ((4, 2, 3), (2, 0, 1))],
    ids=str,
)
@pytest.mark.parametrize(("empty", "filling"), [(0, 0), (3, 4)], ids=["exact", "padded"])
def test_each_sequence_stands_together(images, texts, empty, filling):
    ranges = []
    for lengths in (images, texts):
        begins = np.cumsum((0, *lengths))[:-1]
        ranges.append(np.array([*zip(begins, lengths, strict=True), *[(0, 0)] * empty], np.int32))
    tensors = [torch.from_numpy(each) for each in ranges]
    image, text = joint_attention.places(*tensors, sum(images), sum(texts) + filling)
    order = {place: ("image", index) for index, place in enumerate(image.tolist())}
    order |= {place: ("text", index) for index, place in enumerate(text.tolist())}
    expected = []
    for (begin, length), (words, count) in zip(*(each.tolist() for each in ranges), strict=True):
        expected += [("image", begin + index) for index in range(length)]
        expected += [("text", words + index) for index in range(count)]
    expected += [("text", sum(texts) + index) for index in range(filling)]
    assert [order[place] for place in range(len(order))] == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_the_checkpoints(name, exported):
    one = exported(name)
    stored = {key: torch.from_numpy(value.read()) for key, value in _stored(one.checkpoint, "transformer").items()}
    model = one.manifest.model
    read = joint_weights.read(one.file, model.depth, model.heads, "fp32", CPU, "reference")
    assert (read.modulations, read.side, read.head_dim) == (model.modulation_count, 12, 16)
    assert (read.scale, read.eps, read.quantize) == (pytest.approx(0.25), pytest.approx(1e-6), None)
    patches = stored["pos_embed.proj.weight"].permute(0, 2, 3, 1)
    pairs = [(read.embed, patches[..., :16].flatten(1)), (read.positions, stored["pos_embed.pos_embed"][0]),
             (read.final, stored["proj_out.weight"]), (read.final_bias, stored["proj_out.bias"])]  # fmt: skip
    assert (read.shown is None) == (name != "univg")
    if read.shown is not None:
        pairs.append((read.shown, patches[..., 16:].flatten(1)))
    for index, block in enumerate(read.blocks):
        own = f"transformer_blocks.{index}"
        last = index == model.depth - 1
        assert (block.second is None) == (index not in CONFIGS[name].get("dual_attention_layers", ()))
        assert (block.text_feed is None) == (block.attention.text_out is None) == last
        products = [(block.attention.image, [f"{own}.attn.to_{part}" for part in "qkv"]),
                    (block.attention.text, [f"{own}.attn.add_{part}_proj" for part in ("kv" if last else "qkv")]),
                    (block.attention.image_out, [f"{own}.attn.to_out.0"]),
                    (block.image_feed.down, [f"{own}.ff.net.2"])]  # fmt: skip
        if block.second is not None:
            products.append((block.second.image, [f"{own}.attn2.to_{part}" for part in "qkv"]))
        if not last:
            products.append((block.text_feed.up, [f"{own}.ff_context.net.0.proj"]))
        for product, names in products:
            pairs.append((product.weight, torch.cat([stored[f"{each}.weight"] for each in names])))
            pairs.append((product.bias, torch.cat([stored[f"{each}.bias"] for each in names])))
        assert (block.attention.norms is None) == ("qk_norm" not in CONFIGS[name])
        if block.attention.norms is not None:
            pairs.append((block.attention.norms[3], stored[f"{own}.attn.norm_added_k.weight"]))
            query = torch.ones(16) if last else stored[f"{own}.attn.norm_added_q.weight"]
            pairs.append((block.attention.norms[2], query))
    for actual, expected in pairs:
        assert actual.is_contiguous()
        torch.testing.assert_close(actual, expected.float(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantized_weights_are_near_and_scaled_per_output(kind, exported):
    one = exported("univg")
    exact, quantized = (joint_weights.read(one.file, 2, 4, precision, CPU, "reference") for precision in ("fp32", kind))
    for full, packed in (
        (exact.blocks[0].attention.text, quantized.blocks[0].attention.text),
        (exact.blocks[1].image_feed.up, quantized.blocks[1].image_feed.up),
    ):
        assert packed.weight.dtype == (torch.int8 if kind == "int8" else torch.float8_e4m3fn)
        assert packed.bias.dtype == torch.bfloat16
        error = (packed.weight.float() * packed.scale[:, None] - full.weight).abs().amax(1)
        assert (error <= packed.scale * (0.5001 if kind == "int8" else 16.001)).all()


def test_a_graph_of_another_kind_is_refused(golden_bundle):
    with pytest.raises(BackendError, match=r"no MM-DiT's denoiser in fp32; export the checkpoint in fp32"):
        joint_weights.read(GraphFile(golden_bundle / "denoiser.onnx"), 3, 4, "bf16", CPU, "reference")


def test_a_missing_weight_is_named(exported):
    with pytest.raises(BackendError, match=r"no weight transformer_blocks\.2\.attn\.to_q\.weight"):
        joint_weights.read(exported("sd3").file, 3, 4, "bf16", CPU, "reference")

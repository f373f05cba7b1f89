"""frame_attention's kernel against its fp64 reference: CUDA where there is one, Triton's interpreter elsewhere."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from framert.kernels.budget import assert_within_budget  # noqa: E402
from framert.kernels.frame_attention import kernel, tiles  # noqa: E402
from framert.kernels.frame_attention.api import frame_attention  # noqa: E402
from framert.kernels.specialization import ModelShape  # noqa: E402
from framert.runtime.errors import BackendError, ConfigError, ShapeError  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NAMES = ("query", "key", "value", "q_range", "kv_range", "text_k", "text_v", "text_range", "gate")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: too slow, or meaningless, interpreted")


def ranges(lengths, begin=0):
    begins = itertools.accumulate(lengths[:-1], initial=begin)
    return torch.tensor(list(zip(begins, lengths, strict=True)), dtype=torch.int32)


@dataclass(frozen=True)
class Case:
    """Inputs of one call, drawn once in the low precision."""

    tensors: dict
    softcap: float
    scale: float

    def run(self, impl, dtype=None, **options):
        tensors = {
            name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
            for name, tensor in self.tensors.items()
        }
        return frame_attention(**tensors, softcap=self.softcap, scale=self.scale, impl=impl, **options)

    def check(self, found):
        """Hold a result of the kernel to the error budget."""
        assert_within_budget(found.cpu(), self.run("reference").cpu(), self.run("reference", torch.float64).cpu())

    def with_tensors(self, **tensors):
        return replace(self, tensors=self.tensors | tensors)


def case(q, kv=None, text=None, *, dtype, device, heads=2, kv_heads=1, head_dim=16, softcap=30.0, spread=4.0):
    """Draw a call; ``spread`` 4 gives logits of about 16, where the softcap bends them. text: lengths, or None."""
    draw = torch.Generator().manual_seed(0)

    def normal(rows, heads):
        return torch.randn(rows, heads, head_dim, generator=draw)

    kv = q if kv is None else kv
    tensors = {
        "query": spread * normal(sum(q), heads),
        "key": spread * normal(sum(kv), kv_heads),
        "value": normal(sum(kv), kv_heads),
    }
    if text is not None:
        tensors |= {"text_k": normal(sum(text) + 3, kv_heads), "text_v": normal(sum(text) + 3, kv_heads)}
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    tensors |= {"q_range": ranges(q), "kv_range": ranges(kv)}
    if text is not None:
        tensors |= {"text_range": ranges(text, 1), "gate": torch.randn(heads, generator=draw)}
    on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
    return Case(on_device, softcap, head_dim**-0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [30.0, 0.0])
@pytest.mark.parametrize(
    ("q", "kv", "text"),
    [
        ((1,), (1,), (1,)),
        ((70, 0, 3), (70, 0, 3), (5, 2, 12)),
        ((4, 6), (9, 70), (70, 2)),
        ((5, 3), (0, 3), (2, 0)),
        ((2, 65), (2, 65), None),
        ((3, 0), (0, 0), (0, 0)),
    ],
    ids=str,
)
def test_kernel_is_within_budget(q, kv, text, softcap, dtype, device):
    drawn = case(q, kv, text, softcap=softcap, dtype=dtype, device=device)
    drawn.check(drawn.run("triton"))


@pytest.mark.parametrize("head_dim", [2, 48, 64, 72, 96, 104, 120, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_head_dim_is_within_budget(head_dim, dtype, device):
    drawn = case((66, 1), text=(3, 40), head_dim=head_dim, dtype=dtype, device=device)
    drawn.check(drawn.run("triton"))


@pytest.mark.parametrize("head_dim", [48, 72, 120])
@pytest.mark.parametrize("query_tile", [64, 128])
def test_tiles_of_other_targets_are_within_budget(query_tile, head_dim, device, monkeypatch):
    monkeypatch.setattr(
        kernel, "choose", lambda head_dim, dtype, _, queries: tiles.choose(head_dim, dtype, 90, queries)
    )
    drawn = case((130, 2), text=(3, 70), head_dim=head_dim, dtype=torch.bfloat16, device=device)
    drawn.check(drawn.run("triton", query_tile=query_tile))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_own_heads_repeat_and_text_heads_tile(kv_heads, device):
    drawn = case((5, 9), text=(4, 6), heads=4, kv_heads=kv_heads, dtype=torch.float32, device=device)
    drawn.check(drawn.run("triton"))
    if kv_heads == 2:  # the other grouping is another result, so the check above can fail
        swapped = drawn.with_tensors(text_k=drawn.tensors["text_k"].flip(1), text_v=drawn.tensors["text_v"].flip(1))
        assert (swapped.run("triton") - drawn.run("triton")).abs().max() > 0.1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_at_the_softcap_neither_overflow_nor_vanish(sign, dtype, device):
    drawn = case((3,), (300,), (2,), dtype=dtype, device=device)
    key = torch.full_like(drawn.tensors["key"], 16.0)
    key[7] = -16.0  # one key at the other end of the range: e**60 apart
    drawn = drawn.with_tensors(query=torch.full_like(drawn.tensors["query"], sign * 16.0), key=key)
    drawn.check(drawn.run("triton"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_thousand_keys(dtype, device):
    drawn = case((3, 0, 1), (16384, 0, 1), heads=1, dtype=dtype, device=device)
    drawn.check(drawn.run("triton"))


@cuda
@pytest.mark.parametrize("head_dim", [72, 120])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_empty_one_token_and_sixteen_thousand_tokens_in_one_call(dtype, head_dim, device):
    lengths = (0, 1, 16384, 333, 0)
    drawn = case(lengths, text=(7, 300, 80, 1, 2), heads=4, kv_heads=2, head_dim=head_dim, dtype=dtype, device=device)
    drawn.check(drawn.run("triton"))


def test_keys_lie_in_an_arena_and_may_be_shared(device):
    drawn = case((6, 70, 3), (200,), (4, 4, 4), dtype=torch.bfloat16, device=device)
    shared = torch.tensor([[100, 80], [3, 70], [100, 80]], dtype=torch.int32, device=device)
    drawn = drawn.with_tensors(kv_range=shared, text_range=drawn.tensors["text_range"][[2, 2, 0]].contiguous())
    drawn.check(drawn.run("triton"))


def test_views_of_one_projection_and_of_one_layer(device):
    heads, kv_heads, head_dim = 4, 2, 24
    drawn = case((30, 9), text=(5, 2), heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=torch.bfloat16,
                 device=device)  # fmt: skip
    parts = [drawn.tensors[name].flatten(1) for name in ("query", "key", "value")]
    projection = torch.cat(parts, dim=1)
    views = [part.unflatten(1, (-1, head_dim)) for part in projection.split([part.shape[1] for part in parts], dim=1)]
    layers = torch.stack([torch.full_like(drawn.tensors["text_k"], math.nan), drawn.tensors["text_k"]], dim=1)
    viewed = drawn.with_tensors(**dict(zip(NAMES, views, strict=False)), text_k=layers[:, 1])
    assert not viewed.tensors["value"].is_contiguous()
    assert not viewed.tensors["text_k"].is_contiguous()
    torch.testing.assert_close(viewed.run("triton"), drawn.run("triton"), rtol=0, atol=0)


@pytest.mark.parametrize("scan", [2, 128])
@pytest.mark.parametrize(
    ("q_range", "covered"),
    [
        ([(0, 40)], 40),
        ([(4, 3), (9, 0), (10, 20), (32, 7)], 30),
        ([(30, 8), (3, 5), (0, 2)], 15),  # in any order
        ([(7, 0)], 0),
        ([], 0),
    ],
    ids=str,
)
def test_every_element_is_written_once_and_nothing_else(q_range, covered, scan, device, monkeypatch):
    monkeypatch.setattr(kernel, "SCAN", scan)  # with 2 the scan of the ranges takes several turns
    drawn = case((40,), (40,), (9,), head_dim=24, dtype=torch.bfloat16, device=device)
    q_range = torch.tensor(q_range, dtype=torch.int32, device=device).reshape(-1, 2)
    text_range = torch.tensor([[2, 5]] * len(q_range), dtype=torch.int32, device=device).reshape(-1, 2)
    drawn = drawn.with_tensors(q_range=q_range, kv_range=q_range, text_range=text_range)
    poisoned = torch.full((44, 4, 24), math.nan, dtype=torch.bfloat16, device=device)
    out = poisoned[2:42, 1:3]
    assert drawn.run("triton", out=out) is out
    drawn.check(out)
    inside = torch.zeros(40, dtype=torch.bool)
    for begin, length in q_range.tolist():
        inside[begin : begin + length] = True
    assert int(inside.sum()) == covered
    assert (out[~inside] == 0).all()
    assert (out[inside] != 0).all()
    poisoned[2:42, 1:3] = math.nan
    assert poisoned.isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sequence_has_the_same_bits_alone_and_packed(dtype, device):
    lengths, texts = (31, 64, 1, 77), (9, 40, 1, 3)
    drawn = case(lengths, text=texts, head_dim=24, dtype=dtype, device=device)
    packed = drawn.run("triton")
    for index, (begin, length) in enumerate(drawn.tensors["q_range"].tolist()):
        own = {name: drawn.tensors[name][begin : begin + length].clone() for name in ("query", "key", "value")}
        whole = torch.tensor([[0, length]], dtype=torch.int32, device=device)
        text_range = drawn.tensors["text_range"][index : index + 1]
        alone = drawn.with_tensors(**own, q_range=whole, kv_range=whole, text_range=text_range).run("triton")
        assert torch.equal(alone, packed[begin : begin + length])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of the interpreter
def test_a_neighbours_nan_stays_with_it(device):
    drawn = case((6, 9, 5), text=(4, 5, 0), head_dim=72, dtype=torch.bfloat16, device=device)
    clean = drawn.run("triton")
    spoiled = {name: drawn.tensors[name].clone() for name in ("query", "key", "value", "text_k", "text_v")}
    for name in ("query", "key", "value"):
        spoiled[name][6:15] = math.nan
    for name in ("text_k", "text_v"):
        spoiled[name][5:10] = math.nan
    found = drawn.with_tensors(**spoiled).run("triton")
    assert found[6:15].isnan().all()
    assert torch.equal(found[:6], clean[:6])
    assert torch.equal(found[15:], clean[15:])


@cuda
def test_the_launch_waits_for_nothing(device):
    drawn = case((60, 5), text=(3, 4), dtype=torch.bfloat16, device=device)
    drawn.run("triton")  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn.run("triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@triton.jit
def _tanh_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(y_ptr + index, kernel._tanh(tl.load(x_ptr + index), False))


def test_portable_tanh_is_fp32s(device):
    x = torch.cat((torch.linspace(-12, 12, 4090), torch.tensor([0.0, 1e-20, -1e-4, 0.625, 90.0, -1e4]))).to(device)
    y = torch.empty_like(x)
    _tanh_kernel[(1,)](x, y, BLOCK=4096)
    exact = x.double().tanh()
    assert ((y.double() - exact).abs() <= 2 * torch.finfo(torch.float32).eps * exact.abs()).all()


@pytest.mark.parametrize("widest", [64, 128])
@pytest.mark.parametrize("least_split", [32, 128])
def test_pieces_hold_a_head_and_waste_no_tile(widest, least_split):
    for head_dim in range(2, 130, 2):
        width, rest = tiles.pieces(head_dim, widest, least_split)
        whole = max(16, 1 << (head_dim - 1).bit_length())
        assert head_dim <= width + rest <= whole
        assert width <= widest
        assert all(piece == 0 or (piece >= 16 and piece & (piece - 1) == 0) for piece in (width, rest))
    assert tiles.pieces(72, widest, least_split) == (64, 16)
    assert tiles.pieces(96, widest, least_split) == (64, 32)
    assert tiles.pieces(64, widest, least_split) == (64, 0)
    assert sum(tiles.pieces(120, widest, least_split)) == 128


@pytest.mark.parametrize("capability", [80, 86, 87, 89, 90, 100, 110, 120])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("text", [True, False])
def test_specializations_name_every_argument(dtype, capability, text):
    shape = ModelShape(name="full", hidden=3840, depth=16, heads=32, kv_heads=8, head_dim=120, ffn=10240,
                       token_width=64, softcap=30.0)  # fmt: skip
    found = kernel.specializations(shape, dtype, capability, text=text)
    assert len({one.name for one in found}) == len(found) == (2 if dtype != "fp32" and 90 <= capability < 120 else 1)
    for one in found:
        assert list(one.signature) == one.kernel.arg_names
        assert {name for name, kind in one.signature.items() if kind == "constexpr"} == set(one.constants)
        assert all(one.signature[name] != "constexpr" for name in one.divisible)
        # fp16 weights would overflow without the running maximum, and fp32 deserves more than 11 bits of tanh
        assert one.constants["BOUNDED"] == (dtype != "fp16")
        assert one.constants["HARDWARE_TANH"] == (dtype != "fp32")
        assert not one.constants["INTERPRETED"]
        grid, heads, _ = one.grid
        for tokens, lengths in ((7, (7,)), (200, (64, 65, 0, 71)), (500, (1,) * 20), (64, ()), (129, (129,))):
            sizes = {"tokens": tokens, "sequences": len(lengths), **one.constants}
            tiles_and_gaps = sum(-(-length // one.constants["TILE"]) for length in lengths) + len(lengths) + 1
            assert eval(grid.replace("/", "//"), {}, sizes) >= tiles_and_gaps
            assert eval(heads, {}, sizes) == 32


def test_auto_is_the_reference_on_a_cpu_and_triton_is_never_replaced(device, monkeypatch):
    drawn = case((5,), text=(3,), dtype=torch.float32, device="cpu")
    assert torch.equal(drawn.run("auto"), drawn.run("reference"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="CUDA"):
        drawn.run("triton")
    with pytest.raises(BackendError, match="cudnn"):
        drawn.run("cudnn")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": torch.zeros(5, 32)}, "query has shape"),
        ({"query": torch.zeros(5, 2, 15)}, "head_dim is 15"),
        ({"query": torch.zeros(5, 2, 130)}, "head_dim is 130"),
        ({"key": torch.zeros(5, 1, 18)}, "key has shape"),
        ({"key": torch.zeros(5, 1, 16).half()}, "key is float16"),
        ({"key": torch.zeros(16, 1, 5).transpose(0, 2)}, "must be contiguous"),
        ({"value": torch.zeros(6, 1, 16)}, "value has shape"),
        ({"query": torch.zeros(5, 3, 16), "key": torch.zeros(5, 2, 16)}, "3 query heads cannot share 2"),
        ({"q_range": torch.zeros(1, 2)}, "q_range is float32"),
        ({"q_range": torch.zeros(1, 3, dtype=torch.int32)}, "q_range has shape"),
        ({"kv_range": torch.zeros(2, 2, dtype=torch.int32)}, "kv_range has shape"),
        ({"gate": None}, "together"),
        ({"text_v": torch.zeros(2, 1, 16)}, "text_v has shape"),
        ({"text_range": torch.zeros(2, 2, dtype=torch.int32)}, "text_range has shape"),
        ({"gate": torch.zeros(3)}, "gate has shape"),
        ({"out": torch.zeros(4, 2, 16)}, "out has shape"),
    ],
)
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_wrong_arguments_are_shape_errors(changed, message, impl):
    drawn = case((5,), text=(3,), dtype=torch.float32, device="cpu")
    with pytest.raises(ShapeError, match=message):
        drawn.with_tensors(**changed).run(impl)


def test_wrong_constants_are_config_errors(device):
    drawn = case((5,), text=(3,), dtype=torch.float32, device=device)
    for changed in ({"softcap": -1.0}, {"softcap": math.nan}, {"scale": 0.0}, {"scale": math.inf}):
        with pytest.raises(ConfigError, match="softcap"):
            replace(drawn, **changed).run("triton")
    with pytest.raises(ConfigError, match="query_tile is 96"):
        drawn.run("triton", query_tile=96)


def test_fp64_is_for_the_reference(device):
    drawn = case((5,), text=(3,), dtype=torch.float64, device=device)
    assert drawn.run("reference").dtype == torch.float64
    with pytest.raises(ShapeError, match="float64"):
        drawn.run("triton")

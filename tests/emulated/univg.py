"""A UniVG bundle of random numbers, and a backend that computes its graphs in NumPy: the contract written again.

The model is no MM-DiT, but everything the tables decide decides its result: which slot feeds a token, which row of
conditions it is shown, where it lies, which modulation row it and its text take, and who attends to whom. It computes
sequence by sequence in float64, so that a sequence's result has the same bits whatever it is packed with.
"""

import json
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from framert.runtime.backends.host import HostArenas
from framert.runtime.bundle import Bundle, file_specs, write_manifest
from framert.runtime.manifest import Graph, Manifest, ModelSpec, ScheduleSpec, TensorSpec, TokenizerSpec

PATCH, CHANNELS, FACTOR = 2, 16, 8
HIDDEN, TEXT, POOLED, FEATURE = 12, 8, 6, 5
TOKEN, SHOWN = PATCH * PATCH * CHANNELS, PATCH * PATCH * (CHANNELS + 1)
WORDS = "</s> <unk> <p> <t2i> <inpaint> <outpaint> <ie> <lg> <depth> <pose> <seg> a red blue cube sphere on make it"


def _float(*shape):
    return TensorSpec(dtype="float32", shape=shape)


def _int(*shape):
    return TensorSpec(dtype="int32", shape=shape)


def _graph(inputs, outputs):
    return Graph(files=("none",), precision="float32", inputs=inputs, outputs=outputs)


def manifest(*, conditions=True, references=True, pooled=True, pools=True):
    """Return a manifest.

    conditions: 33 channels, else 16. references: an image encoder. pooled: the conditioner takes pooled text. pools:
    the text encoder makes it.
    """
    width = {"pooled": _float(POOLED)} if pooled else {}
    made = width if pools else {}
    marks = {"feature": _float("references", FEATURE), "feature_index": _int("references")} if references else {}
    shown = {"conditions": _float("condition_rows", SHOWN)} if conditions else {}
    read = {"condition_source": _int("tokens")} if conditions else {}
    slots = _float("slots", TOKEN)
    graphs = {
        "text_encoder": _graph(
            {"input_ids": TensorSpec(dtype="int64", shape=(1, "length"))} | marks,
            {"hidden_states": _float("length", TEXT)} | made,
        ),
        "vae_encoder": _graph({"pixels": _float(1, 3, "height", "width")}, {"mean": _float(1, CHANNELS, "h", "w")}),
        "conditioner": _graph(
            {"hidden_states": _float("length", TEXT)} | width | {"noise_level": _float("rows")},
            {"text": _float("length", HIDDEN), "modulation": _float("rows", 2, HIDDEN)},
        ),
        "denoiser": _graph(
            {"latents": slots, "history": slots} | shown | {"source": _int("tokens")} | read | {
                "position": _int("tokens", 3), "frame": _int("tokens"), "row": _int("frames"),
                "modulation": _float("rows", 2, HIDDEN), "q_range": _int("sequences", 2),
                "kv_range": _int("sequences", 2), "text": _float("capacity", HIDDEN),
                "text_source": _int("text_tokens"), "text_frame": _int("text_tokens"),
                "text_range": _int("sequences", 2), "guidance_index": _int("slots", 4),
                "guidance_weight": _float("slots", 4), "update": _float("slots", 6),
            },
            {"next_latents": slots, "next_history": slots, "velocity": slots},
        ),
        "vae_decoder": _graph({"latents": _float(1, CHANNELS, "h", "w")}, {"pixels": _float(1, 3, "height", "width")}),
    }  # fmt: skip
    if references:
        graphs["image_encoder"] = _graph({"pixels": _float(1, 3, 32, 32)}, {"feature": _float(1, FEATURE)})
    return Manifest(
        family="univg",
        native_side=64,
        model=ModelSpec(
            hidden_size=HIDDEN, depth=1, heads=1, kv_heads=1, head_dim=HIDDEN, softcap=0.0, patch=PATCH,
            latent_channels=CHANNELS, vae_factor=FACTOR, scaling_factor=1.5, text_width=TEXT, max_positions=16,
            max_frames=1, shift=0.25, condition_channels=CHANNELS + 1 if conditions else 0,
            pooled_width=POOLED if pooled else 0, modulations=2,
        ),
        schedule=ScheduleSpec(
            num_train_timesteps=1000, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096,
            static_shift=3.0,
        ),
        prompt_tokens=20,
        guidance_branches=4,
        target={"kind": "numpy"},
        graphs=graphs,
        files={},
        tokenizers={"input_ids": TokenizerSpec(file="tokenizer.json", max_tokens=20)},
    )  # fmt: skip


def write_tokenizer(path):
    """Write a tokenizer.json of WORDS that appends ``</s>``."""
    vocabulary = {word: index for index, word in enumerate(WORDS.split())}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    made.save(str(path))


def write_bundle(folder: Path, **kinds) -> Bundle:
    """Write a bundle whose graphs are empty files, and open it."""
    folder.mkdir(parents=True)
    write_tokenizer(folder / "tokenizer.json")
    (folder / "none").write_text("")
    made = manifest(**kinds).to_json() | {"files": {name: {"size": spec.size, "sha256": spec.sha256}
                                                    for name, spec in file_specs(folder).items()}}  # fmt: skip
    write_manifest(folder, Manifest.from_json(json.loads(json.dumps(made))))
    return Bundle.open(folder)


class NumpyBackend:
    """Computes the graphs. ``runs`` holds (graph, inputs) of every call of one that is not the denoiser."""

    name = "numpy"

    def __init__(self, bundle):
        self.manifest = bundle.manifest
        self.runs = []
        random = np.random.default_rng(5)
        shapes = {
            "words": (64, TEXT), "feature": (FEATURE, TEXT), "pooled": (TEXT, POOLED), "text": (TEXT, HIDDEN),
            "modulation": (POOLED, 2 * HIDDEN), "level": (2 * HIDDEN,), "latents": (TOKEN, HIDDEN),
            "conditions": (SHOWN, HIDDEN), "position": (3, HIDDEN), "output": (HIDDEN, TOKEN), "encode": (3, CHANNELS),
            "picture": (3, FEATURE), "query": (HIDDEN, HIDDEN), "key": (HIDDEN, HIDDEN), "value": (HIDDEN, HIDDEN),
        }  # fmt: skip
        self.weights = {name: random.standard_normal(shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}

    def run(self, graph, feeds):
        spec = self.manifest.graphs[graph]
        assert set(feeds) == set(spec.inputs), f"{graph} was given {sorted(feeds)}"
        for name, value in feeds.items():
            assert value.dtype == spec.inputs[name].dtype, name
            sizes = zip(value.shape, spec.inputs[name].shape, strict=True)
            assert all(size == wanted for size, wanted in sizes if isinstance(wanted, int)), name
        self.runs.append((graph, dict(feeds)))
        made = getattr(self, graph)(**feeds)
        return {name: np.asarray(made[name], np.float32) for name in spec.outputs}

    def text_encoder(self, input_ids, feature=(), feature_index=()):
        hidden = self.weights["words"][input_ids[0]]
        for place, value in zip(feature_index, feature, strict=True):
            hidden[place] = value @ self.weights["feature"]
        hidden = hidden + 0.3 * np.sin(np.arange(len(hidden)))[:, None]
        return {"hidden_states": hidden, "pooled": hidden.mean(0) @ self.weights["pooled"]}

    def image_encoder(self, pixels):
        return {"feature": pixels.mean((2, 3)) @ self.weights["picture"]}

    def conditioner(self, hidden_states, noise_level, pooled=None):
        level = np.sin(noise_level[:, None] / 300 * self.weights["level"])
        moved = level if pooled is None else level + pooled @ self.weights["modulation"]
        return {"text": hidden_states @ self.weights["text"], "modulation": 1 + 0.3 * moved.reshape(-1, 2, HIDDEN)}

    def vae_encoder(self, pixels):
        blocks = pixels.reshape(1, 3, pixels.shape[2] // FACTOR, FACTOR, pixels.shape[3] // FACTOR, FACTOR)
        return {"mean": np.einsum("bchw,cd->bdhw", blocks.mean((3, 5)), self.weights["encode"])}

    def vae_decoder(self, latents):
        colors = np.einsum("bdhw,cd->bchw", latents, np.linalg.pinv(self.weights["encode"]).T)
        return {"pixels": colors.repeat(FACTOR, 2).repeat(FACTOR, 3)}

    def denoiser(self):
        return NumpyDenoiser(self)


class NumpyDenoiser(HostArenas):
    def __init__(self, backend):
        super().__init__(backend.manifest)
        self._inputs = set(backend.manifest.graphs["denoiser"].inputs)
        self._weights = backend.weights
        self.tables = None

    def padded(self, tokens):
        return tokens

    def bind(self, tables, latents, history):
        self.tables = tables.arrays()
        given = set(self.tables) | {"latents", "history", "row", "update"} | set(self.arenas)
        assert given == self._inputs, given ^ self._inputs
        self.take(latents, history)

    def step(self, row, update):
        t, arenas = self.tables, self.arenas
        # ranges cover all tokens in order, as the portable body of attention needs it
        for name, total in (("q_range", len(t["source"])), ("text_range", len(t["text_source"]))):
            begins, lengths = t[name].T
            assert (begins == np.cumsum(lengths) - lengths).all()
            assert lengths.sum() == total
        output = np.concatenate([
            self._sequence(slice(q, q + qn), slice(x, x + xn), row, arenas)
            for (q, qn), (x, xn) in zip(t["q_range"].tolist(), t["text_range"].tolist(), strict=True)
        ])  # fmt: skip
        weight = t["guidance_weight"].astype(np.float64)
        velocity = sum(output[t["guidance_index"][:, branch]] * weight[:, branch, None] for branch in range(4))
        a, b, c, d, e, f = update.astype(np.float64).T[:, :, None]
        next_latents, next_history = self.spare()
        next_latents[:] = a * self.latents + b * velocity + c * self.history
        next_history[:] = d * self.latents + e * velocity + f * self.history
        self.guided[:] = velocity
        self.swap()

    def _sequence(self, tokens, text, row, arenas):
        t, w = self.tables, self._weights
        modulation = arenas["modulation"].astype(np.float64)
        x = self.latents[t["source"][tokens]].astype(np.float64) @ w["latents"]
        if "conditions" in t:
            x += t["conditions"][t["condition_source"][tokens]].astype(np.float64) @ w["conditions"]
        x += np.sin(t["position"][tokens] @ w["position"])
        x *= modulation[row[t["frame"][tokens]], 0]
        y = arenas["text"][t["text_source"][text]] * modulation[row[t["text_frame"][text]], 1]
        both = np.concatenate([x, y])
        logits = (x @ w["query"]) @ (both @ w["key"]).T
        share = np.exp(logits - logits.max(1, keepdims=True))
        x = x + share / share.sum(1, keepdims=True) @ (both @ w["value"])
        return np.tanh(x) @ w["output"]

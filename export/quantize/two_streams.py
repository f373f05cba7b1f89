"""Smoothing links of MM-DiT: adaLN into the products that it enters, values into what leaves the attention."""

from framert.export.models.mmdit_config import MMDiTConfig
from framert.export.quantize.smoothing import Link, Makes


def transformer_links(config: MMDiTConfig) -> list[Link]:
    """Return the links of all layers.

    Values of both streams make what both streams' last products read, so these share their factors.
    """
    links: list[Link] = []
    for layer in range(config.depth):
        block, last = f"transformer_blocks.{layer}", layer == config.depth - 1
        attention, width = f"{block}.attn", config.hidden_size
        image, text = f"{block}.norm1.linear", f"{block}.norm1_context.linear"
        links += [
            _modulated(image, 0, 1, width, *(f"{attention}.to_{one}" for one in "qkv")),
            _modulated(image, 3, 4, width, f"{block}.ff.net.0.proj"),
        ]
        if layer in config.dual:
            second = f"{block}.attn2"
            links += [
                _modulated(image, 6, 7, width, *(f"{second}.to_{one}" for one in "qkv")),
                _values((f"{second}.to_v",), f"{second}.to_out.0"),
            ]
        if last:  # nobody reads what its text asks
            links.append(_modulated(text, 1, 0, width, *(f"{attention}.add_{one}_proj" for one in "kv")))
        else:
            links += [
                _modulated(text, 0, 1, width, *(f"{attention}.add_{one}_proj" for one in "qkv")),
                _modulated(text, 3, 4, width, f"{block}.ff_context.net.0.proj"),
            ]
        leaving = (f"{attention}.to_out.0", *(() if last else (f"{attention}.to_add_out",)))
        links.append(_values((f"{attention}.to_v", f"{attention}.add_v_proj"), *leaving))
    return links


def _modulated(source: str, shift: int, scale: int, width: int, *products: str) -> Link:
    """Return the link of a modulated norm: chunks ``shift`` and ``scale`` of the product that makes the multipliers."""
    makes = tuple(
        Makes(f"{source}.{kind}", chunk * width, plus_one=chunk == scale)
        for kind in ("weight", "bias")
        for chunk in (shift, scale)
    )
    return Link(makes, tuple(f"{name}.weight" for name in products))


def _values(sources: tuple[str, ...], *products: str) -> Link:
    makes = tuple(Makes(f"{name}.{kind}") for name in sources for kind in ("weight", "bias"))
    return Link(makes, tuple(f"{name}.weight" for name in products))

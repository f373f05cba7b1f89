"""The dense form that trains equals the packed form that runs."""

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from framert.export.models.mmdit import MMDiT  # noqa: E402  # needs torch
from framert.export.models.mmdit_config import MMDiTConfig  # noqa: E402

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)
import dense_mmdit  # noqa: E402

sys.path.remove(FOLDER)


def unpatched(tokens: Any, rows: int, columns: int, patch: int) -> Any:
    """Return the picture (channels, height, width) of tokens (rows * columns, width)."""
    grid = tokens.view(rows, columns, patch, patch, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(-1, rows * patch, columns * patch)


@pytest.mark.parametrize("conditioned", [False, True], ids=["16 channels", "33 channels"])
@pytest.mark.parametrize("pooled", [False, True], ids=["no pooled text", "pooled text"])
def test_dense_batch_equals_the_runtimes_form(conditioned: bool, pooled: bool) -> None:
    config = MMDiTConfig(
        depth=2, num_heads=3, head_dim=8, text_width=20, pooled_width=6, in_channels=33 if conditioned else 16,
        out_channels=16, patch=2, positions=9, dual=frozenset({0}), qk_norm=True,
    )  # fmt: skip
    torch.manual_seed(1)
    model = MMDiT(config).requires_grad_(False)
    for tensor in model.state_dict().values():
        tensor.normal_(0, 0.3)
    rows, columns, lengths, levels = 3, 4, (5, 2, 1), torch.tensor([10.0, 500.0, 990.0])
    samples = torch.randn(3, rows * columns, config.token_width)
    conditions = torch.randn(3, rows * columns, config.condition_width) if conditioned else None
    text, vector = torch.randn(3, max(lengths), config.text_width), torch.randn(3, 6) if pooled else None
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    positions = dense_mmdit.position_table(model, rows, columns)
    found = dense_mmdit.velocity(model, samples, levels, text, mask, positions, conditions, vector)
    for index, length in enumerate(lengths):
        exact = model.velocity(
            unpatched(samples[index], rows, columns, 2),
            float(levels[index]),
            text[index, :length],
            None if vector is None else vector[index],
            None if conditions is None else unpatched(conditions[index], rows, columns, 2),
        )
        torch.testing.assert_close(unpatched(found[index], rows, columns, 2), exact, rtol=1e-5, atol=1e-5)


def test_all_parameters_but_the_last_texts_query_learn() -> None:
    config = MMDiTConfig(
        depth=2, num_heads=2, head_dim=8, text_width=12, pooled_width=4, in_channels=33, out_channels=16, patch=1,
        positions=4, dual=frozenset({1}), qk_norm=True,
    )  # fmt: skip
    torch.manual_seed(2)
    model = MMDiT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    mask = torch.ones(2, 3, dtype=torch.bool)
    positions = dense_mmdit.position_table(model, 2, 2)
    inputs = torch.randn(2, 4, 16), torch.tensor([3.0, 700.0]), torch.randn(2, 3, 12)
    dense_mmdit.velocity(
        model, *inputs, mask, positions, torch.randn(2, 4, 17), torch.randn(2, 4)
    ).square().sum().backward()
    still = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    last = "transformer_blocks.1.attn."
    assert still == {f"{last}add_q_proj.weight", f"{last}add_q_proj.bias", f"{last}norm_added_q.weight"}

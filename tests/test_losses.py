from __future__ import annotations

import torch

from colm.losses import example_losses, example_mean
from tests.support.models import ragged_batch, tiny_model


def test_equals_the_models_own_loss_row_by_row() -> None:
    model, batch = tiny_model().eval(), ragged_batch([9, 4, 7])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    found = example_losses(logits, batch["labels"])
    for row in range(3):
        used = batch["attention_mask"][row].bool()
        alone = model(input_ids=batch["input_ids"][row : row + 1, used], labels=batch["labels"][row : row + 1, used])
        torch.testing.assert_close(found[row], alone.loss)
    torch.testing.assert_close(example_mean(logits, batch["labels"]), found.mean())
    weights = torch.tensor([0.5, 0.2, 0.3])
    torch.testing.assert_close(example_mean(logits, batch["labels"], weights), (weights * found).sum())
    torch.testing.assert_close(example_mean(logits, batch["labels"], num_examples=12), found.sum() / 12)


def test_a_row_without_labels_counts_neither_way() -> None:
    logits, labels = torch.randn(2, 4, 5), torch.tensor([[0, 1, 2, 3], [-100] * 4])
    torch.testing.assert_close(example_mean(logits, labels), example_losses(logits[:1], labels[:1])[0])
    assert example_mean(logits[1:], labels[1:]) == 0

"""The measurement of the losses: memory is counted exactly, and the table holds every loss."""

from __future__ import annotations

import pytest
import torch

from calkd_cli import main
from calkd_det.commands.benchmark.loss_cost import loss_memory, measure_losses, traced_bytes


def test_traced_bytes() -> None:
    kept = []

    def allocate() -> None:
        kept.append(torch.empty(1000))
        torch.empty(5000)
        torch.empty(2000)

    assert traced_bytes(allocate) == (24_000, 4_000)


def test_memory_of_a_loss_whose_memory_is_known() -> None:
    logits = torch.zeros(1000, requires_grad=True)
    # exp() keeps its result of 4,000 bytes; the gradient by it is an expanded scalar, that by the
    # logits is a product. Scalars are the rest.
    kept, peak = loss_memory(lambda: logits.exp().sum(), logits)
    assert 4000 <= kept < 4100
    assert 8000 <= peak < 8200
    assert logits.grad is None


def test_every_loss_is_measured() -> None:
    costs = {cost.name: cost for cost in measure_losses(8000, 80, torch.float32, rounds=1)}
    assert len(costs) == 11
    for weighting in ('difference', 'foreground', 'all'):
        chunked = costs[f'BinaryKDLoss, {weighting!r}']
        plain = costs[f'the same by its formula, {weighting!r}']
        assert chunked.kept < plain.kept
        assert chunked.peak < plain.peak
    assert min(costs[name].peak for name in ('PKDLoss', 'CWDLoss')) >= 1  # the gradient
    assert costs['FiniteWatch'].peak < 0.01
    assert all(cost.seconds > 0 for cost in costs.values())


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    argv = ['--samples', '500', '--classes', '7', '--rounds', '1', '--dtype', 'bfloat16']
    assert main(['benchmark-loss', *argv, '--threads', str(threads)]) == 0
    text = capsys.readouterr().out
    assert text.startswith('Logits of 500 samples and 7 classes, bfloat16')
    assert "| mmdet's QualityFocalLoss |" in text
    assert text.count('\n|') == 13

"""Which logits are found to be not finite, and with how much memory."""

from __future__ import annotations

import pytest
import torch

from calkd_det.commands.benchmark.loss_cost import traced_bytes
from calkd_det.detectors import finite_watch
from calkd_det.detectors.finite_watch import FiniteWatch
from calkd_det.knowledge import HeadAnswer, HeadSamples

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(finite_watch, 'print_log', lambda text, **kwargs: lines.append(text))
    return lines


def group(logits: torch.Tensor) -> HeadSamples:
    rows = len(logits)
    return HeadSamples(
        logits, torch.zeros(rows, dtype=torch.long), torch.ones(rows), torch.zeros(1, 2), 'sigmoid'
    )


@pytest.mark.parametrize('whose', ['teacher', 'student'])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_one_value_of_one_classifier_is_enough(
    told: list[str], whose: str, value: float, dtype: torch.dtype
) -> None:
    logits = {name: torch.randn(2, 50, 7).to(dtype) for name in ('teacher', 'student')}
    logits[whose][1, 31, 4] = value
    watch = FiniteWatch()
    student = logits['student'].requires_grad_()
    watch.note(
        [group(student[0]), group(student[1])], [HeadAnswer(each) for each in logits['teacher']]
    )
    watch.report()
    assert len(told) == 1
    assert f'class logits of the {whose} are NaN or infinite' in told[0]


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_the_largest_finite_values_are_finite(told: list[str], dtype: torch.dtype) -> None:
    largest = torch.full((300, 80), torch.finfo(dtype).max, dtype=dtype)
    watch = FiniteWatch()
    watch.note([group(largest), group(-largest)], [HeadAnswer(-largest), HeadAnswer(largest)])
    watch.report()
    assert told == []


def test_no_samples(told: list[str]) -> None:
    watch = FiniteWatch()
    watch.note(
        [group(torch.zeros(0, 80)), group(torch.ones(3, 80))], [HeadAnswer(torch.zeros(0, 80))]
    )
    watch.report()
    assert told == []


def test_nothing_of_the_size_of_the_logits_is_made() -> None:
    logits = torch.randn(2000, 80, requires_grad=True)
    watch = FiniteWatch()
    peak, _ = traced_bytes(lambda: watch.note([group(logits)], [HeadAnswer(logits.detach())]))
    # 24 kB are the labels and weights that group() makes.
    assert peak < 0.1 * logits.numel() * logits.element_size()

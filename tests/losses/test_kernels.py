"""The Triton kernels against the same losses by torch's operators.

On a CUDA device, or on a CPU by Triton's interpreter, which the environment of the oracles has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from calkd_det.losses import chunks, cwd_loss, kernels, pkd_loss
from calkd_det.losses.binary_divergence import binary_divergence

Loss = Callable[..., Tensor]
SHAPES = [(2, 5, 67, 90), (3, 5, 9, 7), (1, 2, 4, 1)]


@pytest.fixture(
    params=[
        pytest.param('cpu', marks=pytest.mark.oracle),
        pytest.param(
            'cuda',
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device'),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A device that the kernels run on. They must have been used by the end of the test."""
    pytest.importorskip('triton')
    if request.param == 'cpu' and os.environ.get('TRITON_INTERPRET') != '1':
        pytest.fail('Write TRITON_INTERPRET=1 before the command, as the Makefile does')
    monkeypatch.setattr(kernels, 'DEVICES', [request.param])
    used = []
    triton_works = kernels.triton_works

    def note(device: torch.device) -> bool:
        used.append(triton_works(device))
        return used[-1]

    monkeypatch.setattr(kernels, 'triton_works', note)
    yield request.param
    assert used
    assert all(used)


def value_and_slopes(loss: Loss, student: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    value = 3 * loss(student, *others)
    (slopes,) = torch.autograd.grad(value, student)
    return value.detach().double().cpu(), slopes.double().cpu()


def on_one_level(loss: Loss, **options: float) -> Loss:
    def compare(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        return loss([student], [teacher], None if valid is None else [valid], **options)

    return compare


def make_maps(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Maps that are alike but in scale and offset, with a channel that is constant."""
    generator = torch.Generator().manual_seed(seed)
    student = 3 * torch.randn(shape, generator=generator) + 20
    teacher = 0.5 * student + torch.randn(shape, generator=generator) - 4
    student[:, 1] = 7
    return student, teacher


def make_valid(shape: tuple[int, ...]) -> Tensor:
    """Padding on two sides, and an image of which nothing counts."""
    valid = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    valid[:, :, : shape[2] - 1, : max(shape[3] - 2, 1)] = True
    valid[1:2] = False
    return valid


@pytest.mark.parametrize('chunk', [1, 2**25])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(
    'loss', [on_one_level(pkd_loss), on_one_level(cwd_loss), on_one_level(cwd_loss, tau=1.7)]
)
def test_maps(
    loss: Loss,
    shape: tuple[int, ...],
    masked: bool,
    chunk: int,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ('CHUNK_ON_CPU', 'CHUNK_ELSEWHERE'):
        monkeypatch.setattr(chunks, name, chunk)
    student, teacher = make_maps(shape, seed=3)
    valid = make_valid(shape) if masked else None
    moved = [x if x is None else x.to(device) for x in (student, teacher, valid)]
    value, slopes = value_and_slopes(loss, *moved)
    monkeypatch.setattr(kernels, 'DEVICES', [])
    expected, expected_slopes = value_and_slopes(loss, student, teacher, valid)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(slopes, expected_slopes, rtol=1e-3, atol=1e-6)
    if masked:
        assert not slopes.masked_select(~valid).any()


@pytest.mark.parametrize('loss', [on_one_level(pkd_loss), on_one_level(cwd_loss)])
def test_equal_maps(loss: Loss, device: str) -> None:
    maps = make_maps(SHAPES[0], seed=0)[0].to(device)
    value, slopes = value_and_slopes(loss, maps, maps.clone(), None)
    assert value == 0
    assert not slopes.any()


@pytest.mark.parametrize('loss', [on_one_level(pkd_loss), on_one_level(cwd_loss)])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_short_floats(loss: Loss, dtype: torch.dtype, device: str) -> None:
    student, teacher = (x.to(device, dtype) for x in make_maps(SHAPES[0], seed=1))
    value, slopes = value_and_slopes(loss, student, teacher, None)
    expected, expected_slopes = value_and_slopes(loss, student.float(), teacher.float(), None)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(slopes, expected_slopes, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize('by_difference', [False, True])
@pytest.mark.parametrize('classes', [1, 20, 80])
def test_sigmoid_scores(
    classes: int, by_difference: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        weights = torch.linspace(0, 2, len(student), device=student.device)
        return binary_divergence(
            student, teacher, weights, tau=1.3, scale_by_difference=by_difference
        )

    generator = torch.Generator().manual_seed(4)
    student, teacher = 5 * torch.randn(2, 333, classes, generator=generator) - 4
    value, slopes = value_and_slopes(loss, student.to(device), teacher.to(device))
    equal, no_slopes = value_and_slopes(loss, student.to(device), student.to(device))
    monkeypatch.setattr(kernels, 'DEVICES', [])
    expected, expected_slopes = value_and_slopes(loss, student.double(), teacher.double())
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(slopes, expected_slopes, rtol=1e-4, atol=2e-6)
    assert equal == 0
    assert not no_slopes.any()


def test_scores_near_zero_keep_their_digits(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sure of the background, as at nearly all places of a dense head."""

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return binary_divergence(student, teacher, torch.ones(len(student), device=student.device))

    student, teacher = torch.linspace(-16, -8, 50).view(-1, 1), torch.full((50, 1), -11.0)
    value, slopes = value_and_slopes(loss, student.to(device), teacher.to(device))
    monkeypatch.setattr(kernels, 'DEVICES', [])
    expected, expected_slopes = value_and_slopes(loss, student.double(), teacher.double())
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(slopes, expected_slopes, rtol=1e-4, atol=0)


def test_where_triton_cannot_compile_the_log_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = pytest.importorskip('calkd_det.losses.kernels.maps', exc_type=ImportError)

    def fail(*args: object) -> None:
        raise RuntimeError('Failed to find C compiler')

    said: list[str] = []
    monkeypatch.setattr(maps, 'pkd_distance', fail)
    monkeypatch.setattr(kernels, 'DEVICES', ['cpu'])
    monkeypatch.setattr(kernels, 'print_log', lambda text, **_: said.append(text))
    kernels.triton_works.cache_clear()
    assert [kernels.can_fuse(torch.ones(2, 2)) for _ in range(2)] == [False, False]
    kernels.triton_works.cache_clear()
    (text,) = said
    assert text.endswith('RuntimeError: Failed to find C compiler')


def test_a_cpu_and_other_layouts_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, 'triton_works', lambda device: True)
    maps = torch.ones(2, 3, 4, 4)
    assert not kernels.can_fuse(maps)
    monkeypatch.setattr(kernels, 'DEVICES', ['cpu'])
    assert kernels.can_fuse(maps, maps[:, 1:])
    assert not kernels.can_fuse(maps, maps.double())
    assert not kernels.can_fuse(maps.to(memory_format=torch.channels_last))

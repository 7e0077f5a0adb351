"""The chunked loss against its formula under autograd, in value, gradient and memory."""

from __future__ import annotations

from pathlib import Path

import helpers
import pytest
import torch
from test_binary_kd_loss import WEIGHTINGS, every_weighting, reference, samples
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

from calkd_det.commands.benchmark.loss_cost import loss_memory, plain_binary_kd_loss
from calkd_det.losses import BinaryKDLoss, binary_divergence, binary_kd_loss, chunks

# Of 40 samples and 5 classes: a sample each, 7 samples (not a divisor of 40), all, more than all.
CHUNKS = [1, 39, 200, 2**20]


@pytest.fixture(params=CHUNKS)
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, 'CHUNK_ON_CPU', request.param)


def double(n: int = 40, classes: int = 5) -> tuple[Tensor, ...]:
    z_s, z_t, labels, weights = samples(n, classes)
    return z_s.double().requires_grad_(), z_t.double(), labels, weights.double()


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


@every_weighting
def test_the_plain_formula_is_the_definition(weighting: str) -> None:
    inputs = double()
    expected = reference(*(x.detach().numpy() for x in inputs), 2.0, weighting)
    loss = plain_binary_kd_loss(*inputs, tau=2.0, weighting=weighting)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@every_weighting
@pytest.mark.parametrize('tau', [0.5, 1.0, 3.0])
@pytest.mark.usefixtures('_chunk')
def test_value_and_gradient_are_those_of_the_plain_formula(weighting: str, tau: float) -> None:
    inputs = double()
    loss = binary_kd_loss(*inputs, tau=tau, weighting=weighting)
    plain = plain_binary_kd_loss(*inputs, tau=tau, weighting=weighting)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    expected = gradient(plain, inputs[0])
    assert expected.any()
    assert torch.allclose(gradient(loss, inputs[0]), expected, rtol=1e-10, atol=1e-15)


@every_weighting
@pytest.mark.parametrize(('n', 'classes'), [(1, 1), (9, 1), (1, 80), (0, 5), (3, 0)])
@pytest.mark.usefixtures('_chunk')
def test_odd_shapes(weighting: str, n: int, classes: int) -> None:
    z_s, z_t = torch.randn(2, n, classes, dtype=torch.float64).unbind()
    inputs = (z_s.requires_grad_(), z_t, torch.zeros(n, dtype=torch.long), torch.ones(n))
    loss, plain = (f(*inputs, weighting=weighting) for f in (binary_kd_loss, plain_binary_kd_loss))
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    assert torch.allclose(gradient(loss, z_s), gradient(plain, z_s), rtol=1e-10, atol=1e-15)


@every_weighting
@pytest.mark.usefixtures('_chunk')
def test_gradcheck(weighting: str) -> None:
    z_s, *others = double(n=12, classes=3)
    assert torch.autograd.gradcheck(
        lambda z: binary_kd_loss(z, *others, tau=1.5, weighting=weighting), [z_s], eps=1e-7
    )


@every_weighting
@pytest.mark.parametrize(
    ('shift', 'size'),
    [
        *((-30, 30), (-8, 0.1), (-8, 1), (-5, 0.1), (-5, 1), (0, 1)),
        *((0, 30), (3, 1), (5, 0.1), (8, 0.1), (8, 1), (8, 30)),
    ],
)
def test_float32_keeps_its_digits(weighting: str, shift: float, size: float) -> None:
    """Scores of a dense head lie near 0, some near 1, and often close to the teacher's."""
    z_s, z_t, labels, weights = samples(400, 20)
    z_s, z_t = shift + size * z_s / 4, shift + size * z_t / 4
    exact = z_s.double().requires_grad_()
    z_s.requires_grad_()
    loss = binary_kd_loss(z_s, z_t, labels, weights, weighting=weighting)
    plain = plain_binary_kd_loss(exact, z_t.double(), labels, weights, weighting=weighting)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    expected = gradient(plain, exact)
    assert (gradient(loss, z_s) - expected).norm() <= 1e-4 * expected.norm()


@every_weighting
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('factor', [1.0, 2.0**16])
def test_half_precision_gradients_are_rounded_and_not_lost(
    weighting: str, dtype: torch.dtype, factor: float
) -> None:
    """``factor`` stands for the scale of the loss under AMP, 2**16 when training starts."""
    z_s, z_t, labels, weights = samples(200, 20)
    z_s, z_t = (z_s - 6).to(dtype).requires_grad_(), (z_t - 6).to(dtype)
    exact = z_s.detach().double().requires_grad_()
    loss = factor * binary_kd_loss(z_s, z_t, labels, weights, weighting=weighting)
    plain = factor * plain_binary_kd_loss(
        exact, z_t.double(), labels, weights.double(), weighting=weighting
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    expected = gradient(plain, exact)
    found = gradient(loss, z_s)
    assert found.dtype == dtype
    # Rounded twice, once when it is kept and once when it is scaled, and to float16's least.
    rounding = 2 * torch.finfo(dtype).eps
    least = 2.0**-24 if dtype == torch.float16 else 0.0
    assert ((found.double() - expected).abs() <= rounding * expected.abs() + least).all()


def test_slopes_fit_into_float16_when_scaled() -> None:
    grid = torch.linspace(-40, 40, 801, dtype=torch.float64)
    z_s, z_t = (axis.reshape(-1, 1) for axis in torch.meshgrid(grid, grid, indexing='ij'))
    z_s = z_s.clone().requires_grad_()
    for scale_by_difference in (True, False):
        total = binary_divergence.binary_divergence(
            z_s, z_t, torch.ones(len(z_s)), scale_by_difference=scale_by_difference
        )
        largest = gradient(total, z_s).abs().max().item()
        assert 0.99 < largest < 1.06
        assert largest * binary_divergence.FLOAT16_SCALE < torch.finfo(torch.float16).max


@every_weighting
def test_weights_of_half_precision_and_strided_logits(weighting: str) -> None:
    z_s, z_t, labels, weights = samples(40, 6)
    expected = binary_kd_loss(z_s, z_t, labels, weights.half().float(), weighting=weighting)
    strided = z_s.T.contiguous().T.requires_grad_()
    assert not strided.is_contiguous()
    loss = binary_kd_loss(
        strided, z_t.T.contiguous().T, labels, weights.half(), weighting=weighting
    )
    assert torch.allclose(loss, expected)
    z_s.requires_grad_()
    plain = plain_binary_kd_loss(z_s, z_t, labels, weights.half(), weighting=weighting)
    assert torch.allclose(gradient(loss, strided), gradient(plain, z_s), atol=1e-6)


@every_weighting
def test_a_second_backward_pass_gives_the_same(weighting: str) -> None:
    inputs = double()
    loss = binary_kd_loss(*inputs, weighting=weighting)
    first = torch.autograd.grad(loss, inputs[0], retain_graph=True)[0]
    assert torch.allclose(gradient(3 * loss, inputs[0]), 3 * first, rtol=1e-12)


@every_weighting
def test_a_second_derivative_is_refused(weighting: str) -> None:
    inputs = double()
    loss = binary_kd_loss(*inputs, weighting=weighting)
    with pytest.raises(RuntimeError, match='can be differentiated once only'):
        torch.autograd.grad(loss, inputs[0], create_graph=True)


@every_weighting
def test_nothing_is_kept_without_a_gradient(weighting: str) -> None:
    z_s, z_t, labels, weights = double()
    with torch.no_grad():
        assert not binary_kd_loss(z_s, z_t, labels, weights, weighting=weighting).requires_grad
    assert not binary_kd_loss(z_s.detach(), z_t, labels, weights, weighting=weighting).requires_grad


@every_weighting
@pytest.mark.parametrize('use_reentrant', [True, False])
def test_gradient_checkpointing(weighting: str, use_reentrant: bool) -> None:
    inputs = double()
    loss = BinaryKDLoss(weighting=weighting)
    expected = gradient(loss(*inputs), inputs[0])
    value = checkpoint(loss, *inputs, use_reentrant=use_reentrant)
    value.backward()
    assert torch.equal(inputs[0].grad, expected)


@every_weighting
def test_compiled(weighting: str) -> None:
    inputs = double()
    loss = BinaryKDLoss(weighting=weighting)
    compiled = torch.compile(loss, backend='eager')(*inputs)
    assert compiled.item() == pytest.approx(loss(*inputs).item(), rel=1e-12)
    expected = gradient(loss(*inputs), inputs[0])
    assert torch.allclose(gradient(compiled, inputs[0]), expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ('weighting', 'kept', 'peak'), [('difference', 1, 2), ('all', 1, 2), ('foreground', 0, 1)]
)
def test_memory_in_logits_tensors(
    weighting: str, kept: int, peak: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, 'CHUNK_ON_CPU', 2**12)
    z_s, z_t, _, _ = samples(4000, 80)
    z_s, z_t = z_s.to(dtype).requires_grad_(), z_t.to(dtype)
    labels = torch.full((4000,), 80)
    labels[::100] = 3
    loss = BinaryKDLoss(weighting=weighting)
    found = loss_memory(lambda: loss(z_s, z_t, labels, torch.ones(4000)), z_s)
    unit = z_s.numel() * z_s.element_size()
    assert [bytes_ / unit for bytes_ in found] == pytest.approx([kept, peak], abs=0.25)


def test_the_measure_finds_the_memory_of_the_plain_formula() -> None:
    z_s, z_t, labels, weights = samples(4000, 80)
    z_s.requires_grad_()
    kept, peak = loss_memory(lambda: plain_binary_kd_loss(z_s, z_t, labels, weights), z_s)
    unit = z_s.numel() * z_s.element_size()
    assert kept / unit == pytest.approx(6, abs=0.1)
    assert peak / unit == pytest.approx(9 if helpers.TORCH_2_1 else 8, abs=0.1)


def linear_and_inputs() -> tuple[nn.Linear, Tensor, tuple[Tensor, ...]]:
    _, z_t, labels, weights = samples(40, 5)
    torch.manual_seed(0)
    return nn.Linear(3, 5), torch.randn(40, 3), (z_t, labels, weights)


def train_half(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder / "store"}', rank=rank, world_size=2
    )
    linear, features, others = linear_and_inputs()
    model = nn.parallel.DistributedDataParallel(linear)
    rows = slice(0, 15) if rank == 0 else slice(15, 40)
    gradients = {}
    for weighting in WEIGHTINGS:
        model.zero_grad()
        loss = BinaryKDLoss(weighting=weighting)
        loss(model(features[rows]), *(value[rows] for value in others)).backward()
        gradients[weighting] = linear.weight.grad.clone()
    torch.save(gradients, folder / f'{rank}.pt')


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    """DDP takes the mean of the gradients, and each process divides by the mean number of objects.

    The 15 and 25 samples of the processes hold another number of objects each.
    """
    helpers.run_ranks(train_half, tmp_path)
    found = [torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in range(2)]
    for weighting in WEIGHTINGS:
        linear, features, others = linear_and_inputs()
        BinaryKDLoss(weighting=weighting)(linear(features), *others).backward()
        for gradients in found:
            assert torch.allclose(gradients[weighting], linear.weight.grad, rtol=1e-5, atol=1e-7)

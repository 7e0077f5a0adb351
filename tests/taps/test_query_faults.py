"""Queries of batches and teachers that are not as usual: other classes, NaN, no or many objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers
import pytest
import query_cases
import torch
from helpers import CLASSES
from mmengine.config import ConfigDict
from pairs import distillation_losses, freeze_batchnorm, save
from query_cases import distilled
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from calkd_det.errors import ConfigError
from calkd_det.teachers import network

# One of each kind: softmax, sigmoid, proposals with denoising queries, distinct queries.
NAMES = ('DETR', 'Deformable DETR', 'DINO', 'DDQ')
WITH_DENOISING = ('DINO', 'DDQ')


@pytest.fixture(autouse=True)
def not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding rounds, and the L1 distance has a slope of its own at its best value."""
    monkeypatch.setattr(network, 'fold_batchnorm', lambda detector: detector)


def taught_by_itself(name: str, folder: Path, cfg: ConfigDict | None = None) -> nn.Module:
    cfg = cfg or query_cases.detector_config(name)
    itself = helpers.build(cfg)
    save(itself, folder / 'teacher.pth', CLASSES)
    options = dict(denoising=True) if name in WITH_DENOISING else {}
    detector = distilled(cfg, cfg, folder / 'teacher.pth', **options)
    detector.load_state_dict(itself.state_dict())
    freeze_batchnorm(detector)
    return detector


def losses_of(detector: nn.Module, data: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return distillation_losses(helpers.loss(detector, data))


def expected_names(name: str) -> set[str]:
    prefixes = ('', 'dn.') if name in WITH_DENOISING else ('',)
    return {f'{prefix}loss_kd_{kind}' for prefix in prefixes for kind in ('cls', 'bbox')}


# Classes


def with_another_class(name: str, value: Tensor, wanted: tuple[str, ...]) -> Tensor:
    """Rows of a tensor of ``CLASSES`` and perhaps the background, in the order of ``wanted``.

    A class that is none of ``CLASSES`` has the score zero.
    """
    rows = [value[CLASSES.index(cls)] if cls in CLASSES else value[0] * 0 for cls in wanted]
    if name.endswith('bias'):
        rows = [row if cls in CLASSES else row - 40 for cls, row in zip(wanted, rows)]
    return torch.stack([*rows, *value[len(CLASSES) :]])


@pytest.mark.parametrize('name', NAMES)
def test_a_teacher_of_more_classes_in_another_order(name: str, tmp_path: Path) -> None:
    """It is the student with one class more, which it finds nowhere."""
    detector = taught_by_itself(name, tmp_path)
    wanted = ('bird', 'horse', 'cat', 'dog')
    cfg = query_cases.detector_config(name)
    cfg.bbox_head.num_classes = len(wanted)
    weights = {
        key: with_another_class(key, value, wanted)
        if ('cls' in key and value.shape[:1] in {(3,), (4,)}) or 'label_embedding' in key
        else value
        for key, value in detector.state_dict().items()
    }
    teacher = helpers.build(cfg)
    teacher.load_state_dict(weights)
    save(teacher, tmp_path / 'of_more.pth', wanted)
    options = dict(denoising=True) if name in WITH_DENOISING else {}
    own = query_cases.detector_config(name)
    student = distilled(own, cfg, tmp_path / 'of_more.pth', **options)
    student.load_state_dict(detector.state_dict())
    freeze_batchnorm(student)
    assert student.teacher.network.class_map.num_others == 1
    losses = losses_of(student, helpers.batch())
    assert_zero(losses, name)
    # The map matters: with the identity in its place the teacher means other classes.
    student.teacher.network.class_map.columns.copy_(torch.tensor([0, 2, 3]))
    losses = losses_of(student, helpers.batch())
    assert all(losses[key] > 1e-4 for key in losses if key.endswith('cls')), losses


def test_a_teacher_without_a_class_of_the_student_is_refused(tmp_path: Path) -> None:
    own = query_cases.detector_config('DINO')
    cfg = query_cases.detector_config('DINO')
    cfg.bbox_head.num_classes = 2
    save(helpers.build(cfg), tmp_path / 'teacher.pth', ('cat', 'dog'))
    with pytest.raises(ConfigError, match=r'model\.teacher.*bird'):
        distilled(own, cfg, tmp_path / 'teacher.pth', denoising=True)


# Objects


def rescale_head(detector: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for value in detector.teacher.network.detector.bbox_head.parameters():
            value.mul_(factor)


def assert_zero(losses: dict[str, Tensor], name: str) -> None:
    """A swap of two queries that are equal up to rounding costs as much as rounding."""
    assert losses.keys() == expected_names(name)
    assert all(abs(float(value)) < 1e-5 for value in losses.values()), losses


@pytest.mark.parametrize('name', NAMES)
def test_any_number_of_objects_with_12_queries(name: str, tmp_path: Path) -> None:
    detector = taught_by_itself(name, tmp_path)
    for counts in ((0, 0), (0, 2), (15, 1), (15, 15)):
        data = helpers.batch(num_boxes=15)
        for sample, count in zip(data['data_samples'], counts):
            sample.gt_instances = sample.gt_instances[:count]
        assert_zero(losses_of(detector, data), name)
        # Another teacher: the losses see the queries, boxes only where there are objects.
        rescale_head(detector, 1.25)
        losses = losses_of(detector, data)
        assert losses['loss_kd_cls'] > 1e-4
        assert (losses['loss_kd_bbox'] > 1e-4) == any(counts)
        if name in WITH_DENOISING:
            assert (losses['dn.loss_kd_cls'] > 1e-4) == any(counts)
        detector.zero_grad()
        sum(losses.values()).backward()
        assert_finite_gradients(detector)
        rescale_head(detector, 0.8)


def assert_finite_gradients(detector: nn.Module) -> None:
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize('name', NAMES)
def test_images_of_differing_sizes_are_taught_alike_in_any_order(name: str, tmp_path: Path) -> None:
    detector = taught_by_itself(name, tmp_path)
    rescale_head(detector, 1.25)
    data = helpers.batch(sizes=[(64, 96), (96, 80), (48, 48)])
    moved = {key: [values[place] for place in (2, 0, 1)] for key, values in data.items()}
    losses, again = losses_of(detector, data), losses_of(detector, moved)
    for key in ('loss_kd_cls', 'loss_kd_bbox'):
        assert losses[key] > 1e-4
        assert float(losses[key]) == pytest.approx(float(again[key]), rel=1e-3)


# Values of the teacher that are not finite


def spoil(detector: nn.Module, image: int, query: int, output: int) -> RemovableHandle:
    """Make one query's class logits (0) or box (1) of the teacher's last layer NaN."""

    def on_outputs(head: nn.Module, args: tuple, outputs: tuple[Tensor, Tensor]) -> tuple:
        outputs = [each.clone() for each in outputs]
        outputs[output][-1, image, query] = float('nan')
        return tuple(outputs)

    return detector.teacher.network.detector.bbox_head.register_forward_hook(on_outputs)


@pytest.mark.parametrize('name', NAMES)
def test_a_query_of_the_teacher_with_nan_leaves_the_others_as_they_are(
    name: str, tmp_path: Path
) -> None:
    """Of a detector that teaches itself all other queries still have no loss."""
    detector = taught_by_itself(name, tmp_path)
    places = [(1, -1)]  # image and query; denoising queries are the first
    if name in WITH_DENOISING:
        places.append((0, 0))
    for image, query in places:
        for output in (0, 1):
            handle = spoil(detector, image, query, output)
            losses = losses_of(detector, helpers.batch())
            assert_zero(losses, name)
            detector.zero_grad()
            sum(losses.values()).backward()
            assert_finite_gradients(detector)
            handle.remove()

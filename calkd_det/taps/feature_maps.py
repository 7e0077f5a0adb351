"""Tap of feature maps: those of the neck, or of the backbone where there is no neck."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.structures import DetDataSample, SampleList
from torch import Tensor, nn

from calkd_det.errors import CalKDError, ConfigError
from calkd_det.knowledge import FeatureMaps, Kind
from calkd_det.taps.geometry import format_size

# Deformable convolutions, NAS-FPN and the extra layers of SSD do not run on smaller images.
_PROBE_SIZE = 320


class FeatureMapTap:
    """Tap of the feature maps of any detector, by a forward hook on its neck.

    It needs no head. The teacher's answer are its own maps of the same batch, which its pass
    computes in any case.
    """

    @contextmanager
    def record(
        self,
        detector: nn.Module,
        kinds: frozenset[Kind] = frozenset({'features'}),
        data_samples: SampleList = (),
    ) -> Iterator[list[FeatureMaps]]:
        """Record the feature maps while the detector computes its loss.

        Where the neck runs several times, the first run is kept.

        Args:
            detector: A detector for which :func:`feature_source` finds a module.
            kinds: What losses compare.
            data_samples: Annotations and meta information of each image of the batch.

        Returns:
            A context manager that gives a list, as :meth:`Tap.record` does.
        """
        runs: list[tuple[Tensor, ...]] = []
        pieces: list[FeatureMaps] = []
        handle = feature_source(detector).register_forward_hook(
            lambda module, args, output: runs.append(as_maps(output))
        )
        try:
            yield pieces
        finally:
            handle.remove()
        if not runs:
            raise RuntimeError('the neck did not run while the loss was computed')
        sizes = [tuple(sample.img_shape[:2]) for sample in data_samples]
        batch_size = tuple(data_samples[0].batch_input_shape)
        pieces.append(
            FeatureMaps(
                maps=runs[0],
                batch_size=batch_size,
                boxes=[_boxes(sample, runs[0][0]) for sample in data_samples],
                valid=_places_of_images(runs[0], sizes, batch_size),
            )
        )

    def answer(
        self, detector: nn.Module, feats: tuple[Tensor, ...], pieces: FeatureMaps
    ) -> tuple[Tensor, ...]:
        """Return the teacher's maps, cut to the size of the student's.

        Args:
            detector: The teacher.
            feats: Its feature maps of the same batch, each (B, D, H, W), perhaps followed by
                others.
            pieces: The student's feature maps.

        Raises:
            ConfigError: The maps are of another size or batch.
        """
        answers = []
        for own, maps in zip(pieces.maps, feats):
            if maps.shape[0] != own.shape[0]:
                raise ConfigError(
                    f'model.distillation: the student has feature maps of {own.shape[0]} images, '
                    f'the teacher of {maps.shape[0]}, on the same batch: a backbone with several '
                    'branches cannot be compared by its feature maps'
                )
            answers.append(crop(maps, own.shape[-2:]))
        return tuple(answers)


def crop(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return the top left part of a teacher's maps that has the size of the student's.

    Args:
        maps: Shape (B, D, H, W).
        size: Height and width of the student's maps.

    Raises:
        ConfigError: The teacher's maps are smaller.
    """
    height, width = size
    if maps.shape[-2] < height or maps.shape[-1] < width:
        raise ConfigError(
            f'model.teacher.config: its feature maps, {format_size(*maps.shape[-2:])}, are smaller '
            f"than the student's, {format_size(height, width)}, on the same images: backbone and "
            'neck must round sizes alike'
        )
    return maps[..., :height, :width]


def feature_source(detector: nn.Module) -> nn.Module:
    """Return the module whose output are a detector's feature maps: its neck or its backbone.

    Raises:
        ConfigError: The detector has neither.
    """
    for name in ('neck', 'backbone'):
        module = getattr(detector, name, None)
        if isinstance(module, nn.Module):
            return module
    raise ConfigError(
        f'model.distillation: a {type(detector).__name__} has neither a neck nor a backbone of '
        'its own, so it has no feature maps to compare'
    )


def as_maps(output: Any) -> tuple[Tensor, ...]:
    """Return the feature maps that a neck or a backbone returned.

    Raises:
        ConfigError: They are not a map of four dimensions for each level.
    """
    maps = (output,) if isinstance(output, Tensor) else output
    if not (
        isinstance(maps, (tuple, list))
        and maps
        and all(isinstance(each, Tensor) and each.dim() == 4 for each in maps)
    ):
        raise ConfigError(
            'model.distillation: neck or backbone of the student do not return a feature map of '
            'shape (B, D, h, w) for each level, so they cannot be compared'
        )
    return tuple(maps)


@torch.no_grad()
def probe_maps(detector: nn.Module, channels: int, key: str) -> tuple[tuple[int, int, int], ...]:
    """Return channels, height and width of each level on an image of 320 x 320 pixels.

    Modes, weights and the random state of the detector are the same afterwards.

    Args:
        detector: Any detector with a backbone.
        channels: The number of channels of its images.
        key: How an error message names it.

    Raises:
        ConfigError: Its backbone and neck do not run on such an image.
    """
    modules = [m for m in (getattr(detector, n, None) for n in ('backbone', 'neck')) if m]
    training = [module for part in modules for module in part.modules() if module.training]
    first = next(detector.parameters())
    image = torch.zeros(1, channels, _PROBE_SIZE, _PROBE_SIZE, device=first.device)
    runs: list[tuple[Tensor, ...]] = []
    handle = feature_source(detector).register_forward_hook(
        lambda module, args, output: runs.append(as_maps(output))
    )
    try:
        for part in modules:
            for module in part.modules():
                module.training = False
        with torch.random.fork_rng(devices=[]):
            detector.extract_feat(image.to(first.dtype))
    except CalKDError:
        raise
    # A backbone may raise anything; the message names the detector.
    except Exception as error:
        raise ConfigError(
            f'{key}: backbone and neck do not run on an image of {channels} x {_PROBE_SIZE} x '
            f'{_PROBE_SIZE} ({type(error).__name__}: {error}), so its feature maps cannot be '
            'compared'
        ) from error
    finally:
        handle.remove()
        for module in training:
            module.training = True
    return tuple(tuple(maps.shape[1:]) for maps in runs[0])


def check_maps(
    student: Sequence[tuple[int, int, int]], teacher: Sequence[tuple[int, int, int]], key: str
) -> None:
    """Check that feature maps of two detectors are of the same levels.

    Args:
        student: Channels, height and width of each level, of :func:`probe_maps`.
        teacher: Those of the teacher.
        key: The config key of the teacher.

    Raises:
        ConfigError: They have another number of levels, or a level another stride.
    """
    if [size for _, *size in student] != [size for _, *size in teacher]:
        raise ConfigError(
            f'{key}: the student has feature maps of strides {_strides(student)}, the teacher of '
            f'{_strides(teacher)}: losses of features compare level by level, and need the same '
            'number of levels and the same strides'
        )


def _strides(maps: Sequence[tuple[int, int, int]]) -> str:
    return ', '.join(
        format_size(*(round(_PROBE_SIZE / size, 1) for size in (width, height)))
        for _, height, width in maps
    )


def _boxes(sample: DetDataSample, like: Tensor) -> Tensor:
    """Return the boxes of an image as a tensor, whichever of mmdet's box types they have."""
    boxes = sample.gt_instances.get('bboxes')
    return like.new_zeros(0, 4) if boxes is None else getattr(boxes, 'tensor', boxes)


def _places_of_images(
    maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], batch_size: tuple[int, int]
) -> tuple[Tensor, ...] | None:
    """Return which places of the maps hold a part of an image; None where there is no padding.

    Args:
        maps: Each of shape (B, D, h, w).
        sizes: Height and width in pixels of each image, without its padding.
        batch_size: Height and width in pixels of the batched image.

    Returns:
        For each level a bool tensor of shape (B, 1, h, w), on the device of the maps.
    """
    if all(tuple(size) == tuple(batch_size) for size in sizes):
        return None
    masks = []
    for level in maps:
        shape = level.shape[-2:]
        mask = torch.zeros(len(level), 1, *shape, dtype=torch.bool, device=level.device)
        for own, size in zip(mask, sizes):
            height, width = (
                math.ceil(pixels * cells / total)
                for pixels, cells, total in zip(size, shape, batch_size)
            )
            own[:, :height, :width] = True
        masks.append(mask)
    return tuple(masks)

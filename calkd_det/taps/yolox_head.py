"""Tap of YOLOX, whose classifier is trained on the foreground alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from mmdet.models.dense_heads import YOLOXHead
from mmdet.structures import SampleList
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from calkd_det.knowledge import HeadSamples, Kind
from calkd_det.taps.base import CLASS
from calkd_det.taps.dense_boxes import rows
from calkd_det.taps.dense_head import Branch, DenseHeadTap, join, with_boxes


class YOLOXHeadTap(DenseHeadTap):
    """Tap of mmdet's ``YOLOXHead``, by a forward hook and its assigner.

    The class logits score the classes of an object at a location, given that there is an object.
    The objectness branch scores whether there is one. ``loss_cls`` uses the foreground alone, so
    the logits elsewhere are untrained. All logits are recorded, with weight one on the foreground
    and zero elsewhere. Objectness has no classes and is not distilled. A YOLOX can neither teach
    another head nor learn from one, because their class logits mean something else.

    ``loss_cls`` gets scores instead of labels: the IoU of a sample's box for its class. Labels and
    IoUs are taken from the assigner's result.
    """

    built_in: ClassVar[dict[type[nn.Module], Branch]] = {
        YOLOXHead: Branch('multi_level_cls_convs', 'multi_level_conv_cls')
    }
    question = 'the class, given an object,'

    @contextmanager
    def record(
        self,
        detector: nn.Module,
        kinds: frozenset[Kind] = CLASS,
        data_samples: SampleList = (),
    ) -> Iterator[list[HeadSamples]]:
        head = detector.bbox_head
        outputs: list[Sequence[Tensor]] = []
        labels: list[Tensor] = []
        qualities: list[Tensor] = []
        get_targets, assigner = head._get_targets_single, head.assigner

        def on_maps(module: nn.Module, args: tuple, output: tuple) -> None:
            outputs[:] = output
            labels.clear()
            qualities.clear()

        def on_image(priors: Tensor, *args: Any, **kwargs: Any) -> tuple:
            # mmdet does not call the assigner for an image without objects.
            labels.append(priors.new_full((len(priors),), head.num_classes, dtype=torch.long))
            qualities.append(priors.new_zeros(len(priors)))
            return get_targets(priors, *args, **kwargs)

        class RecordingAssigner:
            def assign(self, *args: Any, **kwargs: Any) -> Any:
                result = assigner.assign(*args, **kwargs)
                assigned = result.gt_inds > 0
                labels[-1] = torch.where(assigned, result.labels, labels[-1])
                qualities[-1] = torch.where(assigned, result.max_overlaps, qualities[-1])
                return result

        handle = head.register_forward_hook(on_maps)
        head._get_targets_single, head.assigner = on_image, RecordingAssigner()
        samples: list[HeadSamples] = []
        try:
            yield samples
        finally:
            handle.remove()
            del head._get_targets_single
            head.assigner = assigner
        if not outputs:
            raise RuntimeError('the head did not run while its loss was computed')
        samples.append(_samples(outputs[0], labels, qualities, head.num_classes))
        if 'box' in kinds:
            samples[0] = with_boxes(samples[0], head, outputs)


def _samples(
    maps: Sequence[Tensor], labels: list[Tensor], qualities: list[Tensor], num_classes: int
) -> HeadSamples:
    sizes = [tuple(level.shape[-2:]) for level in maps]
    counts = [height * width for height, width in sizes]
    # Both come by image, then level.
    label, quality = (
        join([level.reshape(-1) for level in torch.stack(values).split(counts, dim=1)])
        for values in (labels, qualities)
    )
    return HeadSamples(
        logits=join([rows(level, num_classes) for level in maps]),
        labels=label,
        weights=(label < num_classes).float(),
        locations=torch.tensor(sizes),
        activation='sigmoid',
        avg_factor=reduce_mean((label < num_classes).sum().float()).clamp(min=1),
        qualities=quality,
    )

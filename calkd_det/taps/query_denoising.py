"""Denoising queries that student and teacher share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from mmdet.structures import SampleList
from torch import Tensor, nn

from calkd_det.knowledge import HeadSamples


@dataclass(frozen=True)
class DenoisingLocations:
    """The student's denoising queries, as a teacher decodes them again.

    Attributes:
        data_samples: Annotations and meta information of each image.
        labels: Noised labels, int64, shape (n,), in the order of mmdet's ``CdnQueryGenerator``: the
            objects of all images, once for each positive and each negative half of each group.
        boxes: Noised boxes, centre x, centre y, width and height as shares of the image, shape
            (B, D, 4). Images with fewer objects than another are padded.
    """

    data_samples: SampleList
    labels: Tensor
    boxes: Tensor

    @property
    def counts(self) -> list[int]:
        """The number of objects of each image."""
        return [len(sample.gt_instances.labels) for sample in self.data_samples]

    @property
    def groups(self) -> int:
        """The number of groups, each of which has every object twice."""
        return len(self.labels) // max(1, 2 * sum(self.counts))

    def not_padded(self) -> Tensor:
        """Return which queries are no padding, bool, shape (B, D)."""
        slots = torch.arange(self.boxes.shape[1], device=self.boxes.device)
        slots = slots.remainder(max(1, *self.counts))
        return slots < slots.new_tensor(self.counts)[:, None]


@dataclass(frozen=True)
class DenoisingSamples(HeadSamples):
    """The denoising queries of the last decoder layer, image by image.

    ``locations`` are :class:`DenoisingLocations`. The teacher decodes the same queries, so nothing
    is matched.
    """

    locations: DenoisingLocations

    def for_teacher(self, name: str, columns: Tensor | None) -> DenoisingSamples:
        renamed = super().for_teacher(name, columns)
        if columns is None:
            return renamed
        noised = replace(self.locations, labels=columns[self.locations.labels])
        return replace(renamed, locations=noised)


def add_denoising(
    detector: nn.Module, inputs: dict[str, Tensor], locations: DenoisingLocations
) -> None:
    """Put a student's denoising queries before the queries of its teacher, in place.

    The teacher embeds the noised labels by itself. Denoising queries attend to its own queries,
    which do not attend to them.

    Args:
        detector: The teacher, a DINO or DDQ in eval mode.
        inputs: Arguments of its decoder.
        locations: The student's denoising queries.
    """
    if not locations.boxes.shape[1]:  # no image has an object
        return
    generator = detector.dn_query_generator
    counts, groups, boxes = locations.counts, locations.groups, locations.boxes
    images = torch.arange(len(counts), device=boxes.device)
    images = images.repeat_interleave(torch.tensor(counts, device=boxes.device))
    query = generator.label_embedding(locations.labels)
    query, _ = generator.collate_dn_queries(
        query, query.new_zeros(len(query), 4), images, len(counts), groups
    )
    mask = generator.generate_dn_mask(max(counts), groups, boxes.device)
    inputs['query'] = torch.cat([query.to(inputs['query'].dtype), inputs['query']], dim=1)
    inputs['reference_points'] = torch.cat([boxes, inputs['reference_points']], dim=1)
    inputs['dn_mask'] = mask
    if hasattr(detector, 'dqs_cfg'):  # DDQ looks for distinct queries among the matching ones
        detector.cache_dict['dis_query_info'] = [boxes.shape[1], detector.num_queries]

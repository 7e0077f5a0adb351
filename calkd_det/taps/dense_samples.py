"""Select a share of a dense head's samples that represents all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from calkd_det.knowledge import HeadSamples

# Background samples kept of an image: those with the highest scores, those drawn from the rest.
NUM_HARDEST = NUM_DRAWN = 512


def share_of_background(samples: HeadSamples, anchors: int, seeds: Sequence[int]) -> HeadSamples:
    """Keep all of the foreground, and about a thousand background samples an image.

    COCO's 5,000 validation images have 200,000 anchors with 80 logits each: 320 GB in float32.
    Nearly all of them are background with low scores for every class. Their likelihood depends
    mostly on the few with a high score. So of each image the :data:`NUM_HARDEST` background
    samples with the highest scores are kept with their own weight. :data:`NUM_DRAWN` of the rest
    are drawn at random without replacement. The weight of a drawn sample is multiplied by the
    size of the rest over the number drawn. A weighted sum over the kept samples, such as the
    likelihood, is an unbiased estimate of the sum over all samples. Samples of zero weight are
    left out.

    Args:
        samples: The samples of a dense head's :meth:`Tap.record`. Their ``locations`` are the
            sizes of the maps.
        anchors: Number of samples at each location.
        seeds: One for each image. The draw depends on it and on the size of the batched image.

    Returns:
        Samples in the order of the images. The columns of ``locations`` are the index of the image
        and the index of the sample within the image, int64, shape (M, 2), on the device of the
        logits.
    """
    counts = [height * width * anchors for height, width in samples.locations.tolist()]
    # Reorder from (level, image) to (image, level).
    levels = torch.arange(len(samples)).split([count * len(seeds) for count in counts])
    parts = []
    for image, seed in enumerate(seeds):
        own = [level[image * n : (image + 1) * n] for level, n in zip(levels, counts)]
        index = torch.cat(own).to(samples.labels.device)
        kept, factor = _select_samples(samples, index, seed)
        parts.append((index[kept], torch.full_like(kept, image), kept, factor))
    index, images, numbers, factors = (torch.cat(values) for values in zip(*parts))
    return replace(
        samples,
        logits=samples.logits[index],
        labels=samples.labels[index],
        weights=samples.weights[index] * factors,
        qualities=None if samples.qualities is None else samples.qualities[index],
        locations=torch.stack([images, numbers], dim=1),
    )


def _select_samples(samples: HeadSamples, index: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of an image's selected samples, and the factor on the weight of each."""
    logits, counted = samples.logits[index], samples.weights[index] > 0
    is_object = samples.labels[index] < logits.shape[1]
    foreground = (counted & is_object).nonzero().squeeze(1)
    background = (counted & ~is_object).nonzero().squeeze(1)
    order = logits[background].amax(dim=1).argsort(descending=True, stable=True)
    hardest, rest = background[order[:NUM_HARDEST]], background[order[NUM_HARDEST:]]
    draw = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:NUM_DRAWN]
    drawn = rest[draw.to(rest.device)]
    factor = torch.ones(len(foreground) + len(hardest) + len(drawn), device=index.device)
    if len(drawn):
        factor[-len(drawn) :] = len(rest) / len(drawn)
    return torch.cat([foreground, hardest, drawn]), factor

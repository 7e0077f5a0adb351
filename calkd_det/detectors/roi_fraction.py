"""Which RoIs the teacher is asked about where it is not asked about all."""

from __future__ import annotations

import math
from dataclasses import replace

from calkd_det.taps import ClassifierSamples


def hardest_samples(samples: ClassifierSamples, fraction: float) -> ClassifierSamples:
    """Keeps the foreground and the background that the student finds hardest.

    Hard is what has the greatest cross-entropy with the label. The weights of what is kept are
    multiplied by its share of all samples, so that a loss which is a mean over samples becomes
    the sum over those kept divided by the number of all: the others count as if the student
    agreed with the teacher on them. For the KD loss, whose terms are no less than zero, that is
    a lower bound, close where the background left out is easy to both.

    Args:
        samples: N samples of a softmax head, each with a row of ``locations`` of its own.
        fraction: Share to keep, in (0, 1]; 1 gives the samples as they are.

    Returns:
        ceil(N * fraction) samples, in the order of the given ones.
    """
    if fraction == 1:
        return samples
    logits, labels = samples.logits.detach().float(), samples.labels
    foreground = labels < logits.shape[1] - 1
    hardness = logits.logsumexp(dim=1) - logits.gather(1, labels[:, None]).squeeze(1)
    hardness = hardness.masked_fill(foreground, math.inf)
    hardness = hardness.masked_fill(samples.weights == 0, -math.inf)
    keep = hardness.topk(math.ceil(len(samples) * fraction), sorted=False).indices.sort().values
    counted = samples.weights > 0
    share = counted[keep].sum() / counted.sum().clamp(min=1)
    return replace(
        samples,
        logits=samples.logits[keep],
        labels=labels[keep],
        weights=samples.weights[keep] * share,
        locations=samples.locations[keep],
    )

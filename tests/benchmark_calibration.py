"""Time the calibration maths on synthetic logits of the size of COCO val2017.

5,000 images x 500 RoIs x 81 classes are drawn chunk by chunk, with labels from softmax(z / 2), so
that the fitted temperature must come out as 2. Nothing but running sums is kept.

    python tests/benchmark_calibration.py
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from calkd_det.calibration.reliability import (
    ReliabilityAccumulator,
    reliability_from_confidences,
    top_label,
)
from calkd_det.calibration.scores import brier_score
from calkd_det.calibration.temperature import TemperatureAccumulator


def draw_images(args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (logits, labels, image ids), 32 images at a time."""
    generator = torch.Generator().manual_seed(args.seed)
    for first in range(0, args.images, 32):
        ids = torch.arange(first, min(first + 32, args.images)).repeat_interleave(args.rois)
        logits = torch.randn(len(ids), args.classes, generator=generator).mul_(3)
        logits[:, -1] += 12  # most RoIs are background
        # The arg max of logits plus Gumbel noise is a draw from their softmax.
        noise = torch.rand(logits.shape, generator=generator).clamp_(1e-7, 1 - 1e-7)
        labels = (logits / 2).sub_(noise.log_().neg_().log_()).argmax(dim=1)
        yield logits, labels, ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('--images', type=int, default=5000)
    parser.add_argument('--rois', type=int, default=500)
    parser.add_argument('--classes', type=int, default=81)
    parser.add_argument('--resamples', type=int, default=1000)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    seconds: dict[str, float] = defaultdict(float)
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[name] += now - clock
        clock = now

    fitter = TemperatureAccumulator()
    for logits, labels, ids in draw_images(args):
        lap('draw')
        fitter.update(logits, labels, groups=ids)
        lap('fit')
    fit = fitter.compute(num_resamples=args.resamples)
    lap('interval')

    bins = {1.0: ReliabilityAccumulator(), fit.temperature: ReliabilityAccumulator()}
    briers = dict.fromkeys(bins, 0.0)
    confidences, hits = [], []
    for logits, labels, _ in draw_images(args):
        lap('draw')
        for temperature, accumulator in bins.items():
            probs = (logits / temperature).softmax(dim=1)
            pair = top_label(probs, labels)
            accumulator.update_confidences(*pair)
            briers[temperature] += brier_score(probs, labels) * len(labels) / fit.num_samples
        confidences.append(pair[0].float())
        hits.append(pair[1])
        lap('metrics')
    ace = reliability_from_confidences(torch.cat(confidences), torch.cat(hits), binning='mass').ece
    lap('metrics')

    before, after = (accumulator.compute().ece for accumulator in bins.values())
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 2**30 if sys.platform == 'darwin' else 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    low, high = fit.interval or (float('nan'),) * 2
    cells = [
        f'{fit.num_samples:,} x {args.classes}',
        f'{fit.temperature:.4f} [{low:.4f}, {high:.4f}]',
        f'{fit.nll_before:.4f} -> {fit.nll_after:.4f}',
        f'{before:.4f} -> {after:.4f}',
        f'{ace:.4f}',
        ' -> '.join(f'{brier:.4f}' for brier in briers.values()),
        *(f'{seconds[name]:.1f}' for name in ('draw', 'fit', 'interval', 'metrics')),
        f'{sum(seconds.values()):.1f}',
        f'{peak:.2f}',
    ]
    print(
        '| samples | T [95 %] | NLL | ECE | ACE after | Brier | draw s | fit s | interval s '
        '| metrics s | total s | peak RSS GiB |'
    )
    print('|' + '---|' * len(cells))
    print('| ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
    main()

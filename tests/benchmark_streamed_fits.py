"""Time fits to all decisions of a dense head on made-up logits: every anchor, none left out.

COCO's 5,000 validation images have 200,000 anchors with 80 logits each, 320 GB in float32. The
logits of an image are drawn anew for each pass, with targets sigmoid(z / 2), so that T = 2, a = 0.5
and b = c = 0 must come out. No logit is kept: the peak of memory must be the same for any number of
images and anchors. Binned decisions are read once for all fits; ``--exact`` also fits without bins.
``calkd calibrate`` keeps about a thousand weighted samples an image instead.

    python tests/benchmark_streamed_fits.py --images 4 --exact
    python tests/benchmark_streamed_fits.py --images 5000
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from calkd_det.calibration.binned_decisions import BinnedDecisions
from calkd_det.calibration.scaling_families import BETA, PLATT, TEMPERATURE, Family
from calkd_det.calibration.scaling_fits import Batches, fit_streamed
from calkd_det.calibration.temperature import TemperatureAccumulator

ANCHORS_AT_ONCE = 8192


class MadeUp:
    """Logits of a dense head, drawn in each pass anew."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.passes = 0

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        self.passes += 1
        for image in range(self.args.images):
            generator = torch.Generator().manual_seed(image)
            for start in range(0, self.args.anchors, ANCHORS_AT_ONCE):
                count = min(ANCHORS_AT_ONCE, self.args.anchors - start)
                logits = torch.randn(count, self.args.classes, generator=generator)
                logits.mul_(2).sub_(4)
                yield logits, (logits / 2).sigmoid(), torch.ones(count), torch.full((count,), image)


def peak_memory() -> float:
    """Return the peak of this process so far, in MiB."""
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == 'darwin' else 2**10
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('--images', type=int, default=4)
    parser.add_argument('--anchors', type=int, default=200_000)
    parser.add_argument('--classes', type=int, default=80)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--exact', action='store_true', help='also fit without bins')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = MadeUp(args)
    start = peak_memory()
    print(f'{args.images:,} images x {args.anchors:,} anchors x {args.classes} classes')
    print('| step | parameters | passes | s of the processor | ns a logit | peak, MiB more |')
    print('|---|---|---:|---:|---:|---:|')

    def measure(name: str, step: Callable[[], str | None]) -> None:
        passes, clock = data.passes, time.process_time()
        found = step()
        seconds = time.process_time() - clock
        nanoseconds = 1e9 * seconds / (args.images * args.anchors * args.classes)
        cells = [name, found or '', data.passes - passes, f'{seconds:.1f}', f'{nanoseconds:.1f}']
        print('|', ' | '.join(map(str, cells)), f'| {peak_memory() - start:.0f} |', flush=True)

    pooled = BinnedDecisions(1, num_groups=256)
    by_class = BinnedDecisions(args.classes)

    def draw() -> None:
        for _ in data.batches():
            pass

    def read() -> None:
        for batch in data.batches():
            pooled.update(*batch)
            by_class.update(*batch)

    measure('drawing alone', draw)
    measure('reading into bins', read)
    measure('temperature', partial(fit, TEMPERATURE['sigmoid'], pooled.batches))
    measure('Platt', partial(fit, PLATT, pooled.batches))
    measure('beta', partial(fit, BETA, pooled.batches))
    measure('beta per class (means)', partial(fit, BETA, by_class.batches, per_class=True))
    if args.exact:
        measure('exact: temperature', partial(fit_temperature_exactly, data))
        measure('exact: Platt', partial(fit, PLATT, data.batches))
        measure('exact: beta', partial(fit, BETA, data.batches))
        measure('exact: beta per class', partial(fit, BETA, data.batches, per_class=True))


def fit(family: Family, batches: Batches, per_class: bool = False) -> str:
    """Fit a family, and return its parameters and their intervals in words."""
    found = fit_streamed(family, batches, per_class=per_class)
    means = {key: float(np.mean(value)) for key, value in found.parameters.items()}
    intervals = found.intervals or {}
    return ', '.join(
        f'{key} = {value:.5f}' + _interval(intervals.get(key)) for key, value in means.items()
    )


def _interval(ends: tuple[float, float] | None) -> str:
    return '' if ends is None else f' ({ends[0]:.5f} to {ends[1]:.5f})'


def fit_temperature_exactly(data: MadeUp) -> str:
    """Fit T in one pass without bins."""
    accumulator = TemperatureAccumulator('sigmoid')
    for batch in data.batches():
        accumulator.update(*batch)
    return f'T = {accumulator.compute().temperature:.5f}'


if __name__ == '__main__':
    main()

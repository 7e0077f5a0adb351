"""Time fits to all decisions of a dense head on made-up logits: every anchor, none left out.

COCO's 5,000 validation images have 200,000 anchors with 80 logits each, 320 GB in float32. The
logits of an image are made anew in each pass, a block of anchors shifted by a number for each
block, with targets sigmoid(z / 2): T = 2, or a = b = 0.5 and c = 0, must come out. No logit is
kept: the peak of memory must be the same for any number of images and anchors. Binned decisions are
read once for all fits; ``--exact`` also fits without bins. ``calkd calibrate`` keeps about a
thousand weighted samples an image instead.

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
    """Logits of a dense head, made in each pass anew."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.passes = 0

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        self.passes += 1
        for image in range(self.args.images):
            generator = torch.Generator().manual_seed(image)
            shape = ANCHORS_AT_ONCE, self.args.classes
            drawn = torch.randn(shape, generator=generator).mul_(2).sub_(4)
            for start in range(0, self.args.anchors, ANCHORS_AT_ONCE):
                count = min(ANCHORS_AT_ONCE, self.args.anchors - start)
                logits = drawn[:count] + torch.randn(1, generator=generator)
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

    decisions = BinnedDecisions(args.classes)

    def make() -> None:
        for _ in data.batches():
            pass

    def read() -> None:
        for batch in data.batches():
            decisions.update(*batch)

    measure('making them alone', make)
    measure('reading into bins', read)
    measure('temperature', partial(fit, TEMPERATURE['sigmoid'], decisions.batches))
    measure('Platt', partial(fit, PLATT, decisions.batches))
    measure('beta', partial(fit, BETA, decisions.batches))
    measure('beta per class (means)', partial(fit, BETA, decisions.batches, per_class=True))
    if args.exact:
        measure('exact: temperature', partial(fit_temperature_exactly, data))
        measure('exact: Platt', partial(fit, PLATT, data.batches))
        measure('exact: beta', partial(fit, BETA, data.batches))
        measure('exact: beta per class', partial(fit, BETA, data.batches, per_class=True))


def fit(family: Family, batches: Batches, per_class: bool = False) -> str:
    """Fit a family, and return its parameters, means over classes, in words."""
    found = fit_streamed(family, batches, per_class=per_class, num_resamples=0).parameters
    return ', '.join(f'{key} = {np.mean(value):.5f}' for key, value in found.items())


def fit_temperature_exactly(data: MadeUp) -> str:
    """Fit T in one pass without bins."""
    accumulator = TemperatureAccumulator('sigmoid')
    for batch in data.batches():
        accumulator.update(*batch)
    return f'T = {accumulator.compute().temperature:.5f}'


if __name__ == '__main__':
    main()

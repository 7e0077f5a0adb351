"""Time the streamed fits on made-up logits of a dense head: every anchor, none left out.

COCO's 5,000 validation images have 200,000 anchors with 80 logits each, 320 GB in float32. The
logits of an image are drawn anew for each pass, with targets sigmoid(z / 2), so that T = 2, a = 0.5
and b = c = 0 must come out. No logit is kept: the peak of memory must be the same for any number of
images and anchors. ``calkd calibrate`` keeps about a thousand weighted samples an image instead.

    python tests/benchmark_streamed_fits.py --images 2
    python tests/benchmark_streamed_fits.py --images 8
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from calkd_det.calibration.scaling_families import BETA, PLATT, Family
from calkd_det.calibration.scaling_fits import fit_streamed
from calkd_det.calibration.temperature import TemperatureAccumulator

ANCHORS_AT_ONCE = 8192
FULL_SIZE = 5000 * 200_000 * 80  # logits of COCO's validation images


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
    parser.add_argument('--images', type=int, default=2)
    parser.add_argument('--anchors', type=int, default=200_000)
    parser.add_argument('--classes', type=int, default=80)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    num_logits = args.images * args.anchors * args.classes
    start = peak_memory()

    def temperature(data: MadeUp) -> str:
        accumulator = TemperatureAccumulator('sigmoid')
        for batch in data.batches():
            accumulator.update(*batch)
        return f'T = {accumulator.compute().temperature:.4f}'

    def scaling(family: Family, **options: bool) -> Callable[[MadeUp], str]:
        def fit(data: MadeUp) -> str:
            parameters = fit_streamed(family, data.batches, **options).parameters.items()
            means = {key: torch.tensor(value).mean() for key, value in parameters}
            return ', '.join(f'{key} = {value:.4f}' for key, value in means.items())

        return fit

    fits = {
        'temperature': temperature,
        'Platt': scaling(PLATT),
        'beta': scaling(BETA),
        'beta per class (means)': scaling(BETA, per_class=True),
    }
    print(f'{args.images} images x {args.anchors:,} anchors x {args.classes} classes')
    print('| fit | parameters | passes | s | ns a logit | hours at full size | peak, MiB more |')
    print('|---|---|---:|---:|---:|---:|---:|')
    for name, fit in fits.items():
        data = MadeUp(args)
        clock = time.perf_counter()
        found = fit(data)
        seconds = time.perf_counter() - clock
        nanoseconds = 1e9 * seconds / num_logits
        cells = [name, found, data.passes, f'{seconds:.1f}', f'{nanoseconds:.0f}']
        cells += [f'{nanoseconds * FULL_SIZE / 3.6e12:.1f}', f'{peak_memory() - start:.0f}']
        print('|', ' | '.join(map(str, cells)), '|', flush=True)


if __name__ == '__main__':
    main()

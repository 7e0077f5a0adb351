"""Fits a detector's temperature on held-out images and reports its calibration before and after."""

from __future__ import annotations

import argparse
import sys
import warnings
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

# mmengine's own, at every config that is read; it would bury the progress.
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')

import mmcv  # noqa: E402
import mmdet  # noqa: E402
import mmengine  # noqa: E402
import torch  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hub import get_config  # noqa: E402
from mmengine.model import revert_sync_batchnorm  # noqa: E402
from torch import nn  # noqa: E402

import calkd_det  # noqa: E402
from calkd_det.errors import CalKDError, ConfigError  # noqa: E402
from calkd_det.measurement.analysis import (  # noqa: E402
    METRICS,
    CalibrationResult,
    analyse,
)
from calkd_det.measurement.calibration_report import config_lines, write_report  # noqa: E402
from calkd_det.measurement.collect import collect_samples  # noqa: E402
from calkd_det.measurement.held_out import (  # noqa: E402
    HeldOutData,
    overlap_warnings,
    read_held_out,
    sha256_of,
)
from calkd_det.taps import find_tap  # noqa: E402
from calkd_det.teachers.checkpoint import load_weights  # noqa: E402
from calkd_det.teachers.source import CHECKPOINT_KEY, CONFIG_KEY  # noqa: E402

EPILOG = """\
Use images that neither trained the teacher nor judge the student: the config's own
train and test images are no such, so there is no default.

writes, under DIR:
  temperature.json      for TemperatureScaling(temperature='DIR/temperature.json')
  report.md             errors before and after, on each set of samples
  reliability_*.png     a diagram for each
"""


def positive(text: str) -> int:
    return at_least(1, text)


def not_negative(text: str) -> int:
    return at_least(0, text)


def at_least(minimum: int, text: str) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f'must be a whole number >= {minimum}, not {text!r}')
    return int(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help="the detector's config, a path or mmdet::FAMILY/NAME.py")
    parser.add_argument('checkpoint', help='its weights, a path or URL')
    parser.add_argument('--ann', type=Path, metavar='FILE', help='COCO annotation file (required)')
    parser.add_argument(
        '--images', type=Path, metavar='FOLDER', help='folder of its images (required)'
    )
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='default: calibration/<name of the config>'
    )
    parser.add_argument('--batch-size', type=positive, metavar='N', default=4, help='default: 4')
    parser.add_argument(
        '--workers',
        type=not_negative,
        metavar='N',
        default=2,
        help='processes to load images; default: 2',
    )
    parser.add_argument('--device', help='default: a GPU if torch sees one, else cpu')
    parser.add_argument(
        '--seed', type=not_negative, default=0, help='of sampling and bootstrap; default: 0'
    )
    parser.add_argument(
        '--max-images', type=positive, metavar='N', help='only the first N, for a quick look'
    )
    args = parser.parse_args(argv)
    if args.ann is None or args.images is None:
        parser.error(
            'give --ann and --images: a COCO annotation file and the folder of its images, which '
            'neither trained the teacher nor judge the student'
        )
    if args.out is None:
        args.out = Path('calibration', Path(args.config).stem)
    return args


def calibrate(args: argparse.Namespace) -> CalibrationResult:
    register_all_modules(init_default_scope=True)
    cfg = read_config(args.config)
    detector = build_detector(cfg)
    num_classes = find_tap(detector, CONFIG_KEY).num_classes(detector)
    classes = load_weights(detector, args.checkpoint)
    data = read_held_out(
        cfg,
        args.ann,
        args.images,
        num_classes=num_classes,
        classes=classes,
        max_images=args.max_images,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    stores = collect_samples(
        to_device(detector, args.device),
        data.dataset,
        batch_size=args.batch_size,
        num_workers=args.workers,
        seed=args.seed,
        folder=args.out,
        progress=True,
    )
    about = describe(args, detector, data)
    return analyse(stores, about, overlap_warnings(cfg, data), seed=args.seed)


def read_config(name: str) -> Config:
    try:
        return get_config(name) if '::' in name else Config.fromfile(name)
    # mmengine reports a bad name by assertion, a bad file by whatever its parser raises.
    except Exception as error:
        raise ConfigError(f"cannot read '{name}' ({type(error).__name__}: {error})") from error


def build_detector(cfg: Config) -> nn.Module:
    if 'model' not in cfg:
        raise ConfigError(f"'{cfg.filename}' has no 'model'")
    # A distilled detector is calibrated as the plain one that it is.
    for key in ('teacher', 'distillation'):
        if key in cfg.model:
            cfg.model[key] = None
    try:
        return revert_sync_batchnorm(MODELS.build(cfg.model))
    except CalKDError:
        raise
    # Whatever mmdet raises on a wrong model config.
    except Exception as error:
        raise ConfigError(
            f'mmdet cannot build the detector ({type(error).__name__}: {error})'
        ) from error


def to_device(detector: nn.Module, device: str | None) -> nn.Module:
    try:
        return detector.to(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split('\n')[0]
        raise ConfigError(f'--device {device}: {reason}') from error


def describe(args: argparse.Namespace, detector: nn.Module, data: HeldOutData) -> dict[str, Any]:
    checkpoint = Path(args.checkpoint)
    return {
        'teacher': {
            'config': args.config,
            'checkpoint': args.checkpoint,
            'checkpoint_sha256': sha256_of(checkpoint) if checkpoint.is_file() else None,
            'detector': type(detector).__name__,
            'classes': list(data.dataset.metainfo['classes']),
        },
        'data': {
            'annotation_file': str(data.ann_file),
            'annotation_file_sha256': data.sha256,
            'images': str(data.images),
            'num_images': len(data.dataset),
            'num_images_in_file': data.num_listed,
        },
        'seed': args.seed,
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'versions': {
            'calkd_det': calkd_det.__version__,
            'torch': torch.__version__,
            'mmdet': mmdet.__version__,
            'mmengine': mmengine.__version__,
            'mmcv': mmcv.__version__,
            'numpy': version('numpy'),
            'scipy': version('scipy'),
            'python': '.'.join(map(str, sys.version_info[:3])),
        },
    }


def summary(report: CalibrationResult, out: Path) -> str:
    result = report.sets['distillation']
    fit = result.fit
    interval = (
        '' if fit.interval is None else ', 95 % interval {:.3f} to {:.3f}'.format(*fit.interval)
    )
    before, after = result.before.values['ece'], result.after.values['ece']
    lines = [
        f'T = {fit.temperature:.3f}{interval}',
        f'{METRICS["ece"]}: {100 * before:.2f} % before, {100 * after:.2f} % after',
        f'{result.num_samples} samples, {result.num_foreground} of them objects, '
        f'of {report.about["data"]["num_images"]} images',
        *(f'warning: {sentence}' for sentence in report.warnings),
        '',
        'in the config of a student, under model.teacher, one of',
        *(f'    {line}' for line in config_lines(report, out)),
    ]
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        report = calibrate(args)
        files = write_report(report, args.out)
    except CalKDError as error:
        # Its sentences name the keys of a student's config; here the two are arguments.
        text = (
            ' '.join(str(error).split())
            .replace(CHECKPOINT_KEY, 'CHECKPOINT')
            .replace(CONFIG_KEY, 'CONFIG')
        )
        print(f'error: {text}', file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'\n{summary(report, args.out)}\n\nreport: {files[1]}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

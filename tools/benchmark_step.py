"""Time a distilled training step against its two networks and against other ways to distil."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

# mmengine's, mmcv's and torch's own, of no use to who reads the table.
warnings.filterwarnings('ignore')

import mmcv  # noqa: E402
import mmdet  # noqa: E402
import torch  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config, DictAction  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402

import calkd_det  # noqa: E402
from calkd_det.commands.benchmark.fraction_error import fraction_table, measure_fractions  # noqa: E402
from calkd_det.commands.benchmark.growth import growth_points  # noqa: E402
from calkd_det.commands.benchmark.memory import peak_bytes  # noqa: E402
from calkd_det.commands.benchmark.subject import Subject, check_config, write_random_teacher  # noqa: E402
from calkd_det.commands.benchmark.tables import growth_plot, growth_table, step_table  # noqa: E402
from calkd_det.commands.benchmark.timing import alternate  # noqa: E402
from calkd_det.commands.benchmark.ways import (  # noqa: E402
    DEFAULT,
    KD_PART,
    OPTIONS,
    REFERENCES,
    STUDENT,
    TEACHER,
    WAYS,
    seen_samples,
)
from calkd_det.commands.demo.blocks import fill_blocks  # noqa: E402

DESCRIPTION = """\
Time a training step of CalKD configs, with random weights and a batch of noise: the plain
student's step, the teacher's bare inference, this project's step with the teacher's options,
and two other ways to distil. All run in turn in one process. Writes step.json and step.md, with
--growth growth.json, growth.md and growth.png.
"""
TEACHERS = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py',
    'mmdet::faster_rcnn/faster-rcnn_x101-32x4d_fpn_1x_coco.py',
]
MEASURE_MEMORY = '--measure-memory-of'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG', help='CalKD configs')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark_step'))
    parser.add_argument(
        '--page',
        type=Path,
        help='a page with <!-- begin step --> or <!-- begin growth -->: write the table there, and '
        'the files into a folder of its name beside it',
    )
    parser.add_argument('--device', type=torch.device, default='cuda' if gpu else 'cpu')
    parser.add_argument(
        '--image-size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        default=(800, 1333) if gpu else (320, 320),
        help='default: %(default)s',
    )
    parser.add_argument('--images', type=int, default=8 if gpu else 2, help='default: %(default)s')
    parser.add_argument('--rounds', type=int, default=15, help='default: %(default)s')
    parser.add_argument('--warm-up', type=int, default=2, help='default: %(default)s')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument(
        '--amp', action='store_true', help='autocast: float16 on a GPU, bfloat16 on a CPU'
    )
    parser.add_argument(
        '--ways',
        nargs='+',
        choices=[way.name for way in (*REFERENCES, *OPTIONS)],
        default=[way.name for way in (*REFERENCES, *OPTIONS)],
        help='which to time beside student, teacher and CalKD; default: all',
    )
    parser.add_argument('--no-memory', action='store_true', help='leave peak memory out')
    parser.add_argument('--growth', action='store_true', help='how the cost grows, instead')
    parser.add_argument(
        '--fractions',
        action='store_true',
        help="instead: what teacher.roi_fraction leaves of the loss, on the config's training data "
        'with its trained teacher and --student-checkpoint; writes fraction.md',
    )
    parser.add_argument('--batches', type=int, default=20, help='with --fractions')
    parser.add_argument('--teachers', nargs='+', default=TEACHERS, help='with --growth')
    parser.add_argument('--student-checkpoint', type=Path, help='default: random weights')
    parser.add_argument('--teacher-checkpoint', type=Path, help='default: random weights')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help="as for mmdet's train.py",
    )
    parser.add_argument(MEASURE_MEMORY, dest='memory_of', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.page:
        args.out = args.page.with_suffix('')
    return args


def read_config(path: Path, options: dict[str, Any]) -> Config:
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options)
    check_config(cfg)
    return cfg


def time_ways(subject: Subject, names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    steps = {name: WAYS[name].prepare(subject, args.amp) for name in names}
    seconds, losses = alternate(
        steps, rounds=args.rounds, warm_up=args.warm_up, device=subject.device
    )
    return {'seconds': seconds, 'losses': losses}


def measure_memory(config: Path, name: str, checkpoint: Path, args: argparse.Namespace) -> int:
    """Peak memory of one way in a process of its own."""
    command = [
        *(sys.executable, __file__, config, MEASURE_MEMORY, name),
        *('--teacher-checkpoint', checkpoint, '--device', args.device, '--images', args.images),
        *('--image-size', *args.image_size, '--threads', args.threads),
        *(['--amp'] if args.amp else []),
        *(['--student-checkpoint', args.student_checkpoint] if args.student_checkpoint else []),
    ]
    if args.cfg_options:
        command += ['--cfg-options', *(f'{key}={value}' for key, value in args.cfg_options.items())]
    # glibc keeps what is freed in pieces below a threshold that grows; what is in use is asked for.
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': str(2**20)}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f'measuring the memory of {name!r} failed:\n{done.stderr[-2000:]}')
    return int(done.stdout.split()[-1])


def about(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """Machine, versions and command."""
    return {
        'command': shlex.join(['python', 'tools/benchmark_step.py', *argv]),
        'device': device_name(args.device),
        'threads': args.threads,
        'rounds': args.rounds,
        'python': platform.python_version(),
        'torch': torch.__version__,
        'mmcv': mmcv.__version__,
        'mmdet': mmdet.__version__,
        'calkd_det': calkd_det.__version__,
        'image_size': list(args.image_size),
        'images': args.images,
        'amp': args.amp,
    }


def device_name(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text('utf-8').splitlines() if cpuinfo.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def caption(info: dict[str, Any]) -> str:
    amp = 'on' if info['amp'] else 'off'
    return (
        f'{info["device"]}, {info["threads"]} threads; {info["images"]} images of '
        f'{" × ".join(map(str, info["image_size"]))}, AMP {amp}; medians of {info["rounds"]} '
        f'rounds; torch {info["torch"]}, mmcv {info["mmcv"]}, mmdet {info["mmdet"]}.'
    )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    register_all_modules()
    MMLogger.get_instance('benchmark', log_level='ERROR')
    args.out.mkdir(parents=True, exist_ok=True)
    if args.fractions:
        return write_fractions(args)
    info = about(args, argv)
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for config in args.configs:
            cfg = read_config(config, args.cfg_options)
            checkpoint = args.teacher_checkpoint
            if checkpoint is None:
                checkpoint = Path(folder) / f'{config.stem}.pth'
                write_random_teacher(cfg, checkpoint)
            subject = Subject(
                cfg,
                checkpoint,
                args.student_checkpoint,
                tuple(args.image_size),
                args.images,
                torch.device(args.device),
            )
            if args.memory_of:
                print(peak_bytes(subject, WAYS[args.memory_of], args.amp))
                return 0
            if args.growth:
                results += grow(subject, args, Path(folder))
            else:
                results.append({'pair': pair_name(config), **compare_ways(subject, config, args)})
    name, table = ('growth', growth_table) if args.growth else ('step', step_table)
    text = f'{table(results)}\n\n{caption(info)}\n'
    write_text(name, text, args)
    content = json.dumps({'about': info, 'results': results}, indent=1)
    (args.out / f'{name}.json').write_text(content + '\n', encoding='utf-8')
    if args.growth:
        growth_plot(results, args.out / 'growth.png')
    return 0


def write_text(name: str, text: str, args: argparse.Namespace) -> None:
    (args.out / f'{name}.md').write_text(text, encoding='utf-8')
    if args.page:
        page = fill_blocks(args.page.read_text('utf-8'), {name: text})
        args.page.write_text(page, encoding='utf-8')
    print(text)


def write_fractions(args: argparse.Namespace) -> int:
    if args.student_checkpoint is None or len(args.configs) != 1:
        raise SystemExit('--fractions needs one config and --student-checkpoint')
    cfg = read_config(args.configs[0], args.cfg_options)
    errors = measure_fractions(
        cfg, args.student_checkpoint, args.batches, torch.device(args.device)
    )
    write_text('fraction', f'{fraction_table(errors)}\n', args)
    return 0


def compare_ways(subject: Subject, config: Path, args: argparse.Namespace) -> dict[str, Any]:
    names = [STUDENT.name, TEACHER.name, DEFAULT.name, *args.ways, KD_PART.name]
    result = time_ways(subject, names, args)
    if not args.no_memory:
        network = subject.distilled().teacher.network
        tensors = [*network.parameters(), *network.buffers()]
        result['teacher_bytes'] = sum(t.numel() * t.element_size() for t in tensors)
        result['peak_bytes'] = {
            name: measure_memory(config, name, subject.teacher_checkpoint, args)
            for name in names
            if name not in (TEACHER.name, KD_PART.name)
        }
    return result


def grow(subject: Subject, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    names = [STUDENT.name, TEACHER.name, DEFAULT.name, KD_PART.name]
    results = []
    for point in growth_points(subject, args.teachers, folder):
        _, samples = seen_samples(point.subject, args.amp)
        results.append(
            {
                'axis': point.axis,
                'value': point.value,
                'logits': sum(group.logits.numel() for group in samples),
                **time_ways(point.subject, names, args),
            }
        )
        print(f'{point.axis} {point.value}: done', file=sys.stderr)
    return results


def pair_name(config: Path) -> str:
    """``r101-r50`` of ``calkd_faster-rcnn_r101-r50_fpn_8xb1-ms-180k_coco.py``, else all."""
    parts = config.stem.split('_')
    return parts[2] if len(parts) > 2 else config.stem


if __name__ == '__main__':
    sys.exit(main())

"""Time the ways to make a step of CalKD configs, and write what was measured."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from tqdm import tqdm

from calkd_det.commands.benchmark.growth import growth_points
from calkd_det.commands.benchmark.memory import peak_bytes
from calkd_det.commands.benchmark.subject import Subject, check_config, write_random_teacher
from calkd_det.commands.benchmark.tables import growth_plot, growth_table, step_table
from calkd_det.commands.benchmark.timing import alternate
from calkd_det.commands.benchmark.ways import (
    COMPARED,
    DEFAULT,
    KD_PART,
    STUDENT,
    TEACHER,
    WAYS,
    loss_samples,
)
from calkd_det.commands.pages import fill_blocks
from calkd_det.errors import ConfigError, did_you_mean
from calkd_det.stack import installed_versions


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        command_line: What the user typed, kept beside the figures.
        device: Where the networks run.
        image_size: Height and width of the images, in pixels.
        images: Number of images of a batch.
        rounds: Timed steps of each way.
        warm_up: Steps of each way before those.
        threads: torch's, on the CPU.
        amp: Whether to use autocast.
        ways: Names of what to time beside student, teacher and CalKD; None for all.
        memory: Whether to measure peak memory, too.
        growth_teachers: Configs of teachers, from small to large: measure how the cost grows
            instead. None to compare the ways.
    """

    command_line: str
    device: torch.device
    image_size: tuple[int, int]
    images: int
    rounds: int
    warm_up: int
    threads: int
    amp: bool
    ways: Sequence[str] | None
    memory: bool
    growth_teachers: Sequence[str] | None

    @property
    def kind(self) -> str:
        """What the files and the block of a page are called."""
        return 'step' if self.growth_teachers is None else 'growth'


def run_benchmark(configs: Mapping[str, Config], settings: Settings) -> list[dict[str, Any]]:
    """Measure all configs.

    Args:
        configs: By the paths they were read from.
        settings: How to measure.

    Returns:
        An entry for each config, or for each point where the growth is measured.

    Raises:
        ConfigError: A config distils nothing, or there is no such way.
        TeacherError: A teacher cannot be built.
    """
    for name in settings.ways or ():
        if name not in COMPARED:
            raise ConfigError(f'--ways {name!r}: {did_you_mean(name, COMPARED)}')
    for cfg in configs.values():
        check_config(cfg)
    torch.set_num_threads(settings.threads)
    register_all_modules()
    MMLogger.get_instance('benchmark', log_level='ERROR')
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for path, cfg in configs.items():
            name = Path(path).stem
            checkpoint = Path(folder) / f'{name}.pth'
            write_random_teacher(cfg, checkpoint)
            size, images = settings.image_size, settings.images
            subject = Subject(cfg, checkpoint, size, images, settings.device)
            if settings.growth_teachers is None:
                results.append({'pair': pair_name(name), **_compare_ways(subject, settings)})
            else:
                results += _grow(subject, settings, Path(folder))
    return results


def write_results(
    results: Sequence[dict[str, Any]], settings: Settings, out: Path, page: Path | None
) -> str:
    """Write the figures, their table and, for a growth, a plot.

    Args:
        results: Of :func:`run_benchmark`.
        settings: How they were measured.
        out: Folder of ``step.json`` and ``step.md``, or of the three files of a growth.
        page: A page whose block is filled with the table, or None.

    Returns:
        The table with its caption.
    """
    name = settings.kind
    about = _about(settings)
    table = (step_table if name == 'step' else growth_table)(results)
    text = f'{table}\n\n{_caption(about)}\n'
    out.mkdir(parents=True, exist_ok=True)
    (out / f'{name}.md').write_text(text, encoding='utf-8')
    content = json.dumps({'about': about, 'results': list(results)}, indent=1)
    (out / f'{name}.json').write_text(content + '\n', encoding='utf-8')
    if name == 'growth':
        growth_plot(results, out / 'growth.png')
    if page is not None:
        page.write_text(fill_blocks(page.read_text('utf-8'), {name: text}), encoding='utf-8')
    return text


def pair_name(stem: str) -> str:
    """Return ``r101-r50`` for ``calkd_faster-rcnn_r101-r50_fpn_8xb1-ms-180k_coco``, else all."""
    parts = stem.split('_')
    return parts[2] if len(parts) > 2 else stem


def _compare_ways(subject: Subject, settings: Settings) -> dict[str, Any]:
    compared = COMPARED if settings.ways is None else settings.ways
    names = [STUDENT, TEACHER, DEFAULT, *compared, KD_PART]
    result = _time_ways(subject, names, settings)
    if settings.memory:
        network = subject.distilled().teacher.network
        tensors = [*network.parameters(), *network.buffers()]
        result['teacher_bytes'] = sum(t.numel() * t.element_size() for t in tensors)
        result['peak_bytes'] = {
            name: _measure_memory(subject, name, settings)
            for name in names
            if name not in (TEACHER, KD_PART)
        }
    return result


def _grow(subject: Subject, settings: Settings, folder: Path) -> list[dict[str, Any]]:
    names = [STUDENT, TEACHER, DEFAULT, KD_PART]
    points = growth_points(subject, settings.growth_teachers, folder)
    results = []
    for axis, value, varied in tqdm(points, desc='points', disable=None):
        _, samples = loss_samples(varied, settings.amp)
        logits = sum(group.logits.numel() for group in samples)
        point = {'axis': axis, 'value': value, 'logits': logits}
        results.append({**point, **_time_ways(varied, names, settings)})
    return results


def _time_ways(subject: Subject, names: Sequence[str], settings: Settings) -> dict[str, Any]:
    steps = {name: WAYS[name](subject, settings.amp) for name in names}
    seconds, losses = alternate(
        steps, rounds=settings.rounds, warm_up=settings.warm_up, device=subject.device
    )
    return {'seconds': seconds, 'losses': losses}


def _measure_memory(subject: Subject, name: str, settings: Settings) -> int:
    """Measure the peak memory of one way, in bytes, in a process of its own."""
    # glibc keeps what is freed in pieces below a threshold that grows: the figure would tell how
    # its heap is cut up.
    os.environ['MALLOC_MMAP_THRESHOLD_'] = str(2**20)
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(peak_bytes, subject, name, settings.amp, settings.threads).result()


def _about(settings: Settings) -> dict[str, Any]:
    return {
        'command': settings.command_line,
        'device': device_name(settings.device),
        'threads': settings.threads,
        'rounds': settings.rounds,
        **installed_versions(),
        'image_size': list(settings.image_size),
        'images': settings.images,
        'amp': settings.amp,
    }


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text('utf-8').splitlines() if cpuinfo.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def _caption(about: Mapping[str, Any]) -> str:
    amp = 'on' if about['amp'] else 'off'
    return (
        f'{about["device"]}, {about["threads"]} threads; {about["images"]} images of '
        f'{" × ".join(map(str, about["image_size"]))}, AMP {amp}; medians of {about["rounds"]} '
        f'rounds; torch {about["torch"]}, mmcv {about["mmcv"]}, mmdet {about["mmdet"]}.'
    )

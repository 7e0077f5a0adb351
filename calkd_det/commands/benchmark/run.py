"""Time a step of CalKD configs and its parts, and write what was measured."""

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

from calkd_det.commands.benchmark.memory import peak_bytes
from calkd_det.commands.benchmark.subject import Subject, check_config, with_random_teacher
from calkd_det.commands.benchmark.tables import step_table
from calkd_det.commands.benchmark.timing import alternate, clock_of
from calkd_det.commands.benchmark.ways import DEFAULT, STEPS, STUDENT, part_steps
from calkd_det.commands.pages import fill_blocks
from calkd_det.stack import installed_versions


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        command_line: What the user typed, kept beside the figures.
        device: Where the networks run.
        image_size: Height and width of the images, in pixels.
        images: Number of images of a batch.
        rounds: Timed runs of each step and part.
        warm_up: Runs of each before those.
        threads: torch's, on the CPU.
        amp: Whether to use autocast.
        precision: Of a teacher that is timed beside that of the config; None for no other.
        memory: Whether to measure peak memory, too.
    """

    command_line: str
    device: torch.device
    image_size: tuple[int, int]
    images: int
    rounds: int
    warm_up: int
    threads: int
    amp: bool
    precision: str | None
    memory: bool

    @property
    def steps(self) -> list[str]:
        """The names of the training steps to measure, keys of ``STEPS``."""
        return [STUDENT, DEFAULT, *([f'{DEFAULT}, {self.precision}'] if self.precision else [])]


def run_benchmark(
    configs: Mapping[str, Config], settings: Settings, out: Path, page: Path | None
) -> str:
    """Measure all configs, and write the figures after each.

    Args:
        configs: By the paths they were read from.
        settings: How to measure.
        out: Folder of ``step.json`` and ``step.md``.
        page: A page whose block ``step`` is filled with the table, or None.

    Returns:
        The table with its caption.

    Raises:
        ConfigError: A config distils nothing.
        TeacherError: A teacher cannot be built.
    """
    for cfg in configs.values():
        check_config(cfg)
    torch.set_num_threads(settings.threads)
    register_all_modules()
    MMLogger.get_instance('benchmark', log_level='ERROR')
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for path, cfg in configs.items():
            name = Path(path).stem
            cfg = with_random_teacher(cfg, Path(folder) / f'{name}.pth')
            subject = Subject(cfg, settings.image_size, settings.images, settings.device)
            title = f'{pair_name(name)} [{len(results) + 1}/{len(configs)}]'
            results.append({'pair': pair_name(name), **_measure(subject, settings, title)})
            text = _write_results(results, settings, out, page)
    return text


def pair_name(stem: str) -> str:
    """Return a config's detector and pair, ``faster-rcnn r101-r50``, or its whole name.

    Args:
        stem: A name such as ``calkd_faster-rcnn_r101-r50_fpn_8xb1-ms-180k_coco``.
    """
    parts = stem.split('_')
    return ' '.join(parts[1:3]) if len(parts) > 2 else stem


def _measure(subject: Subject, settings: Settings, title: str) -> dict[str, Any]:
    steps = {name: STEPS[name](subject, settings.amp) for name in settings.steps}
    seconds, losses = alternate(
        {**steps, **part_steps(subject, settings.amp)},
        rounds=settings.rounds,
        warm_up=settings.warm_up,
        device=subject.device,
        title=title,
    )
    result: dict[str, Any] = {'seconds': seconds, 'losses': losses}
    if settings.memory:
        network = subject.distilled().teacher.network
        tensors = [*network.parameters(), *network.buffers()]
        result['teacher_bytes'] = sum(t.numel() * t.element_size() for t in tensors)
        names = tqdm(settings.steps, desc=f'{title}, peak memory', unit='step')
        result['peak_bytes'] = {name: _measure_memory(subject, name, settings) for name in names}
    return result


def _measure_memory(subject: Subject, name: str, settings: Settings) -> int:
    """Measure the peak memory of a step, in bytes, in a process of its own."""
    # glibc keeps what is freed in pieces below a threshold that grows: the figure would tell how
    # its heap is cut up.
    os.environ['MALLOC_MMAP_THRESHOLD_'] = str(2**20)
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(peak_bytes, subject, name, settings.amp, settings.threads).result()


def _write_results(
    results: Sequence[dict[str, Any]], settings: Settings, out: Path, page: Path | None
) -> str:
    about = _about(settings)
    text = f'{step_table(results)}\n\n{_caption(about)}\n'
    out.mkdir(parents=True, exist_ok=True)
    (out / 'step.md').write_text(text, encoding='utf-8')
    content = json.dumps({'about': about, 'results': list(results)}, indent=1)
    (out / 'step.json').write_text(content + '\n', encoding='utf-8')
    if page is not None:
        page.write_text(fill_blocks(page.read_text('utf-8'), {'step': text}), encoding='utf-8')
    return text


def _about(settings: Settings) -> dict[str, Any]:
    return {
        'command': settings.command_line,
        'device': device_name(settings.device),
        'threads': settings.threads,
        'clock': clock_of(settings.device)[1],
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
        f'{" × ".join(map(str, about["image_size"]))}, AMP {amp}; medians of the ratios of '
        f'{about["rounds"]} rounds, {about["clock"]}; '
        f'torch {about["torch"]}, mmcv {about["mmcv"]}, mmdet {about["mmdet"]}.'
    )

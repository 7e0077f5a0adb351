"""Measure the peak of memory in the forward of one training step, plain or distilled.

python tests/benchmark_forward_memory.py plain
python tests/benchmark_forward_memory.py calkd

It is the resident set's peak above its size before the forward, for Faster R-CNN R101 to R50 and
two images of 800 x 1088 pixels with random weights. Linux only. Set MALLOC_MMAP_THRESHOLD_=1048576,
or glibc keeps what is freed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.structures import InstanceData

CONFIG = 'configs/faster_rcnn/calkd_faster-rcnn_r101-r50_fpn_8xb1-ms-180k_coco.py'
SIZE = (800, 1088)


def memory(name: str) -> float:
    """Return a figure of this process's memory, in MiB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def model_config(way: str, checkpoint: Path) -> ConfigDict:
    """Return the student, plain or with a teacher of random weights."""
    cfg = Config.fromfile(Path(__file__).parents[1] / CONFIG).model
    cfg.backbone.init_cfg = None
    if way == 'plain':
        cfg.type = 'FasterRCNN'
        del cfg.teacher, cfg.distillation
        return cfg
    teacher = get_config(cfg.teacher.config).model
    teacher.backbone.init_cfg = None
    torch.save(dict(meta={}, state_dict=MODELS.build(teacher).state_dict()), checkpoint)
    cfg.teacher.update(config=dict(model=teacher.to_dict()), checkpoint=str(checkpoint))
    return cfg


def data_sample() -> DetDataSample:
    """Return the annotation of an image with one object."""
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), SIZE)
    sample = DetDataSample(metainfo=dict(scale_factor=(1.0, 1.0), **shapes))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[100.0, 100.0, 400.0, 500.0]]), labels=torch.tensor([3])
    )
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    return sample


def main(way: str) -> None:
    """Measure one way and print its peak."""
    register_all_modules()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        student = MODELS.build(model_config(way, Path(folder) / 'teacher.pth'))
        student.init_weights()
    images, samples = torch.randn(2, 3, *SIZE), [data_sample() for _ in range(2)]
    Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    before = memory('VmRSS')
    losses = student.train().loss(images, samples)  # kept, with all that backward needs
    print(f'{way}: {memory("VmHWM") - before:.0f} MiB for {len(losses)} losses')


if __name__ == '__main__':
    main(sys.argv[1])

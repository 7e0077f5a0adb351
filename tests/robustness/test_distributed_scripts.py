"""mmdet's own scripts under torchrun, with two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from forked import ForkedScript
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import MODELS

from calkd_det import config_path
from calkd_det.datasets.mini import write_mini_dataset

TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'
TEACHER = 'mini/faster-rcnn_r18-teacher_fpn_12e_mini.py'
CALKD = 'mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'

# mmengine's launcher takes a process for one with a GPU of its own, in two places.
ON_CPU = """
import runpy, sys, torch
from mmengine.model import MMDistributedDataParallel

torch.cuda.set_device = lambda device: None
init = MMDistributedDataParallel.__init__


def without_devices(self, *args, device_ids=None, **kwargs):
    init(self, *args, **kwargs)


MMDistributedDataParallel.__init__ = without_devices
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def run(folder: Path, script: str, *args: str, options: tuple[str, ...], ranks: int) -> None:
    words = [str(TOOLS / script), config_path(CALKD), *args]
    if ranks > 1:
        (folder / 'on_cpu.py').write_text(ON_CPU)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        launch = ['torch.distributed.run', f'--nproc_per_node={ranks}', f'--master_port={port}']
        words = ['-m', *launch, 'on_cpu.py', *words, '--launcher', 'pytorch']
    start = subprocess.Popen if ranks > 1 else ForkedScript
    with (folder / 'log').open('w') as log:
        process = start(
            [sys.executable, *words, '--cfg-options', 'env_cfg.dist_cfg.backend=gloo', *options],
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        assert process.wait(300) == 0, (folder / 'log').read_text()[-6000:]


@pytest.mark.slow
def test_train_and_test_on_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_mini_dataset(tmp_path / 'data/mini', num_images=dict(train=16, calibration=1, val=5))
    cfg = Config.fromfile(config_path(TEACHER))
    teacher = MODELS.build(cfg.model)
    meta = dict(dataset_meta=dict(classes=cfg.classes))
    torch.save(dict(state_dict=teacher.state_dict(), meta=meta), tmp_path / 'teacher.pth')

    run(
        tmp_path,
        'train.py',
        '--work-dir=run',
        options=(
            'model.teacher.checkpoint=teacher.pth',
            'train_cfg.max_epochs=1',
            'train_cfg.val_interval=2',
            'train_dataloader.batch_size=4',
            'default_hooks.logger.interval=1',
        ),
        ranks=2,
    )
    (log,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row['iter'] for row in rows if 'loss_kd' in row] == [1, 2]  # 16 images by 2 x 4
    assert all(row['loss_kd'] > 0 for row in rows if 'loss_kd' in row)

    (tmp_path / 'teacher.pth').unlink()
    found = {}
    for ranks in (1, 2):
        out = f'{ranks}.pkl'
        options = ('test_dataloader.batch_size=1', 'model.test_cfg.rcnn.score_thr=0.0')
        run(
            *(tmp_path, 'test.py', 'run/epoch_1.pth', f'--out={out}', f'--work-dir=test-{ranks}'),
            options=options,
            ranks=ranks,
        )
        found[ranks] = {
            sample['img_id']: sample['pred_instances'] for sample in load(tmp_path / out)
        }
    assert len(found[1]) == 5  # an odd number: one rank sees an image twice
    assert found[1].keys() == found[2].keys()
    for image_id, alone in found[1].items():
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(alone[key], found[2][image_id][key])
    assert sum(len(boxes['scores']) for boxes in found[1].values()) > 100

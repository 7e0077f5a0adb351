"""What tests read from mmdet's model zoo is what mmengine reads, and each test's own."""

from __future__ import annotations

from pathlib import Path

import zoo_cache
from mmengine.config import Config
from mmengine.hub import get_config

from calkd_det import config_path

NAME = 'mmdet::htc/htc_r50_fpn_1x_coco.py'


def test_a_config_of_the_zoo_is_read_as_by_mmengine() -> None:
    found = get_config(NAME)
    cfg_dict, text, env_variables = zoo_cache._file2dict(found.filename)
    assert found._cfg_dict == Config(cfg_dict)._cfg_dict
    assert found.pretty_text == Config(cfg_dict).pretty_text
    assert (found.text, found.env_variables) == (text, env_variables)


def test_a_config_of_this_project_is_read_as_by_mmengine() -> None:
    path = config_path('studies/smoke.py')
    cfg_dict, text, _ = zoo_cache._file2dict(path)
    for _ in range(2):
        found = Config.fromfile(path)
        assert found._cfg_dict == Config(cfg_dict)._cfg_dict
        assert found.text == text
        found.study.clear()


def test_changes_stay_with_who_made_them() -> None:
    changed = get_config(NAME)
    changed.model.backbone.depth = 18
    changed.model.roi_head.bbox_head.clear()
    assert get_config(NAME).model.backbone.depth == 50
    assert len(get_config(NAME).model.roi_head.bbox_head) == 3


def test_a_config_of_ones_own_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / 'config.py'
    for depth in (18, 34):
        path.write_text(f'_base_ = "{NAME}"\nmodel = dict(backbone=dict(depth={depth}))\n')
        assert Config.fromfile(path).model.backbone.depth == depth

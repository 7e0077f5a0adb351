from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yapf
from mmengine.config import Config

STAND_INS = Path(__file__).parent / 'stand_ins'
CONTENT = dict(type='A', value=[1, 2.5, None], nested={'a b': dict(c="it's", d=(1, True))})


def test_configs_are_written_by_the_stand_in_and_read_again(tmp_path: Path) -> None:
    assert Path(yapf.__file__).is_relative_to(STAND_INS)
    Config(CONTENT).dump(tmp_path / 'a.py')
    assert Config.fromfile(tmp_path / 'a.py').to_dict() == CONTENT


def test_a_config_that_is_no_python_is_refused_as_by_yapf() -> None:
    with pytest.raises(SyntaxError, match='Failed to format the config file'):
        Config(dict(value=object())).pretty_text  # noqa: B018


def test_processes_find_the_stand_in() -> None:
    words = [sys.executable, '-c', 'import yapf; print(yapf.__file__)']
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(STAND_INS)

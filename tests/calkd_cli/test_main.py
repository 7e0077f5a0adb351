"""The command line: what it imports, what it prints where, and its exit codes."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
from forked import ForkedScript

from calkd_cli import commands
from calkd_cli.commands import demo, mini_data
from calkd_cli.main import build_parser, main
from calkd_cli.options import add_cfg_options, cfg_options
from calkd_det import __version__, config_path
from calkd_det.datasets.items import SOURCES
from calkd_det.datasets.mini import DEFAULT_IMAGE_SIZE, DEFAULT_NUM_IMAGES, write_mini_dataset
from calkd_det.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NAMES = [info.name for info in pkgutil.iter_modules(commands.__path__)]
CALKD = 'mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'
STUDENT = 'mini/faster-rcnn_r18-student_fpn_12e_mini.py'


def calkd(*arguments: str, cwd: Path | None = None, code: str = '') -> subprocess.CompletedProcess:
    """Run a command in a process of its own, after some lines of Python."""
    lines = f'import sys; from calkd_cli import main\n{code}\nsys.exit(main(sys.argv[1:]))'
    command = [sys.executable, '-c', lines, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize('name', [None, *NAMES])
def test_help_imports_nothing_heavy(name: str | None) -> None:
    code = """
import atexit
heavy = ('torch', 'numpy', 'mmengine', 'mmdet', 'calkd_det', 'matplotlib')
atexit.register(lambda: print('heavy:', [m for m in heavy if m in sys.modules], file=sys.stderr))
"""
    words = ['--help'] if name is None else [name.replace('_', '-'), '--help']
    done = calkd(*words, code=code)
    assert done.returncode == 0
    assert done.stderr == 'heavy: []\n'
    assert 'exit codes: 0 done, 1 a finding or a failure' in done.stdout
    if name is None:
        words = done.stdout.split()
        assert all(other.replace('_', '-') in words for other in NAMES)
    else:
        first_line = importlib.import_module(f'calkd_cli.commands.{name}').__doc__.split('\n')[0]
        assert first_line in ' '.join(done.stdout.split())


def test_version() -> None:
    done = calkd(
        '--version', code="import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    )
    assert done.stdout.split() == ['calkd', __version__, 'False']


def test_the_commands_are_there() -> None:
    assert {'doctor', 'calibrate', 'export', 'study', 'demo', 'mini_data', 'benchmark'} <= set(
        NAMES
    )


@pytest.mark.parametrize('path', sorted((ROOT / 'tools').glob('*.py')), ids=lambda path: path.stem)
def test_the_tools_are_commands(path: Path) -> None:
    done = subprocess.run([sys.executable, path, '--help'], capture_output=True, text=True)
    assert done.returncode == 0
    name = path.read_text('utf-8').split("run_command('")[1].split("'")[0]
    assert f'calkd {name} ' in done.stdout


@pytest.mark.slow
def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    with (tmp_path / 'log').open('w') as log:
        script = ForkedScript(
            [sys.executable, '-m', 'calkd_det', '--help'], stdout=log, env=os.environ
        )
    assert script.wait(60) == 0
    assert 'doctor' in (tmp_path / 'log').read_text()


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a function in the place of ``calkd export``'s."""
    monkeypatch.setattr(signal, 'signal', lambda *args: None)

    def replace(run: Any) -> None:
        monkeypatch.setattr('calkd_cli.commands.export.run', run)

    return replace


def raises(error: BaseException) -> Any:
    def run(args: Any) -> int:
        raise error

    return run


def test_the_code_of_a_command_is_the_processs(replaced: Any) -> None:
    for code in (0, 1):
        replaced(lambda args, code=code: code)
        assert main(['export', 'a', 'b']) == code


@pytest.mark.parametrize(
    'error',
    [
        ConfigError('wrong\n   key'),
        OSError('wrong key'),
        ImportError('CalKD-Det cannot import wrong key'),
    ],
)
def test_an_error_for_the_user_is_one_line_and_1(
    replaced: Any, error: Exception, capsys: pytest.CaptureFixture
) -> None:
    replaced(raises(error))
    assert main(['export', 'a', 'b']) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.startswith('error: ')
    assert captured.err.endswith('wrong key\n')
    assert captured.err.count('\n') == 1


@pytest.mark.parametrize('error', [ValueError('a bug'), ImportError('a bug')])
def test_a_bug_keeps_its_traceback(replaced: Any, error: Exception) -> None:
    replaced(raises(error))
    with pytest.raises(type(error), match='a bug'):
        main(['export', 'a', 'b'])


def test_ctrl_c_is_one_line_and_130(replaced: Any, capsys: pytest.CaptureFixture) -> None:
    replaced(raises(KeyboardInterrupt()))
    assert main(['export', 'a', 'b']) == 130
    assert capsys.readouterr().err.strip() == 'stopped; the same command starts over'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_a_command_in_the_middle(number: signal.Signals) -> None:
    code = """
import time
from calkd_cli.commands import study
study.run = lambda args: print('begun', flush=True) or time.sleep(60)
"""
    lines = f'import sys; from calkd_cli import main\n{code}\nsys.exit(main(["study", "x.py"]))'
    process = subprocess.Popen(
        [sys.executable, '-c', lines], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'begun\n'
    started = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip() == 'stopped; the same command goes on with what is missing'
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    'words',
    [
        [],
        ['docter'],
        ['export', 'a'],
        ['doctor'],
        ['doctor', 'none.py'],
        ['doctor', 'x.py', '--images=0'],
        ['doctor', 'CALKD', '--device=abacus'],
        ['doctor', 'CALKD', '--cfg-options', 'no-equals'],
        ['doctor', 'CALKD', '--cfg-options', 'param_scheduler.9.end=1'],
        ['calibrate', 'x.py', 'x.pth'],
        ['calibrate', 'none.py', 'x.pth', '--ann=a', '--images=b'],
        ['study', 'x.py', '--jobs=0'],
        ['study', 'x.py', '--report', '--dry-run'],
        ['demo', '--epochs=0'],
        ['mini-data', 'x', '--items=cats'],
        ['benchmark'],
        ['benchmark', 'none.py'],
        ['benchmark', 'CALKD', '--image-size=8'],
        ['benchmark', 'CALKD', '--precision=half'],
    ],
)
def test_wrong_arguments_are_2(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([config_path(CALKD) if word == 'CALKD' else word for word in words])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert 'error: ' in captured.err
    assert 'Traceback' not in captured.err
    assert captured.out == ''


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['study', 'none.py'], "cannot read 'none.py'"),
        (['study', 'STUDENT'], "has no 'study'"),
        (['export', 'none.pth', 'out.pth'], "there is no file 'none.pth'"),
        (['mini-data', 'data', '--image-size=8'], 'image_size must be at least'),
        (['demo', '--report-only'], 'run the demo without --report-only'),
        (['benchmark', 'STUDENT'], 'needs a config that distils'),
        (['benchmark', 'CALKD', '--page', 'none.md'], 'none.md'),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_1(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {'CALKD': config_path(CALKD), 'STUDENT': config_path(STUDENT)}
    assert main([paths.get(word, word) for word in words]) == 1
    last_line = capsys.readouterr().err.strip().split('\n')[-1]
    assert last_line.startswith('error: ')
    assert message in last_line


def test_the_doctors_json_is_all_of_stdout(tmp_path: Path) -> None:
    done = calkd('doctor', config_path(CALKD), '--json', '--images=2', cwd=tmp_path)
    assert done.returncode == 1  # there are neither data nor a teacher
    content = json.loads(done.stdout)
    assert content['ready'] is False
    assert {'mark', 'title', 'text'} <= set(content['findings'][0])
    assert 'error' in {finding['mark'] for finding in content['findings']}


def test_cfg_options_are_parsed_as_mmengine_does() -> None:
    parser = ArgumentParser()
    add_cfg_options(parser)
    words = ['a.b=1', 'c=[1,2]', 'd=x=y', 'e=None']
    args = parser.parse_args(['--cfg-options', *words])
    assert cfg_options(args) == {'a.b': 1, 'c': [1, 2], 'd': 'x=y', 'e': None}
    assert cfg_options(parser.parse_args([])) == {}


def test_cfg_options_change_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    path = config_path('studies/smoke.py')
    assert main(['study', path, '--dry-run', '--cfg-options', 'study.seeds=[0]']) == 0
    assert capsys.readouterr().out.endswith('6 runs: 0 done, 0 trained, 6 to do\n')


def test_defaults_are_those_of_the_package() -> None:
    assert mini_data.SOURCES == SOURCES
    assert mini_data.NUM_IMAGES == DEFAULT_NUM_IMAGES
    assert mini_data.IMAGE_SIZE == DEFAULT_IMAGE_SIZE
    args = build_parser().parse_args(['demo'])
    assert args.epochs == demo.EPOCHS == 12


@pytest.mark.slow
def test_without_scikit_learn_data_are_refused_and_study_and_benchmark_run(tmp_path: Path) -> None:
    write_mini_dataset(tmp_path / 'data', num_images=dict(train=8, calibration=4, val=4))
    code = f"""
sys.modules['sklearn'] = None
assert main(['mini-data', 'none']) == 1
print('that was the data', file=sys.stderr)
assert main(['study', {config_path('studies/coco.py')!r}, '--dry-run']) == 0
"""
    words = ['--image-size', '64', '64', '--rounds=1', '--warm-up=0']
    words = ['benchmark', config_path(CALKD), *words, '--no-memory', '--threads=1']
    done = calkd(*words, cwd=tmp_path, code=code)
    assert done.returncode == 0, done.stderr
    refused, _ = done.stderr.split('that was the data')
    assert 'pip install scikit-learn' in refused
    assert refused.count('\n') == 1
    assert '| loss_kd |' in done.stdout

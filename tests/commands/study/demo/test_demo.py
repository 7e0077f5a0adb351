"""The whole demo, as ``make demo`` calls it, with settings that take a minute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calkd_cli.main import main

WORDS = ['demo', '--work-dir', 'runs', '--data', 'data']
SMALL = ['--epochs', '2', '--train-images', '16', '--val-images', '8', '--calibration-images', '8']


@pytest.mark.slow
@pytest.mark.usefixtures('forked_jobs')
def test_the_demo_trains_reports_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*WORDS, '--report-only', *SMALL]) == 1
    assert 'run the demo without --report-only' in capsys.readouterr().err

    assert main([*WORDS, *SMALL]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / 'runs' / 'demo'
    assert said.rstrip().endswith('report: runs/demo/report.md')
    assert '0 of 5 runs are done' in said
    assert 'The teacher has an mAP of ' in said
    text = (folder / 'report.md').read_text('utf-8')
    assert 'its detections are exactly the same.' in text
    assert 'One seed proves nothing' in text
    for name in ('curves.png', 'detections.png', 'demo-reliability.png'):
        assert f']({name})' in text
        assert (folder / name).stat().st_size > 10_000
    rows = [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]
    names = ['teacher', 'student alone', 'KD', 'CalKD', 'CalKD and features']
    assert sorted(row['name'] for row in rows) == sorted(names)
    assert f'{100 * rows[0]["metrics"]["mAP"]:.1f}' in text
    assert len(list(folder.glob('*/epoch_2.pth'))) == 5

    assert main([*WORDS, *SMALL]) == 0
    assert 'nothing to do: every run has its row' in capsys.readouterr().out
    assert (folder / 'report.md').read_text('utf-8') == text

    assert main([*WORDS, *SMALL[:-1], '9']) == 1
    told = capsys.readouterr().err
    assert told.startswith('error: ')
    assert told.count('\n') == 1

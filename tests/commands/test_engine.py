"""The engine: order, places, failures, and what becomes of subprocesses."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from calkd_det.commands.engine import Command, Job, JobFailed, JobRunner, last_train_line


def python_job(folder: Path, name: str, *codes: str, needs: tuple[str, ...] = ()) -> Job:
    """A job of Python commands that notes in ``events.txt`` what happens to it."""

    def note(event: str) -> None:
        with (folder / 'events.txt').open('a') as file:
            file.write(f'{name} {event}\n')

    def work() -> Iterator[Command]:
        try:
            for code in codes:
                yield Command([sys.executable, '-c', code], folder / f'{name}.log')
                note('went on')
            note('succeeded')
        finally:
            note('closed')

    return Job(name, name, needs, work)


def events(folder: Path) -> list[str]:
    return (folder / 'events.txt').read_text().splitlines()


def run(*jobs: Job, places: int = 1) -> None:
    JobRunner(jobs, [{}] * places).run()


def test_jobs_wait_for_what_they_need(tmp_path: Path) -> None:
    made = str(tmp_path / 'made')
    first = python_job(tmp_path, 'a', f'open({made!r}, "w"); print("hello")')
    then = python_job(tmp_path, 'b', f'open({made!r})', needs=('a', 'no job'))
    run(then, first, places=2)
    assert (tmp_path / 'a.log').read_text() == 'hello\n'
    assert events(tmp_path) == [
        *('a went on', 'a succeeded', 'a closed'),
        *('b went on', 'b succeeded', 'b closed'),
    ]


def test_commands_of_a_job_run_one_after_another(tmp_path: Path) -> None:
    run(python_job(tmp_path, 'a', 'print(1)', 'print(2)'))
    assert (tmp_path / 'a.log').read_text() == '1\n2\n'


def test_a_job_without_commands_counts_as_done(tmp_path: Path) -> None:
    run(python_job(tmp_path, 'a'), python_job(tmp_path, 'b', 'print(1)', needs=('a',)))
    assert events(tmp_path)[-1] == 'b closed'


def test_what_does_not_need_a_failed_job_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = python_job(tmp_path, 'bad', 'print(*range(99), sep="\\n"); raise SystemExit(3)', '')
    lost = python_job(tmp_path, 'lost', '', needs=('bad',))
    lost_too = python_job(tmp_path, 'lost too', '', needs=('lost',))
    good = python_job(tmp_path, 'good', 'print("hello")')
    with pytest.raises(JobFailed, match=r'^3 failed: bad; lost \(not run\); lost too \(not run\)'):
        run(bad, lost, lost_too, good)
    assert events(tmp_path) == ['bad closed', 'good went on', 'good succeeded', 'good closed']
    *tail, message = capsys.readouterr().out.splitlines()
    assert tail == [str(number) for number in range(69, 99)]
    assert message.startswith('bad: ended with exit status 3; ')
    assert message.endswith('bad.log.')


def test_an_error_between_commands_fails_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def work() -> Iterator[Command]:
        yield Command([sys.executable, '-c', ''], tmp_path / 'a.log')
        raise JobFailed('left no row')

    with pytest.raises(JobFailed, match=r'^1 failed: the job\.$'):
        run(Job('a', 'the job', (), work))
    assert capsys.readouterr().out == 'the job: left no row\n'


def test_each_place_has_its_own_variables(tmp_path: Path) -> None:
    code = 'import os, time; time.sleep(0.4); print(os.environ["PLACE"])'
    jobs = [python_job(tmp_path, name, code) for name in 'abc']
    JobRunner(jobs, [{'PLACE': '0'}, {'PLACE': '1'}]).run()
    places = [(tmp_path / f'{name}.log').read_text() for name in 'abc']
    assert places[:2] == ['0\n', '1\n']
    assert places[2] in places[:2]


def test_ctrl_c_ends_the_subprocesses_and_closes_the_jobs(tmp_path: Path) -> None:
    pid = tmp_path / 'pid'
    jobs = [python_job(tmp_path, 'a', sleeps(pid)), python_job(tmp_path, 'b', 'print(1)')]

    def interrupt(progress: str) -> None:
        if pid.is_file() and pid.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        JobRunner(jobs, [{}], interrupt).run()
    assert has_ended(int(pid.read_text()))
    assert events(tmp_path) == ['a closed']


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere no kernel ends them')
def test_a_subprocess_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / 'pid'
    job = python_job(tmp_path, 'a', sleeps(pid))
    process = multiprocessing.get_context('fork').Process(target=run, args=(job,))
    process.start()
    deadline = time.monotonic() + 30
    while not (pid.is_file() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert has_ended(int(pid.read_text()))


def sleeps(pid: Path) -> str:
    return f'import os, time; open({str(pid)!r}, "w").write(str(os.getpid())); time.sleep(60)'


def has_ended(pid: int) -> bool:
    stat = Path('/proc', str(pid), 'stat')
    for _ in range(200):
        if not stat.is_file() or stat.read_text().rpartition(')')[2].split()[0] == 'Z':
            return True
        time.sleep(0.05)
    return False


def test_the_log_is_condensed() -> None:
    line = (
        '11/24 22:21:28 - mmengine - INFO - Epoch(train)  [1][ 30/100]  lr: 5.8e-03  '
        'eta: 1 day, 0:15:27  time: 0.7926  grad_norm: 4.7  loss: 1.5935  loss_cls: 0.8603\n'
    )
    later = line.replace('[ 30/100]', '[ 60/100]')
    assert last_train_line(line + later + 'Saving checkpoint\n') == (
        'epoch 1, iteration 60/100, loss 1.5935, 1 day, 0:15:27 left'
    )
    assert last_train_line('Loads checkpoint by local backend') == ''

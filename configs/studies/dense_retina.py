"""Dense heads: which calibrator, and which weighting of the background, for a RetinaNet.

One T is ruled by the background, whose scores a focal loss leaves too high. Cost: the teacher of
knowledge_retina.py and 16 cells x 4 seeds = 64 students. Four seeds, not eight, were decided before
the runs: a student takes two minutes of a core.
"""

_base_ = './_base_/measured.py'
config_path = __import__('calkd_det').config_path

teacher = 'RetinaNet r18-16'
start = 'work_dirs/study/retina-start'
calibrators = {
    'T = 1': dict(temperature=1.0),
    'fitted T': dict(temperature='fitted'),
    'Platt': dict(calibrator=dict(type='PlattScaling', parameters='fitted')),
    'beta': dict(calibrator=dict(type='BetaScaling', parameters='fitted')),
    'T = 1.5': dict(temperature=1.5),
}
weightings = ('difference', 'foreground', 'all')
# With 'all' a T above 1 lifts the scores of all background, so that its cells may be far from the rest.
main = ('difference', 'foreground')

study = dict(
    name='dense-retinanet',
    title='Dense heads: RetinaNet',
    question='Does the fitted T make a better teacher of a RetinaNet than T = 1?',
    primary=dict(
        of=[f'{weighting}, fitted T' for weighting in main],
        to=[f'{weighting}, T = 1' for weighting in main],
        name='fitted T − T = 1',
        advice=dict(
            higher='Fit T before you distil.',
            lower='Keep T = 1.',
            none='Keep T = 1, the simpler one.',
        ),
    ),
    prepare=[
        _base_.study.prepare[0],
        dict(
            command=[
                *_base_.study.prepare[1].command[:2],
                '{tools}/../configs/studies/detectors/retina_start.py',
                '--work-dir',
                start,
                *_base_.study.prepare[1].command[5:],
            ],
            creates=start + '/epoch_8.pth',
        ),
    ],
    student=dict(
        name='RetinaNet r18-8, neck of 32, boxes measured',
        config=config_path('studies/detectors/retina_student.py'),
    ),
    teachers=[dict(name=teacher, config=config_path('studies/detectors/retina_teacher.py'))],
    cells=[
        dict(name='alone'),
        *(
            dict(
                name=f'{weighting}, {name}',
                teacher=teacher,
                loss=dict(type='BinaryKDLoss', weighting=weighting),
                **calibrator,
            )
            for weighting in weightings
            for name, calibrator in calibrators.items()
        ),
    ],
    comparisons=[
        *(dict(of=f'{weighting}, T = 1', to='alone') for weighting in weightings),
        *(
            dict(of=f'{weighting}, {name}', to=f'{weighting}, T = 1')
            for weighting in weightings
            for name in calibrators
            if name != 'T = 1'
        ),
        *(
            dict(
                of=[f'{weighting}, {name}' for weighting in main],
                to=[f'{weighting}, fitted T' for weighting in main],
                name=f'{name} − fitted T',
            )
            for name in ('Platt', 'beta')
        ),
        dict(of='foreground, T = 1', to='difference, T = 1'),
    ],
    reliability=[teacher],
)

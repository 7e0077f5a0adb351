"""Dense heads: the cells of dense_retina.py for a GFL, whose scores predict a quality.

Cost: a teacher and 16 cells x 4 seeds = 64 students.
"""

_base_ = './dense_retina.py'
config_path = __import__('calkd_det').config_path

teacher = 'GFL r18-16'
start = 'work_dirs/study/gfl-start'
make_digits, train_start = _base_.study.prepare

study = dict(
    name='dense-gfl',
    title='Dense heads: GFL',
    question='Does the fitted T make a better teacher of a GFL than T = 1?',
    prepare=[
        make_digits,
        dict(
            command=[
                *train_start.command[:2],
                '{tools}/../configs/studies/detectors/gfl_start.py',
                '--work-dir',
                start,
                *train_start.command[5:],
            ],
            creates=start + '/epoch_8.pth',
        ),
    ],
    student=dict(
        name='GFL r18-8, neck of 32, boxes measured',
        config=config_path('studies/detectors/gfl_student.py'),
    ),
    teachers=[dict(name=teacher, config=config_path('studies/detectors/gfl_teacher.py'))],
    cells=[
        {**cell, 'teacher': teacher} if 'teacher' in cell else cell for cell in _base_.study.cells
    ],
    reliability=[teacher],
)

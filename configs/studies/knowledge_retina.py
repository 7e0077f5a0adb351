"""Which knowledge helps a RetinaNet: the cells of knowledge_faster.py, with losses for sigmoids."""

_base_ = './knowledge_faster.py'
config_path = __import__('calkd_det').config_path

start = 'work_dirs/study/retina-start'
teacher = 'RetinaNet r18-16'
parts = dict(cls=dict(type='BinaryKDLoss'), feat=dict(loss_weight=10.0))

make_digits, train_start = _base_.study.prepare
study = dict(
    name='knowledge-retinanet',
    title='Which knowledge: RetinaNet',
    question=(
        'What does calibrated class knowledge add to features, which a user would take anyway '
        '(RetinaNet)?'
    ),
    prepare=[
        make_digits,
        dict(
            command=[
                *train_start.command[:2],
                '{tools}/../configs/studies/detectors/retina_start.py',
                '--work-dir',
                start,
                *train_start.command[5:],
            ],
            creates=start + '/epoch_8.pth',
        ),
    ],
    student=dict(
        name='RetinaNet r18-8, neck of 32',
        config=config_path('studies/detectors/retina_student.py'),
    ),
    teachers=[dict(name=teacher, config=config_path('studies/detectors/retina_teacher.py'))],
    cells=[
        dict(name='alone'),
        *(
            dict(
                name=name,
                teacher=teacher,
                temperature='fitted',
                loss={key: {**_base_.parts[key], **parts.get(key, {})} for key in keys},
            )
            for name, keys in _base_.cells.items()
        ),
    ],
)

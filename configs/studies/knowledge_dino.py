"""Which knowledge helps a DINO: of its matched queries, of its denoising queries, and features.

The tap adds the denoising queries to the matching ones, so no cell has the former alone. The teacher
is calibrated by its fitted T in every cell.
"""

_base_ = './knowledge_faster.py'
config_path = __import__('calkd_det').config_path

start = 'work_dirs/study/dino-start'
teacher = 'DINO r18-16'
parts = dict(
    cls=dict(type='BinaryKDLoss', loss_weight=1.0),
    bbox=dict(type='BoxKDLoss', loss_weight=1.0),
    feat=dict(type='PKDLoss', loss_weight=6.0),
)
denoising = dict(denoising=True)
epochs = 12
# Of each cell the losses and the options of the teacher.
cells = {
    'classes': (['cls'], {}),
    'classes and boxes': (['cls', 'bbox'], {}),
    'classes and boxes, denoising': (['cls', 'bbox'], denoising),
    'features': (['feat'], {}),
    'all': (['cls', 'bbox', 'feat'], denoising),
}

make_digits, train_start = _base_.study.prepare
study = dict(
    name='knowledge-dino',
    title='Which knowledge: DINO',
    question='Do classes and boxes of matched queries teach a DINO more than it learns alone?',
    primary=dict(
        _delete_=True,
        of='classes and boxes',
        to='alone',
        advice=dict(
            higher='Distil classes and boxes.',
            lower='Do not distil classes and boxes at a weight of 1.',
            none='Nothing speaks for classes and boxes yet; see the other cells.',
        ),
    ),
    prepare=[
        make_digits,
        dict(
            command=[
                *train_start.command[:2],
                '{tools}/../configs/studies/detectors/dino_start.py',
                '--work-dir',
                start,
                *train_start.command[5:],
            ],
            creates=start + '/epoch_8.pth',
        ),
    ],
    # On GPUs a transformer of mmdet has operations that torch refuses to make deterministic.
    deterministic=False,
    student=dict(name='DINO r18-8', config=config_path('studies/detectors/dino_student.py')),
    teachers=[
        dict(
            name=teacher,
            config=config_path('studies/detectors/dino_teacher.py'),
            cfg_options={
                'train_cfg.max_epochs': epochs,
                'train_cfg.val_interval': epochs,
                'param_scheduler.1.end': epochs,
                'param_scheduler.1.milestones': [8, 11],
            },
        )
    ],
    cells=[
        dict(name='alone'),
        *(
            dict(
                name=name,
                teacher=teacher,
                teacher_options=options,
                temperature='fitted',
                loss={key: parts[key] for key in keys},
            )
            for name, (keys, options) in cells.items()
        ),
    ],
    comparisons=[
        *(dict(of=name, to='alone') for name in cells),
        dict(of='classes and boxes', to='classes'),
        dict(of='classes and boxes, denoising', to='classes and boxes'),
        dict(of='all', to='features'),
    ],
)

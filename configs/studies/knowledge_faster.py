"""Which knowledge helps a Faster R-CNN: classes, features, boxes, and together.

The student's neck is as wide as the teacher's, so that PKD can compare feature maps. The teacher is
calibrated by its fitted T in every cell.
"""

_base_ = './_base_/fashion.py'
config_path = __import__('calkd_det').config_path

start = 'work_dirs/study/wide-neck-start'
teacher = 'calibrated'
parts = dict(
    cls=dict(type='KDLoss', loss_weight=1.0),
    feat=dict(type='PKDLoss', loss_weight=6.0),
    bbox=dict(type='BoxKDLoss', loss_weight=1.0),
)
cells = {
    'classes': ['cls'],
    'features': ['feat'],
    'boxes': ['bbox'],
    'classes and features': ['cls', 'feat'],
    'all': ['cls', 'feat', 'bbox'],
}

study = dict(
    name='knowledge-faster-rcnn',
    title='Which knowledge: Faster R-CNN',
    question=(
        'What does calibrated class knowledge add to features, which a user would take anyway '
        '(Faster R-CNN)?'
    ),
    primary=dict(
        of='classes and features',
        to='features',
        advice=dict(
            higher='Take class logits and features together.',
            lower='Take features alone.',
            none='Take features; class logits cost little beside them and may add something.',
        ),
    ),
    prepare=[
        _base_.study.prepare[0],
        dict(
            command=[
                '{python}',
                '{mmdet_tools}/train.py',
                '{tools}/../configs/studies/detectors/wide_neck_start.py',
                '--work-dir',
                start,
                '--cfg-options',
                'randomness.seed=0',
            ],
            creates=start + '/epoch_8.pth',
        ),
    ],
    student=dict(
        name='r18-8, neck of 32',
        config=config_path('studies/detectors/wide_neck_student.py'),
    ),
    teachers=[_base_.fashion_teachers[teacher]],
    cells=[
        dict(name='alone'),
        *(
            dict(
                name=name,
                teacher=teacher,
                temperature='fitted',
                loss={key: parts[key] for key in keys},
            )
            for name, keys in cells.items()
        ),
    ],
    seeds=[0, 1, 2],
    comparisons=[
        *(dict(of=name, to='alone') for name in cells),
        dict(of='classes and features', to='classes'),
        dict(of='all', to='classes and features'),
    ],
    figures=['paired'],
    page='docs/which-knowledge.md',
    summary_page='docs/evidence.md',
    pictures='docs/which-knowledge',
)

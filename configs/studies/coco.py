"""The same questions on COCO, for a cluster. NOT RUN HERE: no row of it exists.

ResNet-18 students of the zoo's ResNet-101 teacher in the published protocol (180,000 iterations of 8
images), 5 seeds: 12 cells x 5 = 60 trainings on 8 GPUs each, and one measurement of the teacher. From
a folder that holds data/coco:

    calkd study configs/studies/coco.py --list-commands

prints a command for each run and a Slurm array of them. Each can be stopped and started again: it goes
on from its last checkpoint, which is not bit for bit what it would have been.

The held-out images must neither train the teacher nor judge the student. All of COCO's annotated
images do one or the other for the zoo's teachers, so name your own set in COCO format below (a part of
Objects365 with COCO's classes, for instance), or train a teacher without a part of train2017.
"""

config_path = __import__('calkd_det').config_path
kd = dict(type='KDLoss', tau=1.0, loss_weight=1.0)
temperatures = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
parts = dict(
    cls=kd,
    feat=dict(type='PKDLoss', loss_weight=6.0),
    bbox=dict(type='BoxKDLoss', loss_weight=1.0),
)
knowledge = {
    'features': ['feat'],
    'classes and features': ['cls', 'feat'],
    'all': ['cls', 'feat', 'bbox'],
}

study = dict(
    name='coco',
    title='COCO, ResNet-101 to ResNet-18',
    question='Does the fitted T make a better teacher than T = 1 on COCO?',
    primary=dict(of='fitted T', to='T = 1'),
    data=dict(
        version='coco2017',
        held_out_ann='data/held_out/annotations.json',
        held_out_images='data/held_out/images',
    ),
    student=dict(
        name='r18',
        config=config_path('faster_rcnn/calkd_faster-rcnn_r101-r18_fpn_8xb1-ms-180k_coco.py'),
    ),
    teachers=[
        dict(
            name='r101',
            config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_ms-3x_coco.py',
            checkpoint='zoo',
        ),
    ],
    cells=[
        dict(name='student alone'),
        *(dict(name=f'T = {T:g}', teacher='r101', temperature=T, loss=kd) for T in temperatures),
        dict(name='fitted T', teacher='r101', temperature='fitted', loss=kd),
        dict(
            name='DKD, T = 1.5',
            teacher='r101',
            temperature=1.5,
            loss=dict(type='DKDLoss', alpha=1.0, beta=0.25, tau=1.0, loss_weight=1.0),
        ),
        *(
            dict(
                name=name,
                teacher='r101',
                temperature='fitted',
                loss={key: parts[key] for key in keys},
            )
            for name, keys in knowledge.items()
        ),
    ],
    seeds=[0, 1, 2, 3, 4],
    comparisons=[
        dict(of='T = 1', to='student alone'),
        dict(of=['T = 1.5', 'T = 2', 'T = 3'], to='T = 1', name='T of 1.5 to 3 − T = 1'),
        *(dict(of=f'T = {T:g}', to='T = 1') for T in temperatures if T != 1),
        dict(of='fitted T', to='T = 1'),
        *(dict(of=name, to='student alone') for name in knowledge),
        dict(of='classes and features', to='features'),
        dict(of='all', to='classes and features'),
    ],
    measure_students=True,
    figures=['temperature', 'paired', 'reliability'],
    reliability=['r101'],
    target=0.3,
    # On a GPU mmcv's RoIAlign adds gradients in no fixed order, even in torch's deterministic mode.
    deterministic=False,
    resume=True,
    gpus_per_run=8,
    work_dir='work_dirs/study-coco',
)

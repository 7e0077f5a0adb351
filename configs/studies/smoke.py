"""A study in minutes, on the digits: everything runs, nothing is learnt that is worth a number.

2 teachers and 4 cells x 2 seeds, 140 seconds of a core on a 2-core x86-64 machine.
``make study-smoke`` runs it and makes its report.
"""

data_root = 'data/study-smoke/'
options = {
    'train_dataloader.dataset.data_root': data_root,
    'val_dataloader.dataset.data_root': data_root,
    'test_dataloader.dataset.data_root': data_root,
    'val_evaluator.ann_file': data_root + 'annotations/val.json',
    'test_evaluator.ann_file': data_root + 'annotations/val.json',
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
    'param_scheduler': [
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=10),
    ],
    'train_cfg.max_epochs': 2,
    'train_cfg.val_interval': 2,
}
config_path = __import__('calkd_det').config_path

study = dict(
    name='smoke',
    title='Smoke test on the digits',
    data=dict(
        mini=dict(
            out_dir=data_root.rstrip('/'),
            num_images=dict(train=64, calibration=16, val=24),
            image_size=96,
        )
    ),
    student=dict(
        name='r18-8',
        config=config_path('mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'),
        cfg_options=options,
    ),
    teachers=[
        dict(
            name=name,
            config=config_path('mini/faster-rcnn_r18-teacher_fpn_12e_mini.py'),
            cfg_options={
                **options,
                'train_cfg.max_epochs': epochs,
                'train_cfg.val_interval': epochs,
            },
        )
        for name, epochs in (('short', 2), ('long', 4))
    ],
    cells=[
        dict(name='student alone'),
        dict(name='KD', teacher='long', temperature=1.0, loss=dict(type='KDLoss')),
        dict(name='CalKD, T = 1.5', teacher='long', temperature=1.5, loss=dict(type='KDLoss')),
        dict(name='CalKD, fitted', teacher='short', temperature='fitted', loss=dict(type='KDLoss')),
    ],
    seeds=[0, 1],
    comparisons=[
        dict(of='KD', to='student alone'),
        dict(of='CalKD, T = 1.5', to='KD'),
        dict(of=['CalKD, T = 1.5', 'CalKD, fitted'], to='student alone', name='CalKD − alone'),
    ],
    figures=['temperature', 'paired', 'across', 'reliability'],
    reliability=['short', 'long'],
    work_dir='work_dirs/study-smoke',
)

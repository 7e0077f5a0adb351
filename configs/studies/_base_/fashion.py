# Data, initial weights, student and teachers of the three studies on Fashion-on-photographs.
config_path = __import__('calkd_det').config_path
digits, start = 'data/study-digits', 'work_dirs/study/start'


def lasting(epochs, images=2000, **others):
    """Epochs and training images of a teacher, with the steps at 2/3 and 8/9 of its training."""
    options = {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'param_scheduler.1.end': epochs,
        'param_scheduler.1.milestones': [round(epochs * 2 / 3), round(epochs * 8 / 9)],
    }
    if images != 2000:
        options['train_dataloader.dataset.indices'] = images
    return {**options, **others}


def channels(base, out):
    """The widths of a ResNet-18 or -34 with FPN."""
    return {
        'model.backbone.base_channels': base,
        'model.neck.in_channels': [base, 2 * base, 4 * base, 8 * base],
        'model.neck.out_channels': out,
        'model.rpn_head.in_channels': out,
        'model.rpn_head.feat_channels': out,
        'model.roi_head.bbox_roi_extractor.out_channels': out,
        'model.roi_head.bbox_head.in_channels': out,
    }


def smoothing(value):
    """Labels smoothed by that much."""
    loss = dict(type='SmoothedCrossEntropyLoss', smoothing=value, loss_weight=1.0)
    return {
        'model.roi_head.bbox_head.loss_cls': dict(_delete_=True, **loss),
        # Not needed, but in the hashes of the rows of docs/evidence.
        'custom_imports.imports': ['calkd_det', 'calkd_det.commands.study'],
    }


load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
as_it_is = [*load, dict(type='Resize', scale=(96, 96), keep_ratio=True), dict(type='PackDetInputs')]
much = [
    *load,
    dict(type='PhotoMetricDistortion'),
    dict(type='RandomResize', scale=[(72, 72), (128, 128)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
PIPELINE = 'train_dataloader.dataset.pipeline'

options = {
    'calibrated': lasting(8),
    # It overfits its few images, so it is over-confident on others.
    'over-confident': lasting(40, 400, **{PIPELINE: as_it_is}),
    'short': lasting(3),
    'few images': lasting(16, 800),
    'few images, long': lasting(40, 400),
    'very few images': lasting(40, 200),
    'narrow': lasting(8, **channels(8, 16)),
    'wide': lasting(6, **channels(24, 48)),
    'deep': lasting(6, **{'model.backbone.depth': 34}),
    'much augmentation': lasting(8, **{PIPELINE: much}),
    'no augmentation': lasting(16, 800, **{PIPELINE: as_it_is}),
    'smoothed labels': lasting(8, **smoothing(0.1)),
    'smoothed, few images': lasting(30, 400, **smoothing(0.1)),
}
fashion_teachers = {
    name: dict(name=name, config=config_path('studies/detectors/teacher.py'), cfg_options=option)
    for name, option in options.items()
}

study = dict(
    data=dict(
        mini=dict(
            out_dir='data/study-fashion',
            items='fashion-mnist',
            num_images=dict(train=2000, calibration=300, val=800),
            image_size=96,
        )
    ),
    prepare=[
        dict(
            command=[
                *('{python}', '{tools}/make_mini_data.py', digits, '--image-size', '96'),
                *('--train', '1500', '--calibration', '10', '--val', '100'),
            ],
            creates=digits + '/mini_dataset.json',
        ),
        dict(
            command=[
                *(
                    '{python}',
                    '{mmdet_tools}/train.py',
                    '{tools}/../configs/studies/detectors/start.py',
                ),
                *('--work-dir', start, '--cfg-options', 'randomness.seed=0'),
            ],
            creates=start + '/epoch_8.pth',
        ),
    ],
    student=dict(
        name='r18-8',
        config=config_path('studies/detectors/student.py'),
        cfg_options={'train_dataloader.dataset.indices': 500},
    ),
    work_dir='work_dirs/study',
    results='docs/evidence/results.jsonl',
    page='docs/evidence.md',
    pictures='docs/evidence',
)

_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'

custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

model = dict(
    type='CalKDRTMDet',
    teacher=dict(
        config='mmdet::rtmdet/rtmdet_m_8xb32-300e_coco.py',
        checkpoint=None,
        calibrator=dict(type='TemperatureScaling', temperature=1.0),  # fit it first, see the README
    ),
    distillation=dict(
        cls=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
        feat=dict(
            type='CWDLoss',
            tau=1.0,
            loss_weight=1.0,
            num_levels=3,
            student_channels=128,
            teacher_channels=192,
            standardise=True,
        ),
    ),
)
custom_hooks = [*_base_.custom_hooks, dict(type='StopDistillationHook', stop_epoch=280)]

_base_ = './dino_r18-teacher_12e_mini.py'

# Half of the teacher's channels in the backbone, and a neck and a transformer like the teacher's.
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[16, 32, 64]),
)

_base_ = './dino.py'

# All weights start from those of dino_start.py, the classifiers of digits among them: from random
# weights a student reaches about a third of the mAP in so few steps. The study sets the teacher.
model = dict(type='CalKDDINO')
load_from = 'work_dirs/study/dino-start/epoch_8.pth'

r"""3D detection from points on generated streets: teachers of one point an object, and students.

    python -m wsol_jax.main --config configs/lidar_scenes_trained.py:teacher --workdir DIR
    python -m wsol_jax.main --config configs/lidar_scenes_trained.py:student --workdir DIR2 \
        --config.train.options.labels=DIR/maps/train/pseudo_labels

The variant is a name of VARIANTS. Cars, pedestrians and cyclists stand up to 40 m ahead of a LiDAR
and a camera; of a tenth of the frames of train boxes are known, of the others one point an object.
`teacher` makes boxes of the points with both sensors, `teacher_lidar` without the camera,
`teacher_random` with learnt queries in place of those at points. `student` sees LiDAR alone and
learns of the known boxes and those of a teacher; as it stands here it has none (`labels`), and
learns of the known ones; `student_alone` does without the comparison of two views, too, and
`student_truth` knows all boxes. Those that learn of known boxes alone go through the frames that
have some, and more often. `experiments/points.py` goes through all of it.

Measured on test (160 frames, 921 boxes; seed 0, 15 to 55 minutes each on a loaded machine), mAP and
mATE of nuScenes, and mean IoU in rings from 0, 10, 20 and 30 m: teacher 98.9 %, 17 cm, 55, 56, 54,
55 %; teacher_lidar 98.8 %, 17 cm, 56, 57, 56, 55 %; teacher_random 11.7 %, 93 cm, 16, 13, 12, 12 %.
So points are worth what they tell, the camera nothing here. Headings are not learnt: mAOE 1.3, 1.2
and 1.5 rad, where guessing has 1.6. Students, which get no points: student_alone 56.7 %, 22 cm, 46,
48, 46, 41 %; student, of the teacher's boxes, too, 81.9 %, 17 cm, 54, 54, 50, 45 %; student_truth
83.5 %, 15 cm, 55, 55, 52, 44 %.
"""

from ml_collections import ConfigDict

from wsol_jax.config import ConfigError, default_config
from wsol_jax.data.lidar_scenes import REGION, SIZES
from wsol_jax.names import unknown_name

_SCENE = {
    'limits': REGION,
    'pillar': 0.5,
    'points': 4096,
    'widths': (24, 32, 48),
    'sizes': SIZES,
}
_TEACHER = {**_SCENE, 'width': 48, 'heads_count': 4, 'samples': 4, 'side': 5, 'hidden': 96}
_STUDENT = {**_SCENE, 'width': 32, 'detections': 40, 'labels': ''}
# Variant -> train.method and its options.
_METHODS = {
    'teacher': ('point_detr3d', _TEACHER),
    'teacher_lidar': ('point_detr3d', {**_TEACHER, 'cameras': 0}),
    'teacher_random': ('point_detr3d', {**_TEACHER, 'queries': 30}),
    'student': ('center_point', _STUDENT),
    'student_alone': ('center_point', {**_STUDENT, 'consistency': 0.0}),
    'student_truth': ('center_point', {**_STUDENT, 'consistency': 0.0, 'labels': 'truth'}),
}
VARIANTS = tuple(_METHODS)
_OF_FEW = ('teacher', 'teacher_lidar', 'teacher_random', 'student_alone')  # frames: the known ones


def get_config(variant: str = 'teacher') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    if variant not in VARIANTS:
        raise ConfigError(unknown_name('variant', variant, VARIANTS))
    config = default_config()
    config.task = 'points'
    config.data.source = 'lidar_scenes'
    config.data.shapes_size = 96
    config.data.shapes_counts = (800, 80, 160)
    config.data.labelled = 0.1
    config.augment.crop = 'whole'
    config.augment.flip = False
    config.network.name = 'resnet10'
    config.network.options = {'width': 16}
    config.network.input_size = 128
    config.train.method, config.train.options = _METHODS[variant]
    config.train.epochs = 40 if variant in _OF_FEW else 12
    config.train.batch_size = 8
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 1e-3
    config.train.weight_decay = 0.01
    config.train.clip = 35.0
    config.localize.splits = ('train', 'val', 'test')
    config.localize.batch_size = 8
    return config

"""The comparisons of Point-DETR3D on generated streets: what points, a camera and a teacher give.

    python -m experiments.points --workdir DIR [--seeds 3] [--steps teacher,student]

The trainings are those of configs/lidar_scenes_trained.py. Each seed runs in DIR/seed_0, ..., what
is finished is not run again:

    teacher         boxes of annotated points, with LiDAR and camera, from a share of the frames
    teacher_lidar   the same without the camera
    teacher_random  learnt queries in place of annotated points: it is not told where objects are
    student_alone   a detector in LiDAR alone, from the same share of the frames
    student_boxes   beside them from the teacher's boxes of all other frames
    student         beside them two views are compared around annotated points
    student_truth   the same detector from all true boxes: full supervision

Steps that learn of all frames go through them equally often; those that learn of a share make a
third of the updates.

All scores are of test. mAP is nuScenes'; recall (within 2 m) and 3D IoU are means over true boxes
in rings around the sensor, which tell quality over distance. A teacher is given the points of test,
too, and a student none: only rows of one kind compare. Prints the table and writes it to
DIR/points.md.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from experiments.seeds import SEEDS, chosen, scores_of, spread
from wsol_jax.command_line import WORKDIR, run_command
from wsol_jax.config import Config, read_config
from wsol_jax.configs import lidar_scenes_trained
from wsol_jax.points.pseudo_labels import FOLDER
from wsol_jax.report.table import markdown
from wsol_jax.workdir import write_text

# Step -> the variant of the config, and changed options; TAUGHT are the boxes of the teacher.
TAUGHT = {'labels': f'teacher/maps/train/{FOLDER}'}
STEPS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    'teacher': ('teacher', {}),
    'teacher_lidar': ('teacher_lidar', {}),
    'teacher_random': ('teacher_random', {}),
    'student_alone': ('student_alone', {}),
    'student_boxes': ('student', {**TAUGHT, 'consistency': 0.0}),
    'student': ('student', TAUGHT),
    'student_truth': ('student_truth', {}),
}
_STEPS = flags.DEFINE_list('steps', [], 'Those to run; all by default.')
# What is shown of the scores, and how many of its units one of theirs is.
_SHOWN = {'mAP': 1.0, 'NDS': 1.0, 'mATE': 100.0, 'mASE': 100.0, 'mAOE': 180 / math.pi}
_RINGS = ('recall', 'IoU')


def config_of(folder: Path, step: str, seed: int) -> Config:
    """The experiment of a step.

    Args:
        folder: of the seed, with the teacher's workdir.
        step: a name of STEPS.
        seed: of everything random.
    """
    variant, changes = STEPS[step]
    config = read_config(lidar_scenes_trained.get_config(variant))
    options = {**config.train.options, **changes}
    if changes.get('labels'):
        options['labels'] = str(folder / changes['labels'])
    train = dataclasses.replace(config.train, options=options)
    return dataclasses.replace(config, seed=seed, train=train)


def scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those of test, and of each ring around the sensor, of what metrics.json holds."""
    row = metrics['detection'][-1]
    found = {name: unit * row[name] for name, unit in _SHOWN.items() if name in row}
    for ring in row['by_distance']:
        found |= {f'{name} {ring["from"]:g} m': ring[name] for name in _RINGS}
    return found


def table(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown: a row for each step, mean ± sample standard deviation over the seeds.

    Args:
        seeds: of each {step: its scores}.
    """
    names = list(dict.fromkeys(n for found in seeds for own in found.values() for n in own))
    names = sorted(names, key=lambda n: (n not in _SHOWN, n.split()[0] == 'IoU', names.index(n)))
    lines = [['step', 'seeds', *names]]
    for step in STEPS:
        own = [found[step] for found in seeds if step in found]
        if own:
            cells = [[s[name] for s in own if name in s] for name in names]
            lines.append([step, str(len(own)), *(spread(c) if c else '' for c in cells)])
    return '\n\n'.join([markdown(lines), _NOTE])


_NOTE = (
    'Of test, mean ± sample standard deviation over the seeds. mAP, NDS, mASE, recall and '
    'IoU in percent, mATE in centimetres, mAOE in degrees; rings are named by where they begin.'
)


def main(_: Sequence[str]) -> None:
    """Runs what is missing, then prints and writes the table."""
    logging.set_verbosity(logging.WARNING)
    folder, found = Path(WORKDIR.value), []
    asked = chosen('step in --steps', _STEPS.value, STEPS)
    for seed in range(SEEDS.value):
        own = folder / f'seed_{seed}'
        runs = {step: scores_of(config_of(own, step, seed), own / step) for step in asked}
        found.append({step: scores(run) for step, run in runs.items()})
        text = table(found)
        write_text(folder / 'points.md', text + '\n')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir'])
    run_command(main)

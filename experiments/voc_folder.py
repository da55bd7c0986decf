"""A data set in the layout of VOC 2012: of its most frequent classes, or of one with masks.

    python -m experiments.voc_folder --source voc --root DATA/coco_seg --classes 8 --out DIR
    python -m experiments.voc_folder --source wsol_folder --root DATA/pets --out DIR

Images are copied; Annotations/ names the classes of each, which are all that training reads.
Objects of other classes become background; images without any that is kept are left out: seeds are
for the labels of an image. Masks are those of the image's one class, 255 where they say ignore.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

import numpy as np
from absl import flags

from wsol_jax.command_line import run_command
from wsol_jax.data import Record, Source, decode_mask, open_source, stored_size
from wsol_jax.data.label_maps import BACKGROUND, IGNORED, true_label_map
from wsol_jax.segmentation import write_label_map
from wsol_jax.workdir import write_text

SPLITS = ('train', 'val', 'test')
_SOURCE = flags.DEFINE_string('source', 'voc', 'Its layout: config.data.source.')
_ROOT = flags.DEFINE_string('root', None, 'Its folder.')
_OUT = flags.DEFINE_string('out', None, 'The new folder.')
_CLASSES = flags.DEFINE_integer('classes', 0, 'How many classes to keep; 0 for all.', 0, 254)


def most_frequent(source: Source, count: int) -> list[int]:
    """The classes that most images have, all if count is 0; of equal ones the first."""
    if not count:
        return list(range(source.num_classes))
    found = Counter(label for i in range(len(source)) for label in source[i].labels)
    return sorted(found, key=lambda label: (-found[label], label))[:count]


def label_map(record: Record, kept: Sequence[int]) -> np.ndarray | None:
    """The label map of an image in the classes that are kept; None where its truth is unknown."""
    if record.masks:
        mask = decode_mask(record, stored_size(record))
        return np.where(mask == 1, np.uint8(1 + kept.index(record.labels[0])), mask)
    if 'segmentation' not in record.extra:
        return None
    values = np.full(256, BACKGROUND, np.uint8)
    values[[1 + label for label in kept]] = np.arange(1, 1 + len(kept))
    values[IGNORED] = IGNORED
    return values[true_label_map(record)]


def annotation(names: Sequence[str]) -> str:
    """VOC's XML, as far as it tells the classes of an image."""
    objects = ''.join(f'<object><name>{escape(name)}</name></object>' for name in names)
    return f'<annotation>{objects}</annotation>\n'


def write_split(source: Source, split: str, kept: Sequence[int], out: Path) -> int:
    """Writes the images of a split; returns how many."""
    names = []
    for record in (source[i] for i in range(len(source))):
        own = [label for label in record.labels if label in kept]
        if not own:
            continue
        names.append(PurePosixPath(record.image_id).with_suffix('').name)
        image = out / 'JPEGImages' / f'{names[-1]}.jpg'
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(Path(record.image).read_bytes())
        told = annotation([source.class_name(label) for label in own])
        write_text(out / 'Annotations' / f'{names[-1]}.xml', told)
        if (values := label_map(record, kept)) is not None:
            write_label_map(out / 'SegmentationClass' / f'{names[-1]}.png', values)
    write_text(out / 'ImageSets' / 'Segmentation' / f'{split}.txt', '\n'.join(names) + '\n')
    return len(names)


def main(_: Sequence[str]) -> None:
    """Writes the folder and says what is in it."""
    sources = {name: open_source(_SOURCE.value, _ROOT.value, name) for name in SPLITS}
    out, train = Path(_OUT.value), sources['train']
    kept = most_frequent(train, _CLASSES.value)
    names = [train.class_name(label) for label in kept]
    write_text(out / 'class_names.txt', '\n'.join(['background', *names]) + '\n')
    counts = {name: write_split(source, name, kept, out) for name, source in sources.items()}
    print(f'{out}: {", ".join(names)}; images: {counts}')


if __name__ == '__main__':
    flags.mark_flags_as_required(['root', 'out'])
    run_command(main)

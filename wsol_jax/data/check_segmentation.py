"""Finds what is wrong with data sets of several classes an image, with label maps."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from wsol_jax.data.check_images import Finding
from wsol_jax.data.records import Record, Source

LABELS = 'labels and objects that cannot be read; correct them'
UNLABELLED = 'images without a label: a classifier learns from them that no class is there'
UNMAPPED = 'images without a label map in splits where others have one; they cannot be scored'
UNTRAINED = 'classes without training images, which cannot be learnt'

_Splits = Mapping[str, Source]


def purpose(split: str) -> str:
    """What a split is for: 'train' of train_aug and train2014; '' of trainval, which is for both.

    Splits for one purpose may share images.
    """
    name = re.split('[^a-z]', split.lower())[0]
    return '' if name == 'trainval' else name or split


def segmentation_findings(
    splits: _Splits, faults: Sequence[str], found: Sequence[Finding]
) -> Iterator[Finding]:
    """What is to be said of labels.

    Args:
        splits: of the data set.
        faults: what was wrong with labels while they were opened.
        found: what was found in single images; it is not said again.
    """
    said = {finding.line for finding in found}
    yield from (Finding(LABELS, line) for line in dict.fromkeys(faults) if line not in said)
    for split, source in splits.items():
        records = [source[index] for index in range(len(source))]
        for kind, some in (
            (UNLABELLED, [record for record in records if not record.labels]),
            (UNMAPPED, _unmapped(records)),
        ):
            if len(some) < len(records):  # those of test are kept back
                yield from (Finding(kind, f'{r.image_id!r} in {split}', False) for r in some)
    yield from (Finding(UNTRAINED, name, False) for name in _untrained(splits))


def class_counts(split: str, source: Source) -> str:
    """A line that tells how many images each class is in, the most frequent first."""
    records = (source[index] for index in range(len(source)))
    counts = Counter(label for record in records for label in record.labels)
    told = ', '.join(f'{source.class_name(label)} {n}' for label, n in counts.most_common())
    return f'{split}, images of each class: {told or "none"}'


def _unmapped(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if 'segmentation' not in record.extra]


def _untrained(splits: _Splits) -> list[str]:
    training = [source for split, source in splits.items() if 'train' in split]
    seen = {label for source in training for k in range(len(source)) for label in source[k].labels}
    named = next(iter(splits.values()))
    untrained = (label for label in range(named.num_classes) if label not in seen)
    return [named.class_name(label) for label in untrained] if training else []

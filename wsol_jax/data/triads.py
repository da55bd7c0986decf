"""A sentence as a discriminative triad: subject, relation, object, by rules and lists of words.

The slots and their order are those of Sun et al., "Discriminative Triad Matching and
Reconstruction" (arXiv 2106.04053): the relation to an object; else the place in the image; else
a colour; else a size. Their parser is a statistical one, these rules are ours.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from wsol_jax.data.records import DataError
from wsol_jax.names import shown

UNKNOWN = 'unk'  # what GloVe's files call any other word
_NOUN, _WORD, _RELATIVE, _PLACE, _COLOUR, _SIZE, _OTHER = range(7)


def _lists(kind: int, text: str) -> dict[str, tuple[int, str]]:
    """{phrase: (kind, first of its line)}; phrases of a line mean the same and have commas."""
    lines = (line.strip().split(', ') for line in text.strip().splitlines())
    return {phrase: (kind, line[0]) for line in lines for phrase in line}


def _words(kind: int, text: str) -> dict[str, tuple[int, str]]:
    return {word: (kind, word) for word in text.split()}


_ARTICLES = _words(_OTHER, 'a an the another other this that these those his her its their my')
# Without these, which are left out before.
_PHRASES = {
    **_lists(
        _RELATIVE,
        """
        left of, to left of, on left of, left side of, on left side of
        right of, to right of, on right of, right side of, on right side of
        above, over, higher than
        below, under, beneath, underneath, lower than
        on top of, atop
        in front of, front of, before
        behind, in back of, back of
        next to, beside, near, by, close to, closest to, nearest, nearest to, alongside
        between, in between
        in middle of, in center of, in centre of
        larger than, bigger than, taller than
        smaller than, shorter than
        in, inside, inside of
        on
        at
        against
        around
        with
        without
        wearing
        holding, carrying
        riding
        facing, looking at
        touching
        eating
        """,
    ),
    **_lists(
        _PLACE,
        """
        leftmost, left most, most left, far left, furthest left, farthest left
        rightmost, right most, most right, far right, furthest right, farthest right
        topmost, top most, highest, uppermost
        lowest, bottom most, bottommost
        top left, upper left, left top
        top right, upper right, right top
        bottom left, lower left, left bottom
        bottom right, lower right, right bottom
        left
        right
        top, upper
        bottom, lower
        middle, center, centre, central
        front, in front, foreground
        back, in back, background
        closest, nearest one
        farthest, furthest
        """,
    ),
    **_words(
        _COLOUR,
        """
        red orange yellow green blue purple violet pink brown black white gray tan beige silver
        gold golden maroon teal navy blond blonde dark light
        """,
    ),
    'grey': (_COLOUR, 'gray'),
    **_lists(
        _SIZE,
        """
        largest, biggest
        smallest, littlest
        larger, bigger
        smaller
        large, big, huge
        small, little, tiny
        tallest
        shortest
        taller
        shorter
        tall
        short
        long
        """,
    ),
    **_words(
        _OTHER,
        """
        is are was be has have had does do can see who which whose what where it he she they him
        them you me us we i of to and or but not no out from for as than there here one ones two
        three four five six first second third fourth 1st 2nd 3rd 4th last only just very most more
        almost all both half full whole side row corner edge part area end way up down off away
        into picture image photo pic shown visible
        """,
    ),
}
_LONGEST = max(len(phrase.split()) for phrase in _PHRASES)

# Other words for classes of MS COCO: what people say.
_SYNONYMS = {
    'person': (
        'man woman boy girl guy lady kid child baby toddler dude gentleman player batter catcher '
        'umpire pitcher skier surfer skater rider chef bride groom'
    ),
    'bicycle': 'bike',
    'motorcycle': 'bike motorbike',
    'airplane': 'plane aeroplane jet',
    'car': 'taxi cab',
    'truck': 'van pickup',
    'boat': 'ship canoe',
    'cat': 'kitten kitty',
    'dog': 'puppy',
    'horse': 'pony foal',
    'sheep': 'lamb',
    'cow': 'bull calf ox',
    'handbag': 'purse bag',
    'backpack': 'bag',
    'suitcase': 'luggage bag',
    'sports ball': 'ball',
    'baseball bat': 'bat',
    'baseball glove': 'glove mitt',
    'tennis racket': 'racket',
    'skis': 'ski',
    'wine glass': 'glass',
    'cup': 'mug glass',
    'donut': 'doughnut',
    'hot dog': 'hotdog',
    'couch': 'sofa',
    'potted plant': 'plant',
    'dining table': 'table',
    'tv': 'television monitor screen',
    'laptop': 'computer',
    'cell phone': 'phone cellphone',
    'refrigerator': 'fridge',
    'teddy bear': 'teddy',
    'bed': 'mattress',
}
_PLURALS = {
    'person': 'people',
    'man': 'men',
    'woman': 'women',
    'child': 'children',
    'mouse': 'mice',
    'knife': 'knives',
    'calf': 'calves',
    'ox': 'oxen',
    'foot': 'feet',
    'goose': 'geese',
}


def tokens(text: str) -> list[str]:
    """The words of a sentence, in lower case, without signs."""
    return re.findall(r'[^\W_]+', re.sub(r"['\u2019]s?\b", '', text.lower()))


def nouns_of(class_names: Sequence[str]) -> dict[str, str]:
    """The nouns that name the objects of a data set: {as it may be said: in the singular}.

    They are the names of the classes, with common synonyms, and the plurals of all.
    """
    names = [' '.join(tokens(name)) for name in class_names]
    nouns = {word: word for name in names for word in _SYNONYMS.get(name, '').split()}
    nouns |= {name: name for name in names}
    return {_plural(noun): noun for noun in nouns.values()} | nouns


def _plural(noun: str) -> str:
    start, _, last = noun.rpartition(' ')
    if last in _PLURALS:
        many = _PLURALS[last]
    elif re.search('[^aeiou]y$', last):
        many = f'{last[:-1]}ies'
    else:
        many = f'{last}es' if re.search('(s|x|z|ch|sh)$', last) else f'{last}s'
    return f'{start} {many}'.strip()


def triad_of(text: str, nouns: Mapping[str, str]) -> tuple[str, str, str]:
    """(subject, relation, object) of a sentence that refers to an object.

    Args:
        text: such as 'the man on the left' or 'dog in front of the two cats'.
        nouns: that are known, see `nouns_of`. Where a part of the sentence has none, its noun is
            its last word that is no verb in -ing, colour, size, place or the like.

    Returns:
        the subject; the relation, by one name for what means the same, '' for none; the object,
        which is the subject where none is told: ('man', 'left', 'man') and
        ('dog', 'in front of', 'cat').

    Raises:
        DataError: the sentence has no noun.
    """
    subject, relation, thing = triad_or_unknown(text, nouns)
    if subject == UNKNOWN:
        raise DataError(f'{shown(text)}: no noun in it; a sentence names what it refers to')
    return subject, relation, thing


def triad_or_unknown(text: str, nouns: Mapping[str, str]) -> tuple[str, str, str]:
    """As `triad_of`, but the subject of a sentence without a noun is `UNKNOWN`, and so its object.

    People say 'second from left' of what both see.
    """
    parts = _parts([word for word in tokens(text) if word not in _ARTICLES], nouns)
    for k, part in enumerate(parts):
        if part.kind == _RELATIVE:
            subject = _head(parts[:k])
            thing = _head([*takewhile(lambda p: p.kind != _RELATIVE, parts[k + 1 :])])
            if subject and thing:
                return subject, part.text, thing
    subject = _head(parts) or UNKNOWN
    told = (p.text for kind in (_PLACE, _COLOUR, _SIZE) for p in parts if p.kind == kind)
    return subject, next(told, ''), subject


class _Part(NamedTuple):
    kind: int
    text: str


def _parts(words: Sequence[str], nouns: Mapping[str, str]) -> list[_Part]:
    """A sentence as known phrases, the longest first, and words between them."""
    longest = max([_LONGEST, *(len(noun.split()) for noun in nouns)])
    parts, at = [], 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            phrase = ' '.join(words[at : at + length])
            if phrase in nouns:
                parts.append(_Part(_NOUN, nouns[phrase]))
                break
            if phrase in _PHRASES:
                parts.append(_Part(*_PHRASES[phrase]))
                break
        else:
            parts.append(_Part(_OTHER if phrase.endswith('ing') else _WORD, phrase))
        at += length
    return parts


def _head(parts: Sequence[_Part]) -> str:
    """The noun of a part of a sentence, '' where there is none.

    It is the last known noun of the first run of words that has one, as 'elephant' in 'baby
    elephant with a ball'; without known nouns it is the last word of the first run.
    """
    runs: list[list[_Part]] = [[]]
    for part in parts:
        if part.kind in (_NOUN, _WORD):
            runs[-1].append(part)
        else:
            runs.append([])
    for kinds in ((_NOUN,), (_WORD,)):
        for run in runs:
            if found := [part.text for part in run if part.kind in kinds]:
                return found[-1]
    return ''

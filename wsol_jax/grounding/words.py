"""Words as numbers: vectors of GloVe for phrases, and the classes that are nearest to them."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsol_jax.data.expressions import Expression
from wsol_jax.data.files import open_file, printable, reason
from wsol_jax.data.records import DataError, Source
from wsol_jax.data.triads import UNKNOWN, tokens
from wsol_jax.names import shown

NO_RELATION = 'no relation'
SIZE = 300  # of a vector, as that of the published model

Words = Callable[[str], NDArray[np.float32]]  # a word or phrase -> its vector [d]


@dataclass(frozen=True, eq=False)
class WordVectors:
    """A phrase -> float32 [d]: the mean of the vectors of its words.

    Words that have none are passed over; a phrase of such words alone has the vector of `UNKNOWN`,
    zeros where that has none either.

    Attributes:
        vectors: {word: float32 [d]}, see `read_glove`.
    """

    vectors: Mapping[str, NDArray[np.float32]]

    def __call__(self, phrase: str) -> NDArray[np.float32]:
        """The vector of a phrase."""
        known = [self.vectors[word] for word in tokens(phrase) if word in self.vectors]
        if not known:
            zeros = np.zeros_like(next(iter(self.vectors.values())))
            return self.vectors.get(UNKNOWN, zeros)
        return np.mean(known, axis=0, dtype=np.float32)


def read_glove(path: str | Path, words: Collection[str]) -> dict[str, NDArray[np.float32]]:
    """The vectors of some words, and of `UNKNOWN`, from a text file of GloVe's form.

    Each line is a word and d numbers with spaces between. Words that the file does not have are
    left out; of a word's several lines the first counts. (Pennington et al., "GloVe", EMNLP 2014)

    Args:
        path: such as 'glove.6B.300d.txt'.
        words: in lower case.

    Returns:
        {word: float32 [d]}.

    Raises:
        DataError: the file cannot be read, a line of one of the words is not d numbers long as the
            first line is, or none of the words is there.
    """
    path, found = Path(path), dict[str, NDArray[np.float32]]()
    wanted = {word.encode() for word in (*words, UNKNOWN)}
    try:
        with open_file(path) as lines:
            size = 0
            for number, line in enumerate(lines, 1):
                size = size or len(line.split()) - 1
                # Most lines are of other words: their numbers are not looked at.
                if not wanted.issuperset(line.split(None, 1)[:1]):
                    continue
                fields = line.split()
                if fields and _is_one_word(fields, size):
                    where = f'{printable(str(path))}:{number}'
                    found.setdefault(fields[0].decode(), _vector(fields[1:], size, where))
    except OSError as error:
        raise DataError(f'{printable(str(path))}: {reason(error)}') from None
    if not found.keys() & set(words):
        raise DataError(
            f'{printable(str(path))}: has none of the {len(words)} words, such as '
            f'{shown(min(words, default=""))}; expected lines of a word and its numbers'
        )
    return found


def glove_size(path: str | Path) -> int:
    """d of a file that `read_glove` reads.

    Raises:
        DataError: the file cannot be read, or its first line is no word and numbers.
    """
    try:
        with open_file(Path(path)) as lines:
            numbers = lines.readline().split()[1:]
    except OSError as error:
        raise DataError(f'{printable(str(path))}: {reason(error)}') from None
    return len(_vector(numbers, max(len(numbers), 1), f'{printable(str(path))}:1'))


def random_vectors(words: Collection[str], size: int = SIZE) -> dict[str, NDArray[np.float32]]:
    """A vector for each word in place of GloVe's: of the word alone, the same in every run.

    No two words are alike. Components are normal with variance 1.

    Args:
        words: any.
        size: d.

    Returns:
        {word: float32 [d]}.
    """
    return {word: _random_vector(word, size) for word in words}


def _random_vector(word: str, size: int) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], 'big')
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def _is_one_word(fields: Sequence[bytes], size: int) -> bool:
    """Not several that the file takes for one, as 'at name@domain.com' in that of 840B tokens."""
    return len(fields) <= size + 1 or _number(fields[1]) is not None


def _number(field: bytes) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None


def _vector(fields: Sequence[bytes], size: int, where: str) -> NDArray[np.float32]:
    values = [_number(field) for field in fields]
    if len(values) != size:
        raise DataError(
            f'{where}: {len(values)} numbers after the word, expected {size} as in line 1'
        )
    vector = np.array([np.nan if value is None else value for value in values], np.float32)
    if not np.isfinite(vector).all():
        wrong = fields[int(np.argmin(np.isfinite(vector)))].decode(errors='replace')
        raise DataError(f'{where}: {shown(wrong)} is no finite number')
    return vector


def nearest_classes(
    words: Iterable[str], class_names: Sequence[str], vectors: Words
) -> dict[str, int]:
    """The class whose name has the highest cosine with each word, of equal ones the first.

    A name that is the word itself is the nearest, also where the word is unknown.

    Args:
        words: words or phrases, such as the subjects of expressions.
        class_names: of the data set, at least one.
        vectors: of words and phrases.

    Returns:
        {word: the index of its class}.
    """
    known = {name: i for i, name in reversed(list(enumerate(class_names)))}
    names = np.stack([_unit(vectors(name)) for name in class_names])
    return {
        word: known[word] if word in known else int(np.argmax(names @ _unit(vectors(word))))
        for word in words
    }


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def phrases_of(source: Source) -> tuple[str, ...]:
    """All subjects, relations and objects of the expressions of a source, sorted.

    '' and `UNKNOWN` are none.
    """
    said = [each for k in range(len(source)) for each in _expressions(source, k)]
    parts = {part for each in said for part in (each.subject, each.relation, each.object)}
    return tuple(sorted(parts - {'', UNKNOWN}))


def words_of(source: Source) -> set[str]:
    """What is to be read for a source: the words of its phrases, classes and `NO_RELATION`."""
    phrases = (*phrases_of(source), *source.class_names, NO_RELATION)
    return {word for phrase in phrases for word in tokens(phrase)}


def _expressions(source: Source, index: int) -> tuple[Expression, ...]:
    return source[index].extra.get('expressions', ())

import pickle

import numpy as np
import pytest
from conftest import Listed

from wsol_jax.data import DataError, Expression, Record
from wsol_jax.grounding.words import (
    SIZE,
    WordVectors,
    glove_size,
    nearest_classes,
    phrases_of,
    random_vectors,
    read_glove,
    words_of,
)

GLOVE = 'the 9 9 9\ndog 1 0 0\nred 0 1 0\npuppy .9 .1 0\nunk 0 0 5\ndog 7 7 7\nCafé 1 1 1\n'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'glove.txt'
    path.write_text(GLOVE, 'utf-8')
    return path


def source():
    said = (
        Expression('a', 'dog', 'left of', '', (0, 0, 1, 1), False),
        Expression('b', 'red disc', '', 'dog', (0, 0, 1, 1), False),
    )
    record = Record('a', b'', (), (1, 1), ((0, 0, 1, 1),), extra={'expressions': said})
    return Listed([record, Record('b', b'', (), None)], ('dog', 'hot dog'))


def test_vectors_of_the_words_that_are_asked_for(file):
    found = read_glove(file, {'dog', 'red', 'zebra'})
    assert {word: vector.tolist() for word, vector in found.items()} == {
        'dog': [1, 0, 0],
        'red': [0, 1, 0],
        'unk': [0, 0, 5],
    }
    assert found['dog'].dtype == np.float32


def test_a_phrase_is_the_mean_of_its_words(file):
    vectors = pickle.loads(pickle.dumps(WordVectors(read_glove(file, {'dog', 'red'}))))
    np.testing.assert_array_equal(vectors('Red dog'), [0.5, 0.5, 0])
    np.testing.assert_array_equal(vectors('red zebra'), [0, 1, 0])
    for unknown in ('zebra', ''):
        np.testing.assert_array_equal(vectors(unknown), [0, 0, 5])
    without = WordVectors({'dog': np.ones(3, np.float32)})
    np.testing.assert_array_equal(without('zebra'), [0, 0, 0])


def test_the_nearest_class(file):
    vectors = WordVectors(read_glove(file, {'dog', 'red', 'puppy'}))
    assert nearest_classes(('puppy', 'red'), ('red', 'dog'), vectors) == {'puppy': 1, 'red': 0}
    assert nearest_classes(['zebra'], ('dog', 'red', 'zebra'), vectors) == {'zebra': 2}
    assert nearest_classes(['red'], ('dog red', 'red red'), vectors) == {'red': 1}


def test_the_vector_of_a_class_is_made_once(file):
    asked = []
    vectors = WordVectors(read_glove(file, {'dog', 'red', 'puppy'}))

    def counted(phrase):
        asked.append(phrase)
        return vectors(phrase)

    assert nearest_classes(['puppy', 'zebra', 'dog red'], ('red', 'dog'), counted)['puppy'] == 1
    assert (asked.count('red'), asked.count('dog')) == (1, 1)


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('cat 1 2\n', r'glove\.txt:1: 2 numbers after the word, expected 3 as in line 1'),
        ('cat 1 2 3 4\n', r'glove\.txt:1: 4 numbers after'),
        ('cat 1 x 3\n', r"glove\.txt:1: 'x' is no finite number"),
        ('cat 1 2 nan\n', r"'nan' is no finite number"),
    ],
)
def test_a_wrong_line_is_named(file, line, message):
    lines = GLOVE.splitlines(keepends=True)
    file.write_text(''.join([*lines, line]), 'utf-8')
    assert 'dog' in read_glove(file, {'dog'})  # other lines do no harm
    with pytest.raises(DataError, match=message.replace(':1', ':8')):
        read_glove(file, {'dog', 'cat'})


def test_words_with_spaces_are_no_words(file):
    file.write_text('the 1 2 3\nat a@b.com 4 5 6\nat 7 8 9\n')
    assert read_glove(file, {'at'})['at'].tolist() == [7, 8, 9]


def test_a_file_without_the_words_is_named(file):
    with pytest.raises(DataError, match=r"glove\.txt: has none of the 2 words, such as 'cow'"):
        read_glove(file, {'zebra', 'cow'})
    with pytest.raises(DataError, match=r'none\.txt: no such file'):
        read_glove(file.parent / 'none.txt', {'dog'})


def test_the_words_of_a_source():
    assert phrases_of(source()) == ('dog', 'left of', 'red disc')
    assert words_of(source()) == {'dog', 'left', 'of', 'red', 'disc', 'hot', 'no', 'relation'}


def test_the_length_of_vectors_is_told_by_the_first_line(file, tmp_path):
    assert glove_size(file) == len(next(iter(read_glove(file, ['dog']).values())))
    (tmp_path / 'text').write_text('a dog is here\n')
    with pytest.raises(DataError, match=r"text:1: 'dog' is no finite number"):
        glove_size(tmp_path / 'text')
    with pytest.raises(DataError, match='missing: no such file'):
        glove_size(tmp_path / 'missing')


def test_random_vectors_are_of_the_word_alone():
    found, again = random_vectors({'dog', 'cat'}), random_vectors(['cat'])
    np.testing.assert_array_equal(found['cat'], again['cat'])
    together = np.concatenate([found['cat'], found['dog']])
    assert found['dog'].shape == (SIZE,) and together.dtype == np.float32
    assert abs(together.mean()) < 0.15 and abs(together.std() - 1) < 0.15
    assert abs(np.corrcoef(found['cat'], found['dog'])[0, 1]) < 0.2

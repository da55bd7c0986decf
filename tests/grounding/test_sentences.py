"""What a batch carries of sentences, what is right of them, and what the page shows."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from conftest import Listed

from wsol_jax.data import DataError, Record
from wsol_jax.data.expressions import Expression
from wsol_jax.evaluation.split import Results
from wsol_jax.grounding.score import joined, metrics_of, score_grounding
from wsol_jax.grounding.sentences import Sentences, overlaps, sentences_of
from wsol_jax.grounding.words import WordVectors, random_vectors
from wsol_jax.models.grounding import CLASS, OBJECT, RELATION, SUBJECT
from wsol_jax.report.frame import rendered
from wsol_jax.report.grounding import _sentences, _tables

DOGS = ((0, 0, 20, 10), (0, 0, 10, 10), (60, 20, 80, 60))
SAID = (
    Expression('the hound left of the cat', 'hound', 'left of', 'cat', (0, 0, 20, 10), True),
    Expression('the cat', 'cat', '', '', (60, 20, 80, 60), False),
)
ONE = Record(
    'one',
    b'',
    (0, 1),
    (100, 80),
    boxes=DOGS,
    extra={'proposal_classes': (0, 0, 1), 'expressions': SAID},
)
OTHER = replace(
    ONE,
    image_id='other',
    boxes=DOGS[1:],
    extra={
        'proposal_classes': (0, 1),
        'expressions': (Expression('largest dog', 'dog', 'largest', '', (0, 0, 9, 10), False),),
    },
)
SOURCE = Listed([ONE, OTHER], ('dog', 'cat'))
VECTORS = random_vectors(['dog', 'cat', 'left', 'of', 'largest', 'no', 'relation'], 6)
WORDS = WordVectors({**VECTORS, 'hound': VECTORS['dog'] + np.float32(0.1)})


@pytest.fixture
def targets():
    return sentences_of(SOURCE, WORDS, scored=True)


def test_a_record_becomes_arrays_of_one_shape(targets):
    found = targets(OTHER)
    assert {name: value.shape for name, value in found.items()} == {
        'boxes': (3, 4),
        'proposals': (3,),
        'phrases': (2, 4, 6),
        'sentences': (2,),
        'classes': (2,),
        'right': (2, 3),
    }
    np.testing.assert_allclose(
        found['boxes'], [[0, 0, 0.1, 0.125], [0.6, 0.25, 0.8, 0.75], [0] * 4]
    )
    assert found['proposals'].tolist() == [True, True, False]
    assert found['sentences'].tolist() == [True, False] and found['classes'].tolist() == [0, -1]
    assert found['right'].tolist() == [[True, False, False], [False] * 3]
    assert not found['phrases'][1].any()


def test_a_sentence_is_four_vectors(targets):
    left, alone = targets(ONE)['phrases']
    for place, phrase in ((SUBJECT, 'hound'), (CLASS, 'dog'), (OBJECT, 'cat')):
        np.testing.assert_array_equal(left[place], WORDS(phrase))
    np.testing.assert_array_equal(left[RELATION], (VECTORS['left'] + VECTORS['of']) / 2)
    np.testing.assert_array_equal(alone[OBJECT], WORDS('cat'))  # no object: the subject itself
    np.testing.assert_array_equal(alone[RELATION], (VECTORS['no'] + VECTORS['relation']) / 2)
    own = sentences_of(SOURCE, WORDS, by_class=False)(ONE)['phrases'][0]
    np.testing.assert_array_equal(own[CLASS], WORDS('hound'))


def test_training_never_sees_a_true_box():
    plain, moved = (
        sentences_of(Listed([record], SOURCE.class_names), WORDS)(record)
        for record in (ONE, _truth_moved(ONE))
    )
    assert 'right' not in plain
    for name, value in plain.items():
        np.testing.assert_array_equal(value, moved[name])


def _truth_moved(record):
    said = tuple(replace(each, box=(90, 70, 95, 75)) for each in record.extra['expressions'])
    return replace(record, extra={**record.extra, 'expressions': said})


def test_targets_go_to_other_processes(targets):
    again = pickle.loads(pickle.dumps(targets))
    assert isinstance(again, Sentences)
    np.testing.assert_array_equal(again(ONE)['phrases'], targets(ONE)['phrases'])


@pytest.mark.parametrize(('spoil', 'missing'), [({'boxes': ()}, 'boxes'), ({'extra': {}}, 'exp')])
def test_an_image_without_sentences_or_boxes_is_named(spoil, missing):
    with pytest.raises(DataError, match=rf'^other: has no {missing}'):
        sentences_of(Listed([ONE, replace(OTHER, **spoil)]), WORDS)


def test_ends_of_boxes_are_no_pixels_of_theirs():
    assert overlaps(ONE)[0].tolist() == [1, 0.5, 0]
    assert overlaps(OTHER)[0, 0] == pytest.approx(0.9)


def results(subject, classes, records=(ONE, OTHER)):
    columns = {'subject': np.array(subject), 'classes': np.array(classes)}
    return Results(list(records), columns)


def test_what_is_right_and_what_it_is_compared_with():
    """Half of the true box is enough; a class of no proposal leaves all of them."""
    found = score_grounding(results([[1, 0], [1, -1]], [[0, 1], [7, -1]]))
    assert found.accuracy.tolist() == [1, 0, 0]
    assert found.chance.tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert found.largest.tolist() == [0, 1, 0]
    assert found.same_class.tolist() == [1, 1, 0.5]
    assert found.best.tolist() == [1, 1, 1] and found.alike.tolist() == [2, 1, 0]
    assert found.kind.tolist() == [1, 0, 2]
    metrics = metrics_of(found)
    assert metrics['sentences'] == 3 and metrics['Accuracy'] == pytest.approx(100 / 3)
    assert metrics['ClassOnly'] == pytest.approx(250 / 3) and metrics['Best'] == 100
    assert [(r['alike'], r['Accuracy']) for r in metrics['by_alike']] == [
        ('0', 0), ('1', 0), ('2', 100)
    ]  # fmt: skip
    assert [r['relation'] for r in metrics['by_relation']] == ['none', 'other class', 'own class']


def test_scores_of_parts_join():
    whole = score_grounding(results([[1, 0], [1, -1]], [[0, 1], [0, -1]]))
    parts = [
        score_grounding(results([subject], [label], [record]))
        for subject, label, record in (([1, 0], [0, 1], ONE), ([1, -1], [0, -1], OTHER))
    ]
    assert metrics_of(joined(parts)) == metrics_of(whole)
    assert metrics_of(score_grounding(results([], [], []))) == {
        'sentences': 0, 'by_alike': [], 'by_relation': []
    }  # fmt: skip


@pytest.mark.parametrize('subject', [[1, -1], [3, 0]])
def test_results_of_other_sentences_are_refused(subject):
    with pytest.raises(DataError, match=r'^one: results are of other sentences or boxes'):
        score_grounding(results([subject], [[0, 1]], [ONE]))


def test_the_page_tells_sentences_and_boxes():
    shown = _sentences(ONE, (50, 40), np.array([1, 2]), np.array([2, 2]))
    assert [sentence['right'] for sentence in shown] == [True, True]
    assert shown[0]['boxes'] == {
        'object': [30, 10, 10, 20], 'true': [0, 0, 10, 5], 'chosen': [0, 0, 5, 5]
    }  # fmt: skip
    assert 'object' not in shown[1]['boxes']
    row = {'split': 'test', **metrics_of(score_grounding(results([[1, 2]], [[0, 1]], [ONE])))}
    page = rendered(
        'grounding.html',
        title='T',
        facts={},
        tables=_tables([row], row),
        images=[{'image_id': '<one>', 'jpeg': '', 'size': (50, 40), 'sentences': shown}],
    )
    assert page.count('<li class="card">') == 2 and '&lt;one&gt;' in page
    assert 'the hound left of the cat' in page and 'ClassOnly' in page

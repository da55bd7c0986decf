import pytest

from wsol_jax.data import DataError, Relations
from wsol_jax.data.triads import nouns_of, tokens, triad_of

NOUNS = nouns_of(('person', 'dog', 'traffic light', 'orange', 'sandwich', 'skis', 'knife', 'bus'))


@pytest.mark.parametrize(
    ('text', 'triad'),
    [
        ('The dog to the left of the traffic light.', ('dog', 'left of', 'traffic light')),
        ('dog in front of two men', ('dog', 'in front of', 'man')),
        ('two dogs beside the buses', ('dog', 'next to', 'bus')),
        ('the sandwich on top of the other sandwich', ('sandwich', 'on top of', 'sandwich')),
        ('man in the blue shirt', ('man', 'in', 'shirt')),
        ('a lady holding an umbrella with stripes', ('lady', 'holding', 'umbrella')),
        ('man on the left', ('man', 'left', 'man')),
        ('left guy', ('guy', 'left', 'guy')),
        ('the left most dog', ('dog', 'leftmost', 'dog')),
        ('upper right orange', ('orange', 'top right', 'orange')),
        ('small brown dog', ('dog', 'brown', 'dog')),
        ('big dog', ('dog', 'large', 'dog')),
        ('dog', ('dog', '', 'dog')),
        ('dog walker near the bus', ('dog', 'next to', 'bus')),
        ('orange dog', ('dog', '', 'dog')),
        ("the girl's dog sitting", ('dog', '', 'dog')),
        ('zebra behind the fence', ('zebra', 'behind', 'fence')),
        ('dog above', ('dog', '', 'dog')),
        ('people larger than the dog', ('person', 'larger than', 'dog')),
    ],
)
def test_triads_by_hand(text, triad):
    assert triad_of(text, NOUNS) == triad


def test_generated_expressions_are_parsed_as_they_were_made():
    source = Relations('val', 60, 32)
    nouns = nouns_of(source.class_names)
    said = {each for record in source for each in record.extra['expressions']}
    assert len({each.relation for each in said}) == 13
    for each in said:
        expected = each.subject, each.relation, each.object or each.subject
        assert triad_of(each.text, nouns) == expected


@pytest.mark.parametrize('text', ['second from left', 'the red one', '', 'left of', '???'])
def test_a_sentence_without_a_noun_is_named(text):
    with pytest.raises(DataError, match='no noun in it'):
        triad_of(text, NOUNS)
    with pytest.raises(DataError, match=r"'second from left': no noun in it"):
        triad_of('second from left', NOUNS)


def test_nouns_have_plurals_and_synonyms():
    assert NOUNS['people'] == 'person' and NOUNS['women'] == 'woman' and NOUNS['man'] == 'man'
    assert NOUNS['traffic lights'] == 'traffic light' and NOUNS['sandwiches'] == 'sandwich'
    assert NOUNS['puppies'] == 'puppy' and NOUNS['knives'] == 'knife' and NOUNS['skis'] == 'skis'
    assert 'sofa' not in NOUNS and nouns_of(['couch'])['sofas'] == 'sofa'


def test_tokens_have_no_signs():
    assert tokens("The dog's 2nd-best, Größe") == ['the', 'dog', '2nd', 'best', 'größe']

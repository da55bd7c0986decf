import pytest

from wsol_jax.data import DataError
from wsol_jax.data.metadata import class_names, read_ids, read_localization


def names_of(tmp_path, text, class_index=False):
    file = tmp_path / 'class_names.txt'
    file.write_text(text)
    return class_names(file, class_index)


@pytest.mark.parametrize(
    ('lines', 'names'),
    [
        (['ant', 'bee'], ['ant', 'bee']),
        (['0', '1', '12'], ['0', '1', '12']),
        (['n02102040,217', 'n01440764,0'], ['n02102040', 'n01440764']),
        (['tench,0', 'English springer, 217'], ['tench', 'English springer']),
        (['Boeing 737,800'], ['Boeing 737,800']),
        (['Boeing 737,700', 'Boeing 737,800'], ['Boeing 737,700', 'Boeing 737,800']),
        (['Boeing 737,800', 'Tupolev 154,2'], ['Boeing 737,800', 'Tupolev 154,2']),
        (['sedan,4', 'coupe,4'], ['sedan,4', 'coupe,4']),
        (['sedan,4', 'sedan,2'], ['sedan,4', 'sedan,2']),
        (['a,-5', 'b,3'], ['a,-5', 'b,3']),
        (['a,007', 'b,3'], ['a,007', 'b,3']),
        (['ant,3', 'bee'], ['ant,3', 'bee']),
        (['ladybug, ladybeetle', 'bee'], ['ladybug, ladybeetle', 'bee']),
        ([',1', 'bee,2'], [',1', 'bee,2']),
    ],
)
def test_no_name_loses_its_end(tmp_path, lines, names):
    assert names_of(tmp_path, '\n'.join(lines)) == (tuple(names), ())


def test_the_index_that_is_asked_for(tmp_path):
    lines = 'ant,30\nBoeing 737, 800\r\nladybug, ladybeetle,0\n'
    names = ('ant', 'Boeing 737', 'ladybug, ladybeetle')
    assert names_of(tmp_path, lines, True) == (names, (30, 800, 0))


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('ant,1\nbee,-5', ':2: index -5 outside 0..999999'),
        ('ant,1\nbee,1000000', ':2: index 1000000 outside 0..999999'),
        ('ant,-5\nant,-5', ':1: index -5 outside'),
        ('ant,1\nbee,1', ":2: index 1 is that of 'ant', too"),
        ('ant,1\nbee', ":2: expected 'name,index', got 'bee'"),
        ('ant,1\n,2', ":2: expected 'name,index', got ',2'"),
        ('ant,1.0', ":1: expected 'name,index' with whole numbers"),
        ('', ': names no class'),
    ],
)
def test_an_index_that_is_none(tmp_path, text, said):
    with pytest.raises(DataError) as error:
        names_of(tmp_path, text, True)
    assert str(error.value).startswith(f'{tmp_path}/class_names.txt{said}')


def test_old_line_ends_and_long_lines(tmp_path):
    (tmp_path / 'image_ids.txt').write_bytes(b'a.png\rb.png\r\nc.png\n')
    assert read_ids(tmp_path) == ['a.png', 'b.png', 'c.png']
    (tmp_path / 'localization.txt').write_text('a.png,' + 10**6 * 'x')
    with pytest.raises(DataError) as error:
        read_localization(tmp_path / 'localization.txt', tmp_path, {'a.png': ()}, {})
    assert len(str(error.value)) < 400


@pytest.mark.parametrize('content', [b'\xff\xfe', b'a.png\n\x00\n'])
def test_files_that_are_no_text(tmp_path, content):
    (tmp_path / 'image_ids.txt').write_bytes(content)
    with pytest.raises(DataError, match=r'image_ids\.txt'):
        read_ids(tmp_path)


def test_a_link_that_leads_nowhere_is_no_absent_file(tmp_path):
    (tmp_path / 'localization.txt').symlink_to('gone.txt')
    with pytest.raises(DataError, match=r'localization.txt: no such file'):
        read_localization(tmp_path / 'localization.txt', tmp_path, {'a.png': ()}, {})

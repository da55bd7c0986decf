"""Biased objects: K-means, distances and scores against loops; rails beside a train are removed."""

import io

import numpy as np
import pytest
from conftest import Listed
from PIL import Image

from wsol_jax.data import DataError, Record
from wsol_jax.segmentation import mars, read_label_map, write_label_map

RNG = np.random.default_rng(0)


def clustered(points, count):
    """Greedy first centroids, then Lloyd's rounds until nothing moves."""
    points = points.astype(np.float64)
    squares = ((points[:, None] - points) ** 2).sum(-1)
    nearest, chosen = np.full(len(points), np.inf), []
    for _ in range(count):
        best = min(range(len(points)), key=lambda k: np.minimum(nearest, squares[k]).sum())
        nearest = np.minimum(nearest, squares[best])
        chosen.append(points[best])
    centroids, before = np.array(chosen), None
    while before is None or (before != centroids).any():
        before = centroids.copy()
        own = ((points[:, None] - centroids) ** 2).sum(-1).argmin(1)
        for k in range(count):
            if (own == k).any():
                centroids[k] = points[own == k].mean(0)
    return centroids


@pytest.fixture(scope='module')
def image():
    """Features [3,6,8] and a label map of twice the sides: 0, 1, 4, 254 and 255."""
    small = RNG.choice([0, 1, 4, 254, 255], (6, 8), p=[0.4, 0.3, 0.1, 0.1, 0.1]).astype(np.uint8)
    small[0, 0] = 7  # one pixel has one centroid, twice
    label_map = np.full((12, 16), 255, np.uint8)
    label_map[1::2, 1::2] = small
    return RNG.normal(size=(3, 6, 8)), label_map, small


def test_centroids_against_a_loop(image):
    features, label_map, small = image
    found = mars.image_centroids(features, label_map)
    assert list(found) == [0, 1, 4, 7]
    for value in (0, 1, 4):
        expected = clustered(features[:, small == value].T, 2)
        np.testing.assert_allclose(found[value], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[7], [features[:, 0, 0]] * 2, rtol=1e-5)


def test_an_outlier_makes_no_cluster_of_its_own():
    """Where farthest points would be taken first."""
    points = np.concatenate([RNG.normal(0, 0.1, (60, 2)), RNG.normal(3, 0.1, (59, 2)), [[7, -2]]])
    centroids = mars.image_centroids(points.T[:, None], np.zeros((1, 120), np.uint8))[0]
    assert sorted(np.rint(centroids[:, 0])) == [0, 3]


def test_distances_without_the_pairs():
    foreground, background = RNG.normal(size=(7, 5)), RNG.normal(size=(11, 5))
    background[3] = 0  # like nothing

    def distance(u, v):
        return (1 - (u @ v / np.linalg.norm(u) / np.linalg.norm(v) if v.any() else 0)) / 2

    expected = [np.mean([distance(u, v) for v in background]) for u in foreground]
    np.testing.assert_allclose(mars.mean_distance(foreground, background), expected, rtol=1e-6)


def test_a_class_is_its_centroids_farthest_from_background():
    """Of five at angles of 0, 30, 60, 90 and 120 degrees to it; .4 are the last two."""
    angles = np.deg2rad([120, 0, 60, 90, 30])
    of_class = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    centroids = {0: np.array([[2.0, 0], [5.0, 0]]), 3: of_class, 5: of_class[:1]}
    found = mars.debiased_centroids(centroids)
    assert list(found) == [3, 5]
    np.testing.assert_allclose(found[3], of_class[[0, 3]].mean(0), atol=1e-9)
    np.testing.assert_allclose(found[5], of_class[0])
    np.testing.assert_allclose(
        mars.debiased_centroids(centroids, 0.41)[3], of_class[[0, 2, 3]].mean(0), atol=1e-9
    )
    with pytest.raises(DataError, match='no label map has background'):
        mars.debiased_centroids({1: of_class})


def test_the_score_is_the_highest_cosine(image):
    features, centroids = image[0], RNG.normal(size=(2, 3))
    expected = np.zeros((6, 8))
    for i, j in np.ndindex(6, 8):
        x = features[:, i, j]
        for v in centroids:
            cosine = x @ v / np.linalg.norm(x) / np.linalg.norm(v)
            expected[i, j] = max(expected[i, j], cosine)
    np.testing.assert_allclose(mars.object_score(features, centroids), expected, atol=1e-6)


def test_what_is_no_object_is_missing_apart_from_what_is_ignored():
    label_map = np.array([[0, 1, 2, 255, 254]] * 2, np.uint8)
    is_object = np.array([[True] * 5, [False] * 5])
    found = mars.debiased_label_map(label_map, is_object)
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 1, 2, 255, 254], [0, 254, 254, 255, 254]]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()


TRAIN, CAR, RAILS, GROUND = np.eye(4)


@pytest.fixture
def railway(tmp_path):
    """Trains on rails, which pseudo labels hold; cars and empty ground beside rails.

    Returns the source and what is where: 0 ground, 1 train, 2 car, 3 rails.
    """
    records, scenes = [], {}
    for k in range(6):
        scene = np.zeros((8, 8), int)
        scene[6:, :] = 3
        scene[2:6, 2:6] = 1 + k % 2
        features = np.array([GROUND, TRAIN, CAR, RAILS])[scene] + RNG.normal(0, 0.05, (8, 8, 4))
        labels = np.where(scene == 3, k % 2 == 0, scene).astype(np.uint8)  # rails are train, or 0
        labels[0, 0] = 255
        name = f'{k % 2}/{k}'
        for folder in ('labels', 'features'):
            (tmp_path / folder / str(k % 2)).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / 'features' / f'{name}.npy', features.transpose(2, 0, 1))
        write_label_map(tmp_path / 'labels' / f'{name}.png', labels.repeat(3, 0).repeat(3, 1))
        records.append(Record(name, b'', (k % 2,), (24, 24)))
        scenes[name] = scene.repeat(3, 0).repeat(3, 1)
    return Listed(records, 'ab'), tmp_path, scenes


def test_rails_beside_a_train_are_removed(railway):
    source, folder, scenes = railway
    mars.remove_bias(source, folder / 'labels', folder / 'features', folder / 'out')
    for name, scene in scenes.items():
        found = read_label_map(folder / 'out' / f'{name}.png')
        inner = np.zeros((24, 24), bool)  # scores are resized: not at edges
        inner[8:16, 8:16] = inner[20:, 2:-2] = inner[2:4, 4:] = True
        expected = np.where(scene == 3, 254 if name[0] == '0' else 0, scene)
        np.testing.assert_array_equal(found[inner], expected[inner])
        assert found[0, 0] == 255


def test_an_image_that_cannot_be_read_may_have_no_label_map(railway, caplog):
    source, folder, _ = railway
    places = folder / 'labels', folder / 'features'
    (folder / 'labels/0/4.png').unlink()
    mars.remove_bias(source, *places, folder / 'out')
    assert caplog.text.count('passed over: 0/4: ') == 1 and 'WARNING' in caplog.text
    assert len(list((folder / 'out').rglob('*.png'))) == 5
    source.records[4] = Record('0/4', png(np.zeros((24, 24, 3), np.uint8)), (0,), (24, 24))
    with pytest.raises(DataError, match=r'^label map .*labels/0/4.png: no such file'):
        mars.remove_bias(source, *places, folder / 'out')


def test_a_refinement_decides(railway):
    source, folder, _ = railway

    def refine(image, probabilities):
        assert image.shape == (24, 24, 3) and probabilities.shape == (24, 24, 2)
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
        return probabilities[..., ::-1]

    drawn = np.zeros((24, 24, 3), np.uint8)
    source.records[0] = Record('0/0', png(drawn), (0,), (24, 24))
    only = Listed(source.records[:1], 'ab')
    mars.remove_bias(only, folder / 'labels', folder / 'features', folder / 'out', refine=refine)
    found = read_label_map(folder / 'out' / '0/0.png')
    assert (found[20:] == 1).all() and (found[8:16, 8:16] == 254).all()


@pytest.mark.parametrize(
    ('array', 'message'),
    [
        (None, 'no such file'),
        (np.zeros((4, 8, 8), int), r'must be floats \[channels, height, width\], are int64'),
        (np.zeros((8, 8)), r'must be floats .*, are float64 \[8, 8\]'),
        (np.full((4, 8, 8), np.nan), 'must be finite'),
        (np.zeros((3, 8, 8)), 'have 3 channels, those of other images 4'),
        (np.array([{}], object), 'Object arrays cannot be loaded'),
    ],
)
def test_wrong_features_are_named(railway, array, message):
    source, folder, _ = railway
    path = folder / 'features' / '1/3.npy'
    path.unlink()
    if array is not None:
        np.save(path, array, allow_pickle=True)
    with pytest.raises(DataError, match=f'^features {path}: {message}') as caught:
        mars.collect_centroids(source, folder / 'labels', folder / 'features')
    assert '\n' not in str(caught.value)

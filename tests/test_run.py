import pytest

from wsol_jax.config import ConfigError
from wsol_jax.data import Relations, Scenes, Shapes
from wsol_jax.run import open_split, run
from wsol_jax.settings import Config, DataConfig, TrainConfig


@pytest.mark.parametrize('kind', [Shapes, Scenes, Relations])
def test_generated_splits(kind):
    name = kind.__name__.lower()
    data = DataConfig(source=name, shapes_counts=(4, 2, 3), shapes_size=32)
    config = Config(data=data, seed=7)
    assert [len(open_split(config, split)) for split in ('train', 'val', 'test')] == [4, 2, 3]
    assert open_split(config, 'val')[1] == kind('val', 2, 32, seed=7)[1]
    with pytest.raises(ConfigError, match=f"{name} has the splits .* no 'trian'"):
        open_split(config, 'trian')


def test_voc_needs_its_folder():
    with pytest.raises(ConfigError, match=r"config.data.source='voc' needs config.data.root"):
        open_split(Config(data=DataConfig(source='voc')), 'train')


def test_any_split_can_be_trained_on(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr('wsol_jax.run.train', lambda config, *given: trained.append(given))
    data = DataConfig(shapes_counts=(4, 2, 3), shapes_size=32)
    run(Config(data=data, train=TrainConfig(split='test'), stages=('train',)), tmp_path / 'W')
    ((train, val, *_),) = trained
    assert (train[0].image_id, len(train), len(val)) == ('test/00000.png', 3, 2)

"""The experiments that come with the package: their names, files and first lines."""

import ast
from pathlib import Path

from wsol_jax.fields import ConfigError
from wsol_jax.names import unknown_name

FOLDER = Path(__file__).with_name('configs')  # in a checkout a link to its top-level folder


def presets() -> dict[str, Path]:
    """{name: config file} of all, sorted by name."""
    return {path.stem: path for path in sorted(FOLDER.glob('[!_]*.py'))}


def summaries() -> dict[str, str]:
    """{name: first line of the docstring}; the files are read, not run."""
    texts = {name: path.read_text(encoding='utf-8') for name, path in presets().items()}
    return {
        name: (ast.get_docstring(ast.parse(text)) or '').partition('\n')[0]
        for name, text in texts.items()
    }


def config_file(asked: str) -> Path:
    """The file that is meant by a path, or else by the name of a preset.

    Raises:
        ConfigError: there is neither; names the nearest preset.
    """
    path, known = Path(asked), presets()
    if path.is_file():
        return path
    if asked in known:
        return known[asked]
    if path.suffix or path.name != asked:
        hint = f'; did you mean the shipped config {path.stem!r}?' if path.stem in known else ''
        raise ConfigError(f'{asked}: no such config file{hint}')
    raise ConfigError(unknown_name('config', asked, known))

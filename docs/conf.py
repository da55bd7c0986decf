"""How Sphinx makes the documentation: `make docs`."""

import shutil
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cards  # noqa: E402

# The one place that names the public repository, as OWNER/NAME on GitHub. While it is empty the
# pages have no link to it, and the notebooks no badge that opens them in Colab.
REPOSITORY = ''

project = 'wsol_jax'
author = 'the authors of wsol_jax'
release = version = metadata.version('wsol_jax')

# Sphinx knows only what lies below its own folder.
shutil.rmtree(HERE / 'notebooks', ignore_errors=True)
shutil.copytree(HERE.parent / 'notebooks', HERE / 'notebooks')

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
]
exclude_patterns = ['_build', '**.ipynb_checkpoints']

myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 3
nb_execution_mode = 'off'  # shown as they were committed; the tests run them

smartquotes = False  # names in docstrings stand in plain quotes

# What a docstring says of an argument stands beside it; its type stands in the signature.
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_typehints_format = 'short'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# `name` in a docstring is a link where there is such an object, else code.
default_role = 'py:obj'

nitpicky = True
nitpick_ignore = [('py:class', 'wsol_jax.evaluation.faithfulness.Key')]  # a type variable
# Types of other libraries, and our own shorthands for types, have no page here.
nitpick_ignore_regex = [('py:obj', '.*'), ('py:.*', r'(?!wsol_jax\.).*')]

html_theme = 'furo'
html_title = 'wsol_jax'
pygments_dark_style = 'github-dark'  # the usual one underlines imports, like links
html_show_copyright = False
html_static_path = ['_static']
html_css_files = ['wsol.css']
html_theme_options = {'navigation_with_keys': True}
if REPOSITORY:
    html_theme_options |= {
        'source_repository': f'https://github.com/{REPOSITORY}/',
        'source_branch': 'main',
        'source_directory': 'docs/',
    }
copybutton_exclude = '.linenos, .gp, .go'


def setup(app):
    """What Sphinx calls."""
    app.connect('source-read', filled)
    app.connect('autodoc-process-docstring', plain_stars, priority=100)  # before napoleon


def plain_stars(app, what, name, obj, options, lines):
    """Docstrings are plain text: a star in them is a star."""
    lines[:] = [line.replace('*', r'\*') for line in lines]


def colab():
    """What opens the notebooks in Colab, where the repository is known."""
    base = f'https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks'
    files = sorted((HERE.parent / 'notebooks').glob('*.ipynb')) if REPOSITORY else []
    links = [f'[{file.stem}]({base}/{file.name})' for file in files]
    return f'Open in Colab: {", ".join(links)}.' if links else ''


# Lines of pages in whose place something generated comes.
GENERATED = {
    '% colab': colab,
    '% gallery': cards.gallery,
    '% cards without training': cards.without_training,
    '% cards with training': cards.with_training,
}


def filled(app, name, source):
    """A page with its generated parts; links between docs/ and notebooks/ as the site has them."""
    text = source[0].replace('../notebooks/', 'notebooks/')
    for line, made in GENERATED.items():
        text = text.replace(line, made()) if line in text else text
    source[0] = text.replace('](../docs/', '](../') if name.startswith('notebooks/') else text

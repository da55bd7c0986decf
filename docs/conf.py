"""How Sphinx makes the documentation: `make docs`."""

from importlib import metadata

# The one place that names the public repository, as OWNER/NAME on GitHub. While it is empty the
# pages have no link to it, and the notebooks no badge that opens them in Colab.
REPOSITORY = ''

project = 'wsol_jax'
author = 'the authors of wsol_jax'
release = version = metadata.version('wsol_jax')

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
    app.connect('autodoc-process-docstring', plain_stars, priority=100)  # before napoleon


def plain_stars(app, what, name, obj, options, lines):
    """Docstrings are plain text: a star in them is a star."""
    lines[:] = [line.replace('*', r'\*') for line in lines]

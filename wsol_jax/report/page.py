"""report.html: the scores and figures of a run in one file."""

import base64
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from wsol_jax.report.table import columns, heading
from wsol_jax.workdir import write_text

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #8884; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
tr.chosen { font-weight: 600; }
.scroll { overflow-x: auto; }
img { max-width: 100%; background: white; }
</style>
<h1>$title</h1>
<p>$classification</p>
<p>Bold: the layer chosen for the method on $origin; thresholds are chosen there too.
Columns marked * use the best threshold on the scored split itself (an oracle).</p>
<div class="scroll">$table</div>
$figures
</html>
""")


def write_page(metrics: dict[str, Any], workdir: Path) -> None:
    """Writes report.html with the figures that lie in the workdir.

    Args:
        metrics: what metrics.json holds.
        workdir: where the page goes.
    """
    rows = metrics['localization']
    scores = [f'{name} {value:.1f} %' for name, value in metrics['classification'].items()]
    origins = [row['threshold_from'] for row in rows]
    page = _PAGE.substitute(
        title=escape(f'Localization on {metrics["split"]}'),
        classification=escape('Classification: ' + ', '.join(scores) if scores else ''),
        origin=escape(origins[0] if origins else ''),
        table=_table(rows),
        figures='\n'.join(map(_figure, sorted((workdir / 'figures').glob('*.png')))),
    )
    write_text(workdir / 'report.html', page)


def _table(rows: list[dict[str, Any]]) -> str:
    scores = columns(rows)
    titles = ['split', 'method', 'layer', 'threshold', *map(heading, scores)]
    lines = ['<tr>' + ''.join(f'<th>{escape(t)}</th>' for t in titles) + '</tr>']
    for row in rows:
        numbers = [f'{row[name]:.1f}' if name in row else '' for name in scores]
        cells = [row['split'], row['method'], row['layer'], f'{row["threshold"]:.3g}', *numbers]
        mark = ' class="chosen"' if row.get('chosen') else ''
        lines.append(f'<tr{mark}>' + ''.join(f'<td>{escape(c)}</td>' for c in cells) + '</tr>')
    return '<table>\n' + '\n'.join(lines) + '\n</table>'


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode('ascii')
    name = escape(path.stem)
    return f'<h2>{name}</h2>\n<img alt="{name}" src="data:image/png;base64,{data}">'

// Wires the page: one state, changed by the controls, drawn once a frame.

const data = read('data');
const facts = read('gallery');
const curves = find('curves') ? JSON.parse(new TextDecoder().decode(await unpack('curves'))) : null;
const palette = facts && paletteOf(Uint8Array.from(atob(facts.colors), (c) => c.charCodeAt(0)));
const unpacked = new Map(); // promises of what `unpackKey` gives, by index
const levels = new Map(); // of the images that were painted, for the maps chosen now
const state = {
  row: data.start, step: 0, rank: 0, view: 'map', show: 'all', label: '',
  key: null, overlaps: [], hovered: null, waiting: false,
};

const schedule = () => {
  if (state.waiting) return;
  state.waiting = true;
  requestAnimationFrame(() => {
    state.waiting = false;
    drawCharts();
    if (state.key) drawGallery();
  });
};

// Tables

const detailRow = (row, name, columns) => {
  const line = document.createElement('tr');
  const head = line.appendChild(document.createElement('th'));
  head.scope = 'row';
  head.textContent = name === 'class' ? row.name : row.size;
  for (const column of ['images', ...columns]) {
    const cell = line.insertCell();
    cell.className = 'number';
    if (column in row) {
      cell.dataset.value = row[column];
      cell.textContent = column === 'images' ? row[column] : row[column].toFixed(1);
    }
  }
  return line;
};

/** Fills the tables by class and by size: of the selected layer, else of the method's chosen one. */
const showDetails = ({ method, layer }) => {
  for (const element of all('.detail')) {
    const { rows, columns } = data.details[element.dataset.name];
    const own = rows.filter((row) => row.method === method);
    const exact = own.filter((row) => row.layer === layer);
    const shown = exact.length ? exact : own;
    element.hidden = !shown.length;
    element.querySelector('tbody').replaceChildren(
      ...shown.map((row) => detailRow(row, element.dataset.name, columns)),
    );
    element.querySelector('.which').textContent = shown.length
      ? `${placeOf(shown[0])}, ${data.split}` : '';
    sortTable(element.querySelector('table'));
  }
};

// What is selected

const placeOf = ({ method, layer }) => (layer ? `${method} at ${layer}` : method);

const fill = (select, values, chosen) => {
  select?.replaceChildren(...values.map((value) => new Option(value, value, false, value === chosen)));
};

const showSelection = (row) => {
  const ofSplit = data.rows.filter((other) => other.split === row.split);
  const ofMethod = ofSplit.filter((other) => other.method === row.method);
  all('#scores tbody tr').forEach((line) => {
    line.hidden = data.rows[line.dataset.row].split !== row.split;
    line.classList.toggle('selected', Number(line.dataset.row) === state.row);
  });
  find('scores').querySelector(`input[value="${state.row}"]`).checked = true;
  all('section .which').forEach((element) => {
    const split = element.closest('section').contains(find('cards')) ? data.split : row.split;
    element.textContent = `${placeOf(row)}, ${split}`;
  });
  if (!find('bar')) return;
  fill(find('method'), [...new Set(ofSplit.map((other) => other.method))], row.method);
  fill(find('layer'), ofMethod.map((other) => other.layer), row.layer);
};

const setStep = (threshold) => {
  state.step = clamp(Math.round(threshold * 100), 0, 99);
  if (!find('bar')) return;
  find('threshold').value = state.step / 100;
  find('value').textContent = (state.step / 100).toFixed(2);
  schedule();
};

/** Takes up what a (method, layer) says of the images; false if another was selected meanwhile. */
const load = async ({ method, layer }) => {
  const row = state.row;
  const index = facts.keys.findIndex((key) => key[0] === method && key[1] === layer);
  find('cards').ariaBusy = 'true';
  if (!unpacked.has(index)) unpacked.set(index, unpackKey(facts, index));
  const key = await unpacked.get(index);
  if (state.row !== row) return false;
  state.key = key;
  levels.clear();
  find('cards').ariaBusy = 'false';
  return true;
};

const select = async (index) => {
  const row = data.rows[index];
  state.row = index;
  showSelection(row);
  showDetails(row);
  if (facts && !await load(row)) return;
  setStep(row.threshold);
  arrange();
};

const selectMethod = (method) => {
  const { split } = data.rows[state.row];
  const same = (row) => row.split === split && row.method === method;
  const chosen = data.rows.findIndex((row) => same(row) && row.chosen);
  select(chosen >= 0 ? chosen : data.rows.findIndex(same));
};

const selectLike = (changes) => {
  const wanted = { ...data.rows[state.row], ...changes };
  const same = (row) => ['split', 'method', 'layer'].every((name) => row[name] === wanted[name]);
  select(data.rows.findIndex(same));
};

// Charts

const AXIS = "threshold (fraction of the map's maximum)";
const CHARTS = [
  {
    title: 'Localization accuracy', unit: 'images localized (%)', axis: AXIS, best: 'largest_50',
    series: [
      ['largest_30', 'largest contour, IoU ≥ 0.3', 'a'],
      ['largest_50', 'largest contour, IoU ≥ 0.5', 'b'],
      ['largest_70', 'largest contour, IoU ≥ 0.7', 'c'],
      ['all_30', 'any contour, IoU ≥ 0.3', 'a dotted'],
      ['all_50', 'any contour, IoU ≥ 0.5', 'b dotted'],
      ['all_70', 'any contour, IoU ≥ 0.7', 'c dotted'],
    ],
  },
  {
    title: 'Overlap with masks', unit: 'IoU (%)', axis: AXIS, best: 'mIoU',
    series: [['mIoU', 'mean over images', 'a'], ['PooledIoU', 'pixels of all images pooled', 'b']],
  },
];

const setHovered = (threshold) => {
  state.hovered = threshold;
  schedule();
};

const drawCharts = () => {
  const row = data.rows[state.row];
  const curve = curves?.[state.row];
  all('#charts figure').forEach((figure, i) => {
    const chart = curve && chartOf(CHARTS[i], curve);
    figure.hidden = !chart;
    if (!chart) return;
    const index = nearest(curve.threshold, state.hovered ?? state.step / 100);
    const best = bestOf(curve, chart.best);
    const marks = [{ threshold: row.threshold, text: `${escaped(row.threshold_from)}${row.oracle ? '*' : ''} ${thresholdText(row.threshold)}` }];
    if (best !== null) marks.push({ threshold: best, text: `best* ${thresholdText(best)}` });
    drawChart(figure, chart, curve, marks, index);
  });
};

// Gallery

const isHit = (overlap) => overlap !== null && overlap >= HIT;

const judge = () => {
  state.overlaps = facts.images.map((_, i) => overlapAt(facts, state.key, i, state.rank, state.step));
};

const isShown = (i) => {
  const overlap = state.overlaps[i];
  if (state.label !== '' && !facts.images[i].labels.includes(Number(state.label))) return false;
  if (state.show === 'hit') return isHit(overlap);
  return state.show !== 'miss' || (overlap !== null && !isHit(overlap));
};

/** Sorts the cards; not while the slider moves, where they would jump about. */
const arrange = () => {
  if (!state.key) return;
  judge();
  const worst = state.show === 'worst';
  const rank = (card) => (worst ? state.overlaps[indexOf(card)] ?? 2 : 0);
  const sorted = [...cards].sort((a, b) => rank(a) - rank(b) || indexOf(a) - indexOf(b));
  find('cards').append(...sorted);
};

const overlapText = (i) => {
  const overlap = state.overlaps[i];
  // Cut, not rounded: 0.499 is a miss and must not read 0.50.
  const parts = overlap === null ? [] : [`IoU ${(Math.floor(overlap * 100 + 1e-9) / 100).toFixed(2)}`];
  if (facts.classes > 1) parts.push(`map of ${facts.images[i].maps[state.rank]}`);
  return parts.join(' · ');
};

const label = (card, i) => {
  const overlap = state.overlaps[i];
  const mark = overlap === null ? '' : isHit(overlap) ? '✓ hit' : '✕ miss';
  card.dataset.result = mark.slice(2);
  card.querySelector('.mark').textContent = mark;
  card.querySelector('.overlap').textContent = overlapText(i);
};

const paintPicture = (picture, i) => {
  const { masked } = facts.images[i];
  if (!levels.has(i)) levels.set(i, levelsAt(facts, state.key, i, state.rank));
  const bound = boundOf(levels.get(i), state.step * 0.01, masked);
  paint(picture.querySelector('canvas'), levels.get(i), bound, palette[state.view], masked);
  const [x0, y0, x1, y1] = boxAt(facts, state.key, i, state.rank, state.step);
  const path = masked ? '' : `M${x0},${y0}H${x1}V${y1}H${x0}Z`;
  all('.predicted', picture).forEach((line) => line.setAttribute('d', path));
};

const showCount = () => {
  const chosen = cards.map(indexOf).filter((i) => state.label === ''
    || facts.images[i].labels.includes(Number(state.label)));
  const shown = shownCards().length;
  const scored = chosen.filter((i) => state.overlaps[i] !== null);
  const hits = scored.filter((i) => isHit(state.overlaps[i])).length;
  const rest = shown === scored.length ? 'shown' : `· ${shown} shown`;
  find('count').textContent = scored.length ? `hit ${hits} of ${scored.length} ${rest}` : `${shown} shown`;
};

const drawGallery = () => {
  judge();
  for (const card of cards) {
    card.hidden = !isShown(indexOf(card));
    label(card, indexOf(card));
  }
  for (const card of deck.visible) if (!card.hidden) paintPicture(card, indexOf(card));
  showCount();
  roveShown();
};

/** What is told of an image in the large view, in order. */
const aboutImage = (card) => {
  const result = ['.mark', '.overlap'].map((name) => card.querySelector(name).textContent);
  return [
    `${result.join(' ')} at threshold ${(state.step / 100).toFixed(2)}`.trim(),
    card.querySelector('.class')?.textContent,
    card.querySelector('img').alt,
  ].filter(Boolean).join(' · ');
};

const startGallery = () => {
  startCards(paintPicture, aboutImage, () => state.key);
  for (const name of ['rank', 'view', 'show', 'label']) {
    listen(name, 'change', (event) => {
      state[name] = name === 'rank' ? Number(event.target.value) : event.target.value;
      if (name === 'rank') levels.clear();
      arrange();
      schedule();
    });
  }
};

listen('scores', 'click', (event) => {
  const line = event.target.closest('tbody tr');
  if (line && !event.target.closest('label')) select(Number(line.dataset.row));
});
listen('scores', 'change', (event) => select(Number(event.target.value)));
listen('split', 'change', (event) => selectLike({ split: event.target.value }));
listen('method', 'change', (event) => selectMethod(event.target.value));
listen('layer', 'change', (event) => selectLike({ layer: event.target.value }));
listen('threshold', 'input', (event) => setStep(Number(event.target.value)));
listen('threshold', 'change', arrange);
if (curves) CHARTS.forEach(({ title }) => addChart(title, schedule, setHovered, setStep));
if (facts) startGallery();
if (data.rows.length) select(data.start);

// Wires the page: one state, changed by the controls, drawn once a frame.

const find = (id) => document.getElementById(id);
const read = (id) => JSON.parse(find(id)?.textContent ?? 'null');
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const listen = (id, kind, act) => find(id)?.addEventListener(kind, act);

const data = read('data');
const facts = read('gallery');
const curves = find('curves') ? JSON.parse(new TextDecoder().decode(await unpack('curves'))) : null;
const cards = all('#cards > li');
const palette = facts && paletteOf(Uint8Array.from(atob(facts.colors), (c) => c.charCodeAt(0)));
const unpacked = new Map(); // promises of what `unpackKey` gives, by index
const levels = new Map(); // of the images that were painted, for the maps chosen now
const visible = new Set();
const state = {
  row: data.start, step: 0, rank: 0, view: 'map', show: 'all', label: '',
  key: null, overlaps: [], current: cards[0], hovered: null, waiting: false,
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

const cellValue = (cell) => {
  const text = cell.dataset.value ?? cell.textContent.trim();
  return text !== '' && !Number.isNaN(Number(text)) ? Number(text) : text;
};

const compare = (a, b) => (typeof a === 'number' && typeof b === 'number'
  ? a - b : String(a).localeCompare(String(b), 'en', { numeric: true }));

/** Sorts a table as its header says; empty cells come last either way. */
const sortTable = (table) => {
  const header = table.querySelector('[aria-sort]');
  if (!header) return;
  const sign = header.ariaSort === 'descending' ? -1 : 1;
  const rows = [...table.tBodies[0].rows].map((row) => [cellValue(row.cells[header.cellIndex]), row]);
  const [full, empty] = [rows.filter(([v]) => v !== ''), rows.filter(([v]) => v === '')];
  full.sort(([a], [b]) => sign * compare(a, b));
  table.tBodies[0].append(...[...full, ...empty].map(([, row]) => row));
};

const sortBy = (header) => {
  const table = header.closest('table');
  const numeric = header.classList.contains('number');
  const flipped = { ascending: 'descending', descending: 'ascending' };
  const order = flipped[header.ariaSort] ?? (numeric ? 'descending' : 'ascending');
  all('[aria-sort]', table).forEach((other) => other.removeAttribute('aria-sort'));
  header.ariaSort = order;
  sortTable(table);
};

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

const escaped = (text) => {
  const element = document.createElement('p');
  element.textContent = text;
  return element.innerHTML;
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
    const plot = figure.querySelector('.plot');
    plot.innerHTML = chartMarkup(chart, curve, marks, index, plot.clientWidth);
    figure.querySelector('.values').innerHTML = legendMarkup(chart, curve, index);
  });
};

const addChart = ({ title }) => {
  const figure = document.createElement('figure');
  figure.innerHTML = `<figcaption>${title}</figcaption><div class="plot"></div><div class="values"></div>`;
  const plot = figure.querySelector('.plot');
  const under = (event) => thresholdAt(event.clientX - plot.getBoundingClientRect().left, plot.clientWidth);
  const hover = (threshold) => {
    state.hovered = threshold;
    schedule();
  };
  plot.addEventListener('pointermove', (event) => hover(under(event)));
  plot.addEventListener('pointerleave', () => hover(null));
  plot.addEventListener('click', (event) => setStep(under(event)));
  new ResizeObserver(schedule).observe(plot);
  find('charts').append(figure);
};

// Gallery

const indexOf = (card) => Number(card.dataset.index);
const shownCards = () => all('#cards > li:not([hidden])');
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

const paintCard = (card) => {
  if (!card.hidden && state.key) paintPicture(card, indexOf(card));
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

/** One card is reached by Tab; the arrow keys go on from it. */
const rove = (card) => {
  state.current?.querySelector('button').setAttribute('tabindex', '-1');
  state.current = card;
  card?.querySelector('button').setAttribute('tabindex', '0');
};

const drawGallery = () => {
  judge();
  for (const card of cards) {
    card.hidden = !isShown(indexOf(card));
    label(card, indexOf(card));
  }
  visible.forEach(paintCard);
  showCount();
  rove(state.current && !state.current.hidden ? state.current : shownCards()[0]);
};

const moveFocus = (event) => {
  const shown = shownCards();
  const at = shown.indexOf(event.target.closest('li'));
  const columns = shown.filter((card) => card.offsetTop === shown[0].offsetTop).length;
  const places = {
    ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + columns, ArrowUp: at - columns,
    Home: 0, End: shown.length - 1,
  };
  if (at < 0 || !(event.key in places)) return;
  event.preventDefault();
  rove(shown[places[event.key]] ?? shown[at]);
  state.current.querySelector('button').focus();
};

// Large view

/** What is told of an image in the large view, in order. */
const aboutImage = (card) => {
  const result = ['.mark', '.overlap'].map((name) => card.querySelector(name).textContent);
  return [
    `${result.join(' ')} at threshold ${(state.step / 100).toFixed(2)}`.trim(),
    card.querySelector('.class')?.textContent,
    card.querySelector('img').alt,
  ].filter(Boolean).join(' · ');
};

const showLarge = (card) => {
  const i = indexOf(card);
  rove(card);
  const picture = card.querySelector('.picture').cloneNode(true);
  find('large-picture').replaceChildren(picture);
  paintPicture(picture, i);
  find('large-title').textContent = card.querySelector('.name').textContent;
  find('large-text').textContent = aboutImage(card);
};

const turn = (by) => {
  const shown = shownCards();
  showLarge(shown[shown.indexOf(state.current) + by] ?? state.current);
};

const startGallery = () => {
  const observer = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
    visible[isIntersecting ? 'add' : 'delete'](target);
    if (isIntersecting) paintCard(target);
  }), { rootMargin: '200px' });
  cards.forEach((card) => observer.observe(card));
  listen('cards', 'keydown', moveFocus);
  listen('cards', 'click', (event) => {
    const card = event.target.closest('li');
    if (!card || !state.key) return;
    showLarge(card);
    find('large').showModal();
  });
  listen('large', 'keydown', (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) turn(by);
  });
  listen('large', 'close', () => state.current.querySelector('button').focus());
  listen('close', 'click', () => find('large').close());
  listen('previous', 'click', () => turn(-1));
  listen('next', 'click', () => turn(1));
  for (const name of ['rank', 'view', 'show', 'label']) {
    listen(name, 'change', (event) => {
      state[name] = name === 'rank' ? Number(event.target.value) : event.target.value;
      if (name === 'rank') levels.clear();
      arrange();
      schedule();
    });
  }
};

all('thead button').forEach((button) => button.addEventListener('click', () => sortBy(button.closest('th'))));
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
if (curves) CHARTS.forEach(addChart);
if (facts) startGallery();
if (data.rows.length) select(data.start);

// The page of label maps: regions over images by class and opacity, the confusion matrix read cell
// by cell, and curves over the background threshold.

const [BACKGROUND, IGNORED] = [0, 255];
const VEIL = rgba(0, 0, 0, 150); // over all but the class that is looked for
const SEEDS = {
  title: 'Seeds', unit: '%', axis: 'background threshold', best: 'mIoU',
  series: [['mIoU', 'mIoU', 'a'], ['Precision', 'precision', 'b'], ['Recall', 'recall', 'c']],
};

const data = read('data');
const facts = read('gallery');
const labels = facts && new Uint8Array(await unpack('labels'));
const colors = facts && Uint8Array.from(atob(facts.colors), (c) => c.charCodeAt(0));
const state = { only: '', opacity: 0, hovered: null, picked: null, waiting: false };

const schedule = () => {
  if (state.waiting) return;
  state.waiting = true;
  requestAnimationFrame(() => {
    state.waiting = false;
    if (data.curve) drawSeeds();
    if (facts) drawGallery();
  });
};

// Curves

const drawSeeds = () => {
  const { curve, chosen } = data;
  const best = bestOf(curve, SEEDS.best);
  const marks = Object.entries(chosen).map(([name, threshold]) =>
    ({ threshold, text: `${escaped(name)} ${thresholdText(threshold)}` }));
  if (best !== null) marks.push({ threshold: best, text: `best* ${thresholdText(best)}` });
  const shown = state.hovered ?? state.picked ?? Object.values(chosen)[0] ?? best ?? 0;
  drawChart(find('charts').firstChild, SEEDS, curve, marks, nearest(curve.threshold, shown));
};

const startCurves = () => {
  const see = (name) => (threshold) => {
    state[name] = threshold;
    schedule();
  };
  addChart(SEEDS.title, schedule, see('hovered'), see('picked'));
};

// Confusion matrix

const readCell = ({ target }) => {
  const cell = target.closest('tbody td');
  if (!cell) return;
  const [row, column] = [cell.parentNode.sectionRowIndex, cell.cellIndex - 1];
  const { names, counts } = data.matrix;
  const [count, total] = [counts[row][column], counts[row].reduce((sum, n) => sum + n, 0)];
  const share = total ? `${((100 * count) / total).toFixed(2)} %` : 'never true';
  const what = row === column ? `${names[row]} found` : `${names[row]} taken for ${names[column]}`;
  find('pair').textContent = `${what}: ${share}, ${count.toLocaleString('en')} pixels`;
};

// Gallery

const starts = facts?.images.reduce(
  (places, { size: [width, height] }) => [...places, places.at(-1) + 2 * width * height], [0],
);

/** The predicted and the true label map of image i. */
const labelMaps = (i) => {
  const half = (starts[i] + starts[i + 1]) / 2;
  return [labels.subarray(starts[i], half), labels.subarray(half, starts[i + 1])];
};

/** The colour of each index, at an opacity from 0 to 1. */
const tints = (opacity) => Uint32Array.from({ length: 256 }, (_, k) =>
  rgba(...colors.subarray(3 * k, 3 * k + 3), Math.round(255 * opacity)));

/** Whether a pixel has only pixels of its own class beside it, above and below. */
const isInside = (map, i, width) => {
  const [k, x] = [map[i], i % width];
  return (x === 0 || map[i - 1] === k) && (x === width - 1 || map[i + 1] === k)
    && (map[i - width] ?? k) === k && (map[i + width] ?? k) === k;
};

/** Paints the regions of a label map with an outline that stays; of one class, or of all for ''. */
const paintLabels = (canvas, map, only, fill, line) => {
  const { width, height } = canvas;
  const context = canvas.getContext('2d');
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i += 1) {
    const k = map[i];
    if (only === '' ? k === BACKGROUND : k !== Number(only)) pixels[i] = only === '' ? 0 : VEIL;
    else pixels[i] = (k === IGNORED || isInside(map, i, width) ? fill : line)[k];
  }
  context.putImageData(image, 0, 0);
};

const paintPair = (view, i) => {
  const [fill, line] = [tints(state.opacity), tints(1)];
  const maps = labelMaps(i);
  all('canvas', view).forEach((canvas, part) => paintLabels(canvas, maps[part], state.only, fill, line));
};

const hasClass = ({ predicted, truth }) =>
  state.only === '' || [...predicted, ...truth].includes(Number(state.only));

const drawGallery = () => {
  for (const card of cards) card.hidden = !hasClass(facts.images[indexOf(card)]);
  for (const card of deck.visible) if (!card.hidden) paintPair(card, indexOf(card));
  find('count').textContent = `${shownCards().length} of ${cards.length} shown`;
  roveShown();
};

const arrange = (order) => {
  const sign = { worst: 1, best: -1 }[order] ?? 0;
  const score = (card) => sign * (facts.images[indexOf(card)].meanIou ?? 0);
  find('cards').append(...[...cards].sort((a, b) => score(a) - score(b) || indexOf(a) - indexOf(b)));
};

const setOpacity = () => {
  state.opacity = Number(find('opacity').value);
  find('value').textContent = `${Math.round(100 * state.opacity)} %`;
  schedule();
};

const aboutImage = (card) => ['.class', '.result']
  .map((name) => card.querySelector(name).textContent.trim().replace(/\s+/g, ' ')).join(' · ');

/** Names the two classes at the pixel under the pointer. */
const readPixel = (event) => {
  const frame = event.target.closest('.frame');
  if (!frame) return;
  const i = indexOf(deck.current);
  const [width, height] = facts.images[i].size;
  const { left, top, width: wide, height: high } = frame.getBoundingClientRect();
  const x = clamp(Math.floor(((event.clientX - left) / wide) * width), 0, width - 1);
  const y = clamp(Math.floor(((event.clientY - top) / high) * height), 0, height - 1);
  const [predicted, truth] = labelMaps(i).map((map) => facts.names[map[y * width + x]] ?? 'ignored');
  find('large-text').textContent = `predicted ${predicted} · true ${truth}`;
};

const startGallery = () => {
  startCards(paintPair, aboutImage);
  listen('only', 'change', (event) => {
    state.only = event.target.value;
    schedule();
  });
  listen('order', 'change', (event) => arrange(event.target.value));
  listen('opacity', 'input', setOpacity);
  listen('large-picture', 'pointermove', readPixel);
  listen('large-picture', 'pointerleave', () => {
    find('large-text').textContent = aboutImage(deck.current);
  });
  setOpacity();
};

listen('heat', 'pointerover', readCell);
listen('heat', 'click', readCell);
if (data.curve) startCurves();
if (facts) startGallery();

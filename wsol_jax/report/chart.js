// Curves over the threshold in plain SVG: a chart library would cost megabytes of the page.

const MARGIN = { left: 40, right: 12, top: 36, bottom: 40 };
const HEIGHT = 280;

/** The chart with only the series that a curve has values of; null if it has none. */
const chartOf = (chart, curve) => {
  const series = chart.series.filter(([name]) => curve[name].some((value) => value !== null));
  return series.length ? { ...chart, series } : null;
};

/** Two digits, or three where it has them. */
const thresholdText = (threshold) => threshold.toFixed(3).replace(/0$/, '');

/** Index of the counted threshold next to one. */
const nearest = (thresholds, threshold) => {
  const distances = thresholds.map((t) => Math.abs(t - threshold));
  return distances.indexOf(Math.min(...distances));
};

const bestOf = (curve, name) => {
  const found = curve[name].some((value) => value !== null);
  return found ? curve.threshold[curve[name].indexOf(Math.max(...curve[name]))] : null;
};

const scalesOf = (width) => ({
  x: (t) => MARGIN.left + t * (width - MARGIN.left - MARGIN.right),
  y: (v) => HEIGHT - MARGIN.bottom - (v / 100) * (HEIGHT - MARGIN.top - MARGIN.bottom),
});

/** The threshold at a place of the chart, in pixels from its left. */
const thresholdAt = (place, width) =>
  clamp((place - MARGIN.left) / (width - MARGIN.left - MARGIN.right), 0, 0.99);

const axesMarkup = ({ x, y }, { unit, axis }) => {
  const rows = [0, 25, 50, 75, 100].map((v) => `<line class="grid" x1="${x(0)}" x2="${x(1)}" y1="${y(v)}" y2="${y(v)}"/>
    <text x="${x(0) - 6}" y="${y(v) + 4}" text-anchor="end">${v}</text>`);
  const columns = [0, 0.2, 0.4, 0.6, 0.8, 1].map((t) =>
    `<text x="${x(t)}" y="${y(0) + 16}" text-anchor="middle">${t}</text>`);
  return `${rows.join('')}${columns.join('')}
    <text x="${x(0.5)}" y="${HEIGHT - 6}" text-anchor="middle">${axis}</text>
    <text transform="translate(10 ${y(50)}) rotate(-90)" text-anchor="middle">${unit}</text>`;
};

const lineMarkup = ({ x, y }, thresholds, values, look) => {
  const known = thresholds.flatMap((t, i) => (values[i] === null ? [] : [`${x(t)},${y(values[i])}`]));
  return `<polyline class="line ${look}" points="${known.join(' ')}"/>`;
};

/** Threshold marks {threshold, text} above each other, so that no line crosses another's text. */
const markMarkup = ({ x, y }, marks) => {
  const right = Math.max(...marks.map((mark) => mark.threshold)) > 0.7;
  const ordered = [...marks].sort((a, b) => (a.threshold - b.threshold) * (right ? -1 : 1));
  return ordered.map(({ threshold, text }, i) => {
    const [place, left] = [x(threshold), right && threshold > 0.25];
    const top = MARGIN.top - 20 + 15 * i;
    return `<line class="at" x1="${place}" x2="${place}" y1="${top - 10}" y2="${y(0)}"/>
      <text x="${place + (left ? -5 : 5)}" y="${top}" text-anchor="${left ? 'end' : 'start'}">${text}</text>`;
  }).join('');
};

const nowMarkup = ({ x, y }, curve, series, index) => {
  const place = x(curve.threshold[index]);
  const dots = series.filter(([name]) => curve[name][index] !== null).map(([name, , look]) =>
    `<circle class="dot ${look}" cx="${place}" cy="${y(curve[name][index])}" r="4"/>`);
  return `<line class="now" x1="${place}" x2="${place}" y1="${MARGIN.top}" y2="${y(0)}"/>${dots.join('')}`;
};

/** SVG of a chart at the width it has on the page, the values at one threshold marked. */
const chartMarkup = (chart, curve, marks, index, width) => {
  const scales = scalesOf(width);
  const lines = chart.series.map(([name, , look]) => lineMarkup(scales, curve.threshold, curve[name], look));
  return `<svg viewBox="0 0 ${width} ${HEIGHT}" height="${HEIGHT}" role="img" aria-label="${chart.title} over the threshold; the values are listed below">
    ${axesMarkup(scales, chart)}${markMarkup(scales, marks)}${lines.join('')}
    ${nowMarkup(scales, curve, chart.series, index)}</svg>`;
};

/** List of the series with their values at one threshold. */
const legendMarkup = (chart, curve, index) => {
  const items = chart.series.map(([name, text, look]) => {
    const value = curve[name][index];
    return `<li><svg aria-hidden="true" viewBox="0 0 28 12"><path class="line ${look}" d="M1,6H27"/></svg>
      ${text} <b>${value === null ? '–' : value.toFixed(1)}</b></li>`;
  });
  return `<p class="note">At threshold ${thresholdText(curve.threshold[index])}, in percent:</p><ul class="legend">${items.join('')}</ul>`;
};

const escaped = (text) => {
  const element = document.createElement('p');
  element.textContent = text;
  return element.innerHTML;
};

/**
 * A figure below #charts. `redraw()` is asked for where its width changes; `hover` and `pick` are
 * told the threshold under the pointer, `hover` null where it leaves.
 */
const addChart = (title, redraw, hover, pick) => {
  const figure = document.createElement('figure');
  figure.innerHTML = `<figcaption>${title}</figcaption><div class="plot"></div><div class="values"></div>`;
  const plot = figure.querySelector('.plot');
  const under = (event) => thresholdAt(event.clientX - plot.getBoundingClientRect().left, plot.clientWidth);
  plot.addEventListener('pointermove', (event) => hover(under(event)));
  plot.addEventListener('pointerleave', () => hover(null));
  plot.addEventListener('click', (event) => pick(under(event)));
  new ResizeObserver(redraw).observe(plot);
  find('charts').append(figure);
};

const drawChart = (figure, chart, curve, marks, index) => {
  const plot = figure.querySelector('.plot');
  plot.innerHTML = chartMarkup(chart, curve, marks, index, plot.clientWidth);
  figure.querySelector('.values').innerHTML = legendMarkup(chart, curve, index);
};

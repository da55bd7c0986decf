// From the page's blobs to maps, boxes and masks on the canvas: the protocol of evaluation/boxes.py
// and localization/maps.py once more, so that the threshold can move.

const HIT = 0.5;

/** Bytes of a script element: base64 of deflated (zlib) data. */
const unpack = async (id) => {
  const text = document.getElementById(id).textContent;
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Response(stream).arrayBuffer();
};

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** Weights of four neighbours at a fraction of a pixel beyond the second: OpenCV's INTER_CUBIC. */
const cubicWeights = (x) => {
  const a = -0.75;
  const outer = (d) => ((a * d - 5 * a) * d + 8 * a) * d - 4 * a;
  const inner = (d) => ((a + 2) * d - (a + 3)) * d * d + 1;
  const first = [outer(x + 1), inner(x), inner(1 - x)];
  return [...first, 1 - first[0] - first[1] - first[2]];
};

/** [to] of {places, weights}: which of `from` pixels make each new one; half-pixel centres. */
const taps = (from, to) => Array.from({ length: to }, (_, i) => {
  const x = ((i + 0.5) * from) / to - 0.5;
  const base = Math.floor(x);
  const places = [-1, 0, 1, 2].map((d) => clamp(base + d, 0, from - 1));
  return { places, weights: cubicWeights(x - base) };
});

/** Bicubic resize of a map [height, width] to [size, size]. */
const resize = (map, width, height, size) => {
  const [columns, rows] = [taps(width, size), taps(height, size)];
  const wide = new Float64Array(height * size);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < size; x += 1) {
      const { places: p, weights: w } = columns[x];
      const at = y * width;
      wide[y * size + x] = map[at + p[0]] * w[0] + map[at + p[1]] * w[1]
        + map[at + p[2]] * w[2] + map[at + p[3]] * w[3];
    }
  }
  const resized = new Float64Array(size * size);
  for (let y = 0; y < size; y += 1) {
    const { places, weights: w } = rows[y];
    const [a, b, c, d] = places.map((p) => p * size);
    for (let x = 0; x < size; x += 1) {
      resized[y * size + x] = wide[a + x] * w[0] + wide[b + x] * w[1]
        + wide[c + x] * w[2] + wide[d + x] * w[3];
    }
  }
  return resized;
};

/** Levels [size, size] in 0..255 of a map, not rounded; zeros if it is constant. */
const levelsOf = (map, width, height, size) => {
  const levels = resize(map, width, height, size);
  let [low, high] = [Infinity, -Infinity];
  for (const value of levels) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const scale = high > low ? 255 / (high - low) : 0;
  return levels.map((value) => (value - low) * scale);
};

/** The level from which on a pixel counts: boxes compare whole grey values, masks the scores. */
const boundOf = (levels, threshold, masked) => {
  if (masked) return threshold * 255;
  const highest = levels.some((value) => value > 0) ? 255 : 0;
  return Math.trunc(threshold * highest) + 1;
};

const areaOf = ([x0, y0, x1, y1]) => (x1 - x0 + 1) * (y1 - y0 + 1);

/** Intersection over union of two boxes, both ends inclusive (+1 pixel). */
const boxOverlap = (a, b) => {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]) + 1;
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]) + 1;
  const both = Math.max(width, 0) * Math.max(height, 0);
  return both / (areaOf(a) + areaOf(b) - both);
};

/** What one (method, layer) says of all images. */
const unpackKey = async (facts, index) => {
  const coordinates = facts.size < 256 ? Uint8Array : Uint16Array;
  const masked = facts.images.some((image) => image.masked);
  const [maps, boxes, overlaps] = await Promise.all(
    [`maps-${index}`, `boxes-${index}`, ...(masked ? [`overlaps-${index}`] : [])].map(unpack),
  );
  return {
    shape: facts.keys[index].slice(2),
    maps: new Uint8Array(maps),
    boxes: new coordinates(boxes),
    overlaps: masked ? new Uint8Array(overlaps) : null,
  };
};

/** The box of image i and its map k at a step of the slider. */
const boxAt = (facts, key, i, k, step) => {
  const line = (i * facts.classes + k) * 4 * facts.steps + step;
  return [0, 1, 2, 3].map((c) => key.boxes[line + c * facts.steps]);
};

/** IoU of image i with its ground truth; null where it has none. */
const overlapAt = (facts, key, i, k, step) => {
  const { boxes, masked } = facts.images[i];
  if (masked) return key.overlaps[(i * facts.classes + k) * facts.steps + step] / 100;
  if (!boxes.length) return null;
  const box = boxAt(facts, key, i, k, step);
  return Math.max(...boxes.map((truth) => boxOverlap(box, truth)));
};

/** Levels of map k of image i on the canvas. */
const levelsAt = (facts, key, i, k) => {
  const [height, width] = key.shape;
  const start = (i * facts.classes + k) * height * width;
  return levelsOf(key.maps.subarray(start, start + height * width), width, height, facts.size);
};

const rgba = (red, green, blue, alpha) =>
  ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

/** {view: [below, above]}: the colour of each level, below the threshold and from there on. */
const paletteOf = (colors) => {
  const tinted = (alpha) => Uint32Array.from({ length: 256 }, (_, v) => rgba(...colors.slice(3 * v, 3 * v + 3), alpha));
  const plain = (alpha) => new Uint32Array(256).fill(rgba(0, 0, 0, alpha));
  return {
    map: [tinted(90), tinted(170)],
    mask: [plain(190), plain(0)],
    image: [plain(0), plain(0)],
  };
};

const EDGE = rgba(0xe6, 0x9f, 0x00, 255);

/** Whether a pixel of the mask is one of the outer two of its row or column. */
const isEdge = (levels, bound, i, width) => {
  const x = i % width;
  // Beyond the first and the last row there is `undefined`, which is not below the bound.
  return (x > 0 && levels[i - 1] < bound) || (x > 1 && levels[i - 2] < bound)
    || (x < width - 1 && levels[i + 1] < bound) || (x < width - 2 && levels[i + 2] < bound)
    || levels[i - width] < bound || levels[i - 2 * width] < bound
    || levels[i + width] < bound || levels[i + 2 * width] < bound;
};

/** Paints levels on a canvas; with the edge of the mask where `edged`. */
const paint = (canvas, levels, bound, [below, above], edged) => {
  const { width, height } = canvas;
  const context = canvas.getContext('2d');
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i += 1) {
    pixels[i] = (levels[i] >= bound ? above : below)[levels[i] | 0];
  }
  if (edged) {
    for (let i = 0; i < pixels.length; i += 1) {
      if (levels[i] >= bound && isEdge(levels, bound, i, width)) pixels[i] = EDGE;
    }
  }
  context.putImageData(image, 0, 0);
};

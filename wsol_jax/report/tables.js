// Short names for what every page asks of its document, and tables that are sorted by their heads.

const find = (id) => document.getElementById(id);
const read = (id) => JSON.parse(find(id)?.textContent ?? 'null');
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const listen = (id, kind, act) => find(id)?.addEventListener(kind, act);

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

all('thead button').forEach((button) => button.addEventListener('click', () => sortBy(button.closest('th'))));

// Cards of images: the arrow keys go from one to the next, they are painted when they are seen, and
// one at a time is shown large.

const cards = all('#cards > li');
const deck = { current: cards[0], visible: new Set() };

const indexOf = (card) => Number(card.dataset.index);
const shownCards = () => all('#cards > li:not([hidden])');

/** One card is reached by Tab; the arrow keys go on from it. */
const rove = (card) => {
  deck.current?.querySelector('button').setAttribute('tabindex', '-1');
  deck.current = card;
  card?.querySelector('button').setAttribute('tabindex', '0');
};

/** After some cards were hidden or shown. */
const roveShown = () => rove(deck.current && !deck.current.hidden ? deck.current : shownCards()[0]);

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
  deck.current.querySelector('button').focus();
};

/**
 * Starts the gallery. `paint(picture, i)` draws over image i, in a card or large; `tell(card)` is
 * what the large view says of it; a card is opened while `ready()`.
 */
const startCards = (paint, tell, ready = () => true) => {
  const showLarge = (card) => {
    rove(card);
    const picture = card.querySelector('.view').cloneNode(true);
    find('large-picture').replaceChildren(picture);
    paint(picture, indexOf(card));
    find('large-title').textContent = card.querySelector('.name').textContent;
    find('large-text').textContent = tell(card);
  };
  const turn = (by) => {
    const shown = shownCards();
    showLarge(shown[shown.indexOf(deck.current) + by] ?? deck.current);
  };
  const observer = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
    deck.visible[isIntersecting ? 'add' : 'delete'](target);
    if (isIntersecting && !target.hidden && ready()) paint(target, indexOf(target));
  }), { rootMargin: '200px' });
  cards.forEach((card) => observer.observe(card));
  listen('cards', 'keydown', moveFocus);
  listen('cards', 'click', (event) => {
    const card = event.target.closest('li');
    if (!card || !ready()) return;
    showLarge(card);
    find('large').showModal();
  });
  listen('large', 'keydown', (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) turn(by);
  });
  listen('large', 'close', () => deck.current.querySelector('button').focus());
  listen('close', 'click', () => find('large').close());
  listen('previous', 'click', () => turn(-1));
  listen('next', 'click', () => turn(1));
};

// Which view is shown, in which colours, alone or among the others.

import {$} from './dom.js';
import {openLab, start} from './lab.js';
import * as instruction from './instruction.js';
import * as machine from './machine.js';
import * as photograph from './photograph.js';
import * as pixel from './pixel.js';
import * as range from './range.js';

const VIEWS = {photograph, pixel, instruction, range, machine};
const options = new URLSearchParams(location.search);

function showView() {
  const wanted = [location.hash.slice(1), options.get('view'), 'photograph'].find(name => name in VIEWS);
  for (const name in VIEWS) $(name).hidden = name !== wanted;
  for (const link of document.querySelectorAll('nav a'))
    link.toggleAttribute('aria-current', link.hash === `#${wanted}`);
  $('start').hidden = wanted === 'instruction'; // it needs no network
}

const page = document.documentElement, book = frameElement?.ownerDocument.documentElement;

// In the book it has the book's colours, and as much room as there is to see. Else the reader's colours.
function settle() {
  const dark = matchMedia('(prefers-color-scheme: dark)'), reader = () => dark.matches ? 'dark' : 'light';
  const take = () => { page.dataset.theme = options.get('theme') ?? book?.dataset.theme ?? reader(); };
  take();
  dark.addEventListener('change', take);
  page.classList.toggle('embed', options.has('embed'));
  if (!book) return;
  new MutationObserver(take).observe(book, {attributeFilter: ['data-theme']});
  new ResizeObserver(() => { frameElement.style.height = `${page.offsetHeight + 2}px`; }).observe(page);
}

if (globalThis.WebAssembly) { // else the sentence and the picture stay
  settle();
  $('fallback').remove();
  $('page').hidden = false;
  for (const name in VIEWS) VIEWS[name].setUp();
  addEventListener('hashchange', showView);
  showView();
  for (const precision of ['int8', 'fp32']) $(`start-${precision}`).onclick = () => start(precision);
  openLab();
}

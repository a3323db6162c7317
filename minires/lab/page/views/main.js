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

// In the book it has the book's colours, else the reader's.
function takeColours() {
  const dark = matchMedia('(prefers-color-scheme: dark)'), reader = () => dark.matches ? 'dark' : 'light';
  const take = () => { page.dataset.theme = options.get('theme') ?? book?.dataset.theme ?? reader(); };
  dark.addEventListener('change', take);
  if (book) new MutationObserver(take).observe(book, {attributeFilter: ['data-theme']});
  take();
}

// A chapter has room for as much as there is to see.
function takeRoom() {
  page.classList.toggle('embed', options.has('embed'));
  if (book) new ResizeObserver(() => { frameElement.style.height = `${page.offsetHeight + 2}px`; }).observe(page);
}

if (globalThis.WebAssembly) { // else the sentence and the picture stay
  takeColours();
  takeRoom();
  $('fallback').remove();
  $('page').hidden = false;
  for (const name in VIEWS) VIEWS[name].setUp();
  addEventListener('hashchange', showView);
  showView();
  for (const precision of ['int8', 'fp32']) $(`start-${precision}`).onclick = () => start(precision);
  openLab();
}

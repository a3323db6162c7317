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

function takeColours() {
  const dark = matchMedia('(prefers-color-scheme: dark)'), {classList, dataset} = document.documentElement;
  const take = () => { dataset.theme = options.get('theme') ?? (dark.matches ? 'dark' : 'light'); };
  dark.addEventListener('change', take);
  take();
  classList.toggle('embed', options.has('embed'));
}

if (globalThis.WebAssembly) { // else the sentence and the picture stay
  takeColours();
  $('fallback').remove();
  $('page').hidden = false;
  for (const name in VIEWS) VIEWS[name].setUp();
  addEventListener('hashchange', showView);
  showView();
  for (const precision of ['int8', 'fp32']) $(`start-${precision}`).onclick = () => start(precision);
  openLab();
}

// Which view is shown, and what can go wrong before there is one.

import {$} from './dom.js';
import {complain, lab, start} from './lab.js';

const VIEWS = ['photograph', 'pixel', 'instruction', 'range', 'machine'];
const options = new URLSearchParams(location.search);

function showView() {
  const wanted = [location.hash.slice(1), options.get('view')].find(name => VIEWS.includes(name));
  for (const name of VIEWS) $(name).hidden = name !== (wanted ?? VIEWS[0]);
  for (const link of document.querySelectorAll('nav a'))
    link.toggleAttribute('aria-current', link.hash === `#${wanted ?? VIEWS[0]}`);
  $('start').hidden = wanted === 'instruction'; // it needs no network
}

function takeColours() {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const take = () => { document.documentElement.dataset.theme = options.get('theme') ?? (dark.matches ? 'dark' : 'light'); };
  dark.addEventListener('change', take);
  take();
}

async function open() {
  takeColours();
  if (options.get('embed')) document.documentElement.classList.add('embed');
  if (!globalThis.WebAssembly) return; // the sentence and the picture stay
  const views = await Promise.all(VIEWS.map(name => import(`./${name}.js`)));
  $('fallback').remove();
  $('page').hidden = false;
  views.forEach(view => view.setUp());
  addEventListener('hashchange', showView);
  showView();
  for (const precision of ['int8', 'fp32']) $(`start-${precision}`).onclick = () => start(precision);
  addEventListener('unhandledrejection', event => complain(event.reason));
  lab.ready = true;
}

open();

// The table of the sessions of one stream, updated in place.

import { api, bits, delayText, duration, isDelayed, isLimited } from './api.js';
import { arrange, button, element, setText } from './page.js';

const COLUMNS = [
  ['Role'], ['State'], ['Duration'], ['Layer'], ['Received', 'Bitrate that arrives at the viewer, as reported by its RTCP feedback'],
  ['Limit', 'Why the viewer is sent less than the best quality'], ['RTT', 'Round-trip time'],
  ['Loss', 'Packets that were lost on the way to the viewer'],
  ['Delay', 'Delay of the viewer: from capture to the gateway + in the gateway + network + player; ? is not known'],
  ['Client'], ['Action'],
];

/** Returns what a viewer is sent of the video, such as `f, 720p`. */
function videoText({ layer: rid, video }, layers) {
  const names = { reference_frames: 'fewer frames', key_frames: 'key frames only', none: 'audio only' };
  if (video === 'none') return names.none;
  const layer = layers?.find((layer) => layer.rid === rid);
  return [rid, layer?.height && `${layer.height}p`, names[video]].filter(Boolean).join(', ');
}

const alarmText = (alarm) => (alarm === 'high' ? 'The delay is high' : 'The delay has risen above its minimum');

const milliseconds = (seconds) => `${Math.round(seconds * 1000)} ms`;

class Row {
  node;
  #cells = COLUMNS.map(() => element('td'));

  constructor({ id, role }, onEnd) {
    const label = `End session of ${role} ${id}`;
    this.#cells.at(-1).append(button('End session', () => api(`sessions/${id}`, { method: 'DELETE' }).then(onEnd, onEnd), label));
    this.node = element('tr', {}, ...this.#cells);
  }

  update(session, layers) {
    const { role, state, cause, explanation, seconds, address, client, quality, delay } = session;
    const known = state === 'ended' ? null : quality;
    const texts = [
      role, cause ?? state, duration(seconds), (known && videoText(known, layers)) || '–',
      known?.received_bitrate == null ? '–' : bits(known.received_bitrate), isLimited(session) ? 'bandwidth' : '–',
      known?.rtt == null ? '–' : milliseconds(known.rtt), known?.loss == null ? '–' : `${(known.loss * 100).toFixed(1)} %`,
      (known && delayText(delay)) || '–',
      [address, client?.slice(0, 40)].filter(Boolean).join(' '),
    ];
    texts.forEach((text, index) => setText(this.#cells[index], text));
    this.#cells[1].title = explanation ?? '';
    this.#cells[5].classList.toggle('limited', isLimited(session));
    this.#cells[8].classList.toggle('limited', isDelayed(session));
    this.#cells[8].title = isDelayed(session) ? alarmText(delay.alarm) : '';
    this.#cells.at(-1).firstChild.hidden = state === 'ended';
  }
}

export class SessionTable {
  node;
  #body = element('tbody');
  #rows = new Map();
  #onEnd;

  /** `onEnd` is called after a session was ended. */
  constructor(name, onEnd) {
    this.#onEnd = onEnd;
    const head = COLUMNS.map(([text, title]) => element('th', { scope: 'col', ...(title && { title }) }, text));
    const table = element('table', {}, element('thead', {}, element('tr', {}, ...head)), this.#body);
    this.node = element('div', { class: 'scrolls', tabindex: '0', role: 'region', 'aria-label': `Sessions of ${name}` }, table);
  }

  update(sessions, layers) {
    const rows = new Map();
    for (const session of sessions) {
      const row = this.#rows.get(session.id) ?? new Row(session, this.#onEnd);
      row.update(session, layers);
      rows.set(session.id, row);
    }
    this.#rows = rows;
    arrange(this.#body, [...rows.values()].map(({ node }) => node));
  }
}

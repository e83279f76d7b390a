// The card of one stream on the dashboard, updated in place.

import { api, bits, embedCode, facts, isDelayed, isFaulty, isLimited, stateText, totalBitrate } from './api.js';
import { Chart } from './chart.js';
import { button, copyButton, element, setText, showWarnings } from './page.js';
import { SessionTable } from './session-table.js';

/** Number of points of a sparkline: two minutes. */
const POINTS = 60;

function audience({ viewers, hls_viewers: hlsViewers }) {
  return hlsViewers ? `${viewers + hlsViewers}, of which ${hlsViewers} over HLS` : String(viewers);
}

/**
 * Returns how many viewers are sent less than the best, and how many have a delay that is high or has risen. `isPartial`: there
 * are more sessions than these.
 */
function limitedText(sessions, isPartial) {
  const counts = [[isLimited, 'limited by bandwidth'], [isDelayed, 'delayed']];
  const texts = counts.map(([isCounted, text]) => [sessions.filter(isCounted).length, text]).filter(([count]) => count > 0);
  return texts.map(([count, text]) => `${isPartial ? 'at least ' : ''}${count} ${text}`).join(', ');
}

export class StreamCard {
  node;
  #name;
  #refresh;
  #isExpanded = false;
  #last = null;
  #parts = {};
  #charts = {
    viewers: new Chart('Viewers', String, POINTS, 'measure'),
    bitrate: new Chart('Bitrate', bits, POINTS, 'measure'),
    delay: new Chart('Capture delay', (delay) => `${delay} ms`, POINTS, 'measure'),
  };
  #sessions;

  /** `refresh` is called after the card has changed something at the gateway. */
  constructor(name, refresh) {
    [this.#name, this.#refresh] = [name, refresh];
    this.#sessions = new SessionTable(name, refresh);
    const parts = {
      thumb: element('img', { class: 'thumb', alt: `Snapshot of ${name}`, 'data-stream': name, hidden: '' }),
      state: element('span', { class: 'state' }),
      facts: element('p', { class: 'quiet' }),
      problem: element('p', { class: 'problem' }),
      limited: element('p', { class: 'limited', title: 'Viewers whose bandwidth is too low for the best quality, or whose delay is high or has risen' }),
      warnings: element('ul', { class: 'warnings' }),
      measures: element('div', { class: 'measures' }, ...Object.values(this.#charts).map(({ node }) => node)),
      toggle: button('', () => this.#toggle()),
      publish: element('a', { class: 'button small', href: `/publish/${name}` }, 'Publish'),
      server: copyButton('Copy OBS server URL', () => `${location.origin}/whip/${name}`, `Copy OBS server URL: ${name}`),
      source: button('', () => this.#switchSource()),
    };
    this.#charts.delay.node.title = 'Time from the capture of a frame to its arrival at the gateway';
    this.#parts = parts;
    this.node = element('article', { class: 'stream', 'aria-label': name },
      element('a', { class: 'screenshot', href: `/streams/${name}`, tabindex: '-1', 'aria-hidden': 'true' }, parts.thumb),
      element('h3', {},
        element('span', { class: 'dot', 'aria-hidden': 'true' }), element('a', { href: `/streams/${name}` }, name), ' ',
        parts.state),
      parts.facts, parts.problem,
      parts.measures,
      parts.limited, parts.warnings, this.#sessions.node,
      element('div', { class: 'row' },
        element('a', { class: 'button small', href: `/watch/${name}` }, 'Watch'), parts.publish, parts.server,
        copyButton('Copy embed code', () => embedCode(name), `Copy embed code: ${name}`), parts.source, parts.toggle));
  }

  /** Takes the stream and its sessions. `isPartial`: there are more sessions than these. */
  update(stream, sessions, isPartial) {
    this.#last = { stream, sessions, isPartial };
    const { live, stalled, source, video, warnings, layers } = stream;
    const { state, facts: facts_, problem, limited, warnings: list, publish, server } = this.#parts;
    Object.assign(this.node.dataset, { live, stalled, fault: isFaulty(stream) });
    setText(state, stateText(stream));
    setText(facts_, facts(stream));
    const error = live ? '' : source?.last_error ?? '';
    setText(problem, error);
    problem.hidden = !error;
    const text = limitedText(sessions, isPartial);
    setText(limited, text);
    limited.hidden = !text;
    this.#updateCharts(stream, video);
    // There is nothing to see before somebody comes.
    this.#parts.measures.hidden = !live && stream.viewers + stream.hls_viewers === 0;
    showWarnings(list, warnings);
    // What is pulled from a source has no other publisher.
    publish.hidden = server.hidden = Boolean(source);
    this.#updateSource(source);
    this.#updateSessions(sessions, layers);
  }

  #updateCharts(stream, video) {
    const delay = video?.delay == null ? null : Math.round(video.delay * 1000);
    this.#charts.viewers.push(stream.viewers + stream.hls_viewers, audience(stream));
    this.#charts.bitrate.push(totalBitrate(stream));
    this.#charts.delay.push(delay);
    this.#charts.delay.node.hidden = delay === null;
  }

  #updateSource(source) {
    const { source: button } = this.#parts;
    button.hidden = !source;
    if (!source) return;
    const verb = source.state === 'stopped' ? 'Start' : 'Stop';
    setText(button, `${verb} source`);
    button.setAttribute('aria-label', `${verb} source: ${this.#name}`);
  }

  #switchSource() {
    const isStopped = this.#last?.stream.source?.state === 'stopped';
    api(`sources/${isStopped ? 'start' : 'stop'}/${this.#name}`, { method: 'POST' }).then(this.#refresh, this.#refresh);
  }

  #toggle() {
    this.#isExpanded = !this.#isExpanded;
    const { sessions, stream } = this.#last;
    this.#updateSessions(sessions, stream.layers);
  }

  #updateSessions(sessions, layers) {
    const { toggle } = this.#parts;
    const count = `${sessions.length} ${sessions.length === 1 ? 'session' : 'sessions'}`;
    setText(toggle, count);
    toggle.setAttribute('aria-label', `${count}: ${this.#name}`);
    toggle.setAttribute('aria-expanded', String(this.#isExpanded));
    toggle.hidden = sessions.length === 0;
    const isShown = this.#isExpanded && sessions.length > 0;
    this.#sessions.node.hidden = !isShown;
    this.node.classList.toggle('expanded', isShown);
    if (isShown) this.#sessions.update(sessions, layers);
  }

  /** Shows a snapshot. */
  showThumbnail(url) {
    Object.assign(this.#parts.thumb, { src: url, hidden: false });
  }

  hideThumbnail() {
    this.#parts.thumb.hidden = true;
  }
}

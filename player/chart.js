// A line chart of the last minutes, drawn again in place.

import { element, setText } from './page.js';

const SVG = 'http://www.w3.org/2000/svg';
/** Size of the drawing in its own units; it is stretched to the size on the page. */
const [WIDTH, HEIGHT] = [300, 60];

export class Chart {
  node;
  #title;
  #format;
  #points;
  #values = [];
  #path = document.createElementNS(SVG, 'path');
  #svg = document.createElementNS(SVG, 'svg');
  #now;
  #highest;

  /** `format` writes a value; `points` is the number of values that are shown. */
  constructor(title, format, points, name = 'chart') {
    [this.#title, this.#format, this.#points] = [title, format, points];
    this.#svg.setAttribute('viewBox', `0 -1 ${WIDTH} ${HEIGHT + 2}`);
    this.#svg.setAttribute('preserveAspectRatio', 'none');
    this.#svg.setAttribute('role', 'img');
    this.#path.setAttribute('vector-effect', 'non-scaling-stroke');
    this.#svg.append(this.#path);
    this.#now = element('span', { class: 'now' });
    this.#highest = element('span', { class: 'quiet highest' });
    this.node = element('div', { class: name }, element('span', { class: 'quiet' }, title), this.#now, this.#highest, this.#svg);
  }

  /** Adds a value; null where there is none. */
  push(value, text = value === null ? '–' : this.#format(value)) {
    this.#values = [...this.#values, value].slice(-this.#points);
    setText(this.#now, text);
    const known = this.#values.filter((value) => value !== null);
    const highest = known.length > 0 ? Math.max(...known) : null;
    setText(this.#highest, highest === null ? '' : `highest ${this.#format(highest)}`);
    this.#path.setAttribute('d', this.#line(highest || 1));
    this.#svg.setAttribute('aria-label', `${this.#title}, now ${text}`);
  }

  #line(highest) {
    const step = WIDTH / (this.#points - 1);
    const first = this.#points - this.#values.length;
    let isDown = false;
    return this.#values.map((value, index) => {
      if (value === null) {
        isDown = false;
        return '';
      }
      const [x, y] = [(first + index) * step, HEIGHT - (value / highest) * HEIGHT];
      const command = isDown ? 'L' : 'M';
      isDown = true;
      return `${command}${x.toFixed(1)} ${y.toFixed(1)}`;
    }).join('');
  }
}

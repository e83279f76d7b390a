// The panel of the player that shows statistics, and the button that copies them.

import { copyText } from './clipboard.js';
import { Statistics } from './statistics.js';

/** The button says for this time whether it has copied, in milliseconds. */
const CONFIRMATION_TIME = 1_500;

export class StatsPanel {
  #panel;
  #list;
  #statistics = new Statistics();
  #rows = [];

  /** Takes the panel, and the function that returns further rows for the copied text. */
  constructor(panel, moreRows) {
    this.#panel = panel;
    this.#list = panel.querySelector('dl');
    const button = panel.querySelector('button');
    button.addEventListener('click', async () => {
      const text = [...this.#rows, ...moreRows()].map(([name, value]) => `${name}: ${value}`).join('\n');
      const isCopied = await copyText(text);
      button.textContent = isCopied ? 'Copied' : 'Not copied';
      setTimeout(() => (button.textContent = 'Copy'), CONFIRMATION_TIME);
    });
  }

  /** Takes statistics: see `Statistics.update`. */
  update(now, isHls) {
    const rows = this.#statistics.update(now, isHls);
    if (!rows) return;
    this.#rows = rows;
    if (this.#panel.hidden) return;
    const terms = this.#list.children;
    // Nodes are kept, so that a selection is.
    if (terms.length !== rows.length * 2) {
      this.#list.replaceChildren(...rows.flatMap(() => [document.createElement('dt'), document.createElement('dd')]));
    }
    rows.flat().forEach((text, index) => {
      if (terms[index].textContent !== text) terms[index].textContent = text;
    });
  }
}

// What pages with the control API share: the form for the token, and updates at an interval and at events.

import { followEvents, hasToken, setToken } from './api.js';
import { byId } from './page.js';

/** Interval of updates, in milliseconds: bitrates have no events. */
const UPDATE_INTERVAL = 2_000;
/** Events within this time cause one update, in milliseconds. */
const EVENT_DELAY = 400;

export class ApiPage {
  #load;
  #timer = 0;
  #isLoading = false;
  #isRequested = false;
  #isEventPending = false;
  #abort = null;
  #onEvent;
  #onClosed;

  /**
   * `load` loads and shows everything; it resolves with the status of the API, 200 for success. `onEvent` is called for each
   * event of the gateway, `onClosed` when the API grants no access.
   */
  constructor(load, { onEvent = () => {}, onClosed = () => {} }) {
    [this.#load, this.#onEvent, this.#onClosed] = [load, onEvent, onClosed];
    byId('board-token').addEventListener('submit', (event) => {
      event.preventDefault();
      setToken(byId('api-token').value);
      this.update();
    });
    document.addEventListener('visibilitychange', () => document.hidden || this.#abort === null || this.update());
    if (hasToken()) this.update();
    else this.#askForToken(0);
  }

  /** Updates at once; an update that is under way is repeated. */
  update = async () => {
    clearTimeout(this.#timer);
    this.#isEventPending = false;
    this.#isRequested = true;
    if (this.#isLoading) return;
    this.#isLoading = true;
    let status = 0;
    while (this.#isRequested) {
      this.#isRequested = this.#isEventPending = false;
      status = await this.#load().catch(() => 0);
    }
    this.#isLoading = false;
    if (status === 401 || status === 403 || status === 429) return this.#askForToken(status);
    if (status === 0) byId('board-note').textContent = 'The gateway does not respond. This page keeps trying.';
    else this.#showContent();
    this.#schedule(document.hidden ? UPDATE_INTERVAL * 5 : UPDATE_INTERVAL);
  };

  #schedule(delay) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.update, delay);
  }

  #showContent() {
    byId('board-token').hidden = true;
    if (this.#abort) return;
    this.#abort = new AbortController();
    followEvents((name, data) => {
      this.#onEvent(name, data);
      if (this.#isLoading) this.#isRequested = true;
      else if (!this.#isEventPending) this.#schedule(EVENT_DELAY);
      this.#isEventPending = true;
    }, this.#abort.signal);
  }

  #askForToken(status) {
    this.#abort?.abort();
    this.#abort = null;
    byId('board-token').hidden = false;
    const texts = {
      0: '',
      429: 'The gateway rejects requests for now, after too many requests or wrong tokens: try again later.',
    };
    const refused = 'The API rejected the request: the token is wrong, or does not permit access.';
    byId('board-note').textContent = texts[status] ?? refused;
    this.#onClosed();
  }
}

// Talking to the camera of a stream: a button that sends the microphone to `/talk/NAME` while it is held, by pointer or
// keyboard. It is shown if the token permits that and the stream has a camera.

import { WhipClient } from './whip.js';

/** Timeout of the question whether talking is possible, in milliseconds. */
const REQUEST_TIMEOUT = 10_000;

const STATES = { connecting: 'Connecting to the camera…', live: 'Speak now', idle: '' };

/** Explains to the user why there is no microphone. */
function explainMicrophone({ name, message }) {
  if (name === 'NotAllowedError') return 'This page is not allowed to use the microphone: allow it with the icon in the address bar of the browser, then try again.';
  if (name === 'NotFoundError') return 'No microphone was found: connect one, and try again.';
  return `The microphone could not be opened: ${message}`;
}

/** A button in `box`, with a text for its state. `data-state` of the button is that of the session. */
export class TalkButton {
  #box;
  #button;
  #status;
  #endpoint;
  #token = '';
  #client = null;
  #microphone = null;
  #isHeld = false;
  /** Number of times that the button was pressed. */
  #presses = 0;

  constructor(box, stream) {
    this.#box = box;
    this.#button = box.querySelector('button');
    this.#status = box.querySelector('[role=status]');
    this.#endpoint = `/talk/${stream}`;
    const button = this.#button;
    button.addEventListener('pointerdown', (event) => {
      if (event.button !== 0) return;
      // The end is noticed wherever the pointer is by then.
      button.setPointerCapture(event.pointerId);
      this.#hold();
    });
    for (const end of ['pointerup', 'pointercancel', 'lostpointercapture', 'blur']) {
      button.addEventListener(end, () => this.release());
    }
    const isKey = ({ key }) => key === ' ' || key === 'Enter';
    button.addEventListener('keydown', (event) => {
      if (!isKey(event)) return;
      event.preventDefault();
      if (!event.repeat) this.#hold();
    });
    button.addEventListener('keyup', (event) => isKey(event) && this.release());
    // A long touch is no wish for a menu.
    button.addEventListener('contextmenu', (event) => event.preventDefault());
    addEventListener('pagehide', () => this.release());
  }

  /** Shows the button if this token permits to talk. Without a token nobody may. */
  async offer(token) {
    this.release();
    this.#token = token;
    this.#box.hidden = true;
    if (!token || !navigator.mediaDevices) return;
    const headers = { Authorization: `Bearer ${token}` };
    const asked = fetch(this.#endpoint, { headers, signal: AbortSignal.timeout(REQUEST_TIMEOUT) });
    const isPermitted = await asked.then(({ ok }) => ok, () => false);
    if (this.#token === token) this.#box.hidden = !isPermitted;
  }

  async #hold() {
    if (this.#isHeld) return;
    this.#isHeld = true;
    const press = ++this.#presses;
    const isOver = () => !this.#isHeld || press !== this.#presses;
    this.#button.setAttribute('aria-pressed', 'true');
    this.#show('connecting');
    let microphone;
    try {
      microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      if (isOver()) return;
      this.release();
      return this.#show('failed', explainMicrophone(error));
    }
    // The browser may have asked for longer than the button was held, and it may be held once more.
    if (isOver()) return microphone.getTracks().forEach((track) => track.stop());
    this.#microphone = microphone;
    const client = new WhipClient(this.#endpoint, microphone, { token: this.#token });
    this.#client = client;
    client.addEventListener('state', () => {
      if (this.#client === client) this.#show(client.state, client.reason?.message);
    });
    client.start();
  }

  release() {
    if (!this.#isHeld) return;
    this.#isHeld = false;
    this.#button.setAttribute('aria-pressed', 'false');
    const [client, microphone] = [this.#client, this.#microphone];
    this.#client = this.#microphone = null;
    client?.stop();
    microphone?.getTracks().forEach((track) => track.stop());
    this.#show('idle');
  }

  #show(state, problem = '') {
    this.#button.dataset.state = state;
    this.#status.textContent = STATES[state] ?? problem;
  }
}

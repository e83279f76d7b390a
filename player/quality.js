// The quality menu of the player: the layers of a client, a WhepClient or an HlsClient, of which the viewer may select one.

import { autoName, layerNames } from './messages.js';

/** Returns the layers of a client that can be selected, with their names. */
export function namedLayers(client) {
  const layers = (client?.layers ?? []).filter(({ bitrate }) => bitrate > 0);
  const names = layerNames(layers);
  return layers.map((layer, index) => ({ ...layer, name: names[index] }));
}

export class QualityMenu {
  #select;
  /** The client whose layers the menu shows. */
  #client = null;
  /** The layer that the viewer selected, with the client that offered it: `{ client, rid, name }`; null for none. */
  #selectedLayer = null;
  /** The last selection that was sent to each client, and its session. */
  #sentSelections = new WeakMap();

  /** Takes the `<select>`; `onSelect` is called after the viewer has selected something. */
  constructor(select, onSelect) {
    this.#select = select;
    select.addEventListener('change', () => {
      const name = select.selectedOptions[0]?.text;
      this.#selectedLayer = select.value ? { client: this.#client, rid: select.value, name } : null;
      this.#sendSelection();
      onSelect();
    });
  }

  /** Whether a layer is selected that exists. */
  get isSelected() {
    return this.#select.value !== '';
  }

  /** Shows the layers of this client; returns their number. A selected layer stays selected while it exists, in any client. */
  update(client) {
    this.#client = client;
    const select = this.#select;
    const layers = namedLayers(client);
    const selected = this.#selectedLayer;
    select.replaceChildren(new Option(autoName(), ''), ...layers.map(({ rid, name }) => new Option(name, rid)));
    // The client that offered the layer knows its rid, even if its size changes; the other client only has the name.
    const found = layers.find(({ rid, name }) => (selected?.client === client ? rid === selected.rid : name === selected?.name));
    if (found && selected.client === client) selected.name = found.name;
    select.value = found?.rid ?? '';
    select.hidden = layers.length < 2;
    if (!selected || found) this.#sendSelection();
    return layers.length;
  }

  /** Says which layer automatic selection shows. Returns the name of the layer that is shown; undefined if unknown. */
  updateShown() {
    const layers = namedLayers(this.#client);
    const shown = layers.length > 1 ? layers.find(({ rid }) => rid === this.#client.quality?.layer)?.name : undefined;
    // The menu may be open, so its entry stays.
    const [automatic] = this.#select.options;
    if (automatic) automatic.text = autoName(this.isSelected ? undefined : shown);
    return shown;
  }

  /** Sends the selection to a client or session that does not have it yet. */
  async #sendSelection() {
    const [client, rid] = [this.#client, this.#select.value];
    if (!client || client.layers.length === 0) return;
    const session = client.sessions ?? 0;
    const last = this.#sentSelections.get(client);
    if ((last?.session === session ? last.rid : '') === rid) return;
    const selection = { session, rid };
    this.#sentSelections.set(client, selection);
    const accepted = await client.choose(rid);
    if (!accepted && this.#sentSelections.get(client) === selection) this.#sentSelections.delete(client);
  }
}

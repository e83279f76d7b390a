// A minimal TURN client (RFC 8656; RFC 6062 for TCP) that requests what a relay should refuse.

import { createHash, createHmac, randomBytes } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { connect } from 'node:net';

const COOKIE = 0x2112a442;
/** Message types (RFC 8656 §18): requests, whose responses have one more bit set, and indications. */
const ALLOCATE = 0x003;
const REFRESH = 0x004;
const SEND = 0x016;
const DATA = 0x017;
const CREATE_PERMISSION = 0x008;
const SUCCESS = 0x100;
/** Attributes (RFC 8489 §18.3, RFC 8656 §18). */
const USERNAME = 0x0006;
const MESSAGE_INTEGRITY = 0x0008;
const ERROR_CODE = 0x0009;
const LIFETIME = 0x000d;
const XOR_PEER_ADDRESS = 0x0012;
const DATA_ATTRIBUTE = 0x0013;
const REALM = 0x0014;
const NONCE = 0x0015;
const REQUESTED_TRANSPORT = 0x0019;

export const UDP = 17;
export const TCP = 6;

const RETRANSMIT_AFTER = 500;
const MAX_ATTEMPTS = 20;

function attribute(type, value) {
  const head = Buffer.alloc(4);
  head.writeUInt16BE(type, 0);
  head.writeUInt16BE(value.length, 2);
  return Buffer.concat([head, value, Buffer.alloc(-value.length & 3)]);
}

function message(type, transaction, attributes, length = attributes.length) {
  const head = Buffer.alloc(8);
  head.writeUInt16BE(type, 0);
  head.writeUInt16BE(length, 2);
  head.writeUInt32BE(COOKIE, 4);
  return Buffer.concat([head, transaction, attributes]);
}

function number(value) {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
}

/** XOR-PEER-ADDRESS of an IPv4 address. */
function peerAddress(address, port) {
  const bytes = Buffer.from([0, 1, 0, 0, ...address.split('.').map(Number)]);
  bytes.writeUInt16BE(port ^ (COOKIE >>> 16), 2);
  bytes.writeUInt32BE((bytes.readUInt32BE(4) ^ COOKIE) >>> 0, 4);
  return attribute(XOR_PEER_ADDRESS, bytes);
}

function read(bytes) {
  const attributes = new Map();
  for (let at = 20; at + 4 <= bytes.length; ) {
    const length = bytes.readUInt16BE(at + 2);
    attributes.set(bytes.readUInt16BE(at), bytes.subarray(at + 4, at + 4 + length));
    at += 4 + length + (-length & 3);
  }
  return { type: bytes.readUInt16BE(0), transaction: bytes.toString('hex', 8, 20), attributes };
}

/** A UDP transport to a TURN server. */
function dialUdp(host, port, take) {
  const socket = createSocket('udp4');
  socket.on('message', take);
  return { send: (bytes) => socket.send(bytes, port, host), close: () => socket.close() };
}

function dialTcp(host, port, take) {
  const socket = connect(port, host);
  let received = Buffer.alloc(0);
  socket.on('error', () => {});
  socket.on('data', (bytes) => {
    received = Buffer.concat([received, bytes]);
    while (received.length >= 20 && received.length >= 20 + received.readUInt16BE(2)) {
      const end = 20 + received.readUInt16BE(2);
      take(received.subarray(0, end));
      received = received.subarray(end);
    }
  });
  return { send: (bytes) => socket.write(bytes), close: () => socket.destroy() };
}

/** A TURN client. Requests resolve with `ok` or the error code. */
export class Relay {
  /** Payloads received through the relay, as text. */
  received = [];

  #transport;
  #credentials;
  #realm = '';
  #nonce = '';
  #pending = new Map();

  /** `by` is the transport to the server: `udp` or `tcp`. */
  constructor({ host, port, username, password, by = 'udp' }) {
    this.#credentials = { username, password };
    const take = (bytes) => this.#onMessage(bytes);
    this.#transport = by === 'tcp' ? dialTcp(host, port, take) : dialUdp(host, port, take);
  }

  close() {
    this.#transport.close();
  }

  #onMessage(bytes) {
    const answer = read(bytes);
    if (answer.type === DATA) {
      this.received.push(answer.attributes.get(DATA_ATTRIBUTE)?.toString() ?? '');
    }
    this.#pending.get(answer.transaction)?.(answer);
  }

  /** Requests a relayed address for this protocol. */
  allocate(transport = UDP) {
    return this.#request(ALLOCATE, [attribute(REQUESTED_TRANSPORT, Buffer.from([transport, 0, 0, 0]))]);
  }

  /** Refreshes the allocation. */
  refresh() {
    return this.#request(REFRESH, [attribute(LIFETIME, number(600))]);
  }

  /** Requests a permission for a peer. */
  permit(address) {
    return this.#request(CREATE_PERMISSION, [peerAddress(address, 0)]);
  }

  /** Sends to a peer, permitted or not. */
  send(address, port, text) {
    const attributes = Buffer.concat([peerAddress(address, port), attribute(DATA_ATTRIBUTE, Buffer.from(text))]);
    this.#transport.send(message(SEND, randomBytes(12), attributes));
  }

  async #request(method, attributes) {
    for (;;) {
      const answer = await this.#exchange(method, attributes);
      if (answer.type === (method | SUCCESS)) return 'ok';
      const code = answer.attributes.get(ERROR_CODE);
      const error = code ? code[2] * 100 + code[3] : 0;
      const nonce = answer.attributes.get(NONCE)?.toString() ?? '';
      // 401 names the realm and the nonce, 438 another nonce (RFC 8489 §9.2.4); a second 401 is a refusal.
      const isFirst = (error === 401 && !this.#nonce) || error === 438;
      if (!isFirst || !nonce) return error;
      this.#nonce = nonce;
      this.#realm = answer.attributes.get(REALM)?.toString() ?? this.#realm;
    }
  }

  async #exchange(method, attributes) {
    const transaction = randomBytes(12);
    const answered = new Promise((resolve) => this.#pending.set(transaction.toString('hex'), resolve));
    const request = this.#signed(method, transaction, Buffer.concat(attributes));
    try {
      for (let attempts = 0; attempts < MAX_ATTEMPTS; attempts += 1) {
        this.#transport.send(request);
        const late = new Promise((resolve) => setTimeout(resolve, RETRANSMIT_AFTER));
        const answer = await Promise.race([answered, late]);
        if (answer) return answer;
      }
    } finally {
      this.#pending.delete(transaction.toString('hex'));
    }
    throw new Error('the relay does not answer');
  }

  /** Signs with long-term credentials (RFC 8489 §9.2) once the realm is known. */
  #signed(type, transaction, attributes) {
    if (!this.#nonce) return message(type, transaction, attributes);
    const { username, password } = this.#credentials;
    const all = Buffer.concat([
      attributes,
      attribute(USERNAME, Buffer.from(username)),
      attribute(REALM, Buffer.from(this.#realm)),
      attribute(NONCE, Buffer.from(this.#nonce)),
    ]);
    const key = createHash('md5').update(`${username}:${this.#realm}:${password}`).digest();
    const covered = message(type, transaction, all, all.length + 24);
    return Buffer.concat([covered, attribute(MESSAGE_INTEGRITY, createHmac('sha1', key).update(covered).digest())]);
  }
}

/** Returns credentials that expire in `seconds`, for a relay that shares the secret (coturn: `use-auth-secret`). */
export function credentials(secret, seconds, name) {
  const username = `${Math.floor(Date.now() / 1_000) + seconds}${name ? `:${name}` : ''}`;
  return { username, password: createHmac('sha1', secret).update(username).digest('base64') };
}

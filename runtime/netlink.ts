/** Netlink: messages to and from the kernel's network stack, and the attributes that they are made of. @see netlink(7) */
import { close, SyscallError, syscall, trySyscall } from "./syscall.ts";
import { EAGAIN, EINTR, ENOENT, SOCK_CLOEXEC } from "./linux.ts";

export const NETLINK_ROUTE = 0;
export const NETLINK_NETFILTER = 12;
export const AF_NETLINK = 16;
export const SOCK_RAW = 3;
const SOL_NETLINK = 270;
const NETLINK_CAP_ACK = 10;
const NETLINK_EXT_ACK = 11;
const MSG_DONTWAIT = 0x40;

export const NLM_F_REQUEST = 0x1;
const NLM_F_ACK = 0x4;
const NLM_F_DUMP_INTR = 0x10;
const NLM_F_DUMP = 0x300;
export const NLM_F_EXCL = 0x200;
export const NLM_F_CREATE = 0x400;
const NLM_F_ACK_TLVS = 0x200;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const NLMSGERR_ATTR_MSG = 1;
const NLA_F_NESTED = 0x8000;
const NLA_TYPE_MASK = 0x3fff;
const headerBytes = 16;

/** One message to the kernel; the rest of its header is the socket's business. */
export interface NetlinkMessage {
  /** What a person reads when the kernel refuses it: `make bridge "slw-1"`. */
  readonly action: string;
  readonly type: number;
  readonly flags?: number;
  /** The family's own header and the attributes. */
  readonly payload: Uint8Array;
  /** Errnos that are as good as done. */
  readonly tolerate?: readonly number[];
}

/** Made by `Netlink.prepare`. */
export interface PreparedQuestions {
  readonly actions: readonly string[];
  readonly sequences: readonly number[];
  /** As they are sent. */
  readonly bytes: Buffer;
}

export interface NetlinkReply {
  readonly type: number;
  readonly payload: Buffer;
}

/**
 * A netlink socket. It speaks to the network namespace in which it was made, wherever the thread that uses it goes later.
 *
 * The kernel does what a message asks for before sendto(2) returns, and every answer is queued by then; so the calls here
 * block for the work itself and for nothing else.
 */
export class Netlink implements Disposable {
  readonly #fd: number;
  readonly #isOwner: boolean;
  readonly #buffer = Buffer.alloc(1 << 16);
  #sequence = 0;

  /** @throws {SyscallError} `EPROTONOSUPPORT` if the kernel has no such part (nfnetlink is a module). */
  constructor(protocol: number);
  /** Uses a socket that somebody else has made, and closes. */
  constructor(socket: { readonly fd: number });
  constructor(made: number | { readonly fd: number }) {
    this.#isOwner = typeof made === "number";
    if (typeof made !== "number") {
      this.#fd = made.fd;
      return;
    }
    const protocol = made;
    this.#fd = syscall("socket", AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
    const on = Buffer.from([1, 0, 0, 0]);
    // Errors come with the kernel's own words, and without a copy of what was asked.
    for (const option of [NETLINK_CAP_ACK, NETLINK_EXT_ACK]) {
      trySyscall("setsockopt", this.#fd, SOL_NETLINK, option, on, on.length);
    }
  }

  /** Sends messages one after the other and waits for each one's acknowledgment. @throws {SyscallError} Of the first that fails. */
  request(...messages: readonly NetlinkMessage[]): void {
    this.send(messages, { acknowledged: messages });
  }

  /**
   * Sends messages in one piece and throws for the first that the kernel reports an error for.
   *
   * @param options.acknowledged Those that are to be acknowledged; one that is not says only what went wrong with it.
   */
  send(messages: readonly NetlinkMessage[], options: { readonly acknowledged: readonly NetlinkMessage[] }): void {
    const bySequence = new Map<number, NetlinkMessage>();
    const acknowledged = new Set(options.acknowledged);
    const encoded = messages.map((message) => {
      bySequence.set(++this.#sequence, message);
      return this.#encode(message, acknowledged.has(message) ? NLM_F_ACK : 0);
    });
    this.#write(Buffer.concat(encoded), messages[0]?.action ?? "send nothing");
    let open = acknowledged.size;
    let failure: SyscallError | undefined;
    for (const { type, sequence, flags, payload } of this.#read()) {
      const message = bySequence.get(sequence);
      if (type !== NLMSG_ERROR || message === undefined) continue;
      if (acknowledged.has(message)) open--;
      const errno = -payload.readInt32LE(0);
      if (errno === 0 || message.tolerate?.includes(errno)) continue;
      failure ??= new SyscallError("netlink", errno, `${message.action}${kernelWords(payload, flags)}`);
    }
    if (failure !== undefined) throw failure;
    if (open > 0) throw new Error(`Cannot ${messages[0]?.action}: the kernel did not answer ${open} netlink messages`);
  }

  /** Asks for everything of a kind. @throws {SyscallError} */
  dump(message: NetlinkMessage): NetlinkReply[] {
    // What changes during a dump may be in it twice or not at all; the kernel says so, and it is asked again.
    for (let attempt = 0; ; attempt++) {
      const sequence = ++this.#sequence;
      this.#write(this.#encode(message, NLM_F_DUMP), message.action);
      const replies: NetlinkReply[] = [];
      let interrupted = false;
      for (const reply of this.#read()) {
        if (reply.sequence !== sequence) continue;
        if ((reply.flags & NLM_F_DUMP_INTR) !== 0) interrupted = true;
        if (reply.type === NLMSG_ERROR || reply.type === NLMSG_DONE) {
          const errno = reply.payload.length >= 4 ? -reply.payload.readInt32LE(0) : 0;
          if (errno === EINTR) interrupted = true;
          else if (errno !== 0) {
            if (message.tolerate?.includes(errno)) return [];
            throw new SyscallError("netlink", errno, `${message.action}${kernelWords(reply.payload, reply.flags)}`);
          }
        } else replies.push({ type: reply.type, payload: reply.payload });
      }
      if (!interrupted || attempt === 8) return replies;
    }
  }

  /** Asks for one thing. @throws {SyscallError} */
  get(message: NetlinkMessage): NetlinkReply {
    const sequence = ++this.#sequence;
    this.#write(this.#encode(message, 0), message.action);
    const reply = [...this.#read()].find((candidate) => candidate.sequence === sequence);
    if (reply === undefined) throw new Error(`Cannot ${message.action}: the kernel did not answer`);
    if (reply.type === NLMSG_ERROR) {
      const errno = -reply.payload.readInt32LE(0);
      throw new SyscallError("netlink", errno, `${message.action}${kernelWords(reply.payload, reply.flags)}`);
    }
    return reply;
  }

  /** Encodes questions that are asked again and again, each of which has one answer: see `anyFound`. */
  prepare(messages: readonly NetlinkMessage[]): PreparedQuestions {
    const sequences = messages.map(() => ++this.#sequence);
    const encoded = messages.map((message, i) => this.#encode(message, 0, sequences[i]));
    return { actions: messages.map(({ action }) => action), sequences, bytes: Buffer.concat(encoded) };
  }

  /**
   * Whether the kernel has what one of the questions asks for. Takes a call for all of them and one for each answer, and makes no
   * objects: it is asked where somebody waits.
   *
   * @throws {SyscallError} If it answers anything but that, or that it is not there (ENOENT).
   */
  anyFound({ bytes, sequences, actions }: PreparedQuestions): boolean {
    this.#write(bytes, actions[0] ?? "ask nothing");
    const buffer = this.#buffer;
    let found = false;
    for (let answered = 0; answered < sequences.length; ) {
      const length = trySyscall("recvfrom", this.#fd, buffer, buffer.length, MSG_DONTWAIT, 0, 0);
      if (length < headerBytes)
        throw new SyscallError("recvfrom", -length, actions[answered] ?? "receive from netlink");
      const index = sequences.indexOf(buffer.readUInt32LE(8));
      if (index < 0) continue; // of what was asked before
      answered++;
      const errno = buffer.readUInt16LE(4) === NLMSG_ERROR ? -buffer.readInt32LE(headerBytes) : 0;
      if (errno === 0) found = true;
      else if (errno !== ENOENT) throw new SyscallError("netlink", errno, actions[index] ?? "");
    }
    return found;
  }

  /** For another `Netlink`, in another thread; one of the two at a time. */
  get fd(): number {
    return this.#fd;
  }

  #encode(message: NetlinkMessage, flags: number, sequence = this.#sequence): Buffer {
    const length = headerBytes + message.payload.length;
    const bytes = Buffer.alloc(aligned(length));
    bytes.writeUInt32LE(length, 0);
    bytes.writeUInt16LE(message.type, 4);
    bytes.writeUInt16LE(NLM_F_REQUEST | flags | (message.flags ?? 0), 6);
    bytes.writeUInt32LE(sequence, 8);
    bytes.set(message.payload, headerBytes);
    return bytes;
  }

  #write(bytes: Buffer, action: string): void {
    const result = trySyscall("sendto", this.#fd, bytes, bytes.length, 0, 0, 0);
    if (result < 0) throw new SyscallError("sendto", -result, action);
    if (result !== bytes.length) throw new Error(`Cannot ${action}: netlink took ${result} of ${bytes.length} bytes`);
  }

  /** Everything that is queued. */
  *#read(): Generator<NetlinkReply & { readonly sequence: number; readonly flags: number }> {
    for (;;) {
      const length = trySyscall("recvfrom", this.#fd, this.#buffer, this.#buffer.length, MSG_DONTWAIT, 0, 0);
      if (length === -EAGAIN || length === 0) return;
      if (length < 0) throw new SyscallError("recvfrom", -length, "receive from netlink");
      const datagram = Buffer.from(this.#buffer.subarray(0, length));
      for (let at = 0; at + headerBytes <= length; ) {
        const size = datagram.readUInt32LE(at);
        if (size < headerBytes || at + size > length) throw new Error("Cannot read netlink: a message is cut off");
        yield {
          type: datagram.readUInt16LE(at + 4),
          flags: datagram.readUInt16LE(at + 6),
          sequence: datagram.readUInt32LE(at + 8),
          payload: datagram.subarray(at + headerBytes, at + size),
        };
        at += aligned(size);
      }
    }
  }

  [Symbol.dispose](): void {
    if (this.#isOwner) close(this.#fd);
  }
}

/** What the kernel says about an error, in parentheses. */
function kernelWords(payload: Buffer, flags: number): string {
  if ((flags & NLM_F_ACK_TLVS) === 0) return "";
  const attributes = parseAttributes(payload.subarray(4 + headerBytes));
  const text = attributes.get(NLMSGERR_ATTR_MSG);
  return text === undefined ? "" : ` (${text.toString("utf8", 0, text.length - 1)})`;
}

function aligned(length: number): number {
  return (length + 3) & ~3;
}

/** An attribute: length, type, value, padding to four bytes. */
export function attribute(type: number, value: Uint8Array): Buffer {
  const bytes = Buffer.alloc(aligned(4 + value.length));
  bytes.writeUInt16LE(4 + value.length, 0);
  bytes.writeUInt16LE(type, 2);
  bytes.set(value, 4);
  return bytes;
}

/** An attribute made of attributes. */
export function nested(type: number, ...attributes: readonly Uint8Array[]): Buffer {
  return attribute(type | NLA_F_NESTED, Buffer.concat(attributes));
}

/** An integer in the machine's byte order; both architectures are little-endian. */
export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}

/** An integer in network byte order, as nf_tables wants them. */
export function be32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
}

/** @see be32 */
export function be64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  return bytes;
}

export function u8(value: number): Buffer {
  return Buffer.from([value]);
}

/** A NUL-terminated string. */
export function text(value: string): Buffer {
  return Buffer.from(`${value}\0`);
}

/** The attributes of a message or of a nested attribute, by type; of two of one type the last. */
export function parseAttributes(bytes: Buffer): Map<number, Buffer> {
  const attributes = new Map<number, Buffer>();
  for (const [type, value] of attributesIn(bytes)) attributes.set(type, value);
  return attributes;
}

/** The attributes in their order: the elements of a list have one type. */
export function attributesIn(bytes: Buffer): [type: number, value: Buffer][] {
  const found: [number, Buffer][] = [];
  for (let at = 0; at + 4 <= bytes.length; ) {
    const length = bytes.readUInt16LE(at);
    if (length < 4 || at + length > bytes.length) break;
    found.push([bytes.readUInt16LE(at + 2) & NLA_TYPE_MASK, bytes.subarray(at + 4, at + length)]);
    at += aligned(length);
  }
  return found;
}

/** The string in an attribute. */
export function textOf(value: Buffer | undefined): string {
  return value === undefined ? "" : value.toString("utf8", 0, value.indexOf(0) < 0 ? value.length : value.indexOf(0));
}

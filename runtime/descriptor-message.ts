/** Programs that hand descriptors over: the memory of a message for sendmsg(2). */
import { SCM_RIGHTS, SOL_SOCKET } from "./linux.ts";
import type { Operation } from "./program.ts";

/** Where the parts of a message are in a program's memory. */
export interface DescriptorMessage {
  /** To stand before the operations that use it. */
  readonly memory: readonly Operation[];
  /** What sendmsg(2) takes: struct msghdr. */
  readonly header: { readonly addressOf: string };
  /** What is said with it: where it is, and where its length stands, a size_t. */
  readonly data: { readonly addressOf: string };
  readonly dataLength: { readonly memory: string; readonly offset: number };
  /** Where the number of a descriptor is to be stored; read from there until then it is 0. */
  readonly descriptor: (index?: number) => { readonly memory: string; readonly offset: number };
}

/**
 * A message with descriptors whose numbers the program learns. @see unix(7), SCM_RIGHTS
 *
 * @param name Of its memory.
 * @param options.data What is said with it; a number if that is to be read into so many bytes, and its length stored.
 * @param options.count How many descriptors. @default 1
 */
export function descriptorMessage(
  name: string,
  { data, count = 1 }: { readonly data: Buffer | number; readonly count?: number },
): DescriptorMessage {
  const [said, vector, control, header] = [`${name}Data`, `${name}Vector`, `${name}Control`, `${name}Message`];
  const controlBytes = 16 + 4 * count;
  const ancillary = Buffer.alloc(controlBytes); // struct cmsghdr and the descriptors
  ancillary.writeBigUInt64LE(BigInt(controlBytes), 0);
  ancillary.writeUInt32LE(SOL_SOCKET, 8);
  ancillary.writeUInt32LE(SCM_RIGHTS, 12);
  const length = Buffer.alloc(16); // struct iovec
  if (typeof data !== "number") length.writeBigUInt64LE(BigInt(data.length), 8);
  const message = Buffer.alloc(56); // struct msghdr
  message.writeBigUInt64LE(1n, 24);
  message.writeBigUInt64LE(BigInt(controlBytes), 40);
  return {
    memory: [
      typeof data === "number" ? { memory: said, size: data } : { memory: said, size: data.length, bytes: data },
      { memory: vector, size: 16, pointers: [{ at: 0, to: said }], bytes: length },
      { memory: control, size: controlBytes, bytes: ancillary },
      {
        memory: header,
        size: 56,
        pointers: [
          { at: 16, to: vector },
          { at: 32, to: control },
        ],
        bytes: message,
      },
    ],
    header: { addressOf: header },
    data: { addressOf: said },
    dataLength: { memory: vector, offset: 8 },
    descriptor: (index = 0) => ({ memory: control, offset: 16 + 4 * index }),
  };
}

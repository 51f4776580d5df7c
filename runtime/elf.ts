/** Writes a static ELF executable of two segments: code (read, execute) and data (read, write). @see elf(5) */
import type { Architecture } from "./syscall-table.ts";

const headerBytes = 64;
const programHeaderBytes = 56;
const PT_LOAD = 1;
const PT_GNU_STACK = 0x6474e551;
const PF_X = 1;
const PF_W = 2;
const PF_R = 4;

/** arm64 kernels may have pages of 64 KiB; a segment's place in the file must agree with its address modulo the page. */
const pageBytes = { x64: 0x1000, arm64: 0x1_0000 } as const;
const machine = { x64: 62, arm64: 183 } as const;

export function elf(options: {
  readonly architecture: Architecture;
  /** Begins at the entry point. */
  readonly code: Uint8Array;
  readonly codeAddress: number;
  readonly data: Uint8Array;
  readonly dataAddress: number;
  /** At least the length of `data`; the rest is zero. */
  readonly dataMemoryBytes: number;
}): Uint8Array {
  const { code, data } = options;
  const page = pageBytes[options.architecture];
  const codeOffset = headerBytes + 3 * programHeaderBytes;
  const dataOffset = page;
  if (codeOffset + code.length > dataOffset) throw new Error(`${code.length} bytes of code do not fit before the data`);
  const file = Buffer.alloc(dataOffset + data.length);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0]); // "\x7fELF", 64 bits, little-endian, version 1, System V
  file.writeUInt16LE(2, 16); // ET_EXEC
  file.writeUInt16LE(machine[options.architecture], 18);
  file.writeUInt32LE(1, 20);
  file.writeBigUInt64LE(BigInt(options.codeAddress + codeOffset), 24); // entry
  file.writeBigUInt64LE(BigInt(headerBytes), 32); // program headers
  file.writeUInt16LE(headerBytes, 52);
  file.writeUInt16LE(programHeaderBytes, 54);
  file.writeUInt16LE(3, 56);

  const segments = [
    { type: PT_LOAD, flags: PF_R | PF_X, offset: 0, address: options.codeAddress, size: codeOffset + code.length },
    { type: PT_LOAD, flags: PF_R | PF_W, offset: dataOffset, address: options.dataAddress, size: data.length },
    // Without this header the kernel would make the stack executable.
    { type: PT_GNU_STACK, flags: PF_R | PF_W, offset: 0, address: 0, size: 0 },
  ];
  segments.forEach((segment, i) => {
    const at = headerBytes + i * programHeaderBytes;
    const memoryBytes = segment.offset === dataOffset ? options.dataMemoryBytes : segment.size;
    file.writeUInt32LE(segment.type, at);
    file.writeUInt32LE(segment.flags, at + 4);
    file.writeBigUInt64LE(BigInt(segment.offset), at + 8);
    file.writeBigUInt64LE(BigInt(segment.address), at + 16);
    file.writeBigUInt64LE(BigInt(segment.address), at + 24);
    file.writeBigUInt64LE(BigInt(segment.size), at + 32);
    file.writeBigUInt64LE(BigInt(memoryBytes), at + 40);
    file.writeBigUInt64LE(BigInt(page), at + 48);
  });
  file.set(code, codeOffset);
  file.set(data, dataOffset);
  return file;
}

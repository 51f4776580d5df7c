/**
 * A program is a list of named operations; compiling it gives a small static ELF file that executes them.
 *
 * The plan is plain data, so it can be printed and tested without privileges; the file runs anywhere a process can be
 * started. @see record.ts for the table, walker-x64.ts and walker-arm64.ts for what executes it.
 */
import { elf } from "./elf.ts";
import { operationCode, recordBytes } from "./record.ts";
import { type Architecture, syscallNumber } from "./syscall-table.ts";
import { walkerArm64 } from "./walker-arm64.ts";
import { walkerX64 } from "./walker-x64.ts";

/** An argument: an integer, the address of constant bytes, the address of named memory, or the u32 stored there. */
export type Value =
  | number
  | bigint
  | { readonly bytes: Uint8Array }
  | { readonly text: string }
  | { readonly addressOf: string; readonly offset?: number }
  | { readonly load: string; readonly offset?: number };

export type Operation =
  | SyscallOperation
  | { readonly label: string }
  | MemoryOperation
  | { readonly name: string; readonly decimal: Value; readonly endsAt: Value }
  | { readonly name: string; readonly unequal: readonly [Value, Value]; readonly goto: string }
  | { readonly name: string; readonly fail: number };

/** Reserves named memory, zeroed, or with the given start. Memory without bytes costs nothing in the file. */
export interface MemoryOperation {
  readonly memory: string;
  readonly size: number;
  readonly bytes?: Uint8Array;
  /** 64-bit addresses of other named memory, written over `bytes`. */
  readonly pointers?: readonly { readonly at: number; readonly to: string }[];
}

export interface SyscallOperation {
  /** What a person reads when it fails: `mount proc on "/proc"`. */
  readonly name: string;
  readonly call: string;
  readonly args: readonly Value[];
  /** Named memory that receives the result as a u32. */
  readonly store?: string | { readonly memory: string; readonly offset: number };
  /** Where to go on when the result is positive: in the parent after clone. */
  readonly ifPositive?: string;
  /** Up to four errnos after which the next operation follows. */
  readonly tolerate?: readonly number[];
}

/** A message that the program writes to its status descriptor when it fails: { u32 kind, u32 errno, u64 record address }. */
export const messageBytes = 16;
export const failMessage = 1;

export interface Program {
  /** The ELF file. */
  readonly file: Uint8Array;
  /** The operation whose record is at `address`. */
  operationAt(address: bigint): Operation | undefined;
  /** Where named memory is. */
  addressOf(memory: string): bigint;
}

const codeAddress = 0x1000_0000;
const dataAddress = 0x1010_0000;
const tableAddress = dataAddress + 64;

/** Which record of the table is at `address`: the operations in their order, without labels and memory. */
export function recordIndex(address: bigint): number {
  return Number(address - BigInt(tableAddress)) / recordBytes;
}

/**
 * Compiles operations.
 *
 * @param options.statusFd The descriptor to which a failing operation's message is written before exit status 127.
 * @throws {Error} If a label or memory is missing, or a call does not exist on the architecture: mistakes of the plan.
 */
export function compileProgram(
  operations: readonly Operation[],
  options: { readonly architecture: Architecture; readonly statusFd: number },
): Program {
  const layout = layOut(operations);
  const code = walker(options.architecture, {
    tableAddress: layout.tableAddress,
    scratchAddress: layout.scratchAddress,
    failMessageAddress: layout.failMessageAddress,
    statusFd: options.statusFd,
  });
  const data = Buffer.alloc(layout.fileBytes);
  data.writeUInt32LE(failMessage, layout.failMessageAddress - dataAddress);
  for (const { address, bytes } of layout.constants) data.set(bytes, address - dataAddress);
  for (const operation of operations) {
    if (!("memory" in operation)) continue;
    const start = layout.addressOf(operation.memory) - dataAddress;
    for (const { at, to } of operation.pointers ?? []) data.writeBigUInt64LE(BigInt(layout.addressOf(to)), start + at);
  }
  layout.records.forEach((operation, index) => {
    writeRecord(data, { operation, index, layout, architecture: options.architecture });
  });
  const file = elf({
    architecture: options.architecture,
    code,
    codeAddress,
    data,
    dataAddress,
    dataMemoryBytes: layout.memoryBytes,
  });
  return {
    file,
    operationAt: (address) => layout.records[Number(address - BigInt(layout.tableAddress)) / recordBytes],
    addressOf: (memory) => BigInt(layout.addressOf(memory)),
  };
}

/** Prints a plan, one line an operation, as `slipway run --explain` shows it. */
export function explainProgram(operations: readonly Operation[]): string {
  const lines: string[] = [];
  for (const operation of operations) {
    if ("label" in operation) lines.push(`${operation.label}:`);
    else if ("memory" in operation) continue;
    else if ("call" in operation) lines.push(`  ${explainCall(operation)}  # ${operation.name}`);
    else if ("decimal" in operation) lines.push(`  decimal ${explainValue(operation.decimal)}  # ${operation.name}`);
    else if ("unequal" in operation) {
      const [left, right] = operation.unequal.map(explainValue);
      lines.push(`  if ${left} != ${right} goto ${operation.goto}  # ${operation.name}`);
    } else lines.push(`  fail ${operation.fail}  # ${operation.name}`);
  }
  return `${lines.join("\n")}\n`;
}

function explainCall(operation: SyscallOperation): string {
  const place = operation.store;
  const store =
    place === undefined ? "" : `${typeof place === "string" ? place : `${place.memory}+${place.offset}`} = `;
  const jump = operation.ifPositive === undefined ? "" : ` >0 → ${operation.ifPositive}`;
  return `${store}${operation.call}(${operation.args.map(explainValue).join(", ")})${jump}`;
}

function explainValue(value: Value): string {
  if (typeof value === "number" || typeof value === "bigint")
    return value < 10 ? `${value}` : `0x${value.toString(16)}`;
  if ("text" in value) return JSON.stringify(value.text.length > 80 ? `${value.text.slice(0, 77)}...` : value.text);
  if ("bytes" in value) return `<${value.bytes.length} bytes>`;
  const offset = value.offset ? `+${value.offset}` : "";
  return "load" in value ? `[${value.load}${offset}]` : `&${value.addressOf}${offset}`;
}

type Recorded = Exclude<Operation, { readonly label: string } | { readonly memory: string }>;

interface Layout {
  readonly records: readonly Recorded[];
  readonly tableAddress: number;
  readonly scratchAddress: number;
  readonly failMessageAddress: number;
  readonly constants: readonly { readonly address: number; readonly bytes: Uint8Array }[];
  readonly fileBytes: number;
  readonly memoryBytes: number;
  addressOf(memory: string): number;
  constant(value: { readonly bytes: Uint8Array } | { readonly text: string }): number;
  recordOf(label: string): number;
}

/** Gives every record, label, constant and memory its place: fixed part, table, constants, then zeroed memory. */
function layOut(operations: readonly Operation[]): Layout {
  const records: Recorded[] = [];
  const labels = new Map<string, number>();
  for (const operation of operations) {
    if ("label" in operation) labels.set(operation.label, records.length);
    else if (!("memory" in operation)) records.push(operation);
  }
  const scratchAddress = dataAddress;
  const failMessageAddress = dataAddress + 48;
  let end = tableAddress + records.length * recordBytes;
  const take = (size: number): number => {
    const address = (end + 7) & ~7;
    end = address + size;
    return address;
  };

  const constants: { address: number; bytes: Uint8Array }[] = [];
  const texts = new Map<string, number>();
  const blobs = new Map<Uint8Array, number>();
  const addConstant = (value: Value): void => {
    if (typeof value !== "object") return;
    if ("text" in value && !texts.has(value.text)) {
      const bytes = Buffer.from(`${value.text}\0`);
      const address = take(bytes.length);
      texts.set(value.text, address);
      constants.push({ address, bytes });
    } else if ("bytes" in value && !blobs.has(value.bytes)) {
      const address = take(value.bytes.length);
      blobs.set(value.bytes, address);
      constants.push({ address, bytes: value.bytes });
    }
  };
  for (const record of records) for (const value of valuesOf(record)) addConstant(value);

  const memory = new Map<string, number>();
  for (const operation of operations) {
    if (!("memory" in operation) || operation.bytes === undefined) continue;
    const address = take(Math.max(operation.size, operation.bytes.length));
    memory.set(operation.memory, address);
    constants.push({ address, bytes: operation.bytes });
  }
  const fileBytes = end - dataAddress;
  for (const operation of operations) {
    if ("memory" in operation && operation.bytes === undefined) memory.set(operation.memory, take(operation.size));
  }
  const find = (map: ReadonlyMap<string, number>, kind: string, name: string): number => {
    const found = map.get(name);
    if (found === undefined) throw new Error(`The program has no ${kind} "${name}"`);
    return found;
  };
  return {
    records,
    tableAddress,
    scratchAddress,
    failMessageAddress,
    constants,
    fileBytes,
    memoryBytes: end - dataAddress,
    addressOf: (name) => find(memory, "memory", name),
    constant: (value) => ("text" in value ? texts.get(value.text) : blobs.get(value.bytes)) ?? 0,
    recordOf: (label) => find(labels, "label", label),
  };
}

function valuesOf(record: Recorded): readonly Value[] {
  if ("call" in record) return record.args;
  if ("decimal" in record) return [record.decimal, record.endsAt];
  if ("unequal" in record) return record.unequal;
  return [record.fail];
}

function writeRecord(
  data: Buffer,
  place: {
    readonly operation: Recorded;
    readonly index: number;
    readonly layout: Layout;
    readonly architecture: Architecture;
  },
): void {
  const { operation, index, layout } = place;
  const at = layout.tableAddress - dataAddress + index * recordBytes;
  let indirect = 0;
  valuesOf(operation).forEach((value, i) => {
    if (typeof value === "object" && "load" in value) indirect |= 1 << i;
    data.writeBigUInt64LE(BigInt.asUintN(64, resolve(value, layout)), at + 8 + 8 * i);
  });
  data.writeUInt16LE(indirect, at + 2);
  const jump = (label: string) => BigInt((layout.recordOf(label) - index) * recordBytes);
  if ("call" in operation) {
    data.writeUInt16LE(operationCode.syscall, at);
    data.writeUInt32LE(syscallNumber(operation.call, place.architecture), at + 4);
    const store = operation.store;
    if (store !== undefined) {
      const address =
        typeof store === "string" ? layout.addressOf(store) : layout.addressOf(store.memory) + store.offset;
      data.writeBigUInt64LE(BigInt(address), at + 56);
    }
    if (operation.ifPositive !== undefined) data.writeBigInt64LE(jump(operation.ifPositive), at + 64);
    const tolerate = operation.tolerate ?? [];
    if (tolerate.length > 4)
      throw new Error(`"${operation.name}" tolerates ${tolerate.length} errnos; a record has room for 4`);
    tolerate.forEach((errno, i) => data.writeUInt16LE(errno, at + 72 + 2 * i));
  } else if ("decimal" in operation) {
    data.writeUInt16LE(operationCode.decimal, at);
  } else if ("unequal" in operation) {
    data.writeUInt16LE(operationCode.jumpIfNotEqual, at);
    data.writeBigInt64LE(jump(operation.goto), at + 64);
  } else {
    data.writeUInt16LE(operationCode.fail, at);
  }
}

function resolve(value: Value, layout: Layout): bigint {
  if (typeof value !== "object") return BigInt(value);
  if ("load" in value) return BigInt(layout.addressOf(value.load) + (value.offset ?? 0));
  if ("addressOf" in value) return BigInt(layout.addressOf(value.addressOf) + (value.offset ?? 0));
  return BigInt(layout.constant(value));
}

function walker(architecture: Architecture, layout: Parameters<typeof walkerX64>[0]): Uint8Array {
  const numbers = {
    write: syscallNumber("write", architecture),
    exitGroup: syscallNumber("exit_group", architecture),
  };
  return architecture === "x64" ? walkerX64(layout, numbers) : walkerArm64(layout, numbers);
}

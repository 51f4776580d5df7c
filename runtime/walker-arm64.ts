/** The walker for arm64: the same loop as on x86-64, one word an instruction. @see record.ts, Arm ARM C6.2 */
import { operationCode, recordBytes, type WalkerLayout } from "./record.ts";

type Register = number;
const zr: Register = 31;
const record: Register = 19;
const scratch: Register = 20;

/** Assembles 32-bit instructions with references to labels. */
class Assembler {
  readonly #words: number[] = [];
  readonly #labels = new Map<string, number>();
  readonly #references: {
    readonly at: number;
    readonly label: string;
    readonly bits: 19 | 26;
    readonly shift: number;
  }[] = [];

  emit(word: number): void {
    this.#words.push(word >>> 0);
  }

  label(name: string): void {
    this.#labels.set(name, this.#words.length);
  }

  /** b label */
  b(label: string): void {
    this.#references.push({ at: this.#words.length, label, bits: 26, shift: 0 });
    this.emit(0x14000000);
  }

  /** b.condition label */
  bCondition(condition: keyof typeof conditions, label: string): void {
    this.#references.push({ at: this.#words.length, label, bits: 19, shift: 5 });
    this.emit(0x54000000 | conditions[condition]);
  }

  /** cbz/cbnz register, label; `wide` compares all 64 bits */
  compareBranch(kind: "cbz" | "cbnz", register: Register, label: string, wide = true): void {
    this.#references.push({ at: this.#words.length, label, bits: 19, shift: 5 });
    this.emit((wide ? 0x80000000 : 0) | (kind === "cbz" ? 0x34000000 : 0x35000000) | register);
  }

  /** A 32-bit constant: movz, and movk where the upper half is not zero. */
  constant(register: Register, value: number): void {
    this.emit(0x52800000 | ((value & 0xffff) << 5) | register); // movz w, #low
    const high = (value >>> 16) & 0xffff;
    if (high !== 0) this.emit(0x72a00000 | (high << 5) | register); // movk w, #high, lsl #16
  }

  /** ldr/str of 64, 32 or 16 bits (unsigned scaled offset). */
  memory(kind: "ldr" | "str" | "ldrw" | "strw" | "ldrh", register: Register, base: Register, offset = 0): void {
    const { opcode, scale } = memoryForms[kind];
    this.emit(opcode | ((offset / scale) << 10) | (base << 5) | register);
  }

  finish(): Uint8Array {
    const code = Buffer.alloc(this.#words.length * 4);
    for (const { at, label, bits, shift } of this.#references) {
      const target = this.#labels.get(label);
      if (target === undefined) throw new Error(`No label "${label}"`);
      this.#words[at] = ((this.#words[at] ?? 0) | (((target - at) & (2 ** bits - 1)) << shift)) >>> 0;
    }
    this.#words.forEach((word, i) => code.writeUInt32LE(word, i * 4));
    return code;
  }
}

const conditions = { eq: 0, ne: 1, hs: 2, ls: 9, le: 13 } as const;
const memoryForms = {
  ldr: { opcode: 0xf9400000, scale: 8 },
  str: { opcode: 0xf9000000, scale: 8 },
  ldrw: { opcode: 0xb9400000, scale: 4 },
  strw: { opcode: 0xb9000000, scale: 4 },
  ldrh: { opcode: 0x79400000, scale: 2 },
} as const;

/** Returns position-independent code; it begins at its first byte and never returns. */
export function walkerArm64(
  layout: WalkerLayout,
  numbers: { readonly write: number; readonly exitGroup: number },
): Uint8Array {
  const a = new Assembler();
  const svc = () => a.emit(0xd4000001);
  a.constant(record, layout.tableAddress);
  a.constant(scratch, layout.scratchAddress);

  a.label("next");
  a.memory("ldrh", 9, record, 2); // w9 = mask
  a.emit(0x91000000 | (8 << 10) | (record << 5) | 10); // add x10, record, #8
  a.emit(0xaa0003e0 | (scratch << 16) | 11); // mov x11, scratch
  a.constant(12, 6);
  a.label("argument");
  a.emit(0xf8408400 | (10 << 5) | 13); // ldr x13, [x10], #8
  a.emit(0x12000000 | (9 << 5) | 14); // and w14, w9, #1
  a.emit(0x53017c00 | (9 << 5) | 9); // lsr w9, w9, #1
  a.compareBranch("cbz", 14, "direct", false);
  a.memory("ldrw", 13, 13); // w13 = [x13]
  a.label("direct");
  a.emit(0xf8008400 | (11 << 5) | 13); // str x13, [x11], #8
  a.emit(0x71000400 | (12 << 5) | 12); // subs w12, w12, #1
  a.bCondition("ne", "argument");

  a.memory("ldrh", 15, record, 0); // w15 = operation
  a.compareBranch("cbnz", 15, "special", false);
  a.memory("ldrw", 8, record, 4); // w8 = number
  for (let i = 0; i < 6; i++) a.memory("ldr", i, scratch, 8 * i); // x0–x5 = arguments
  svc();
  a.emit(0xb13ffc00 | (0 << 5) | zr); // cmn x0, #4095
  a.bCondition("hs", "failed"); // x0 + 4095 carries: -4095 <= x0 <= -1
  a.memory("ldr", 9, record, 56);
  a.compareBranch("cbz", 9, "stored");
  a.memory("strw", 0, 9); // [x9] = w0
  a.label("stored");
  a.emit(0xf1000000 | (0 << 5) | zr); // cmp x0, #0
  a.bCondition("le", "step");
  a.memory("ldr", 9, record, 64);
  a.compareBranch("cbz", 9, "step");
  a.label("jump");
  a.emit(0x8b000000 | (9 << 16) | (record << 5) | record); // add record, record, x9
  a.b("next");
  a.label("step");
  a.emit(0x91000000 | (recordBytes << 10) | (record << 5) | record); // add record, record, #80
  a.b("next");

  a.label("failed");
  a.emit(0x4b0003e0 | (0 << 16) | 9); // neg w9, w0
  for (let i = 0; i < 4; i++) {
    a.memory("ldrh", 10, record, 72 + 2 * i);
    a.emit(0x6b00001f | (10 << 16) | (9 << 5)); // cmp w9, w10
    a.bCondition("eq", "step");
  }
  a.label("fail");
  a.constant(1, layout.failMessageAddress);
  a.memory("strw", 9, 1, 4); // message.errno
  a.memory("str", record, 1, 8); // message.record
  a.constant(0, layout.statusFd);
  a.constant(2, 16);
  a.constant(8, numbers.write);
  svc();
  a.constant(0, 127);
  a.constant(8, numbers.exitGroup);
  svc();
  a.emit(0xd4200000); // brk #0

  a.label("special");
  a.memory("ldr", 9, scratch, 0);
  a.emit(0x7100001f | (operationCode.decimal << 10) | (15 << 5)); // cmp w15, #decimal
  a.bCondition("ne", "compare");
  a.memory("ldr", 11, scratch, 8);
  a.constant(12, 10);
  a.label("digit");
  a.emit(0x1ac00800 | (12 << 16) | (9 << 5) | 13); // udiv w13, w9, w12
  a.emit(0x1b008000 | (12 << 16) | (9 << 10) | (13 << 5) | 14); // msub w14, w13, w12, w9
  a.emit(0x11000000 | (0x30 << 10) | (14 << 5) | 14); // add w14, w14, #'0'
  a.emit(0x381ffc00 | (11 << 5) | 14); // strb w14, [x11, #-1]!
  a.emit(0x2a0003e0 | (13 << 16) | 9); // mov w9, w13
  a.compareBranch("cbnz", 9, "digit", false);
  a.b("step");
  a.label("compare");
  a.emit(0x7100001f | (operationCode.jumpIfNotEqual << 10) | (15 << 5)); // cmp w15, #jump if not equal
  a.bCondition("ne", "fail"); // the errno is argument 0
  a.memory("ldr", 10, scratch, 8);
  a.emit(0xeb00001f | (10 << 16) | (9 << 5)); // cmp x9, x10
  a.bCondition("eq", "step");
  a.memory("ldr", 9, record, 64);
  a.b("jump");
  return a.finish();
}

/**
 * Classic BPF as seccomp(2) takes it: an assembler, a printer and an evaluator.
 *
 * A program only ever jumps forwards, so it is put together from its end: whatever an instruction leads to is placed
 * already, its distance is known, and equal ends are shared. @see Documentation/networking/filter.rst of the kernel
 */

// The instructions that seccomp accepts and a filter needs: linux/bpf_common.h.
const BPF_LD_W_ABS = 0x20;
const BPF_ALU_AND_K = 0x54;
const BPF_JMP_JA = 0x05;
const BPF_RET_K = 0x06;
const jumpCodes = { "==": 0x15, ">": 0x25, ">=": 0x35, "&": 0x45 } as const;

/** How the accumulator is compared with a constant, unsigned; `&` asks whether any of the bits is set. */
export type Test = keyof typeof jumpCodes;

/** BPF_MAXINSNS: the kernel refuses longer programs. */
export const maxInstructions = 4096;
const instructionBytes = 8; // struct sock_filter { u16 code; u8 jt; u8 jf; u32 k; }
const maxJump = 255;

interface Instruction {
  readonly code: number;
  readonly jt: number;
  readonly jf: number;
  readonly k: number;
}

/** A place in the program: how many instructions follow it. */
export interface Label {
  readonly at: number;
  /** The word that the code here loads first, and the place after that load. */
  readonly loads?: { readonly word: string; readonly after: Label };
}

/** Assembles a program from its end to its beginning: first what is returned, then the tests that lead there. */
export class BpfAssembler {
  readonly #reversed: Instruction[] = [];
  readonly #placed = new Map<string, number>();

  /** Ends the program with a value. */
  ret(value: number): Label {
    return { at: this.#place({ code: BPF_RET_K, jt: 0, jf: 0, k: value }, `ret ${value}`) };
  }

  /**
   * Loads a 32-bit word of `struct seccomp_data`, keeps the bits of `mask`, and goes on at `next`.
   *
   * @param next The code that uses the word.
   */
  load(offset: number, next: Label, mask = 0xffff_ffff): Label {
    const word = wordName(offset, mask);
    const key = `load ${word} ${next.at}`;
    const placed = this.#reachable(key);
    if (placed !== undefined) return { at: placed, loads: { word, after: next } };
    if (next.at !== this.#reversed.length - 1) this.#jumpAlways(next.at);
    const after = { at: this.#reversed.length - 1 };
    if (mask !== 0xffff_ffff) this.#reversed.push({ code: BPF_ALU_AND_K, jt: 0, jf: 0, k: mask });
    this.#reversed.push({ code: BPF_LD_W_ABS, jt: 0, jf: 0, k: offset });
    const at = this.#reversed.length - 1;
    this.#placed.set(key, at);
    return { at, loads: { word, after } };
  }

  /**
   * Compares the accumulator, and goes on at `yes` or `no`.
   *
   * @param holding The word in the accumulator, as `load` got it: what would load it again is entered after its load.
   */
  branch(
    test: Test,
    value: number,
    to: { readonly yes: Label; readonly no: Label; readonly holding?: { offset: number; mask?: number } },
  ): Label {
    const word = to.holding && wordName(to.holding.offset, to.holding.mask ?? 0xffff_ffff);
    const enter = (label: Label): number =>
      label.loads !== undefined && label.loads.word === word ? label.loads.after.at : label.at;
    let yes = enter(to.yes);
    let no = enter(to.no);
    if (yes === no) return { at: yes };
    const key = `${test} ${value} ${yes} ${no}`;
    const placed = this.#reachable(key);
    if (placed !== undefined) return { at: placed };
    // A trampoline for one pushes the other further away, so until both are near.
    for (;;) {
      if (this.#distance(yes) > maxJump) yes = this.#jumpAlways(yes);
      else if (this.#distance(no) > maxJump) no = this.#jumpAlways(no);
      else break;
    }
    const jump = { code: jumpCodes[test], jt: this.#distance(yes), jf: this.#distance(no), k: value };
    this.#reversed.push(jump);
    this.#placed.set(key, this.#reversed.length - 1);
    return { at: this.#reversed.length - 1 };
  }

  /**
   * The program as an array of `struct sock_filter`.
   *
   * @throws {RangeError} If it is longer than the kernel takes.
   */
  assemble(entry: Label): Uint8Array {
    const instructions = withoutUnreachable(this.#reversed.slice(0, entry.at + 1).toReversed());
    if (instructions.length > maxInstructions) {
      throw new RangeError(
        `Cannot compile the seccomp filter: ${instructions.length} instructions; the kernel takes ${maxInstructions}`,
      );
    }
    const bytes = Buffer.alloc(instructions.length * instructionBytes);
    instructions.forEach(({ code, jt, jf, k }, i) => {
      bytes.writeUInt16LE(code, i * instructionBytes);
      bytes.writeUInt8(jt, i * instructionBytes + 2);
      bytes.writeUInt8(jf, i * instructionBytes + 3);
      bytes.writeUInt32LE(k, i * instructionBytes + 4);
    });
    return bytes;
  }

  /** From the instruction that would be added next; a jump of 0 leads to the instruction after it. */
  #distance(target: number): number {
    return this.#reversed.length - target - 1;
  }

  #reachable(key: string): number | undefined {
    const placed = this.#placed.get(key);
    return placed !== undefined && this.#distance(placed) < maxJump ? placed : undefined;
  }

  #place(instruction: Instruction, key: string): number {
    const placed = this.#reachable(key);
    if (placed !== undefined) return placed;
    this.#reversed.push(instruction);
    this.#placed.set(key, this.#reversed.length - 1);
    return this.#reversed.length - 1;
  }

  /** BPF_JA's distance is 32 bits wide: a trampoline to what a conditional jump cannot reach. */
  #jumpAlways(target: number): number {
    this.#reversed.push({ code: BPF_JMP_JA, jt: 0, jf: 0, k: this.#distance(target) });
    return this.#reversed.length - 1;
  }
}

/** Leaves out what nothing leads to: loads that every branch entered after. Distances only get smaller. */
function withoutUnreachable(instructions: readonly Instruction[]): Instruction[] {
  const reached = new Set([0]);
  // All jumps lead forwards, so whoever leads to an instruction has been looked at before it.
  instructions.forEach((instruction, i) => {
    if (reached.has(i)) for (const next of successors(instruction, i)) reached.add(next);
  });
  const newIndex: number[] = [];
  let count = 0;
  for (const i of instructions.keys()) newIndex.push(reached.has(i) ? count++ : count);
  const distance = (from: number, to: number) => (newIndex[to] ?? 0) - (newIndex[from] ?? 0) - 1;
  return instructions.flatMap((instruction, i) => {
    if (!reached.has(i)) return [];
    const { code, jt, jf, k } = instruction;
    if (code === BPF_JMP_JA) return [{ code, jt, jf, k: distance(i, i + 1 + k) }];
    if (!isBranch(code)) return [instruction];
    return [{ code, jt: distance(i, i + 1 + jt), jf: distance(i, i + 1 + jf), k }];
  });
}

function successors({ code, jt, jf, k }: Instruction, at: number): number[] {
  if (code === BPF_RET_K) return [];
  if (code === BPF_JMP_JA) return [at + 1 + k];
  return isBranch(code) ? [at + 1 + jt, at + 1 + jf] : [at + 1];
}

function isBranch(code: number): boolean {
  return Object.values<number>(jumpCodes).includes(code);
}

function wordName(offset: number, mask: number): string {
  return `${offset}&${mask}`;
}

function decode(program: Uint8Array): Instruction[] {
  const bytes = Buffer.from(program.buffer, program.byteOffset, program.byteLength);
  return Array.from({ length: bytes.length / instructionBytes }, (_, i) => ({
    code: bytes.readUInt16LE(i * instructionBytes),
    jt: bytes.readUInt8(i * instructionBytes + 2),
    jf: bytes.readUInt8(i * instructionBytes + 3),
    k: bytes.readUInt32LE(i * instructionBytes + 4),
  }));
}

/** How many instructions a program has. */
export function instructionCount(program: Uint8Array): number {
  return program.length / instructionBytes;
}

/**
 * What the kernel would do with a program: the value that it returns, and how many instructions that took.
 *
 * @param data A `struct seccomp_data`: { i32 nr; u32 arch; u64 instruction_pointer; u64 args[6] }, 64 bytes.
 * @throws {Error} On an instruction that no filter of ours and none of libseccomp's has, or a jump out of the program.
 */
export function evaluateBpf(program: Uint8Array, data: Uint8Array): { readonly value: number; readonly steps: number } {
  const code = new DataView(program.buffer, program.byteOffset, program.byteLength);
  const words = new DataView(data.buffer, data.byteOffset, data.byteLength);
  let accumulator = 0;
  let steps = 0;
  for (let at = 0; ; at += instructionBytes) {
    steps++;
    const k = code.getUint32(at + 4, true);
    const branch = (taken: boolean) => code.getUint8(at + (taken ? 2 : 3)) * instructionBytes;
    switch (code.getUint16(at, true)) {
      case BPF_LD_W_ABS:
        accumulator = words.getUint32(k, true);
        break;
      case BPF_ALU_AND_K:
        accumulator = (accumulator & k) >>> 0;
        break;
      case BPF_JMP_JA:
        at += k * instructionBytes;
        break;
      case jumpCodes["=="]:
        at += branch(accumulator === k);
        break;
      case jumpCodes[">"]:
        at += branch(accumulator > k);
        break;
      case jumpCodes[">="]:
        at += branch(accumulator >= k);
        break;
      case jumpCodes["&"]:
        at += branch((accumulator & k) !== 0);
        break;
      case BPF_RET_K:
        return { value: k, steps };
      default:
        throw new Error(`Instruction ${at / instructionBytes} has the unknown code ${code.getUint16(at, true)}`);
    }
  }
}

/**
 * Prints a program, one line an instruction.
 *
 * @param names What to write for a loaded offset and a returned value.
 */
export function printBpf(
  program: Uint8Array,
  names: { offset(offset: number): string; value(value: number): string },
): string {
  const tests = new Map<number, string>(Object.entries(jumpCodes).map(([test, code]) => [code, test]));
  const lines = decode(program).map(({ code, jt, jf, k }, i) => {
    const test = tests.get(code);
    if (test !== undefined) return `if ${test} 0x${k.toString(16)} goto ${i + 1 + jt} else ${i + 1 + jf}`;
    if (code === BPF_LD_W_ABS) return `load ${names.offset(k)}`;
    if (code === BPF_ALU_AND_K) return `keep 0x${k.toString(16)}`;
    if (code === BPF_JMP_JA) return `goto ${i + 1 + k}`;
    return `return ${names.value(k)}`;
  });
  return lines.map((line, i) => `${String(i).padStart(4)}  ${line}\n`).join("");
}

import { describe, expect, test } from "vitest";
import { BpfAssembler, evaluateBpf, instructionCount, type Label, printBpf } from "../../runtime/bpf.ts";
import {
  type ArchitectureRules,
  type Clause,
  type Comparison,
  compileRules,
  type Decision,
  SECCOMP_RET_ALLOW,
  SECCOMP_RET_ERRNO,
  SECCOMP_RET_KILL_PROCESS,
} from "../../runtime/seccomp-compile.ts";

const auditArch = 0xc000_003e;

function seccompData(call: { number: number; arch?: number; args?: readonly bigint[] }): Buffer {
  const data = Buffer.alloc(64);
  data.writeUInt32LE(call.number, 0);
  data.writeUInt32LE(call.arch ?? auditArch, 4);
  call.args?.forEach((value, i) => data.writeBigUInt64LE(value, 16 + 8 * i));
  return data;
}

/** A generator of pseudo-random numbers, the same in every run. */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 16) % below;
  };
}

describe("BpfAssembler", () => {
  test("reaches with trampolines what is further away than 255 instructions", () => {
    const assembler = new BpfAssembler();
    let next: Label = assembler.ret(9999);
    const numbers = Array.from({ length: 1000 }, (_, i) => i * 3);
    for (const number of numbers.toReversed()) {
      next = assembler.branch("==", number, { yes: assembler.ret(number % 5), no: next });
    }
    const program = assembler.assemble(assembler.load(0, next));
    for (const number of numbers) expect(evaluateBpf(program, seccompData({ number })).value).toBe(number % 5);
    for (const number of [1, 2, 4, 3000, 0xffff_ffff]) {
      expect(evaluateBpf(program, seccompData({ number })).value).toBe(9999);
    }
  });

  test("shares equal ends and leaves out what nothing leads to", () => {
    const assembler = new BpfAssembler();
    const no = assembler.ret(1);
    const second = assembler.load(
      16,
      assembler.branch("==", 8, { yes: assembler.ret(2), no, holding: { offset: 16 } }),
    );
    const first = assembler.branch("==", 7, { yes: assembler.ret(2), no: second, holding: { offset: 16 } });
    const program = assembler.assemble(assembler.load(16, first));
    expect(printBpf(program, { offset: (offset) => `word ${offset}`, value: String })).toBe(`\
   0  load word 16
   1  if == 0x7 goto 3 else 2
   2  if == 0x8 goto 3 else 4
   3  return 2
   4  return 1
`);
  });

  test("refuses a program that the kernel would refuse", () => {
    const assembler = new BpfAssembler();
    let next = assembler.ret(0);
    for (let i = 0; i < 4096; i++) next = assembler.branch("==", i, { yes: assembler.ret(i), no: next });
    expect(() => assembler.assemble(next)).toThrow(/instructions; the kernel takes 4096/);
  });
});

test("evaluateBpf refuses an instruction that it does not know", () => {
  expect(() => evaluateBpf(Buffer.from([0x07, 0, 0, 0, 0, 0, 0, 0]), seccompData({ number: 0 }))).toThrow(
    "unknown code",
  );
});

const interesting = [0n, 1n, 2n, 3n, 5n, 0xffff_fffen, 0xffff_ffffn, 1n << 32n, (1n << 32n) + 1n, (5n << 32n) + 3n];
const values = [...interesting, 0xffff_ffff_ffff_fffen, 0xffff_ffff_ffff_ffffn];
const operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"] as const;

/** What a comparison means, said without halves. */
function holds({ index, operator, value, mask }: Comparison, args: readonly bigint[], bits: 32 | 64): boolean {
  const narrow = (number: bigint) => BigInt.asUintN(bits, number);
  const [argument, constant] = [narrow(args[index] ?? 0n), narrow(value)];
  const kept = narrow(mask ?? 0xffff_ffff_ffff_ffffn);
  return {
    NE: argument !== constant,
    LT: argument < constant,
    LE: argument <= constant,
    EQ: argument === constant,
    GE: argument >= constant,
    GT: argument > constant,
    MASKED_EQ: (argument & kept) === (constant & kept),
  }[operator];
}

function expected({ calls, unlisted }: ArchitectureRules, number: number, args: readonly bigint[]): number {
  const decision = calls.get(number);
  if (decision === undefined) return unlisted.findLast(({ from }) => from <= number)?.answer ?? -1;
  const { clauses, otherwise, argumentBits } = decision;
  return clauses.find(({ all }) => all.every((one) => holds(one, args, argumentBits)))?.answer ?? otherwise;
}

describe("compileRules", () => {
  test.for(operators)("compares all 64 bits, or the low 32: %s", (operator) => {
    const wrong: string[] = [];
    for (const argumentBits of [64, 32] as const) {
      for (const value of values) {
        for (const mask of operator === "MASKED_EQ" ? values : [undefined]) {
          const comparison: Comparison = { index: 3, operator, value, ...(mask === undefined ? {} : { mask }) };
          const clauses = [{ all: [comparison], answer: SECCOMP_RET_ALLOW }];
          const rules: ArchitectureRules = {
            auditArch,
            calls: new Map([[7, { clauses, otherwise: SECCOMP_RET_ERRNO, argumentBits }]]),
            unlisted: [{ from: 0, answer: 0 }],
          };
          const program = compileRules({ architectures: [rules], otherArchitectures: SECCOMP_RET_KILL_PROCESS });
          for (const argument of values) {
            const args = [0n, 0n, 0n, argument];
            const found = evaluateBpf(program, seccompData({ number: 7, args })).value;
            if (found !== expected(rules, 7, args))
              wrong.push(`${argument} ${operator} ${value} (mask ${mask}, ${argumentBits} bits): ${found}`);
          }
        }
      }
    }
    expect(wrong).toEqual([]);
  });

  test.for([1, 2, 3, 4, 5, 6, 7, 8])("decides as its rules say, whatever they are (%i)", (seed) => {
    const random = randomNumbers(seed);
    const pick = <T>(list: readonly T[]): T => list[random(list.length)] as T;
    const answers = [
      SECCOMP_RET_ALLOW,
      0,
      SECCOMP_RET_KILL_PROCESS,
      ...[1, 2, 38].map((errno) => SECCOMP_RET_ERRNO | errno),
    ];
    const clause = (): Clause => ({
      all: Array.from({ length: 1 + random(2) }, () => {
        const operator = pick(operators);
        return {
          index: random(3),
          operator,
          value: pick(values),
          ...(operator === "MASKED_EQ" ? { mask: pick(values) } : {}),
        };
      }),
      answer: pick(answers),
    });
    const decision = (): Decision => ({
      clauses: Array.from({ length: random(4) === 0 ? 1 + random(3) : 0 }, clause),
      otherwise: pick(answers),
      argumentBits: pick([32, 64]),
    });
    const architecture = (arch: number): ArchitectureRules => ({
      auditArch: arch,
      calls: new Map(Array.from({ length: 300 }, () => [random(500), decision()] as const)),
      unlisted: [
        { from: 0, answer: pick(answers) },
        { from: 400, answer: pick(answers) },
        { from: 0xffff_ffff, answer: pick(answers) },
      ],
      frequency: new Map(Array.from({ length: 30 }, () => [random(500), 1 + random(100)] as const)),
    });
    const architectures = [architecture(auditArch), architecture(0x4000_0003)];
    const program = compileRules({ architectures, otherArchitectures: SECCOMP_RET_KILL_PROCESS });
    const wrong: string[] = [];
    for (const rules of architectures) {
      for (const number of [...Array(520).keys(), 0x4000_0000, 0xffff_fffe, 0xffff_ffff]) {
        for (let i = 0; i < 20; i++) {
          const args = [pick(values), pick(values), pick(values)];
          const found = evaluateBpf(program, seccompData({ number, arch: rules.auditArch, args })).value;
          if (found !== expected(rules, number, args)) wrong.push(`call ${number} with ${args.join(", ")}: ${found}`);
        }
      }
    }
    expect(wrong).toEqual([]);
    expect(evaluateBpf(program, seccompData({ number: 0, arch: 1 })).value).toBe(SECCOMP_RET_KILL_PROCESS);
  });

  test("finds a frequent call in fewer steps, and every call in a logarithm of them", () => {
    const odd = Array.from({ length: 256 }, (_, i) => 2 * i + 1);
    const allow: Decision = { clauses: [], otherwise: SECCOMP_RET_ALLOW, argumentBits: 64 };
    const compile = (frequency: ReadonlyMap<number, number>) =>
      compileRules({
        architectures: [
          { auditArch, calls: new Map(odd.map((n) => [n, allow])), unlisted: [{ from: 0, answer: 0 }], frequency },
        ],
        otherArchitectures: 0,
      });
    const steps = (program: Uint8Array, number: number) => evaluateBpf(program, seccompData({ number })).steps;
    const plain = compile(new Map());
    const weighted = compile(new Map([[201, 1000]]));
    expect(Math.max(...odd.map((number) => steps(plain, number)))).toBeLessThanOrEqual(14); // 3 + ⌈log2 513⌉ + 1
    expect(steps(weighted, 201)).toBeLessThan(steps(plain, 201));
  });

  test("merges neighbours with one decision into one range", () => {
    const allow: Decision = { clauses: [], otherwise: SECCOMP_RET_ALLOW, argumentBits: 64 };
    const calls = new Map(Array.from({ length: 400 }, (_, i) => [i, allow] as const));
    const rules = { auditArch, calls, unlisted: [{ from: 0, answer: 0 }] };
    const program = compileRules({ architectures: [rules], otherArchitectures: SECCOMP_RET_KILL_PROCESS });
    expect(instructionCount(program)).toBe(7);
  });
});

/**
 * A step's seccomp profile in the terms of the OCI specification: what its configuration says and other runtimes can load.
 *
 * The filter that steps get is compiled from the same table directly (`profileRules`), which knows more: which calls are
 * frequent, and that x32 calls answer ENOSYS, for which the specification has no word.
 */
import { ENOSYS } from "./linux.ts";
import { answers, type ProfileRule, profileTable, type SeccompProfile } from "./seccomp-profile.ts";
import type { OciArgument, OciSeccomp, OciSyscall } from "./seccomp-oci.ts";
import { SECCOMP_RET_ALLOW } from "./seccomp-compile.ts";

const written = new Map<SeccompProfile, OciSeccomp>();

/** The same object each time, so that its filter can be found by it. */
export function profileSeccomp(profile: SeccompProfile): OciSeccomp {
  const known = written.get(profile);
  if (known !== undefined) return known;
  const seccomp: OciSeccomp = {
    defaultAction: "SCMP_ACT_ERRNO",
    defaultErrnoRet: ENOSYS,
    architectures: [process.arch === "arm64" ? "SCMP_ARCH_AARCH64" : "SCMP_ARCH_X86_64"],
    syscalls: profileTable(profile).flatMap(describeRule),
  };
  written.set(profile, seccomp);
  return seccomp;
}

/** The profile that a configuration was made of. */
export function profileOf(seccomp: OciSeccomp): SeccompProfile | undefined {
  for (const [profile, known] of written) if (known === seccomp) return profile;
  return undefined;
}

function describeRule({ calls, answer, except }: ProfileRule): OciSyscall[] {
  const names = calls.trim().split(/\s+/);
  if (except === undefined) return answer === "ENOSYS" ? [] : [{ names, ...action(answer) }];
  const { argument: index, values } = except;
  const when = (name: keyof typeof answers, value: number, mask: number): OciSyscall => {
    const argument: OciArgument = { index, op: "SCMP_CMP_MASKED_EQ", value: mask, valueTwo: value };
    return { names, ...action(name), args: [argument] };
  };
  if (typeof values === "object" && "anyBitOf" in values) {
    // A bit of the mask that is set decides; with none of them set, the whole mask is zero.
    const bits = Array.from({ length: 32 }, (_, i) => (1 << i) >>> 0).filter((bit) => (bit & values.anyBitOf) !== 0);
    return [...bits.map((bit) => when(except.answer, bit, bit)), when(answer, 0, values.anyBitOf)];
  }
  return [
    ...values.map((value) => when(except.answer, value, 0xffff_ffff)),
    ...blocksWithout(values).map(({ value, mask }) => when(answer, value, mask)),
  ];
}

function action(name: keyof typeof answers): { action: string; errnoRet?: number } {
  const answer = answers[name];
  if (answer === SECCOMP_RET_ALLOW) return { action: "SCMP_ACT_ALLOW" };
  return { action: "SCMP_ACT_ERRNO", errnoRet: answer & 0xffff };
}

/**
 * All numbers of 32 bits but these, as blocks that a mask tells apart: rules of the specification have no "otherwise",
 * and a rule without arguments would beat those with some.
 */
function blocksWithout(values: readonly number[]): { readonly value: number; readonly mask: number }[] {
  const blocks: { value: number; mask: number }[] = [];
  const cover = (value: number, bits: number): void => {
    const size = 2 ** bits;
    const inside = values.filter((other) => other >= value && other < value + size);
    if (inside.length === 0) blocks.push({ value, mask: bits === 32 ? 0 : (0xffff_ffff << bits) >>> 0 });
    else if (bits > 0) {
      cover(value, bits - 1);
      cover(value + size / 2, bits - 1);
    }
  };
  cover(0, 32);
  return blocks;
}

/** What agents may be told about builds of strangers' commits. */
import type { UntrustedPolicy } from "../agent/index.ts";
import { enumerate, parseDuration, parseSize } from "../pipelines/index.ts";
import { UsageError } from "./arguments.ts";

export const untrustedOption = {
  value: "KEY=VALUE",
  multiple: true,
  help: "What strangers' pull requests get: cpu, memory, pids, disk, log of a step, timeout of a\njob, private-networks=yes, private-images=yes, keep-on-failure=yes; may be repeated\n[default: cpu=1 memory=2GiB pids=512 disk=5GiB log=64MiB timeout=30m private-networks=no\nprivate-images=no keep-on-failure=no]",
} as const;

type Limit = keyof UntrustedPolicy["ceiling"];

type Flag = "privateNetworks" | "privateImages" | "keepsFailed";

const flags: Readonly<Record<string, Flag>> = {
  "private-networks": "privateNetworks",
  "private-images": "privateImages",
  "keep-on-failure": "keepsFailed",
};

const sizes: Readonly<Record<string, Limit>> = { memory: "memoryBytes", disk: "diskBytes", log: "logBytes" };

/** Changes the default by `key=value` words. @throws {UsageError} If one is not understood. */
export function parseUntrusted(words: readonly string[], defaults: UntrustedPolicy): UntrustedPolicy {
  let policy = defaults;
  for (const word of words) {
    const [, key = "", value = ""] = /^([^=]+)=(.*)$/.exec(word) ?? [];
    const limit = sizes[key];
    const refuse = (problem: string) =>
      new UsageError(`--untrusted ${JSON.stringify(word)} cannot be used: ${problem}`);
    if (limit !== undefined) {
      const parsed = parseSize(value);
      if (!parsed.ok) throw refuse(parsed.problem);
      policy = { ...policy, ceiling: { ...policy.ceiling, [limit]: parsed.value } };
    } else if (key === "cpu" || key === "pids") {
      if (!/^\d+(\.\d+)?$/.test(value) || Number(value) <= 0) throw refuse("it is no number above 0");
      policy = { ...policy, ceiling: { ...policy.ceiling, [key]: Number(value) } };
    } else if (key === "timeout") {
      const parsed = parseDuration(value);
      if (!parsed.ok) throw refuse(parsed.problem);
      policy = { ...policy, timeoutMs: parsed.value };
    } else if (Object.hasOwn(flags, key)) {
      if (value !== "yes" && value !== "no") throw refuse("it is yes or no");
      policy = { ...policy, [flags[key] as Flag]: value === "yes" };
    } else {
      const keys = ["cpu", "memory", "pids", "disk", "log", "timeout", ...Object.keys(flags)].map((each) => `${each}=`);
      throw refuse(`it is ${enumerate(keys, "or")}`);
    }
  }
  return policy;
}

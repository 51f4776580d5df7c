/** What this process has open, for tests that compare it with what it had before. */
import { readdirSync, readlinkSync } from "node:fs";

/** As many compiled programs as program-cache.ts keeps: one for each shape of container, and each place that descriptors have had. */
const keptPrograms = 64;

/** What each descriptor leads to, as /proc says it, without the compiled programs that are kept. */
export function openDescriptors(): string[] {
  const targets = readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      return []; // of the listing itself
    }
  });
  const programs = targets.filter((target) => target.startsWith("/memfd:slipway-init"));
  return [...targets.filter((target) => !programs.includes(target)), ...programs.slice(keptPrograms)];
}

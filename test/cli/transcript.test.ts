import { describe, expect, test } from "vitest";
import { painter } from "../../cli/terminal.ts";
import { Transcript } from "../../cli/transcript.ts";

function transcript(...names: readonly string[]): Transcript {
  const jobs = names.map((name) => ({ name, steps: [{ name: "step" }] }));
  return new Transcript(jobs, { paint: painter(false), colours: false, print: () => {} });
}

describe("Transcript.summary", () => {
  test("says why a job failed, where that is asked for", () => {
    const build = transcript("good", "bad");
    build.stepFinished("bad", 0, { status: "failure", durationMs: 5, reason: "killed by SIGKILL" });
    build.jobFinished("good", { status: "success", durationMs: 4 });
    build.jobFinished("bad", {
      status: "failure",
      durationMs: 6,
      reason: 'step "step" failed: killed by\x1b[2J SIGKILL',
    });
    const rows = ["✓ good  success   4.0 ms  step", "✗ bad   failure   6.0 ms  ✗ step 5.0 ms"];
    expect(build.summary()).toBe(`${rows.join("\n")}\n`);
    expect(build.summary({ reasons: true })).toBe(
      `${rows.join("\n")}\n    step "step" failed: killed by\\x1b[2J SIGKILL\n`,
    );
  });

  test("says what jobs used, and each of their steps where that is asked for", () => {
    const jobs = [{ name: "job", steps: [{ name: "a" }, { name: "b" }, { name: "c" }] }];
    const build = new Transcript(jobs, { paint: painter(false), colours: false, print: () => {} });
    const used = (cpuTimeMs: number) => ({ status: "success", usage: { cpuTimeMs, pidsPeak: cpuTimeMs } }) as const;
    build.stepFinished("job", 0, used(1));
    build.stepFinished("job", 1, used(2));
    const row = "  job              ✓ a, ✓ b, c";
    expect(build.summary()).toBe(`${row}  (cpu 3.0 ms, 2 processes)\n`);
    expect(build.summary({ usage: true })).toBe(
      `${row}\n    a: cpu 1.0 ms, 1 process\n    b: cpu 2.0 ms, 2 processes\n`,
    );
  });

  test("says what jobs do that have not ended", () => {
    const states = new Map([
      ["first", "running"],
      ["second", "queued"],
    ]);
    expect(transcript("first", "second").summary({ states })).toBe(
      "  first   running     step\n  second  queued      step\n",
    );
  });
});

import { defineConfig } from "vitest/config";

// Unit tests need neither root nor Redis nor containers: `npm run check` runs them on any machine. Everything else is a
// system test: real Git, real Redis, the real kernel.
const unit = [
  "test/architecture.test.ts",
  "test/build/{parse,parse-fuzz,pattern,stage-state,word}.test.ts",
  "test/agent/{clone-url,masker,step-log}.test.ts",
  "test/pipelines/**/*.test.ts",
  "test/runtime/{accounts,cgroup-usage,launch-plan,oci-features,oom-log,own-ids,program,seccomp,seccomp-bpf,seccomp-oci,signal-number,step-resources,subordinate-ids,tar-reader,walker}.test.ts",
  "test/queue/redis-address.test.ts",
  "test/cli/{arguments,did-you-mean,find-step,held-output,shell-escape,terminal}.test.ts",
];

// An emulated machine takes its time. Not by Vitest's options, for a project's own limit of hooks would stay.
const timeLimitMs = Number(process.env["SLIPWAY_TEST_TIME_LIMIT_MS"]) || undefined;

export default defineConfig({
  test: {
    // Own processes: system tests own signals, file descriptors and mounts, which threads would share.
    pool: "forks",
    // Containers and Redis servers compete for the cores with the tests that wait for them.
    maxWorkers: 2,
    projects: [
      { test: { name: "unit", include: unit, testTimeout: timeLimitMs ?? 20_000 } },
      {
        test: {
          name: "system",
          include: ["test/**/*.test.ts"],
          exclude: ["**/node_modules/**", "**/fixtures/**", ...unit],
          testTimeout: timeLimitMs ?? 60_000,
          // What the kernel or another process does when it finds the time: on a busy machine, not within vitest's one second.
          expect: { poll: { timeout: (timeLimitMs ?? 60_000) / 2 } },
          hookTimeout: timeLimitMs ?? 60_000,
        },
      },
    ],
  },
});

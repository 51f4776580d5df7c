/** Tells each test as it ends, for a virtual machine is slow enough to look dead: Vitest's own reporters wait for the file. */
import { writeSync } from "node:fs";
import type { Reporter, TestCase, TestModule } from "vitest/node";

/** One line for each test, with its reason at once if it failed. */
export default class VmReporter implements Reporter {
  onTestModuleStart(module: TestModule): void {
    say(`\n${module.relativeModuleId}`);
  }

  onTestCaseResult(test: TestCase): void {
    const { state, errors } = test.result();
    const duration = test.diagnostic()?.duration;
    const time = duration === undefined ? "" : ` (${(duration / 1000).toFixed(1)} s)`;
    say(`  ${state} ${test.fullName}${time}`);
    for (const error of errors ?? []) say(indent(error.diff ? `${describe(error)}\n${error.diff}` : describe(error)));
  }

  onTestModuleEnd(module: TestModule): void {
    for (const error of module.errors()) say(indent(describe(error)));
  }

  onTestRunEnd(
    modules: readonly TestModule[],
    errors: readonly { readonly message: string; readonly stack?: string }[],
  ): void {
    for (const error of errors) say(`unhandled: ${describe(error)}`);
    say("\nfiles:");
    for (const module of modules) {
      const count = { passed: 0, failed: 0, skipped: 0, pending: 0 };
      for (const test of module.children.allTests()) count[test.result().state]++;
      const { passed, failed, skipped, pending } = count;
      say(
        `  ${module.state()} ${module.relativeModuleId}: ${passed} passed, ${failed} failed, ${skipped + pending} skipped`,
      );
    }
  }
}

function describe(error: { readonly message: string; readonly stack?: string }): string {
  return error.stack?.includes(error.message) ? error.stack : `${error.message}\n${error.stack ?? ""}`;
}

function indent(text: string): string {
  return text.replace(/^/gm, "      ");
}

/** At once and whole: Node writes to a pipe asynchronously, and what follows may hang. */
function say(line: string): void {
  writeSync(1, `${line}\n`);
}

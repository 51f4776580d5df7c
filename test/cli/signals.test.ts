import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { describe, expect, test } from "vitest";
import { environment, root, TemporaryDirectory } from "./command.ts";

const program = `
import { aborted, StopSignals } from ${JSON.stringify(pathToFileURL(join(root, "cli/signals.ts")).href)};
using signals = new StopSignals();
const busy = setInterval(() => {}, 1000);
process.stdout.write("ready;");
await aborted(signals.drain);
clearInterval(busy);
process.stdout.write(signals.drain.reason.message);
`;

describe("StopSignals", () => {
  test("drains when the shell that npm started it in dies of a signal", async () => {
    await using directory = await TemporaryDirectory.create({ "program.ts": program });
    // As npm does it; the second command keeps the shell from becoming the first.
    const script = `'${process.execPath}' '${join(directory.path, "program.ts")}'; true`;
    const shell = spawn("sh", ["-c", script], {
      env: environment({ npm_command: "exec" }),
      stdio: ["ignore", "pipe", "inherit"],
    });
    let said = "";
    shell.stdout.setEncoding("utf8").on("data", (text: string) => {
      said += text;
      if (said === "ready;") shell.kill("SIGTERM");
    });
    // Closed once the program, too, has ended.
    await once(shell, "close");
    expect(shell.signalCode).toBe("SIGTERM");
    expect(said).toBe("ready;npm, which started this, is gone");
  });
});

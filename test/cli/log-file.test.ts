import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const module = fileURLToPath(new URL("../../cli/log-file.ts", import.meta.url));

/** On a file system of its own, of 8 KiB. */
const script = `
import { openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { isFile, LogFile } from ${JSON.stringify(module)};
const fd = openSync("/mnt/log", "a");
const log = new LogFile(fd, ({ count, code }) => log.write("lost " + count + " " + code + "\\n"));
log.write("first\\n");
writeFileSync("/mnt/other", Buffer.alloc(4096));
// What is left of the page of the log, and not all of this line.
log.write("x".repeat(5000) + "\\n");
for (let i = 0; i < 3; i++) log.write("nobody reads this\\n");
rmSync("/mnt/other");
log.write("second\\n");
log.write("third\\n");
console.log(JSON.stringify([isFile(fd), isFile(0), readFileSync("/mnt/log", "utf8").replace(/x{100,}/, "x…")]));
`;

test.skipIf(process.getuid?.() !== 0)(
  "a log goes on when its full disk has room again, and says what is missing",
  () => {
    const mount = 'mount -t tmpfs -o size=8k tmpfs /mnt && exec "$@"';
    const node = [process.execPath, "--input-type=module", "--eval", script];
    const output = execFileSync("unshare", ["--mount", "sh", "-c", mount, "sh", ...node], {
      encoding: "utf8",
      input: "",
    });
    expect(JSON.parse(output)).toEqual([true, false, "first\nx…\nsecond\nlost 4 ENOSPC\nthird\n"]);
  },
);

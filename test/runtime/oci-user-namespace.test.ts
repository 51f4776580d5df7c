import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { namespaceProcesses } from "../../runtime/oci-user-namespace.ts";

/** Of a pid namespace: its first process and that one's child. */
let first: number;
let second: number;
let unshare: ChildProcess;

const children = (pid: number | undefined) =>
  readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").map(Number);

beforeAll(async () => {
  const script = "sleep 1000 & echo begun; wait";
  unshare = spawn("unshare", ["--pid", "--fork", "--kill-child", "sh", "-c", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (unshare.stdout !== null) await once(unshare.stdout, "data");
  first = children(unshare.pid)[0] ?? 0;
  second = children(first)[0] ?? 0;
});
afterAll(async () => {
  unshare.kill("SIGKILL");
  await once(unshare, "exit");
});

describe("namespaceProcesses", () => {
  test("are all of a namespace that its process was the first in", () => {
    expect(namespaceProcesses(first).toSorted()).toEqual([first, second].toSorted());
  });

  test("are that process alone where others were before it, as in another container's or the host's namespace", () => {
    expect(namespaceProcesses(second)).toEqual([second]);
    expect(namespaceProcesses(process.pid)).toEqual([process.pid]);
  });

  test("are none if it is gone", () => {
    expect(namespaceProcesses(2 ** 22 + 1)).toEqual([]);
  });
});

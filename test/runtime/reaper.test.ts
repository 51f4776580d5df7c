import { spawn } from "node:child_process";
import { once } from "node:events";
import { expect, test } from "vitest";
import { kill, reap } from "../../runtime/reaper.ts";
import { spawnProgram } from "../../runtime/syscall.ts";

const sh = (script: string) => spawnProgram("/bin/sh", ["-c", script]);

test("reap tells how each of many ended, between children of Node's own", async () => {
  const own = Array.from({ length: 20 }, (_, i) => spawn("/bin/sh", ["-c", `sleep 0.0${i % 5}; exit ${i}`]));
  const ends = own.map(async (child) => (await once(child, "exit"))[0] as number);
  const pids = Array.from({ length: 20 }, (_, i) => sh(`sleep 0.0${(i * 3) % 5}; exit ${i}`));
  expect((await Promise.all(pids.map(reap))).map(({ exitCode }) => exitCode)).toEqual(pids.map((_, i) => i));
  expect(await Promise.all(ends)).toEqual(own.map((_, i) => i));
});

test("reap tells the signal, and of one that has ended before anybody asked", async () => {
  const killed = sh("exec sleep 100");
  const ended = reap(killed);
  kill(killed);
  expect(await ended).toMatchObject({ signal: 9 });
  const early = sh("exit 3");
  await once(spawn("/bin/sh", ["-c", "sleep 0.2"]), "exit");
  expect(await reap(early)).toMatchObject({ exitCode: 3 });
});

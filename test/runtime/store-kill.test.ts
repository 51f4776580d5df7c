import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { expect, test } from "vitest";
import { isRoot, oneFileLayer } from "./image-fixture.ts";
import { ScriptedRegistry } from "./registry-fixture.ts";

const program = fileURLToPath(new URL("./store-worker.ts", import.meta.url));
const tags = 4;
const rounds = 6;

/** Layers of a tag, and what `look` says of them; the first one is in all images. */
function layersOf(tag: number): { readonly name: string; readonly tar: Buffer }[] {
  return [0, 1 + tag, 10 + tag].map((i) => ({
    name: `usr/f${i}`,
    tar: oneFileLayer(`usr/f${i}`, "x".repeat(200_000 + i)),
  }));
}
const seen = (tag: number) => [0, 1 + tag, 10 + tag].map((i) => `f${i} ${200_000 + i}`);

test.skipIf(!isRoot)(
  "a store whose users are killed at any moment is whole, and has lost nothing that it had",
  { timeout: 180_000 },
  async () => {
    await using registry = await ScriptedRegistry.start();
    for (let tag = 0; tag < tags; tag++) {
      const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip";
      registry.add(
        `${tag}`,
        layersOf(tag).map(({ tar }) => ({ tar, blob: gzipSync(tar), mediaType })),
      );
    }
    const directory = mkdtempSync(join(tmpdir(), "slipway-kill-"));
    const args = [join(directory, "store"), registry.host, `${tags}`];
    try {
      const there = new Set<string>();
      for (let round = 0; round < rounds; round++) {
        const maybe = new Set<string>();
        const work = async () => {
          const child = spawn(process.execPath, [program, "work", ...args], { stdio: ["ignore", "pipe", "inherit"] });
          for await (const line of createInterface(child.stdout)) {
            const [what, name = ""] = line.split(" ");
            if (what === "has") there.add(name);
            // The other one may be giving it just now.
            else maybe.add(name);
            if (!child.killed) void delay(Math.random() * 250).then(() => child.kill("SIGKILL"));
          }
          if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
          expect(child.signalCode).toBe("SIGKILL");
        };
        // Two at a time: what one does the other one sees half done.
        await Promise.all([work(), work()]);
        const looked = spawn(process.execPath, [program, "look", ...args], { stdio: ["ignore", "pipe", "inherit"] });
        let text = "";
        for await (const chunk of looked.stdout) text += String(chunk);
        const { names, left } = JSON.parse(text) as { names: Record<string, string[] | null>; left: string[] };
        expect(left, `left half-written in round ${round}`).toEqual([]);
        for (const name of maybe) there.delete(name);
        expect(Object.keys(names)).toEqual(expect.arrayContaining([...there]));
        for (const [name, layers] of Object.entries(names).filter(([each]) => /:\d$/.test(each)))
          expect(layers, `${name} in round ${round}`).toEqual(seen(Number(name.at(-1))));
      }
      expect(there.size).toBeGreaterThan(0);
    } finally {
      rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
    }
  },
);

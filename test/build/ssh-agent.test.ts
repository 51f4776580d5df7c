import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { forwardAgent } from "../../build/ssh-agent.ts";

const hasSsh = spawnSync("ssh-add", ["-?"]).error === undefined;

describe.skipIf(!hasSsh)("forwardAgent", () => {
  test("lets clients list keys and sign with them, and change nothing", async () => {
    const directory = mkdtempSync(join(tmpdir(), "ssh-agent-"));
    const socket = join(directory, "agent");
    const agent = spawn("ssh-agent", ["-D", "-a", socket], { stdio: "ignore" });
    try {
      while (!existsSync(socket)) await delay(5);
      const key = join(directory, "key");
      execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", key]);
      execFileSync("ssh-add", ["-q", key], { env: { SSH_AUTH_SOCK: socket } });
      const forwarded = join(directory, "forwarded");
      await using _forwarding = await forwardAgent(socket, forwarded);
      // Not spawnSync: this process forwards.
      const run = async (program: string, args: readonly string[]) => {
        const child = spawn(program, args, {
          stdio: ["ignore", "pipe", "pipe"],
          env: { PATH: process.env["PATH"], SSH_AUTH_SOCK: forwarded },
        });
        let output = "";
        for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (output += String(text)));
        const [code] = (await once(child, "close")) as [number];
        return { code, output };
      };
      expect(await run("ssh-add", ["-L"])).toMatchObject({ code: 0, output: expect.stringMatching(/^ssh-ed25519 /) });
      writeFileSync(join(directory, "message"), "hello");
      // The public key alone: the agent has the private one.
      rmSync(key);
      const sign = ["-Y", "sign", "-n", "test", "-f", `${key}.pub`, join(directory, "message")];
      expect(await run("ssh-keygen", sign)).toMatchObject({ code: 0 });
      expect(existsSync(join(directory, "message.sig"))).toBe(true);
      for (const args of [["-D"], ["-d", `${key}.pub`], ["-x"]]) {
        const { code } = await run("ssh-add", args);
        expect([args, code]).not.toEqual([args, 0]);
      }
      expect((await run("ssh-add", ["-l"])).code).toBe(0);
    } finally {
      agent.kill();
      await once(agent, "exit");
      rmSync(directory, { recursive: true });
    }
  });
});

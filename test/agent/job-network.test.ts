import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { executeJob } from "../../agent/index.ts";
import { parsePipeline } from "../../pipelines/index.ts";
import { checkNetworks, Host } from "../../runtime/index.ts";

let directory = "";
let host: Host;
beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "slipway-job-network-"));
  for (const name of ["workspace", "log"]) mkdirSync(join(directory, name));
  host = await Host.open({ stateDir: join(directory, "state") });
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
  rmSync(directory, { recursive: true });
});

const pipeline = `
jobs:
  net:
    steps:
      - name: shared
        network: job
        run: ls /sys/class/net | sort; cat /sys/class/net/eth0/address > address; grep -c nameserver /etc/resolv.conf
      - name: again
        network: job
        run: cmp address /sys/class/net/eth0/address; (echo > /dev/null; timeout 2 bash -c 'echo > /dev/tcp/169.254.169.254/80') 2>&1 || true
      - name: alone
        run: ls /sys/class/net
`;

test("executeJob gives the steps that want it one network, and says what it refused", async (context) => {
  const problems = (await checkNetworks()).filter(({ ok, required }) => required && !ok);
  if (problems.length > 0) context.skip(problems.map(({ found }) => found).join("; "));
  const [job] = parsePipeline(pipeline, {}).pipeline?.jobs ?? [];
  if (job === undefined) throw new Error("the pipeline is invalid");
  const result = await executeJob(job, {
    host,
    id: "net",
    workspace: { dir: join(directory, "workspace") },
    variables: {},
    logDir: join(directory, "log"),
    reporter: {},
  });
  const log = (index: number) => readFileSync(join(directory, "log", `${index}.log`), "utf8");
  expect(result).toMatchObject({ status: "success" });
  expect(log(0)).toMatch(/^eth0\nlo\n\d+\n$/);
  expect(log(1)).toMatch(/network: refused 169\.254\.169\.254:80\/tcp \(\d+ packets\)/);
  expect(log(2)).toBe("lo\n");
});

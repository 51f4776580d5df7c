/** A process for leak.test.ts: runs a container on the given state directory until it is killed. */
import { mkdirSync, readFileSync } from "node:fs";
import { Host, resolveImage, runContainer } from "../../runtime/index.ts";

const [stateDir = ""] = process.argv.slice(2);
const host = await Host.open({ stateDir });
const container = await runContainer(host, {
  id: "killed",
  image: await resolveImage("host", { baseDir: stateDir, storeDir: host.imageStoreDir }),
  uidRange: host.claimUidRange(),
  args: ["/bin/sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000"],
  env: { PATH: "/bin" },
  resources: { memoryBytes: 64 << 20, cpu: 1, pids: 32 },
  network: "none",
  output: () => undefined,
});
const cgroups = host.cgroups?.directories ?? [];
for (const directory of cgroups) mkdirSync(`${directory}/left-behind/below`, { recursive: true });
const children = readFileSync(`/proc/${container.pid}/task/${container.pid}/children`, "utf8");
console.log(JSON.stringify({ init: container.pid, payload: Number(children.trim().split(" ")[0]), cgroups }));
await container.result;

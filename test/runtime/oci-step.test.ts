/** A step's configuration, as `slipway run --explain` prints it, is one that `slipway oci` runs: both make the same of it. */
import { execFileSync } from "node:child_process";
import { existsSync, lstatSync, mkdirSync, readlinkSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type ContainerConfig, explainContainer } from "../../runtime/index.ts";
import { formatOciConfig } from "../../runtime/step-config.ts";
import { TestHost } from "./host-fixture.ts";
import { OciWorld } from "./oci-bundle.ts";

let host: TestHost;
let world: OciWorld;
beforeAll(async () => {
  host = await TestHost.open();
  world = new OciWorld();
});
afterAll(async () => {
  world[Symbol.dispose]();
  await host[Symbol.asyncDispose]();
});

/** A bundle with the configuration, over the root file system that the image "host" stands for. */
function bundle(name: string, config: ContainerConfig): string {
  const path = join(world.directory, name);
  const rootfs = join(path, "rootfs");
  mkdirSync(rootfs, { recursive: true });
  for (const link of ["/bin", "/sbin", "/lib", "/lib64"]) {
    if (existsSync(link) && lstatSync(link).isSymbolicLink()) symlinkSync(readlinkSync(link), rootfs + link);
  }
  const { args, env, ...prepared } = config;
  const explained = explainContainer(host.host, prepared, { args, env }).config;
  writeFileSync(join(path, "config.json"), formatOciConfig(explained));
  execFileSync("chown", ["--recursive", "--no-dereference", `${host.range.base}:${host.range.base}`, rootfs]);
  return path;
}

const script = `
  id -u; id -G; pwd; hostname; umask; ulimit -n; ulimit -c; cat /proc/self/oom_score_adj
  grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)' /proc/self/status
  cat /proc/self/uid_map
  ls /dev; ls /sys/class/net; cat /proc/1/cgroup | cut -d: -f2- | sort | tail -1
  for path in /proc/kcore /proc/keys /sys/firmware /proc/sys /proc/sysrq-trigger; do
    head -c 1 $path 2>/dev/null | wc -c; touch $path 2>/dev/null && echo writable
  done
  # Nodes and masks of files are binds in the one, of a tmpfs of ours in the other.
  cut -d' ' -f5,6 /proc/self/mountinfo | grep -E '^/(proc|sys|dev|usr|workspace)' | sort |
    grep -vE 'cgroup|^/dev/(full|null|random|tty|urandom|zero) |^/proc/(interrupts|keys|timer_list) '
  unshare -m true 2>/dev/null || echo no namespaces
  cat file; echo written > file && cat file; env | grep -v HOME= | sort`;

test("of a step says all that the step is", async () => {
  const dir = host.workspace();
  writeFileSync(join(dir, "file"), "content\n");
  const workspace = { dir };
  const step = await host.run(script, { workspace });
  expect(step).toMatchObject({ exitCode: 0 });
  writeFileSync(join(dir, "file"), "content\n");
  const path = bundle("step", host.script(script, { workspace }));
  const { code, stdout, stderr } = world.run("run", "--bundle", path, world.id());
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout.split("\n")).toEqual(step.stdout.split("\n"));
  expect(stdout).toContain("no namespaces\ncontent\nwritten\n");
});

/** Whether steps of this host can have containers of their own, found out by a step that tries what builders need. */
import { existsSync, readFileSync } from "node:fs";
import type { HostCheck } from "./check.ts";
import { runContainer } from "./create-container.ts";
import type { Host } from "./host.ts";
import { resolveImage } from "./image.ts";

/** What is tried, each with its exit code's name; the order is that of the tools. */
const tries = [
  { what: "user namespaces", script: "unshare --user --map-root-user true" },
  {
    what: "a /proc of their own in them",
    script: "unshare --user --map-root-user --pid --fork --mount --mount-proc true",
  },
  {
    what: "overlay file systems in them",
    script:
      "cd /var/lib/containers && mkdir u w m && unshare --user --map-root-user --mount mount -t overlay -o userxattr,lowerdir=/etc,upperdir=u,workdir=w overlay m",
  },
  {
    what: "cgroups of their own",
    script:
      "cd /sys/fs/cgroup && { test -e cgroup.procs || cd memory; } && mkdir mine && sh -c 'echo $$ > mine/cgroup.procs'",
  },
  { what: "FUSE", script: "exec 3<> /dev/fuse", mend: "modprobe fuse" },
  { what: "tunnels", script: "exec 3<> /dev/net/tun", mend: "modprobe tun" },
] as const;

/**
 * Tries it in a container.
 *
 * @param host Which gives out its ids.
 */
export async function checkNested(host: Host): Promise<HostCheck> {
  const name = "nested steps";
  try {
    const missing = await findMissing(host);
    if (missing.length === 0)
      return { name, ok: true, required: false, found: tries.map(({ what }) => what).join(", ") };
    const mends = missing.flatMap((one) => ("mend" in one ? [one.mend] : []));
    const mend = [restriction(), ...mends].filter((one) => one !== undefined).join("; ");
    return {
      name,
      ok: false,
      required: false,
      found: `without ${missing.map(({ what }) => what).join(", ")}`,
      ...(mend === "" ? {} : { mend }),
    };
  } catch (error) {
    return { name, ok: false, required: false, found: (error as Error).message };
  }
}

async function findMissing(host: Host): Promise<(typeof tries)[number][]> {
  const image = await resolveImage("host", { baseDir: host.stateDir, storeDir: host.imageStoreDir });
  using uidRange = host.claimUidRange();
  const chunks: Buffer[] = [];
  const script = tries.map((one, i) => `(${one.script}) >/dev/null 2>&1 || echo ${i}`).join("\n");
  await using container = await runContainer(host, {
    id: "nested-check",
    image,
    uidRange,
    nested: { home: "/root" },
    resources: { memoryBytes: 256 << 20, cpu: 1, pids: 64 },
    network: "none",
    timeoutMs: 10_000,
    graceMs: 100,
    args: ["/bin/sh", "-c", `${script}\nexit 0`],
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
    output: (stream, chunk) => void (stream === "stdout" && chunks.push(Buffer.from(chunk))),
  });
  const { exitCode, message } = await container.result;
  if (exitCode !== 0) throw new Error(message ?? `the test ended with exit code ${exitCode}`);
  const failed = new Set(Buffer.concat(chunks).toString().split("\n").filter(Boolean).map(Number));
  return tries.filter((_, i) => failed.has(i));
}

/** A setting of the host that is known to be in the way. */
function restriction(): string | undefined {
  const isSet = (path: string, value: string) => existsSync(path) && readFileSync(path, "utf8").trim() === value;
  if (isSet("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1")) {
    return "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0";
  }
  if (isSet("/proc/sys/user/max_user_namespaces", "0")) return "sysctl -w user.max_user_namespaces=10000";
  return undefined;
}

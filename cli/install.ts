/** Installs the programs that demo and tests need and npm cannot bring. */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { delimiter, isAbsolute, join } from "node:path";

/** A program that cannot be installed here; the message is the line that tells how. */
export class MissingProgramError extends Error {
  override readonly name = "MissingProgramError";
}

interface Need {
  readonly what: string;
  /** Any one of these is enough: looked up in PATH, or absolute. */
  readonly programs: readonly string[];
  /** Debian packages that bring one, in order of preference. */
  readonly packages: readonly string[];
}

const needs: readonly Need[] = [
  { what: "Git", programs: ["git"], packages: ["git"] },
  { what: "a Redis server", programs: ["redis-server", "valkey-server"], packages: ["redis-server", "valkey-server"] },
];

/** What single tests look at containers with; where it cannot be installed, only those fail. */
const testNeeds: readonly Need[] = [
  { what: "Python", programs: ["python3"], packages: ["python3"] },
  { what: "mount", programs: ["mount"], packages: ["mount"] },
  { what: "ps", programs: ["ps"], packages: ["procps"] },
  { what: "names of services", programs: ["/etc/services"], packages: ["netbase"] },
  { what: "certificates", programs: ["/usr/sbin/update-ca-certificates"], packages: ["ca-certificates"] },
  { what: "subordinate ids", programs: ["newuidmap"], packages: ["uidmap"] },
  { what: "pasta", programs: ["pasta"], packages: ["passt"] },
  { what: "setcap", programs: ["setcap"], packages: ["libcap2-bin"] },
  { what: "buildah", programs: ["buildah"], packages: ["buildah"] },
  { what: "a static busybox", programs: ["busybox"], packages: ["busybox-static"] },
  { what: "zstd", programs: ["zstd"], packages: ["zstd"] },
  { what: "an image registry", programs: ["docker-registry"], packages: ["docker-registry"] },
  { what: "skopeo", programs: ["skopeo"], packages: ["skopeo"] },
  { what: "ip and bridge", programs: ["ip"], packages: ["iproute2"] },
  { what: "nft", programs: ["nft"], packages: ["nftables"] },
];

/**
 * Makes sure that Git and a Redis server are there: as root on Debian and its kin by apt-get, saying so in one line.
 *
 * @param options.forTests Also installs, where it can, what only tests use.
 * @param options.say Receives the line.
 * @throws {MissingProgramError} If a program is missing and cannot be installed from here.
 */
export function installPrograms(
  environment: NodeJS.ProcessEnv,
  { forTests, say }: { readonly forTests: boolean; readonly say: (line: string) => void },
): void {
  const isMissing = ({ programs }: Need) => !programs.some((program) => isInPath(program, environment));
  const canInstall = process.geteuid?.() === 0 && isDebian();
  const missing = (forTests && canInstall ? [...needs, ...testNeeds] : needs).filter(isMissing);
  if (missing.length === 0) return;
  const hint = missing.map(({ what, packages }) => `${what}: apt-get install ${packages[0]}`).join("; ");
  if (!canInstall) {
    const names = missing.map(({ what }) => what).join(" and ");
    throw new MissingProgramError(`Cannot go on without ${names}: install it (on Debian or Ubuntu, as root, ${hint})`);
  }
  apt(["update", "-qq"], environment, hint);
  const packages = missing.map(({ packages: candidates }) => candidates.find(isAvailable) ?? (candidates[0] as string));
  say(`installing ${packages.join(", ")} (apt-get)`);
  withoutServices(packages, environment, () => {
    apt(["install", "-qq", "--yes", "--no-install-recommends", ...packages], environment, hint);
  });
}

function isInPath(program: string, environment: NodeJS.ProcessEnv): boolean {
  if (isAbsolute(program)) return existsSync(program);
  const directories =
    `${environment["PATH"] ?? ""}${delimiter}/usr/bin${delimiter}/usr/sbin${delimiter}/usr/local/bin`.split(delimiter);
  return directories.some((dir) => dir !== "" && existsSync(join(dir, program)));
}

function isDebian(): boolean {
  try {
    return (
      /^ID(_LIKE)?=.*\b(debian|ubuntu)\b/m.test(readFileSync("/etc/os-release", "utf8")) &&
      existsSync("/usr/bin/apt-get")
    );
  } catch {
    return false;
  }
}

function isAvailable(name: string): boolean {
  const { stdout } = spawnSync("apt-cache", ["policy", name], { encoding: "utf8" });
  return /Candidate: (?!\(none\))/.test(stdout ?? "");
}

function apt(args: readonly string[], environment: NodeJS.ProcessEnv, hint: string): void {
  const result = spawnSync("apt-get", args, {
    env: { ...environment, DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C.UTF-8" },
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
  });
  if (result.status === 0) return;
  const reason = result.error?.message ?? result.stderr.trim().split("\n").slice(-3).join(" ");
  throw new MissingProgramError(`Cannot install what is missing: apt-get ${args[0]}: ${reason} (${hint})`);
}

/**
 * Debian starts and enables what it installs; Slipway wants the program only, on a private socket. A policy-rc.d that
 * answers 101 forbids the start during the installation, a disable afterwards the start at the next boot.
 *
 * @see invoke-rc.d(8)
 */
function withoutServices(packages: readonly string[], environment: NodeJS.ProcessEnv, install: () => void): void {
  const policy = "/usr/sbin/policy-rc.d";
  const isOurs = !existsSync(policy);
  if (isOurs) writeFileSync(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
  try {
    install();
  } finally {
    if (isOurs) rmSync(policy, { force: true });
  }
  for (const name of packages.filter((candidate) => /-(server|registry)$/.test(candidate))) {
    // With systemd and without: what is not there has enabled nothing.
    const disable = [
      ["deb-systemd-helper", "disable", `${name}.service`],
      ["update-rc.d", name, "disable"],
    ] as const;
    for (const [program, ...args] of disable) spawnSync(program, args, { env: environment, stdio: "ignore" });
  }
}

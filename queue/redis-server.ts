import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { access, constants } from "node:fs/promises";
import { isAbsolute, join } from "node:path";
import { promisify } from "node:util";

export interface RedisServer {
  /** Absolute path of the program. */
  readonly path: string;
  readonly version: string;
}

const names = ["valkey-server", "redis-server"] as const;
/** Where packages put them, for a PATH that systemd or cron cut short. */
const usualPlaces = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin", "/opt/valkey/bin", "/opt/redis/bin"];

/**
 * Looks for a Valkey or Redis server program that runs, in PATH and then in the usual places.
 *
 * @returns `undefined` if there is none; {@link installHint} says how to get one.
 */
export async function findRedisServer(): Promise<RedisServer | undefined> {
  const candidates = [...(await inPath()), ...usualPlaces.flatMap((place) => names.map((name) => join(place, name)))];
  for (const path of new Set(candidates)) {
    const version = await serverVersion(path);
    if (version !== undefined) return { path, version };
  }
  return undefined;
}

/** The shell searches PATH: the environment is read in cli/ only. */
async function inPath(): Promise<readonly string[]> {
  const script = names.map((name) => `command -v ${name}`).join("; ");
  // The status is that of the last name and says nothing.
  const { stdout } = await promisify(execFile)("/bin/sh", ["-c", `${script}; true`]);
  return stdout.split("\n").filter(isAbsolute);
}

/** Asks a server program for its version; `undefined` if it is missing, does not run or is something else. */
export async function serverVersion(path: string): Promise<string | undefined> {
  try {
    await access(path, constants.X_OK);
    const { stdout } = await promisify(execFile)(path, ["--version"], { timeout: 10_000 });
    return /\bv=(\d+\.\d+(?:\.\d+)?)/.exec(stdout)?.[1];
  } catch {
    return undefined;
  }
}

const installers: readonly (readonly [ids: readonly string[], line: string])[] = [
  [["debian", "ubuntu"], "apt-get install -y redis-server"],
  [["fedora"], "dnf install -y valkey"],
  [["rhel", "centos", "amzn"], "dnf install -y valkey || dnf install -y redis"],
  [["alpine"], "apk add valkey || apk add redis"],
  [["arch"], "pacman -S --noconfirm valkey"],
  [["suse", "opensuse"], "zypper --non-interactive install redis"],
  [["gentoo"], "emerge dev-db/redis"],
  [["void"], "xbps-install -y valkey"],
  [["nixos"], "nix-env -iA nixos.valkey"],
];

/** The line to run, as root, that installs a Redis server on this distribution. */
export function installHint(): string {
  const ids = distributionIds();
  for (const id of ids) {
    const line = installers.find(([known]) => known.includes(id))?.[1];
    if (line !== undefined) return line;
  }
  return "install Valkey, or Redis 6.2 or later, with the package manager of this distribution";
}

/** The distribution and what it is like, nearest first, os-release(5). */
function distributionIds(): readonly string[] {
  let text = "";
  for (const file of ["/etc/os-release", "/usr/lib/os-release"]) {
    try {
      text = readFileSync(file, "utf8");
      break;
    } catch {
      // The second file is what the first one normally links to.
    }
  }
  const field = (key: string) => new RegExp(`^${key}=["']?([^"'\\n]*)`, "m").exec(text)?.[1] ?? "";
  return `${field("ID")} ${field("ID_LIKE")}`.split(/\s+/).filter(Boolean);
}

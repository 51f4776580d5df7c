/**
 * Rootless: a command of an ordinary user starts itself again where it has the privileges that containers take.
 *
 * Node cannot enter a user namespace: it has threads. So the command makes one with a short-lived process in it, has
 * newuidmap(1) and newgidmap(1) write its id maps, and then executes a small program in its own place, which joins the
 * namespace and executes the same command again. Process id, terminal, standard descriptors, working directory, environment
 * and with them signals and exit code stay what they were.
 *
 * In the namespace the user has the same uid as outside, so that Git, ssh and file owners see no difference, and every
 * capability, kept over `execve` as ambient ones. The capabilities count for what belongs to the namespace: mounts made
 * in it, files of the user and of subordinate ids, networks made in it; and for nothing else.
 *
 * This file is loaded before anything else of the runtime: `cli/` asks for it before it knows whether it will stay.
 */
import { readFileSync } from "node:fs";
import { userInfo } from "node:os";
import { capabilityNames } from "./linux.ts";
import type { IdMapping } from "./oci-config.ts";
import type { Account } from "./subordinate-ids.ts";

/** Why a command could not become able to start containers. */
export interface RootlessObstacle {
  /** `user namespaces are forbidden (EPERM)` */
  readonly found: string;
  readonly mend: string;
}

export interface RootlessCommand {
  /** The arguments, the program's own name first. */
  readonly args: readonly string[];
  readonly executable: string;
  readonly environment: NodeJS.ProcessEnv;
  /** Descriptors that it has besides the standard ones. @default none */
  readonly descriptors?: readonly number[];
}

/** Ids that a user namespace has where the host has them. */
export interface NamespaceIds {
  readonly uids: readonly IdMapping[];
  readonly gids: readonly IdMapping[];
}

/** In the environment of the command that has been started again: empty, or why it has only one id. */
const marker = "SLIPWAY_ROOTLESS";

/**
 * Starts `command` in this process's place, in a user namespace where it may start containers. Returns only if there is no
 * need to, with undefined, or no way. Nothing may have been started or opened yet that must not end here.
 *
 * @param ids Those that are wanted; without them as many as the user has, or his own alone.
 */
export async function enterUserNamespace(
  command: RootlessCommand,
  ids?: NamespaceIds,
): Promise<RootlessObstacle | undefined> {
  if (holdsCapabilities()) return undefined;
  if (command.environment[marker] !== undefined) {
    return { found: "the user namespace gave no capabilities", mend: restrictionMend() };
  }
  const { becomeCommand, makeSameUserNamespace, makeUserNamespace } = await import("./rootless-command.ts");
  const path = command.environment["PATH"];
  try {
    const { namespaceFd, problem } =
      ids === undefined
        ? makeUserNamespace(findAccount(), path)
        : { namespaceFd: makeSameUserNamespace(ids, path), problem: "" };
    becomeCommand({ ...command, environment: { ...command.environment, [marker]: problem } }, namespaceFd);
  } catch (error) {
    const { message, code } = error as NodeJS.ErrnoException;
    return { found: message, mend: restrictionMend(code) };
  }
}

/** This process's own command. */
export function ownCommand(environment: NodeJS.ProcessEnv): RootlessCommand {
  const args = readFileSync("/proc/self/cmdline", "utf8").split("\0").slice(0, -1);
  return { args, executable: process.execPath, environment };
}

/** What was in the way of having more than one id; empty if nothing, undefined if this command did not start itself again. */
export function rootlessProblem(environment: NodeJS.ProcessEnv): string | undefined {
  return environment[marker];
}

/** Without what is said to a command that has been started again: for other programs that it starts. */
export function programEnvironment(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(environment).filter(([name]) => name !== marker));
}

/** CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID, wherever they count. */
export function holdsCapabilities(): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0";
  return (["CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID"] as const).every(
    (name) => ((BigInt(`0x${effective}`) >> BigInt(capabilityNames.indexOf(name))) & 1n) === 1n,
  );
}

export function findAccount(): Account {
  const ids = { uid: process.getuid?.() ?? -1, gid: process.getgid?.() ?? -1 };
  try {
    return { ...ids, name: userInfo().username };
  } catch {
    return ids; // a uid without an account
  }
}

/**
 * What most often keeps users from making namespaces, the setting that is on here first.
 *
 * @param code What the kernel answered, if it was that.
 */
function restrictionMend(code?: string): string {
  const setting = (name: string) => readSetting(`/proc/sys/${name}`);
  if (setting("kernel/unprivileged_userns_clone") === "0") return "sysctl -w kernel.unprivileged_userns_clone=1";
  if (code === "ENOSPC" || setting("user/max_user_namespaces") === "0") {
    return "sysctl -w user.max_user_namespaces=10000, here and, in a container, on its host";
  }
  if (setting("kernel/apparmor_restrict_unprivileged_userns") === "1") {
    return `allow them for this program: an AppArmor profile 'abi <abi/4.0>, profile slipway ${process.execPath} flags=(unconfined) { userns, }' in /etc/apparmor.d/slipway (apparmor_parser -r), or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`;
  }
  return "in a container, run it with seccomp and AppArmor unconfined; on SELinux, setsebool user_namespaces on; or run as root";
}

function readSetting(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return undefined;
  }
}

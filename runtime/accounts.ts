/** Users and groups of an image: /etc/passwd and /etc/group. */

/** A user or group that cannot be found; the message says which and why. */
export class AccountError extends Error {
  override readonly name = "AccountError";
}

/** The text of both files; empty where the image has none. */
export interface Accounts {
  readonly passwd: string;
  readonly group: string;
}

/** As whom a command runs. */
export interface ResolvedUser {
  readonly uid: number;
  readonly gid: number;
  readonly additionalGids: readonly number[];
  readonly home: string;
}

/** Ids above this are no ids for the kernel: -1 means "unchanged" to chown(2). */
const MAX_ID = 0xffff_fffe;
const MAX_GROUPS = 1000;

/**
 * Finds whom `USER` names: a user or uid, and a group or gid behind a colon.
 *
 * As Docker and runc do: a uid need not be in /etc/passwd, and is then of group 0 and has the home /; a group that is given
 * keeps the user out of the groups that /etc/group puts it in.
 *
 * @throws {AccountError}
 */
export function resolveUser(text: string, accounts: Accounts): ResolvedUser {
  const { user, group } = split(text);
  const found = findUser(user === "" ? "0" : user, accounts);
  const numeric = parseId(user === "" ? "0" : user);
  if (found === undefined && numeric === undefined) throw noSuch("user", user, "/etc/passwd");
  const uid = found?.uid ?? (numeric as number);
  const gid = group === undefined ? (found?.gid ?? 0) : findGroup(group, accounts);
  const others = group === undefined && found !== undefined ? groupsOf(found.name, accounts) : [];
  // A process without its own group among these could leave it and so get around a denial to it (CVE-2022-36109).
  const additionalGids = [...new Set([gid, ...others])].sort((a, b) => a - b);
  return { uid, gid, additionalGids, home: found?.home || "/" };
}

/**
 * Finds whom `--chown` names: without a group, a name has the group that /etc/passwd says, and a number is both.
 *
 * @throws {AccountError}
 */
export function resolveOwner(text: string, accounts: Accounts): { readonly uid: number; readonly gid: number } {
  const { user, group } = split(text);
  const numeric = parseId(user);
  const found = numeric === undefined && user !== "" ? findUser(user, accounts) : undefined;
  if (user !== "" && numeric === undefined && found === undefined) throw noSuch("user", user, "/etc/passwd");
  const uid = numeric ?? found?.uid ?? 0;
  return { uid, gid: group === undefined ? (found?.gid ?? uid) : findGroup(group, accounts) };
}

function split(text: string): { readonly user: string; readonly group: string | undefined } {
  const colon = text.indexOf(":");
  if (colon === -1) return { user: text, group: undefined };
  const group = text.slice(colon + 1);
  return { user: text.slice(0, colon), group: group === "" ? undefined : group };
}

function noSuch(kind: "user" | "group", name: string, file: string): AccountError {
  return new AccountError(`there is no ${kind} ${JSON.stringify(name)} in ${file} of the image`);
}

function parseId(text: string | undefined): number | undefined {
  if (text === undefined || !/^\d{1,10}$/.test(text)) return undefined;
  const id = Number(text);
  if (id > MAX_ID) throw new AccountError(`the id ${text} is larger than ${MAX_ID}`);
  return id;
}

interface User {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  readonly home: string;
}

/** By name, or else by uid. */
function findUser(user: string, { passwd }: Accounts): User | undefined {
  const wanted = parseId(user);
  let byId: User | undefined;
  for (const line of passwd.split("\n")) {
    const [name = "", , uidText, gidText, , home = ""] = line.split(":");
    const uid = safeId(uidText);
    const gid = safeId(gidText);
    if (name === "" || uid === undefined || gid === undefined) continue;
    if (name === user) return { name, uid, gid, home };
    if (uid === wanted) byId ??= { name, uid, gid, home };
  }
  return byId;
}

function findGroup(group: string, { group: file }: Accounts): number {
  for (const line of file.split("\n")) {
    const [name, , gidText] = line.split(":");
    const gid = safeId(gidText);
    if (name === group && gid !== undefined) return gid;
  }
  const numeric = parseId(group);
  if (numeric === undefined) throw noSuch("group", group, "/etc/group");
  return numeric;
}

function groupsOf(user: string, { group: file }: Accounts): number[] {
  const gids = new Set<number>();
  for (const line of file.split("\n")) {
    const [, , gidText, members = ""] = line.split(":");
    const id = safeId(gidText);
    if (id !== undefined && members.split(",").includes(user)) gids.add(id);
    if (gids.size >= MAX_GROUPS) break;
  }
  return [...gids];
}

/** An id of a file that somebody else wrote: what is none does not count. */
function safeId(text: string | undefined): number | undefined {
  if (text === undefined || !/^\d{1,10}$/.test(text)) return undefined;
  const id = Number(text);
  return id > MAX_ID ? undefined : id;
}

/** Where agents of one user on one host meet: locks that keep their ids and networks apart. */
import { lstatSync, mkdirSync } from "node:fs";

/**
 * /run/slipway for root. Other users have a directory of their own: below /run/user/UID, where the host makes that, else
 * in /tmp. Not from XDG_RUNTIME_DIR: all agents of a user must find the same one, whatever their environment.
 *
 * @throws {Error} If somebody else has made it.
 */
export function runDirectory(): string {
  const uid = process.geteuid?.() ?? 0;
  if (uid === 0) return "/run/slipway";
  const session = `/run/user/${uid}`;
  if (lstatSync(session, { throwIfNoEntry: false })?.uid === uid) return `${session}/slipway`;
  const directory = `/tmp/slipway-${uid}`;
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const { uid: owner, mode } = lstatSync(directory);
  const isOurs = owner === uid && (mode & 0o170000) === 0o040000 && (mode & 0o022) === 0;
  if (!isOurs) throw new Error(`Cannot use "${directory}" for locks: it is not a directory of user ${uid}; remove it`);
  return directory;
}

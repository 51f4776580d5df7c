/** `--chmod`: permission bits in octal, or as chmod(1) takes them. */

/** Bits that cannot be read; the message says why. */
export class ModeError extends Error {
  override readonly name = "ModeError";
}

/** What to do to a file's permission bits. */
export interface ModeChange {
  /** What every file gets where it is written in octal. */
  readonly fixed?: number;
  /** The bits of a file or directory that had `mode`. */
  apply(mode: number, isDirectory: boolean): number;
}

type Who = "u" | "g" | "o";
const shifts: Readonly<Record<Who, number>> = { u: 6, g: 3, o: 0 };

interface Clause {
  readonly who: readonly Who[];
  readonly operator: "+" | "-" | "=";
  readonly permissions: string;
}

/**
 * Reads `755`, `u=rwX,go=rX`, `+x`, `g=u`, `u+s`, `o+t`. Where nobody is named, everybody is meant: there is no umask.
 *
 * @throws {ModeError}
 */
export function parseMode(text: string): ModeChange {
  if (/^[0-7]{1,5}$/.test(text)) {
    const fixed = Number.parseInt(text, 8);
    if (fixed > 0o7777) throw new ModeError(`${JSON.stringify(text)} is more than 7777`);
    return { fixed, apply: () => fixed };
  }
  if (/^\d/.test(text) || text === "" || text.length > 200) {
    throw new ModeError(`${JSON.stringify(text.slice(0, 40))} is no octal number from 0 to 7777`);
  }
  const clauses = text.split(",").flatMap((clause) => parseClause(clause, text));
  return {
    apply: (mode, isDirectory) => clauses.reduce((bits, clause) => applyClause(bits, clause, isDirectory), mode),
  };
}

function parseClause(clause: string, whole: string): Clause[] {
  const match = /^([ugoa]*)((?:[+\-=](?:[ugo]|[rwxXst]*))+)$/.exec(clause);
  if (match === null) {
    throw new ModeError(`${JSON.stringify(whole)} is no mode: write it in octal, or like u=rwX,go=rX`);
  }
  const [, names = "", actions = ""] = match;
  const who: Who[] = names === "" || names.includes("a") ? ["u", "g", "o"] : ([...new Set(names)] as Who[]);
  return [...actions.matchAll(/([+\-=])([^+\-=]*)/g)].map(([, operator, permissions = ""]) => ({
    who,
    operator: operator as Clause["operator"],
    permissions,
  }));
}

function applyClause(bits: number, { who, operator, permissions }: Clause, isDirectory: boolean): number {
  let set = 0;
  let affected = 0;
  for (const each of who) {
    const shift = shifts[each];
    set |= permissionBits(permissions, bits, isDirectory) << shift;
    affected |= 0o7 << shift;
    const special = each === "u" ? 0o4000 : each === "g" ? 0o2000 : 0;
    if (permissions.includes("s")) set |= special;
    affected |= special;
  }
  if (permissions.includes("t") && (who.length === 3 || who.includes("o"))) set |= 0o1000;
  if (who.includes("o")) affected |= 0o1000;
  if (operator === "+") return bits | set;
  if (operator === "-") return bits & ~set;
  // chmod(1) leaves the special bits of directories alone unless they are named.
  const kept = isDirectory ? bits & 0o6000 : 0;
  return (bits & ~affected) | set | kept;
}

function permissionBits(permissions: string, mode: number, isDirectory: boolean): number {
  if (/^[ugo]$/.test(permissions)) return (mode >> shifts[permissions as Who]) & 0o7;
  let bits = 0;
  if (permissions.includes("r")) bits |= 4;
  if (permissions.includes("w")) bits |= 2;
  if (permissions.includes("x") || (permissions.includes("X") && (isDirectory || (mode & 0o111) !== 0))) bits |= 1;
  return bits;
}

/** Paths in the repository, and what of them leads out of it. */
import { LIMITS } from "./limits.ts";
import { exceed, mismatch, refuse, type Shape } from "./shape.ts";
import { scalarText } from "./value.ts";

/** A file or directory of the repository, as it is handed on: without `.` and empty components, `.` for the repository itself. */
export const path: Shape<string> = {
  expected: "a path in the repository",
  schema: { type: "string", minLength: 1, maxLength: LIMITS.pathLength },
  read(node, place) {
    const text = scalarText(node);
    if (text === undefined || text === "") return mismatch(node, place, 'a path in the repository like "services/api"');
    if (text.length > LIMITS.pathLength) return exceed(node, place, `${text.length} characters`, LIMITS.pathLength);
    if (/[\0-\x1f\x7f]/.test(text)) return refuse(node, place, "a path has no control characters");
    if (/^[a-z][a-z0-9+.-]*:\/\/|^git@/i.test(text)) {
      return refuse(node, place, "it is an address", "the commit is in the workspace already: name a directory of it");
    }
    if (/^[/~]/.test(text)) {
      return refuse(node, place, "it leads out of the repository", "write it relative to the repository");
    }
    if (text.includes("${")) return refuse(node, place, "variables are not replaced in paths");
    return text;
  },
};

/** Why a path leads out of what it is relative to, if so. */
export function leadsOut(text: string): boolean {
  let depth = 0;
  for (const component of text.split("/")) {
    if (component === "..") depth -= 1;
    else if (component !== "" && component !== ".") depth += 1;
    if (depth < 0) return true;
  }
  return false;
}

/** Without `.`, `..` and empty components; `.` if nothing is left. */
export function clean(text: string): string {
  const kept: string[] = [];
  for (const component of text.split("/")) {
    if (component === "..") kept.pop();
    else if (component !== "" && component !== ".") kept.push(component);
  }
  return kept.length === 0 ? "." : kept.join("/");
}

/** What `image` may name: the host, a path in the repository, an image in a registry. */
import { LIMITS } from "./limits.ts";
import { choice, exceed, mismatch, refuse, type Shape } from "./shape.ts";
import { quote } from "./suggestion.ts";
import { scalarText } from "./value.ts";
import { checkVariables, findVariables } from "./variables.ts";

interface Fault {
  readonly problem: string;
  readonly suggestion?: string;
}

const imageHelp =
  'write a name like "node:24" or "registry.example/team/image@sha256:…", "./path" for a root directory, root tar, OCI layout or docker save archive in the repository, or "host" for the agent\'s own programs';

const expected = 'the name of an image, "./path" or "host"';

/** Whether something is there is found out when the step runs. */
export const image: Shape<string> = {
  expected,
  schema: { type: "string", pattern: "^(host|\\./.+|[a-zA-Z0-9\\[$][^\\s\\\\]*)$", maxLength: LIMITS.imageLength },
  read(node, place) {
    const text = scalarText(node);
    if (text === undefined || text === "") return mismatch(node, place, expected, imageHelp);
    if (text.length > LIMITS.imageLength) {
      return exceed(node, place, `${text.length} characters`, LIMITS.imageLength);
    }
    if (text === "host") return text;
    const fault = checkImage(text);
    if (fault === undefined) return text;
    return refuse(node, place, fault.problem, fault.suggestion);
  },
};

/** When a registry is asked what a tag stands for. */
export const pull = choice(["always", "missing", "never"], {
  "if-not-present": "missing",
  if_not_present: "missing",
  IfNotPresent: "missing",
});

function checkImage(text: string): Fault | undefined {
  if (/[\0-\x1f\x7f]/.test(text)) return { problem: "a path has no control characters", suggestion: imageHelp };
  if (/^\.\.?(?:\/|$)/.test(text)) {
    const segments = text.split("/");
    if (segments.includes(".."))
      return { problem: "it leaves the repository", suggestion: 'write a path without ".."' };
    if (segments.some((segment) => segment !== "." && segment !== "")) return undefined;
    return { problem: "it is the repository itself", suggestion: "name a directory or archive in it" };
  }
  if (/^[/~]/.test(text)) return { problem: "steps cannot use paths of the agent", suggestion: imageHelp };
  if (text.toLowerCase() === "host")
    return { problem: "it is written differently", suggestion: 'did you mean "host"?' };
  if (/\.(?:tar|tar\.gz|tgz|tar\.zst|oci)$|\/$/i.test(text)) {
    return { problem: 'a path begins with "./"', suggestion: `did you mean ${quote(`./${text}`)}?` };
  }
  // Whatever the variables stand for; what comes of it is checked again when it is known.
  return checkVariables(text) ?? checkReference(findVariables(text).fill(() => "x"));
}

const host = /^(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::\d{1,5})?$/i;
const component = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;

/**
 * Checks the name of an image in a registry, `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, as Docker reads it. What the parts mean is
 * the agent's business.
 */
export function checkReference(text: string): Fault | undefined {
  const scheme = /^[a-z][a-z0-9+.-]*:\/\//i.exec(text)?.[0];
  if (scheme !== undefined) {
    return { problem: "the name of an image has no scheme", suggestion: `write ${quote(text.slice(scheme.length))}` };
  }
  const at = text.indexOf("@");
  const digest = at === -1 ? undefined : text.slice(at + 1);
  if (digest !== undefined && !/^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/.test(digest)) {
    return {
      problem: 'what follows the "@" is no digest',
      suggestion: "a digest is sha256: and 64 lower-case hexadecimal digits",
    };
  }
  const rest = at === -1 ? text : text.slice(0, at);
  // The colon of a port has a slash behind it.
  const colon = rest.indexOf(":", rest.lastIndexOf("/") + 1);
  const name = colon === -1 ? rest : rest.slice(0, colon);
  if (colon !== -1 && !/^\w[\w.-]{0,127}$/.test(rest.slice(colon + 1))) {
    return {
      problem: `${quote(rest.slice(colon + 1))} is no tag`,
      suggestion: 'a tag has letters, digits, "_", "." and "-", at most 128, the first one not "." or "-"',
    };
  }
  if (name.length > 255) return { problem: `its name has ${name.length} characters; at most 255 are allowed` };
  const [first = "", ...others] = name.split("/");
  const hasHost = others.length > 0 && (/[.:A-Z[]/.test(first) || first === "localhost");
  if (hasHost && !host.test(first)) return { problem: `${quote(first)} is no host` };
  const wrong = (hasHost ? others : [first, ...others]).find((part) => !component.test(part));
  if (wrong === undefined) return undefined;
  const lower = wrong.toLowerCase();
  if (component.test(lower)) {
    const mended = text.replace(wrong, lower);
    return { problem: "names of images are in lower case", suggestion: `did you mean ${quote(mended)}?` };
  }
  return { problem: `${quote(wrong)} is no part of the name of an image`, suggestion: imageHelp };
}

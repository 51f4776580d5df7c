/** The shapes of single values: scripts, names, durations, sizes, numbers. */
import { DEFAULTS, LIMITS } from "./limits.ts";
import { DURATION_PATTERN, formatBytes, formatDuration, parseDuration, type Quantity } from "./quantity.ts";
import { exceed, type JsonSchema, mismatch, refuse, type Shape, subject } from "./shape.ts";
import type { YamlNode } from "./tree.ts";

/** Begins with a letter, digit or underscore, so that no name is `..`, hidden, or an option of a command. */
export const NAME_PATTERN = "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$";
const name = new RegExp(NAME_PATTERN);

/** Why a text is no name of a job or pool, if so. */
export function checkIdentifier(text: string): { problem: string; suggestion: string } | undefined {
  if (name.test(text)) return undefined;
  if (text.length > LIMITS.nameLength) {
    return {
      problem: `it has ${text.length} characters; at most ${LIMITS.nameLength} are allowed`,
      suggestion: "shorten it",
    };
  }
  const mended = text.replaceAll(/[^A-Za-z0-9_.-]+/g, "-").replaceAll(/^[.-]+|-+$/g, "");
  return {
    problem: "a name has letters, digits, _, . and -, and begins with a letter, digit or _",
    suggestion: name.test(mended) ? `write ${mended}` : "write a name like build-linux",
  };
}

/** Scalars that are text, or were meant to be: YAML turns `run: true` and `needs: 1` into something else. */
export function scalarText(node: YamlNode): string | undefined {
  return node.kind === "scalar" && node.value !== null ? node.text : undefined;
}

const anyScalar: JsonSchema = { type: ["string", "number", "boolean"] };

/** The name of a job or pool, as a value. */
export const identifier: Shape<string> = {
  expected: "a name",
  schema: { type: "string", pattern: NAME_PATTERN },
  read(node, place) {
    const text = scalarText(node);
    if (text === undefined) return mismatch(node, place, "a name");
    const fault = checkIdentifier(text);
    if (fault === undefined) return text;
    return refuse(node, place, fault.problem, fault.suggestion);
  },
};

/** A job's name where another job needs it: whether it exists is found out when all jobs are read. */
export const jobReference: Shape<string> = {
  expected: "the name of a job",
  schema: { type: "string" },
  read(node, place) {
    return scalarText(node) ?? mismatch(node, place, "the name of a job");
  },
};

/** One line for people. */
export const label: Shape<string> = {
  expected: "one line of text",
  schema: { ...anyScalar, maxLength: LIMITS.nameLength },
  read(node, place) {
    const text = scalarText(node)?.trim();
    if (text === undefined || text === "") return mismatch(node, place, "one line of text");
    if (/[\0-\x1f\x7f-\x9f\u2028\u2029]/.test(text)) {
      return refuse(node, place, "it must be one line without control characters");
    }
    if (text.length <= LIMITS.nameLength) return text;
    return exceed(node, place, `${text.length} characters`, LIMITS.nameLength, "shorten it");
  },
};

const blockHelp = 'write "run: |" and the commands on indented lines below, one command a line';

/** A POSIX shell script. */
export const script: Shape<string> = {
  expected: "a shell script",
  schema: { ...anyScalar, minLength: 1 },
  read(node, place) {
    const text = scalarText(node);
    if (text === undefined || text.trim() === "") {
      return mismatch(
        node,
        place,
        "a shell script",
        node.kind === "list" || node.kind === "scalar"
          ? blockHelp
          : 'put the script in quotes, or write it below "run: |"',
      );
    }
    const bytes = Buffer.byteLength(text);
    if (bytes <= LIMITS.runBytes) return text;
    return exceed(
      node,
      place,
      formatBytes(bytes),
      formatBytes(LIMITS.runBytes),
      "move the script into a file of the repository and run that",
    );
  },
};

/** A number with a unit. */
export function quantity(expected: string, pattern: string, parse: (text: string) => Quantity): Shape<number> {
  return {
    expected,
    schema: { type: "string", pattern },
    read(node, place) {
      const text = scalarText(node);
      if (text === undefined || text === "") return mismatch(node, place, expected);
      const parsed = parse(text);
      if (parsed.ok) return parsed.value;
      return refuse(node, place, parsed.problem, parsed.suggestion);
    },
  };
}

export const duration = quantity("a duration like 90s, 5m or 1h30m", DURATION_PATTERN, parseDuration);

/** How long something is kept: a duration, `true` for the usual one, `false` for not at all, which is 0. */
export const keeping: Shape<number> = {
  expected: "true, false or a duration like 30m",
  schema: { anyOf: [{ type: "boolean" }, { type: "string", pattern: DURATION_PATTERN }] },
  read(node, place) {
    if (node.kind === "scalar" && typeof node.value === "boolean") return node.value ? DEFAULTS.keepMs : 0;
    if (node.kind !== "scalar" || node.value === null) return mismatch(node, place, this.expected);
    if (/^(?:true|yes|on)$/i.test(node.text)) return mismatch(node, place, this.expected, "write true, without quotes");
    if (/^(?:false|no|off)$/i.test(node.text))
      return mismatch(node, place, this.expected, "write false, without quotes");
    const milliseconds = duration.read(node, place);
    if (milliseconds === undefined) return undefined;
    const { keepMinMs, keepMaxMs } = LIMITS;
    if (milliseconds >= keepMinMs && milliseconds <= keepMaxMs) return milliseconds;
    const fault = milliseconds < keepMinMs ? "it is too short" : "it is too long";
    const range = `from ${formatDuration(keepMinMs)} to ${formatDuration(keepMaxMs)}`;
    return refuse(node, place, fault, `write a duration ${range}`);
  },
};

/** CPU cores; `500m` of Kubernetes is half of one. */
export const cores: Shape<number> = {
  expected: "a number of CPU cores like 0.5 or 2",
  schema: { type: "number", minimum: LIMITS.cpuMin, maximum: LIMITS.cpuMax },
  read(node, place) {
    if (node.kind !== "scalar" || typeof node.value !== "number") {
      return mismatch(node, place, "a number of CPU cores like 0.5 or 2", suggestNumber(node));
    }
    // Not a number, infinities and hexadecimal are numbers of YAML too.
    if (node.value >= LIMITS.cpuMin && node.value <= LIMITS.cpuMax) return node.value;
    const message = `${subject(place)} must be from ${LIMITS.cpuMin} to ${LIMITS.cpuMax} CPU cores, not ${node.text}`;
    place.problems.error(node.span, message);
    return undefined;
  },
};

function suggestNumber(node: YamlNode): string | undefined {
  const text = scalarText(node) ?? "";
  const [, digits, milli] = /^(\d{1,6}(?:\.\d{1,3})?)(m?)$/.exec(text) ?? [];
  if (digits === undefined) return undefined;
  return milli === "m" ? `write ${Number(digits) / 1000}` : `write ${digits}, without quotes`;
}

/** A count of something. @param things What is counted: `processes`. */
export function wholeNumber(
  things: string,
  { least, most }: { readonly least: number; readonly most: number },
): Shape<number> {
  const expected = `a whole number of ${things}`;
  return {
    expected,
    schema: { type: "integer", minimum: least, maximum: most },
    read(node, place) {
      if (node.kind !== "scalar" || typeof node.value !== "number") {
        const digits = /^\d{1,7}$/.exec(scalarText(node) ?? "")?.[0];
        const help = digits === undefined ? undefined : `write ${digits}, without quotes`;
        return mismatch(node, place, expected, help);
      }
      if (Number.isInteger(node.value) && node.value >= least && node.value <= most) return node.value;
      const range = `a whole number from ${least} to ${most}`;
      place.problems.error(node.span, `${subject(place)} must be ${range}, not ${node.text}`);
      return undefined;
    },
  };
}

/** A TCP port. */
export const portNumber: Shape<number> = {
  expected: "a port",
  schema: { type: "integer", minimum: 1, maximum: 65_535 },
  read(node, place) {
    if (node.kind === "scalar" && typeof node.value === "number") {
      if (Number.isInteger(node.value) && node.value >= 1 && node.value <= 65_535) return node.value;
      return refuse(node, place, "ports are from 1 to 65535");
    }
    // "5432:5432" publishes ports elsewhere.
    const digits = /^(?:\d{1,5}:)?(\d{1,5})(?:\/tcp)?$/.exec(scalarText(node) ?? "")?.[1];
    const help = digits === undefined ? undefined : `write ${digits}, without quotes`;
    return mismatch(node, place, "a port like 5432", help);
  },
};

/** The value of an environment variable, exactly as the file writes it: 1.10 stays "1.10". */
export const variable: Shape<string> = {
  expected: "text, a number, true or false",
  schema: anyScalar,
  read(node, place) {
    const text = scalarText(node);
    if (text === undefined) {
      const help =
        node.kind === "scalar"
          ? 'write "" for an empty value, or remove the variable'
          : "write the value as text in quotes";
      return mismatch(node, place, "text, a number, true or false", help);
    }
    const bytes = Buffer.byteLength(text);
    if (bytes <= LIMITS.envValueBytes) return text;
    return exceed(
      node,
      place,
      formatBytes(bytes),
      formatBytes(LIMITS.envValueBytes),
      "keep it in a file of the repository",
    );
  },
};

/** `slipway secret …`: values that pipelines name and nobody reads in the repository. */
import { readFile } from "node:fs/promises";
import { checkSecretValue } from "../pipelines/index.ts";
import { Api, ApiError, apiOptions } from "./api.ts";
import { parseArguments, parseChoice, table, UsageError, type Usage } from "./arguments.ts";
import { plain } from "./terminal.ts";
import { exitCodes, type Context, type Verb } from "./verb.ts";

/** As the API answers it. */
interface SecretAnswer {
  readonly scope: string;
  readonly name: string;
  readonly events?: readonly string[];
  readonly branches?: readonly string[];
  readonly tags?: readonly string[];
  readonly images?: readonly string[];
  readonly registry?: string;
  readonly updatedAtMs: number;
}

const setUsage = {
  name: "secret set",
  operands: "REPOSITORY NAME",
  summary: "Set a secret, of which the value is read from standard input",
  description: `
REPOSITORY is one's name, or a pattern for several: team/*, or * for all. The value is asked for at a terminal, else read from
standard input, where a line's end behind a single line is no part of it; it is never an argument, which other users could see.
One of the same name is replaced, with all that was said of it. Strangers' pull requests have no secrets.`,
  options: {
    file: { short: "f", value: "FILE", help: "Take the value from a file, as it is" },
    event: { value: "EVENT", multiple: true, help: "For builds of these only: push, tag, pull_request, manual" },
    branch: { value: "PATTERN", multiple: true, help: "For builds of these branches only" },
    tag: { value: "PATTERN", multiple: true, help: "For builds of these tags only; with --branch, of either" },
    image: { value: "PATTERN", multiple: true, help: "For steps and services in these images only" },
    registry: { value: "HOST", help: 'For this host below "registries" only, and no step' },
    ...apiOptions,
  },
  examples: [
    ["slipway secret set team/app NPM_TOKEN < token", "for every build but strangers'"],
    ["slipway secret set team/app deploy-key --file id_ed25519 --branch main", "for what is on main"],
    [
      "slipway secret set 'team/*' registry-token --registry registry.example",
      "to pull and push with, for all of team",
    ],
  ],
  count: { least: 2, most: 2 },
} as const satisfies Usage;

const events = ["push", "tag", "pull_request", "manual"] as const;

async function set(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(setUsage, argv);
  const [scope = "", name = ""] = operands;
  const chosen = values.event.map((event) => parseChoice("--event", event, events));
  const value = values.file === undefined ? await readInput(name, context) : await readFile(values.file);
  const problem = checkSecretValue(value);
  if (problem !== undefined) throw new UsageError(`The value of ${name} ${problem}`);
  const api = Api.find(values, context);
  const body = {
    scope,
    name,
    valueBase64: value.toString("base64"),
    ...(chosen.length > 0 && { events: chosen }),
    ...(values.branch.length > 0 && { branches: values.branch }),
    ...(values.tag.length > 0 && { tags: values.tag }),
    ...(values.image.length > 0 && { images: values.image }),
    ...(values.registry !== undefined && { registry: values.registry }),
  };
  const answer = await api.request<SecretAnswer>("POST", "/api/secrets", body).catch(explain);
  context.print(`Set ${context.paint("bold", plain(answer.name))} for ${plain(answer.scope)}${describe(answer)}.\n`);
  return exitCodes.success;
}

const listUsage = {
  name: "secret ls",
  operands: "[REPOSITORY]",
  summary: "List secrets: their names, and for whom they are",
  description: "With REPOSITORY, those that its pipelines can name. Values are never shown.",
  options: { json: { help: "Print one JSON array" }, ...apiOptions },
  examples: [["slipway secret ls team/app", "what pipelines of team/app can name"]],
  count: { least: 0, most: 1 },
} as const satisfies Usage;

async function list(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(listUsage, argv);
  const query = operands[0] === undefined ? "" : `?scope=${encodeURIComponent(operands[0])}`;
  const { secrets } = await Api.find(values, context)
    .request<{ secrets: SecretAnswer[] }>("GET", `/api/secrets${query}`)
    .catch(explain);
  if (values.json) {
    context.print(`${JSON.stringify(secrets, undefined, 2)}\n`);
    return exitCodes.success;
  }
  if (secrets.length === 0) context.warn("No secrets yet: slipway secret set REPOSITORY NAME");
  const rows = secrets.map((secret) => [plain(secret.name), `${plain(secret.scope)}${describe(secret)}`] as const);
  for (const line of table(rows)) context.print(`${line.trimStart()}\n`);
  return exitCodes.success;
}

const removeUsage = {
  name: "secret rm",
  operands: "REPOSITORY NAME",
  summary: "Remove a secret",
  description: "REPOSITORY as it was set. Jobs that run have it for as long as they run.",
  options: apiOptions,
  examples: [["slipway secret rm team/app NPM_TOKEN", "forget it"]],
  count: { least: 2, most: 2 },
} as const satisfies Usage;

async function remove(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(removeUsage, argv);
  const [scope = "", name = ""] = operands;
  const query = new URLSearchParams({ scope, name });
  await Api.find(values, context).request("DELETE", `/api/secrets?${query.toString()}`).catch(explain);
  context.print(`Removed ${plain(name)} of ${plain(scope)}.\n`);
  return exitCodes.success;
}

/** What the server will not take is what was written here. */
function explain(error: unknown): never {
  if (error instanceof ApiError && (error.status === 400 || error.status === 404)) throw new UsageError(error.message);
  throw error;
}

/** For whom it is, if not for all. */
function describe({ events: kinds, branches, tags, images, registry }: SecretAnswer): string {
  const list = (label: string, all: readonly string[] | undefined) =>
    all === undefined ? [] : [`${label} ${all.map(plain).join(", ")}`];
  const rules = [
    ...list("events", kinds),
    ...list("branches", branches),
    ...list("tags", tags),
    ...list("images", images),
    ...list("registry", registry === undefined ? undefined : [registry]),
  ];
  return rules.length === 0 ? "" : ` (${rules.join("; ")})`;
}

/** Of what is larger no more is read than shows that it is. */
const maxInputBytes = 4 * 2 ** 20;

async function readInput(name: string, { errorIsTerminal, writeError }: Context): Promise<Buffer> {
  const { stdin } = process;
  if (stdin.isTTY && errorIsTerminal) {
    const value = await readHidden(stdin, () => writeError(`Value of ${plain(name)}: `));
    writeError("\n");
    return Buffer.from(value);
  }
  const parts: Buffer[] = [];
  let length = 0;
  for await (const part of stdin as AsyncIterable<Buffer>) {
    parts.push(part);
    length += part.length;
    if (length > maxInputBytes) break;
  }
  const value = Buffer.concat(parts);
  const end = value.indexOf("\n");
  // Of one line the end is echo's.
  return end !== -1 && end === value.length - 1 ? value.subarray(0, value.at(-2) === 13 ? -2 : -1) : value;
}

/** A line that the terminal does not show. @throws {UsageError} If it is given up. */
async function readHidden(terminal: NodeJS.ReadStream, prompt: () => void): Promise<string> {
  // First: who has seen the prompt may type.
  terminal.setRawMode(true);
  prompt();
  terminal.setEncoding("utf8");
  let line = "";
  try {
    for await (const text of terminal as AsyncIterable<string>) {
      for (const character of text) {
        if (character === "\r" || character === "\n") return line;
        if (character === "\u0003" || character === "\u0004") throw new UsageError("No value given");
        if (character === "\u007f" || character === "\b") line = line.slice(0, -1);
        else line += character;
      }
    }
  } finally {
    terminal.setRawMode(false);
  }
  return line;
}

export const verbs: Readonly<Record<string, Verb>> = {
  set: { usage: setUsage, run: set },
  ls: { usage: listUsage, run: list },
  rm: { usage: removeUsage, run: remove },
};

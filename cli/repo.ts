/** `slipway repo …`: the repositories a server builds. */
import { Api, ApiError, apiOptions } from "./api.ts";
import { parseArguments, table, UsageError, type Usage } from "./arguments.ts";
import { didYouMean } from "./did-you-mean.ts";
import { plain } from "./terminal.ts";
import { exitCodes, type Context, type Verb } from "./verb.ts";

/** As the API answers it. */
export interface RepositoryAnswer {
  readonly id: string;
  readonly name: string;
  readonly cloneUrl: string;
  readonly webhookPath: string;
}

/** All repositories of a server. */
export async function listRepositories(api: Api): Promise<readonly RepositoryAnswer[]> {
  return (await api.request<{ repositories: RepositoryAnswer[] }>("GET", "/api/repositories")).repositories;
}

/** Finds a repository by its name. @throws {UsageError} If there is none. */
export async function findRepository(api: Api, name: string): Promise<RepositoryAnswer> {
  const repositories = await listRepositories(api);
  const found = repositories.find((repository) => repository.name === name);
  if (found !== undefined) return found;
  const names = repositories.map((repository) => repository.name);
  throw new UsageError(`There is no repository ${JSON.stringify(name)}${didYouMean(name, names)}`);
}

const addUsage = {
  name: "repo add",
  operands: "NAME URL",
  summary: "Add a repository and print its webhook's address and secret",
  description: `
NAME is how builds are listed, owner/name as the forge shows it. URL is what git fetches: http, https, ssh, git or file, or an
absolute path. A user and password in it are kept by the server and never shown again.`,
  options: {
    secret: { value: "FILE", help: "A file with the webhook's secret [default: a new random one]" },
    ...apiOptions,
  },
  examples: [
    ["slipway repo add team/app https://git.example.org/team/app.git", "a repository of a forge"],
    ["slipway repo add app /srv/git/app.git", "a bare repository of this machine"],
  ],
  count: { least: 2, most: 2 },
} as const satisfies Usage;

async function add(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(addUsage, argv);
  const api = Api.find(values, context);
  const secret = values.secret === undefined ? {} : { secret: (await readSecret(values.secret)).trim() };
  const [name, cloneUrl] = operands;
  const body = { name, cloneUrl, ...secret };
  const request = api.request<RepositoryAnswer & { secret: string }>("POST", "/api/repositories", body);
  const added = await request.catch((error: unknown) => {
    // What the server will not take is what was written here: a bad URL, a name that is taken.
    if (error instanceof ApiError && (error.status === 400 || error.status === 409))
      throw new UsageError(error.message);
    throw error;
  });
  const rows = [
    ["webhook", `${api.url}${added.webhookPath}`],
    ["secret", added.secret],
    ["content type", "application/json"],
    ["events", "push, pull request"],
  ] as const;
  context.print(
    `Added ${context.paint("bold", plain(added.name))}. Give its forge this webhook:\n\n${table(rows).join("\n")}\n`,
  );
  return exitCodes.success;
}

async function readSecret(file: string): Promise<string> {
  const { readFile } = await import("node:fs/promises");
  return await readFile(file, "utf8");
}

const listUsage = {
  name: "repo list",
  summary: "List repositories and their webhooks",
  options: { json: { help: "Print one JSON array" }, ...apiOptions },
  examples: [["slipway repo list", "names, addresses and webhooks"]],
} as const satisfies Usage;

async function list(argv: readonly string[], context: Context): Promise<number> {
  const { values } = parseArguments(listUsage, argv);
  const api = Api.find(values, context);
  const repositories = await listRepositories(api);
  if (values.json) {
    context.print(`${JSON.stringify(repositories, undefined, 2)}\n`);
    return exitCodes.success;
  }
  if (repositories.length === 0) context.warn("No repositories yet: slipway repo add NAME URL");
  for (const { name, cloneUrl, webhookPath } of repositories) {
    context.print(
      `${context.paint("bold", plain(name))}  ${plain(cloneUrl)}  ${context.paint("dim", `${api.url}${webhookPath}`)}\n`,
    );
  }
  return exitCodes.success;
}

const removeUsage = {
  name: "repo remove",
  operands: "NAME",
  summary: "Remove a repository with its builds and logs",
  description: "Running builds of it are canceled. The repository itself is not touched.",
  options: apiOptions,
  examples: [["slipway repo remove team/app", "forget it"]],
  count: { least: 1, most: 1 },
} as const satisfies Usage;

async function remove(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(removeUsage, argv);
  const api = Api.find(values, context);
  const { id, name } = await findRepository(api, operands[0] as string);
  await api.request("DELETE", `/api/repositories/${encodeURIComponent(id)}`);
  context.print(`Removed ${plain(name)} with its builds and logs.\n`);
  return exitCodes.success;
}

export const verbs: Readonly<Record<string, Verb>> = {
  add: { usage: addUsage, run: add },
  list: { usage: listUsage, run: list },
  remove: { usage: removeUsage, run: remove },
};

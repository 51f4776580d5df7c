/** `slipway build …`: the builds of a server. */
import type { Status } from "../pipelines/index.ts";
import type { BuildSummary, BuildView } from "../server/index.ts";
import { Api, apiOptions } from "./api.ts";
import { parseArguments, parseCount, UsageError, type Usage } from "./arguments.ts";
import { followBuild, printBuild } from "./follow.ts";
import { findRepository } from "./repo.ts";
import { StopSignals } from "./signals.ts";
import { cell, duration, plain, type Paint } from "./terminal.ts";
import { exitCodes, type Context, type Verb } from "./verb.ts";

const buildOperand = `
BUILD is a build's id, a repository's name and number (team/app#12), or a repository's name for its newest build. Without BUILD
it is the newest of all.`;

const listUsage = {
  name: "build list",
  operands: "[REPOSITORY]",
  summary: "List builds, newest first",
  options: {
    limit: { short: "n", value: "N", help: "How many at most, 1 to 200 [default: 20]" },
    json: { help: "Print one JSON array" },
    ...apiOptions,
  },
  examples: [
    ["slipway build list", "of all repositories"],
    ["slipway build list team/app -n 5", "the newest five of one"],
  ],
  count: { least: 0, most: 1 },
} as const satisfies Usage;

async function list(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(listUsage, argv);
  const api = Api.find(values, context);
  const limit = parseCount("--limit", values.limit ?? "20", { least: 1, most: 200 });
  const builds = await listBuilds(api, operands[0], limit);
  if (values.json) context.print(`${JSON.stringify(builds, undefined, 2)}\n`);
  else if (builds.length === 0) context.warn("No builds yet.");
  else context.print(renderList(builds, context.paint));
  return exitCodes.success;
}

const showUsage = {
  name: "build show",
  operands: "[BUILD]",
  summary: "Show a build with its jobs and steps",
  description: buildOperand,
  options: { json: { help: "Print the build as the API answers it" }, ...apiOptions },
  examples: [
    ["slipway build show", "the newest build"],
    ["slipway build show team/app#12 --json", "for programs"],
  ],
  count: { least: 0, most: 1 },
} as const satisfies Usage;

async function show(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(showUsage, argv);
  const api = Api.find(values, context);
  const build = await findBuild(api, operands[0]);
  context.print(values.json ? `${JSON.stringify(build, undefined, 2)}\n` : await renderBuild(build, api, context));
  return exitCodes.success;
}

const logUsage = {
  name: "build log",
  operands: "[BUILD]",
  summary: "Print a build's output, or follow it",
  description: `${buildOperand.trim()} With --follow the exit code is the build's: 0 if it succeeds, 1 if not.`,
  options: { follow: { short: "f", help: "Go on until the build is over" }, ...apiOptions },
  examples: [
    ["slipway build log -f", "follow the newest build"],
    ["slipway build log team/app#12", "what that build has printed, job by job"],
  ],
  count: { least: 0, most: 1 },
} as const satisfies Usage;

async function log(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(logUsage, argv);
  const api = Api.find(values, context);
  const build = await findBuild(api, operands[0]);
  if (!values.follow) {
    await printBuild(api, build, context);
    return exitCodes.success;
  }
  using signals = new StopSignals();
  const followed = await followBuild(api, build.id, context, AbortSignal.any([signals.drain, context.outputClosed]));
  if (followed === undefined || followed.summary.finishedAtMs === undefined) return exitCodes.success;
  context.print(`\n${followed.transcript.summary()}${verdict(followed.summary, context.paint)}`);
  return buildExitCode(followed.summary.status);
}

const cancelUsage = {
  name: "build cancel",
  operands: "BUILD",
  summary: "Cancel a build that is queued or running",
  description: buildOperand,
  options: { reason: { value: "TEXT", help: "Shown with the build [default: canceled by hand]" }, ...apiOptions },
  examples: [["slipway build cancel team/app#12", "its running steps get SIGTERM, then SIGKILL"]],
  count: { least: 1, most: 1 },
} as const satisfies Usage;

async function cancel(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(cancelUsage, argv);
  const api = Api.find(values, context);
  const { id } = await findBuild(api, operands[0]);
  const body = values.reason === undefined ? {} : { reason: values.reason };
  const build = await api.request<BuildView>("POST", `/api/builds/${id}/cancel`, body);
  context.print(`${title(build)}: ${build.status === "canceled" ? "canceled" : "is being canceled"}\n`);
  return exitCodes.success;
}

const rerunUsage = {
  name: "build rerun",
  operands: "BUILD",
  summary: "Build the same commit for the same event once more",
  description: buildOperand,
  options: { follow: { short: "f", help: "Follow the new build; the exit code is its" }, ...apiOptions },
  examples: [["slipway build rerun team/app#12 -f", "again, and watch"]],
  count: { least: 1, most: 1 },
} as const satisfies Usage;

async function rerun(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(rerunUsage, argv);
  const api = Api.find(values, context);
  const { id } = await findBuild(api, operands[0]);
  const build = await api.request<Partial<BuildView>>("POST", `/api/builds/${id}/rerun`, {});
  if (build.id === undefined) {
    context.print("The build is being planned: slipway build list shows it.\n");
    return exitCodes.success;
  }
  context.print(`${title(build as BuildView)}  ${context.paint("dim", build.id)}  ${api.url}/builds/${build.id}\n`);
  const server = values.server === undefined ? [] : ["--server", values.server];
  const dataDir = values["data-dir"] === undefined ? [] : ["--data-dir", values["data-dir"]];
  return values.follow ? await log(["--follow", build.id, ...server, ...dataDir], context) : exitCodes.success;
}

const discardUsage = {
  name: "build discard",
  operands: "BUILD[/STEP]",
  summary: "Give up what is kept of a build's failed steps for a shell",
  description: `${buildOperand.trim()} STEP is as for slipway shell; without it all that is kept of the build goes.`,
  options: apiOptions,
  examples: [["slipway build discard team/app#12", "free the agent's disk before the time is over"]],
  count: { least: 1, most: 1 },
} as const satisfies Usage;

async function discard(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(discardUsage, argv);
  const api = Api.find(values, context);
  const { findStep, findTarget } = await import("./shell.ts");
  const { build, rest } = await findTarget(api, operands[0]);
  const { job, step } = rest === "" ? {} : findStep(build, rest);
  const body = job === undefined ? {} : { job: String(job), step: String(step) };
  await api.request("POST", `/api/builds/${build.id}/discard`, body);
  context.print(`${title(build)}: given up\n`);
  return exitCodes.success;
}

async function listBuilds(api: Api, repository: string | undefined, limit: number): Promise<readonly BuildSummary[]> {
  const query = new URLSearchParams({ limit: String(limit) });
  if (repository !== undefined) query.set("repository", (await findRepository(api, repository)).id);
  return (await api.request<{ builds: BuildSummary[] }>("GET", `/api/builds?${query.toString()}`)).builds;
}

/** Finds what BUILD names. @throws {UsageError} If it names nothing. */
export async function findBuild(api: Api, reference: string | undefined): Promise<BuildView> {
  const numbered = /^(.+)#(\d+)$/.exec(reference ?? "");
  if (numbered?.[1] !== undefined) {
    const { id } = await findRepository(api, numbered[1]);
    return await api.request<BuildView>(
      "GET",
      `/api/repositories/${encodeURIComponent(id)}/builds/${numbered[2] ?? ""}`,
    );
  }
  // An id is a letter and eighteen of 0-9 and a-z.
  if (reference !== undefined && /^b[0-9a-z]{18}$/.test(reference)) {
    return await api.request<BuildView>("GET", `/api/builds/${reference}`);
  }
  const [newest] = await listBuilds(api, reference, 1);
  if (newest === undefined)
    throw new UsageError(reference === undefined ? "There are no builds yet" : `${reference} has no builds yet`);
  return await api.request<BuildView>("GET", `/api/builds/${newest.id}`);
}

/** What a build's end means for whoever waited for it. */
export function buildExitCode(status: Status): number {
  if (status === "success" || status === "skipped") return exitCodes.success;
  return status === "error" ? exitCodes.ourError : exitCodes.buildFailed;
}

const statusStyles = {
  queued: "dim",
  running: "blue",
  success: "green",
  failure: "red",
  error: "red",
  canceled: "yellow",
  skipped: "dim",
} as const satisfies Record<Status, Parameters<Paint>[0]>;

/** `team/app#12: success in 1.24 s`, in the colour of the status. */
export function verdict(build: BuildSummary, paint: Paint): string {
  const { status, startedAtMs, finishedAtMs, reason } = build;
  const time =
    startedAtMs !== undefined && finishedAtMs !== undefined ? ` in ${duration(finishedAtMs - startedAtMs)}` : "";
  const why = reason === undefined || status === "success" ? "" : `: ${plain(reason)}`;
  return `${paint(statusStyles[status], `${title(build)}: ${status}${time}${why}`)}\n`;
}

function title(build: Pick<BuildSummary, "repository" | "number">): string {
  return `${plain(build.repository.name)}#${build.number}`;
}

function renderList(builds: readonly BuildSummary[], paint: Paint): string {
  const rows = builds.map((build) => {
    const { startedAtMs, finishedAtMs, event } = build;
    const ref =
      event.pullRequest === undefined ? (event.tag ?? event.branch ?? event.ref) : `#${event.pullRequest.number}`;
    return {
      build,
      cells: [
        title(build),
        build.status,
        startedAtMs !== undefined && finishedAtMs !== undefined ? duration(finishedAtMs - startedAtMs) : "",
        `${event.kind} ${cell(ref, 40)}`,
        event.commit.slice(0, 10),
      ],
    };
  });
  const widths = [0, 1, 2, 3, 4].map((column) => Math.max(...rows.map(({ cells }) => cells[column]?.length ?? 0)));
  const lines = rows.map(({ build, cells }) => {
    const padded = cells.map((cell, column) => cell.padEnd(widths[column] ?? 0));
    padded[1] = paint(statusStyles[build.status], padded[1] ?? "");
    return `${padded.join("  ")}  ${cell(build.title ?? "", 72)}  ${paint("dim", build.id)}`;
  });
  return `${lines.join("\n")}\n`;
}

async function renderBuild(build: BuildView, api: Api, context: Context): Promise<string> {
  const { FollowedBuild } = await import("./follow.ts");
  const { paint } = context;
  const quiet = new FollowedBuild(build, { ...context, print: () => {} });
  quiet.end();
  const { event } = build;
  const about = [
    `${event.kind} ${plain(event.ref)}`,
    event.commit.slice(0, 10),
    build.title === undefined ? "" : plain(build.title),
    build.author === undefined ? "" : `by ${plain(build.author)}`,
    build.untrusted === true ? paint("yellow", "untrusted: the commit may be a stranger's") : "",
  ];
  const lines = [
    verdict(build, paint).trimEnd(),
    about.filter(Boolean).join("  "),
    paint("dim", `${api.url}/builds/${build.id}`),
    "",
  ];
  const states = new Map(build.jobs.map(({ name, status }) => [name, status]));
  if (build.diagnostics !== undefined) lines.push(build.diagnostics.formatted.split("\n").map(plain).join("\n"));
  return `${lines.join("\n")}\n${quiet.transcript.summary({ reasons: true, usage: true, states })}${await renderKept(build, paint)}`;
}

/** What can still be entered of failed steps. */
async function renderKept(build: BuildView, paint: Paint): Promise<string> {
  const { formatBytes } = await import("../pipelines/index.ts");
  return build.jobs
    .flatMap(({ name: job, attempts }) =>
      (attempts.at(-1)?.steps ?? []).map(({ kept, name, position }) => {
        if (kept === undefined) return "";
        const time = new Date(kept.untilMs).toISOString().slice(0, 16).replace("T", " ");
        const size = kept.bytes === undefined ? "" : `, ${formatBytes(kept.bytes)}`;
        const path = `${title(build)}/${plain(job)}/${position}`;
        const word = /^[\w.+@%:,=#/-]+$/.test(path) ? path : `'${path}'`;
        return `\n${plain(job)}/${plain(name)} is kept until ${time} UTC${size}: ${paint("bold", `slipway shell ${word}`)}\n`;
      }),
    )
    .join("");
}

export const verbs: Readonly<Record<string, Verb>> = {
  list: { usage: listUsage, run: list },
  show: { usage: showUsage, run: show },
  log: { usage: logUsage, run: log },
  cancel: { usage: cancelUsage, run: cancel },
  rerun: { usage: rerunUsage, run: rerun },
  discard: { usage: discardUsage, run: discard },
};

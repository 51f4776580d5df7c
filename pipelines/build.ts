/** `build:`, a step that makes an image of a Dockerfile: its keys, and what is checked of them together. */
import { dictionary, list } from "./collection.ts";
import { contexts, describeContext } from "./build-context.ts";
import { checkReference } from "./image-name.ts";
import { DEFAULTS, LIMITS } from "./limits.ts";
import { secretName } from "./secret.ts";
import type { BuildSecret, ImageBuildSpec } from "./pipeline.ts";
import type { Problems } from "./problems.ts";
import { clean, leadsOut, path } from "./repository-path.ts";
import { exceed, type FieldValues, flag, type Located, mapping, mismatch, refuse, type Shape } from "./shape.ts";
import type { Span } from "./source.ts";
import { quote } from "./suggestion.ts";
import { templated } from "./templated.ts";
import { label, scalarText, variable } from "./value.ts";
import { findVariables } from "./variables.ts";

const tag: Shape<string> = {
  expected: "the name of an image",
  schema: { type: "string", minLength: 1, maxLength: LIMITS.imageLength },
  read(node, place) {
    const text = scalarText(node);
    const expected = 'a name like "registry.example/team/app:1.2"';
    if (text === undefined || text === "") return mismatch(node, place, expected);
    if (text.length > LIMITS.imageLength) return exceed(node, place, `${text.length} characters`, LIMITS.imageLength);
    const bare = /\$([A-Za-z_]\w*)/.exec(text);
    if (bare !== null) {
      return refuse(
        node,
        place,
        "a variable stands in braces",
        `write ${quote(text.replace(bare[0], `\${${bare[1]}}`))}`,
      );
    }
    if (text.includes("@")) return refuse(node, place, "the digest is known when the image is built", "write a tag");
    // Whatever the variables stand for, which is checked again when it is known.
    const fault = checkReference(findVariables(text).fill(() => "x"));
    if (fault === undefined) return text;
    return refuse(
      node,
      place,
      fault.problem,
      fault.suggestion?.includes("./path") ? `write ${expected}` : fault.suggestion,
    );
  },
};

const registry: Shape<string> = {
  expected: "a registry",
  schema: { type: "string", minLength: 1, maxLength: LIMITS.imageLength },
  read(node, place) {
    const text = scalarText(node)?.replace(/\/+$/, "") ?? "";
    const name = findVariables(text).fill(() => "x");
    const fault = checkReference(`${name}/x`);
    const host = name.split("/")[0] ?? "";
    if (fault !== undefined) return refuse(node, place, fault.problem, 'write a registry like "registry.example/team"');
    if (/[.:]/.test(host) || host === "localhost" || text.startsWith("${")) return text;
    return refuse(node, place, `${quote(host)} is no host`, `write ${quote(`docker.io/${text}`)} if that is meant`);
  },
};

const push: Shape<boolean | string> = {
  expected: "true, false or a registry",
  schema: { anyOf: [{ type: "boolean" }, registry.schema] },
  read(node, place) {
    if (node.kind === "scalar" && typeof node.value === "boolean") return node.value;
    const word = scalarText(node);
    if (word === undefined || word === "" || /^(?:yes|no|on|off|true|false)$/i.test(word)) {
      const meant = /^(?:yes|on|true)$/i.test(word ?? "") ? "true" : "false";
      const isWord = word !== undefined && word !== "";
      return mismatch(node, place, this.expected, isWord ? `write ${meant}, without quotes` : undefined);
    }
    return templated(registry).read(node, place);
  },
};

const PLATFORM_PATTERN = "^linux/[a-z0-9]{1,16}(/v[0-9]{1,2})?$";
const platformPattern = new RegExp(PLATFORM_PATTERN);

const platform: Shape<string> = {
  expected: "a platform",
  schema: { type: "string", pattern: PLATFORM_PATTERN },
  read(node, place) {
    const text = scalarText(node);
    const expected = 'a platform like "linux/amd64"';
    if (text === undefined) return mismatch(node, place, expected);
    if (platformPattern.test(text)) return text;
    const [os] = text.toLowerCase().split("/");
    if (os === "windows" || os === "darwin") return refuse(node, place, "images are built for linux only");
    const lower = text.toLowerCase();
    const mended = [lower, `linux/${lower}`].find((each) => platformPattern.test(each));
    return refuse(
      node,
      place,
      "it is no platform",
      mended === undefined ? 'write "linux/amd64" or "linux/arm64"' : `write ${quote(mended)}`,
    );
  },
};

const argumentName = /^[A-Za-z_][A-Za-z0-9_]*$/;

const args = dictionary({
  expected: "a mapping from names to values",
  plural: "arguments",
  value: templated(variable),
  namePattern: "^[A-Za-z_][A-Za-z0-9_]*$",
  checkName(name, span, place) {
    if (argumentName.test(name) && name.length <= 255) return true;
    place.problems.error(span, `the name ${quote(name)} cannot be used: no ARG can take it`);
    return false;
  },
  max: LIMITS.buildArguments,
  suggestion: 'write "args:" and below it "NAME: value" for each argument',
});

const labels = dictionary({
  expected: "a mapping from names to values",
  plural: "labels",
  value: templated(variable),
  namePattern: "^[^\\x00-\\x20\\x7f]{1,255}$",
  checkName(name, span, place) {
    // oxlint-disable-next-line no-control-regex -- they are what is refused
    if (/^[^\x00-\x20\x7f]{1,255}$/.test(name)) return true;
    place.problems.error(
      span,
      `the name ${quote(name)} cannot be used: a label has 1 to 255 characters without spaces`,
      'write a name like "org.opencontainers.image.source"',
    );
    return false;
  },
  max: LIMITS.buildLabels,
});

const secretTable = {
  noun: "a secret",
  fields: {
    secret: { shape: secretName, summary: "The name under which it was set (slipway secret set)." },
    env: { shape: label, summary: "The variable of the step that holds it." },
    file: { shape: path, summary: "The file in the workspace that holds it, which an earlier step may have written." },
  },
  alternatives: { keys: ["secret", "env", "file"], missing: 'write "secret: NAME", "env: VARIABLE" or "file: path"' },
  synonyms: { from_secret: "secret", environment: "env", variable: "env", src: "file", source: "file", path: "file" },
} as const;

const secret = mapping(secretTable);

const secrets = dictionary({
  expected: "a mapping from ids to secrets",
  plural: "secrets",
  value: secret,
  namePattern: "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$",
  checkName(name, span, place) {
    if (/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$/.test(name)) return true;
    place.problems.error(
      span,
      `the name ${quote(name)} cannot be used: the id of a secret has letters, digits, _, . and -`,
    );
    return false;
  },
  owner: (name) => `secret ${quote(name)}`,
  max: LIMITS.buildSecrets,
  suggestion: 'write "secrets:", below it an id, and below that "secret: NAME", "env: VARIABLE" or "file: path"',
});

const buildTable = {
  noun: "a build",
  fields: {
    context: {
      shape: path,
      summary: "The directory that COPY and ADD take from, relative to the repository.",
      default: DEFAULTS.buildContext,
    },
    dockerfile: {
      shape: path,
      summary: "The Dockerfile, relative to the context; it may be beside the context with ../ in front.",
      default: DEFAULTS.dockerfile,
    },
    contexts: {
      shape: contexts,
      summary:
        "Name → what FROM and --from of this name mean: a directory of the repository, docker-image://NAME, or the URL of a Git repository or archive.",
    },
    target: { shape: templated(label), summary: "The stage to build: the last one if left out." },
    args: { shape: args, summary: "Values of the Dockerfile's ARGs. ${NAME} stands for a variable of the step." },
    secrets: {
      shape: secrets,
      summary:
        "Id → what RUN --mount=type=secret,id=… gets: a secret that was set, a variable of the step, or a file in the workspace.",
    },
    tags: {
      shape: list({
        expected: "the name of an image or a list of them",
        plural: "tags",
        item: templated(tag),
        single: true,
        max: LIMITS.buildTags,
      }),
      summary: "Names of the image, by which later steps of the build run in it and by which it is pushed.",
    },
    push: {
      shape: push,
      summary: "Pushes every tag: true, to the registry it names; or a registry that is put in front of all of them.",
      default: false,
    },
    platforms: {
      shape: list({
        expected: "a platform or a list of platforms",
        plural: "platforms",
        item: platform,
        single: true,
        min: 1,
        max: LIMITS.buildPlatforms,
      }),
      summary: "What it is built for, linux/amd64 or linux/arm64: the agent's own platform if left out.",
    },
    labels: { shape: labels, summary: "Labels of the image beside those of the Dockerfile." },
    cache: {
      shape: flag,
      summary: "Takes what an earlier build has made of the same instructions and files.",
      default: true,
    },
    output: {
      shape: path,
      summary:
        "Where in the workspace the image is written: a path that ends with .tar is an archive, others an OCI layout.",
    },
  },
  synonyms: {
    path: "context",
    dir: "context",
    directory: "context",
    file: "dockerfile",
    dockerfile_path: "dockerfile",
    Dockerfile: "dockerfile",
    stage: "target",
    build_contexts: "contexts",
    "build-contexts": "contexts",
    additional_contexts: "contexts",
    "build-context": "contexts",
    build_args: "args",
    "build-args": "args",
    buildargs: "args",
    arguments: "args",
    tag: "tags",
    repo: "tags",
    repository: "tags",
    name: "tags",
    image: "tags",
    destination: "tags",
    registry: "push",
    platform: "platforms",
    label: "labels",
    secret: "secrets",
    outputs: "output",
  },
  hints: {
    no_cache: "write cache: false",
    "no-cache": "write cache: false",
    cache_from: "layers are kept on the agent: cache is true or false",
    cache_to: "layers are kept on the agent: cache is true or false",
    "cache-from": "layers are kept on the agent: cache is true or false",
    "cache-to": "layers are kept on the agent: cache is true or false",
    username: 'write it below "registries" at the top level',
    password: 'write it below "registries" at the top level',
    network: "write it on the step, beside build",
    pull: "write it on the step, beside build",
    env: "write it on the step, beside build",
    resources: "write it on the step, beside build",
    timeout: "write it on the step, beside build",
    dockerfile_inline: "write the Dockerfile into a file of the repository",
    ssh: "the agent gives no ssh keys away: fetch in a step before, and copy",
    provenance: "attestations are not supported",
    sbom: "attestations are not supported",
  },
} as const;

const buildMapping = mapping(buildTable);
/** What a file says of a build. */
export type BuildFields = FieldValues<typeof buildTable.fields>;

/** What `build` may be: the context alone, or a mapping. */
export const build: Shape<BuildFields> = {
  expected: "a build",
  schema: { anyOf: [path.schema, buildMapping.schema] },
  read(node, place) {
    if (node.kind === "map") return buildMapping.read(node, place);
    if (node.kind === "scalar" && node.value === true) {
      return mismatch(
        node,
        place,
        "the directory of a Dockerfile, or a mapping",
        'write "build: ." for the repository itself',
      );
    }
    if (node.kind !== "scalar" || node.value === null) {
      return mismatch(
        node,
        place,
        'the directory of a Dockerfile, or a mapping with "context", "tags" and the like',
        'write "build: ."',
      );
    }
    const value = path.read(node, { ...place, path: "build" });
    return value === undefined ? undefined : { context: { value, span: node.span } };
  },
};

/** Checks what one key does not show, and fills in every default. */
export function describeBuild(
  { value: fields, span }: Located<BuildFields>,
  { env, problems }: { readonly env: Readonly<Record<string, string>>; readonly problems: Problems },
): ImageBuildSpec {
  const context = fields.context?.value ?? DEFAULTS.buildContext;
  const dockerfile = fields.dockerfile?.value ?? DEFAULTS.dockerfile;
  const outside = (at: Span, what: string, text: string) =>
    problems.error(at, `${what} ${quote(text)} leads out of the repository`, "name something in the repository");
  if (leadsOut(context)) outside(fields.context?.span ?? span, "the context", context);
  else if (leadsOut(`${context}/${dockerfile}`)) outside(fields.dockerfile?.span ?? span, "the Dockerfile", dockerfile);
  if (fields.output !== undefined) checkOutput(fields.output, problems);
  checkPush(fields, problems);
  for (const text of templatesOf(fields)) {
    for (const fault of findVariables(text.value).unknown(env))
      problems.error(text.span, fault.problem, fault.suggestion);
  }
  const secretsOf: Record<string, BuildSecret> = Object.setPrototypeOf({}, null);
  for (const { name, value, valueSpan } of fields.secrets?.value ?? []) {
    const found = value === undefined ? undefined : describeSecret(value, env);
    if (found === undefined) continue;
    if ("problem" in found) problems.error(valueSpan, `secret ${quote(name)} ${found.problem}`, found.suggestion);
    else secretsOf[name] = found;
  }
  const pushTo = fields.push?.value ?? false;
  const named = (fields.contexts?.value ?? []).flatMap(({ name, value }) =>
    value === undefined ? [] : [[name, describeContext(value)] as const],
  );
  return {
    context: clean(context),
    dockerfile: clean(`${context}/${dockerfile}`),
    ...(named.length > 0 && { contexts: Object.fromEntries(named) }),
    ...(fields.target !== undefined && { target: fields.target.value }),
    args: record(fields.args?.value),
    secrets: secretsOf,
    tags: [...new Set((fields.tags?.value ?? []).map(({ value }) => value))],
    ...(pushTo !== false && { push: pushTo }),
    platforms: [...new Set((fields.platforms?.value ?? []).map(({ value }) => value))],
    labels: record(fields.labels?.value),
    cache: fields.cache?.value ?? true,
    ...(fields.output !== undefined && { output: clean(fields.output.value) }),
  };
}

function describeSecret(
  { secret: set, env: name, file }: NonNullable<NonNullable<BuildFields["secrets"]>["value"][number]["value"]>,
  env: Readonly<Record<string, string>>,
): BuildSecret | { readonly problem: string; readonly suggestion: string } | undefined {
  if (set !== undefined) return { secret: set.value };
  if (file !== undefined) {
    if (!leadsOut(file.value)) return { file: clean(file.value) };
    return { problem: "leads out of the repository", suggestion: "name a file in the workspace" };
  }
  if (name === undefined) return undefined;
  if (name.value in env) return { env: name.value };
  return {
    problem: `names the variable ${quote(name.value)}, which the step does not have`,
    suggestion: "write it below env",
  };
}

function checkOutput({ value, span }: Located<string>, problems: Problems): void {
  if (leadsOut(value))
    problems.error(span, `the output ${quote(value)} leads out of the workspace`, "name something in it");
  else if (clean(value) === ".") problems.error(span, "the output cannot be the workspace itself", 'write "image.tar"');
}

/** What is pushed has a name in a registry. */
function checkPush({ push: to, tags }: BuildFields, problems: Problems): void {
  if (to === undefined || to.value === false) return;
  if (problems.whole && (tags === undefined || tags.value.length === 0)) {
    problems.error(to.span, "nothing can be pushed without a name", 'write "tags: [name:tag]"');
    return;
  }
  for (const { value, span } of tags?.value ?? []) {
    const [first = "", ...others] = value.split("/");
    const namesHost = others.length > 0 && (/[.:]/.test(first) || first === "localhost");
    if (to.value === true && others.length === 0 && !value.startsWith("${")) {
      const help = `write ${quote(`registry.example/team/${value}`)}, or the registry below push`;
      problems.error(span, `${quote(value)} names no registry to push to`, help);
    }
    if (typeof to.value === "string" && namesHost) {
      problems.error(span, `${quote(value)} names a registry, and "push" another one`, "write push: true");
    }
  }
}

function templatesOf({
  target,
  args: given,
  tags,
  push: to,
  labels: named,
  contexts: from,
}: BuildFields): Located<string>[] {
  const entries = [...(given?.value ?? []), ...(named?.value ?? []), ...(from?.value ?? [])].flatMap(
    ({ value, valueSpan }) => (value === undefined ? [] : [{ value, span: valueSpan }]),
  );
  const pushTo = typeof to?.value === "string" ? [{ value: to.value, span: to.span }] : [];
  return [...(target === undefined ? [] : [target]), ...(tags?.value ?? []), ...pushTo, ...entries];
}

/** Without a prototype, as what `mergeEnvironments` gives. */
function record(
  entries: readonly { readonly name: string; readonly value: string | undefined }[] = [],
): Record<string, string> {
  const values: Record<string, string> = Object.setPrototypeOf({}, null);
  for (const { name, value } of entries) if (value !== undefined) values[name] = value;
  return values;
}

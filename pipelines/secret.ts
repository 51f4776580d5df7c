/** `secrets:` of steps and services, and `registries:`: values that the pipeline names and the server (or its user) has. */
import { dictionary, type DictionaryEntry, list } from "./collection.ts";
import { checkVariable } from "./environment.ts";
import { checkReference } from "./image-name.ts";
import { LIMITS } from "./limits.ts";
import type { RegistryLogin, StepSecret } from "./pipeline.ts";
import type { Problems } from "./problems.ts";
import { type FieldValues, flag, type Located, mapping, mismatch, type Place, type Shape } from "./shape.ts";
import type { Span } from "./source.ts";
import { quote } from "./suggestion.ts";
import { NAME_PATTERN, checkIdentifier, label, scalarText } from "./value.ts";

/** The name of a secret, as a value. */
export const secretName: Shape<string> = {
  expected: "the name of a secret",
  schema: { type: "string", pattern: NAME_PATTERN },
  read(node, place) {
    const text = scalarText(node);
    if (text === undefined || text === "") return mismatch(node, place, this.expected);
    const fault = checkIdentifier(text);
    if (fault === undefined) return text;
    // What stands there may be the secret itself: it is not quoted.
    const help = "write the name under which it was set: slipway secret set REPOSITORY NAME";
    place.problems.error(node.span, `this is no name of a secret: ${fault.problem}`, help);
    return undefined;
  },
};

const useTable = {
  noun: "a secret",
  fields: {
    secret: { shape: secretName, summary: "The name under which it was set; the key itself if left out." },
    file: { shape: flag, summary: "Gives it as the file /run/secrets/KEY instead of a variable.", default: false },
  },
  synonyms: { from_secret: "secret", name: "secret", source: "secret", from: "secret" },
  hints: { value: "a secret's value does not stand in the pipeline: slipway secret set REPOSITORY NAME" },
} as const;

const useMapping = mapping(useTable);
type Use = FieldValues<typeof useTable.fields>;

const use: Shape<Use> = {
  expected: 'the name of a secret, or a mapping with "secret" and "file"',
  schema: { anyOf: [secretName.schema, useMapping.schema] },
  read(node, place) {
    if (node.kind === "map") return useMapping.read(node, place);
    if (node.kind !== "scalar" || node.value === null) return mismatch(node, place, this.expected);
    const value = secretName.read(node, place);
    return value === undefined ? undefined : { secret: { value, span: node.span } };
  },
};

const named = dictionary({
  expected: "a list of names, or a mapping from variables to names",
  plural: "secrets",
  value: use,
  namePattern: NAME_PATTERN,
  checkName: checkKey,
  max: LIMITS.stepSecrets,
});

const listed = list({
  expected: "a list of names, or a mapping from variables to names",
  plural: "secrets",
  item: secretName,
  single: true,
  max: LIMITS.stepSecrets,
});

function checkKey(name: string, span: Span, place: Place): boolean {
  const fault = checkIdentifier(name);
  if (fault === undefined) return true;
  place.problems.error(span, `the name ${quote(name)} cannot be used: ${fault.problem}`, fault.suggestion);
  return false;
}

/** Read and checked: what a step gets, and where that stands. */
export type SecretFields = readonly Located<StepSecret>[];

/** `secrets` of a step or a service. */
export const secrets: Shape<SecretFields> = {
  expected: "a list of names, or a mapping from variables to names",
  schema: { anyOf: [listed.schema, named.schema] },
  read(node, place) {
    if (node.kind !== "map") {
      const names = listed.read(node, place) ?? [];
      return names.flatMap(({ value, span }): Located<StepSecret>[] =>
        checkVariable(value, span, place, 'or give it a variable: "secrets: { VARIABLE: name }"')
          ? [{ value: { secret: value, env: value }, span }]
          : [],
      );
    }
    return (named.read(node, place) ?? []).flatMap(({ name, nameSpan, value }): Located<StepSecret>[] => {
      if (value === undefined) return [];
      const secret = value.secret?.value ?? name;
      if (value.file?.value === true) return [{ value: { secret, file: name }, span: nameSpan }];
      return checkVariable(name, nameSpan, place) ? [{ value: { secret, env: name }, span: nameSpan }] : [];
    });
  },
};

/** Each variable and file once, and no variable that the step itself writes. */
export function describeSecrets(
  fields: Located<SecretFields> | undefined,
  { own, problems }: { readonly own: readonly DictionaryEntry<string>[]; readonly problems: Problems },
): readonly StepSecret[] {
  const seen = new Set<string>();
  for (const { value, span } of fields?.value ?? []) {
    const name = "env" in value ? value.env : `/run/secrets/${value.file}`;
    if (seen.has(name)) problems.error(span, `${quote(name)} is given twice`, "remove one");
    seen.add(name);
    if ("env" in value && own.some((variable) => variable.name === value.env)) {
      problems.error(span, `${quote(value.env)} is a variable of "env", too`, "remove one");
    }
  }
  return (fields?.value ?? []).map(({ value }) => value);
}

/** `{ secret: NAME }`, where nothing but a secret may stand. */
const onlySecret = mapping({
  noun: "a secret",
  fields: {
    secret: {
      shape: secretName,
      summary: "The name under which it was set.",
      required: 'write "secret: NAME"',
    },
  },
  synonyms: { from_secret: "secret", name: "secret" },
});

const password: Shape<FieldValues<{ secret: { shape: Shape<string>; summary: string } }>> = {
  expected: 'a mapping with "secret"',
  schema: onlySecret.schema,
  read(node, place) {
    if (node.kind !== "scalar" || node.value === null) return onlySecret.read(node, place);
    // Not quoted: it may be one.
    const problem = "a password does not stand in the pipeline, where everybody reads it";
    place.problems.error(node.span, problem, 'write "password: { secret: NAME }"');
    return undefined;
  },
};

const username: Shape<string | { readonly secret: string }> = {
  expected: 'a name, or a mapping with "secret"',
  schema: { anyOf: [label.schema, onlySecret.schema] },
  read(node, place) {
    if (node.kind !== "map") return label.read(node, place);
    const secret = onlySecret.read(node, place)?.secret?.value;
    return secret === undefined ? undefined : { secret };
  },
};

const loginTable = {
  noun: "a registry",
  fields: {
    username: {
      shape: username,
      summary: "Who logs in.",
      required: 'write "username: NAME" or "username: { secret: NAME }"',
    },
    password: {
      shape: password,
      summary: "The secret that holds the password or token.",
      required: 'write "password: { secret: NAME }"',
    },
  },
  synonyms: { user: "username", login: "username", token: "password", pass: "password" },
} as const;

/** `registries` of a pipeline. */
export const registries = dictionary({
  expected: "a mapping from registries to username and password",
  plural: "registries",
  value: mapping(loginTable),
  namePattern: "^[^/@\\s]{1,255}$",
  checkName(name, span, place) {
    const isHost = /[.:]/.test(name) || name === "localhost";
    if (isHost && !/[/@\s]/.test(name) && checkReference(`${name}/x`) === undefined) return true;
    place.problems.error(
      span,
      `${quote(name)} is no registry`,
      'write a host as it stands in names of images: "registry.example", "docker.io"',
    );
    return false;
  },
  owner: (name) => `registry ${quote(name)}`,
  max: LIMITS.registries,
  suggestion: 'write "registries:", below it a host, and below that "username:" and "password: { secret: NAME }"',
});

export type RegistryFields = readonly DictionaryEntry<FieldValues<typeof loginTable.fields>>[];

/** The logins of those registries that the images of a job may be in; `undefined` among them stands for any. */
export function describeRegistries(
  fields: RegistryFields | undefined,
  images: readonly (string | undefined)[],
): readonly RegistryLogin[] {
  const wanted = images.map((image) => (image === undefined ? undefined : registryOf(image)));
  return (fields ?? []).flatMap(({ name, value }) => {
    const registry = inFull(name);
    const secret = value?.password?.value.secret?.value;
    if (secret === undefined || value?.username === undefined) return [];
    if (!wanted.includes(undefined) && !wanted.includes(registry)) return [];
    return [{ registry, username: value.username.value, password: { secret } }];
  });
}

/** Docker's own has several names; those of the others are as they are written. */
function inFull(host: string): string {
  const lower = host.toLowerCase();
  return /^(?:index\.|registry-1\.)?docker\.io$/.test(lower) ? "docker.io" : lower;
}

/** The registry of an image; "" for one of none; undefined where variables decide. */
function registryOf(image: string): string | undefined {
  if (image === "host" || image.startsWith("./")) return "";
  const [first = "", ...others] = image.split("/");
  if (image.includes("${")) return undefined;
  const isHost = others.length > 0 && (/[.:A-Z[]/.test(first) || first === "localhost");
  return isHost ? inFull(first) : "docker.io";
}

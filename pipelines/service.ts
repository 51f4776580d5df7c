/** `services:`, containers beside the steps of a job: their keys and what is checked of them together. */
import { dictionary, type DictionaryEntry, list } from "./collection.ts";
import { environment } from "./environment.ts";
import { image, pull } from "./image-name.ts";
import { DEFAULTS, LIMITS } from "./limits.ts";
import { localNames } from "./network.ts";
import type { ReadySpec } from "./pipeline.ts";
import type { Problems } from "./problems.ts";
import { formatDuration } from "./quantity.ts";
import { resources } from "./resources.ts";
import { secrets } from "./secret.ts";
import { type FieldValues, flag, mapping, type Shape } from "./shape.ts";
import { quote } from "./suggestion.ts";
import { duration, portNumber, script, variable } from "./value.ts";

/** One label of a host name, for it is one in /etc/hosts. */
export const SERVICE_NAME_PATTERN = "^[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$";
const serviceName = new RegExp(SERVICE_NAME_PATTERN);

const readyTable = {
  noun: "ready",
  fields: {
    port: {
      shape: list({
        expected: "a port or a list of ports",
        plural: "ports",
        item: portNumber,
        single: true,
        min: 1,
        max: LIMITS.readyPorts,
      }),
      summary: "TCP ports on which the service must listen.",
    },
    run: {
      shape: script,
      summary: "A script that must succeed in the service's container; it is run again until it does.",
    },
    timeout: {
      shape: duration,
      summary: "A service that is not ready after this fails the job.",
      default: formatDuration(DEFAULTS.readyTimeoutMs),
    },
  },
  synonyms: {
    ports: "port",
    tcp: "port",
    command: "run",
    cmd: "run",
    test: "run",
    script: "run",
    exec: "run",
    "health-cmd": "run",
    start_period: "timeout",
    wait: "timeout",
  },
  hints: {
    interval: "Slipway looks often at first, then once a second: remove it",
    retries: "write timeout: how long it may take in all",
    http: 'write a command: "run: curl -fsS http://localhost:8080/health"',
    url: 'write a command: "run: curl -fsS http://localhost:8080/health"',
  },
} as const;

const serviceTable = {
  noun: "a service",
  fields: {
    image: {
      shape: image,
      summary: "The image the service runs in: the job's if left out.",
      default: DEFAULTS.image,
    },
    pull: { shape: pull, summary: "When the registry is asked for the image: as the job says if left out." },
    run: { shape: script, summary: "A POSIX shell script, run as sh -e; without it, what the image says is run." },
    args: {
      shape: list({
        expected: "a list of arguments",
        plural: "arguments",
        item: variable,
        max: LIMITS.serviceArguments,
      }),
      summary: "Arguments of the image's own program, in place of those that the image gives it.",
    },
    env: { shape: environment, summary: "Environment variables, merged with those of pipeline and job." },
    secrets: { shape: secrets, summary: "As of a step." },
    resources: { shape: resources, summary: "Limits of the service, key by key." },
    ready: {
      shape: mapping(readyTable),
      summary: "When the steps may begin: at once, if left out.",
    },
    allow_failure: { shape: flag, summary: "Goes on without the service when it fails.", default: false },
  },
  synonyms: {
    script: "run",
    commands: "run",
    command: "run",
    cmd: "run",
    arguments: "args",
    environment: "env",
    variables: "env",
    container: "image",
    limits: "resources",
    healthcheck: "ready",
    health: "ready",
    readiness: "ready",
    "continue-on-error": "allow_failure",
    failure: "allow_failure",
  },
  hints: {
    name: "a service's name is its key below services",
    alias: "a service's name is its key below services",
    ports: "ports need not be published: steps reach the service on localhost and by its name",
    expose: "ports need not be published: steps reach the service on localhost and by its name",
    volumes: "services share the workspace with the steps; volumes are not supported",
    entrypoint: "write run: the command with its arguments",
    options: "write env, resources and ready",
    network: "services are in the network of their job",
    networks: "services are in the network of their job",
    depends_on: "services start side by side, and the steps when all are ready",
    detach: "every service runs beside the steps: remove it",
    timeout: "a service runs as long as its job; write timeout below ready",
    credentials: 'write them below "registries" at the top level',
  },
} as const;

const service = mapping(serviceTable);
export type ServiceFields = FieldValues<typeof serviceTable.fields>;

/** The mapping of services of a job. */
export const services: Shape<readonly DictionaryEntry<ServiceFields>[]> = dictionary({
  expected: "a mapping from names to services",
  plural: "services",
  value: service,
  namePattern: SERVICE_NAME_PATTERN,
  checkName(name, span, place) {
    const fault = checkServiceName(name);
    if (fault === undefined) return true;
    place.problems.error(span, `the name ${quote(name)} cannot be used: ${fault}`, "write a name like db");
    return false;
  },
  owner: (name) => `service ${quote(name)}`,
  max: LIMITS.servicesPerJob,
  suggestion: 'write "services:", below it a name, and below that "image:" or "run:"',
});

function checkServiceName(name: string): string | undefined {
  if (!serviceName.test(name)) {
    return "the name of a service is a host name of 1 to 63 letters, digits, - and _, no - or _ at its ends";
  }
  if (localNames.has(name.toLowerCase())) return "it leads to the step itself";
  if (/^(?:\d+|0x[0-9a-f]*)$/i.test(name)) return "programs take it for an address";
  return undefined;
}

/** Checks what one key of a service does not show. */
export function checkServices(entries: readonly DictionaryEntry<ServiceFields>[], problems: Problems): void {
  const names = new Map<string, string>();
  for (const { name, nameSpan, value, valueSpan } of entries) {
    const other = names.get(name.toLowerCase());
    if (other !== undefined) {
      problems.error(nameSpan, `service ${quote(name)} is the same host name as service ${quote(other)}`, "rename one");
    }
    names.set(name.toLowerCase(), name);
    if (value === undefined) continue;
    if (value.run !== undefined && value.args !== undefined) {
      problems.error(
        value.args.span,
        `service ${quote(name)} has both "run" and "args"`,
        "write the arguments into run",
      );
    }
    if (value.ready !== undefined && value.ready.value.port === undefined && value.ready.value.run === undefined) {
      problems.error(value.ready.span, `"ready" of service ${quote(name)} has neither "port" nor "run"`, "write one");
    }
    if (problems.whole && value.run === undefined && value.image === undefined) {
      const span = valueSpan.start === valueSpan.end ? nameSpan : valueSpan;
      problems.error(
        span,
        `service ${quote(name)} has neither "image" nor "run"`,
        'write "image: …" or "run: command"',
      );
    } else if (problems.whole && value.run === undefined && value.image?.value === "host") {
      problems.error(value.image.span, `service ${quote(name)} runs nothing`, 'image "host" needs "run: command"');
    }
  }
}

/** What a service waits for, with every default filled in. */
export function buildReady({ ready }: ServiceFields): ReadySpec | undefined {
  if (ready === undefined) return undefined;
  const { port, run, timeout } = ready.value;
  return {
    ports: [...new Set((port?.value ?? []).map(({ value }) => value))],
    ...(run !== undefined && { run: run.value }),
    timeoutMs: timeout?.value ?? DEFAULTS.readyTimeoutMs,
  };
}

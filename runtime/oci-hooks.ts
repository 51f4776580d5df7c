/** Hooks that run in the runtime's own namespaces: prestart, createRuntime, poststart, poststop. */
import { spawnSync } from "node:child_process";
import type { OciHook } from "./oci-config.ts";
import type { OciState } from "./oci-state.ts";

/** A process's environment, as Node has it. */
export type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Runs one hook with the state on its standard input, in the bundle.
 *
 * @param name What it is to the reader of an error: `prestart hook #0`.
 * @param callers For a hook without an environment of its own, as under runc and crun.
 * @throws {Error} If it fails.
 */
export function runHook(name: string, hook: OciHook, context: { state: OciState; callers: Environment }): void {
  const { state, callers } = context;
  const env = hook.env === undefined ? { ...callers } : environment(hook.env);
  const [argv0, ...args] = hook.args?.length ? hook.args : [hook.path];
  const result = spawnSync(hook.path, args, {
    argv0,
    env,
    cwd: state.bundle,
    input: JSON.stringify(state),
    stdio: ["pipe", "pipe", "pipe"],
    encoding: "utf8",
    ...(hook.timeout === undefined ? {} : { timeout: hook.timeout * 1000, killSignal: "SIGKILL" as const }),
  });
  const { status, signal } = result;
  const error: NodeJS.ErrnoException | undefined = result.error;
  // A hook need not read its input.
  if (status === 0 && (error === undefined || error.code === "EPIPE")) return;
  const code = error?.code;
  const how =
    code === "ETIMEDOUT"
      ? `took longer than ${hook.timeout} s`
      : code !== undefined && status === null && signal === null
        ? `cannot be executed: ${code}`
        : signal === null
          ? `ended with exit code ${status}`
          : `was ended by ${signal}`;
  // Both are null if it has not been started.
  const said = [result.stderr, result.stdout]
    .map((text) => (text as string | null) ?? "")
    .join("")
    .trim()
    .slice(-1000);
  throw new Error(`error running ${name}: "${hook.path}" ${how}${said === "" ? "" : `: ${said}`}`);
}

function environment(entries: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    entries.map((entry) => {
      const equals = entry.indexOf("=");
      return equals < 0 ? [entry, ""] : [entry.slice(0, equals), entry.slice(equals + 1)];
    }),
  );
}

/** Hooks that run in the runtime's own namespaces: prestart, createRuntime, poststart, poststop. */
import { spawnSync } from "node:child_process";
import type { OciHook } from "./oci-config.ts";
import type { OciState } from "./oci-state.ts";

/** Runs one hook with the state on its standard input. @throws {Error} If it fails. */
export function runHook(kind: string, hook: OciHook, state: OciState): void {
  const env = Object.fromEntries(
    (hook.env ?? []).map((entry) => {
      const equals = entry.indexOf("=");
      return equals < 0 ? [entry, ""] : [entry.slice(0, equals), entry.slice(equals + 1)];
    }),
  );
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
  throw new Error(`The ${kind} hook "${hook.path}" ${how}${said === "" ? "" : `: ${said}`}`);
}

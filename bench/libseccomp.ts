/**
 * Filters that libseccomp makes of OCI configurations, for those who compare with it.
 *
 * Needs Debian's python3-seccomp. Rules are added as crun's seccomp.c adds them, then exported with seccomp_export_bpf.
 */
import { spawnSync } from "node:child_process";
import type { OciSeccomp } from "../runtime/seccomp-oci.ts";
import type { Architecture } from "../runtime/syscall-table.ts";

const python = "/usr/bin/python3";

const script = `
import base64, json, sys, tempfile, seccomp
prefix = lambda text: text.split("_", 2)[2]
def action(name, errno):
    errno = 1 if errno is None else errno
    name = prefix(name)
    if name in ("ERRNO", "TRACE"): return getattr(seccomp, name)(errno)
    return seccomp.KILL if name == "KILL_THREAD" else getattr(seccomp, name)
def compile(config, native):
    default = action(config["defaultAction"], config.get("defaultErrnoRet"))
    filter = seccomp.SyscallFilter(default)
    wanted = [getattr(seccomp.Arch, prefix(name)) for name in [native] + config.get("architectures", [])]
    for arch in wanted:
        if not filter.exist_arch(arch): filter.add_arch(arch)
    if int(seccomp.Arch()) not in wanted: filter.remove_arch(int(seccomp.Arch()))
    for syscall in config.get("syscalls", []):
        chosen = action(syscall["action"], syscall.get("errnoRet"))
        if chosen == default: continue
        args = [seccomp.Arg(arg["index"], getattr(seccomp, prefix(arg["op"])), arg["value"], arg.get("valueTwo", 0))
                for arg in syscall.get("args") or []]
        alone = len({arg["index"] for arg in syscall.get("args") or []}) < len(args)
        for name in syscall["names"]:
            try: number = seccomp.resolve_syscall(seccomp.Arch(), name)
            except ValueError: continue
            if number == -1: continue
            for rule in ([[arg] for arg in args] if alone else [args]): filter.add_rule(chosen, number, *rule)
    with tempfile.TemporaryFile() as file:
        filter.export_bpf(file)
        file.seek(0)
        return base64.b64encode(file.read()).decode()
for line in sys.stdin:
    question = json.loads(line)
    try: print(json.dumps({"program": compile(question["config"], question["native"])}))
    except Exception as error: print(json.dumps({"error": str(error) or type(error).__name__}))
`;

/** Whether libseccomp can be asked here. */
export function hasLibseccomp(): boolean {
  return spawnSync(python, ["-c", "import seccomp"]).status === 0;
}

/** What libseccomp makes of each configuration; undefined where it refuses one. */
export function libseccompPrograms(
  configs: readonly OciSeccomp[],
  architecture: Architecture,
): (Uint8Array | undefined)[] {
  const native = architecture === "x64" ? "SCMP_ARCH_X86_64" : "SCMP_ARCH_AARCH64";
  const input = configs.map((config) => `${JSON.stringify({ config, native })}\n`).join("");
  const { status, stdout, stderr } = spawnSync(python, ["-c", script], { input, maxBuffer: 256 << 20 });
  if (status !== 0) throw new Error(`Cannot ask libseccomp: ${stderr.toString().trim()}`);
  const answers = stdout.toString().trim().split("\n");
  return answers.map((line) => {
    const { program } = JSON.parse(line) as { readonly program?: string };
    return program === undefined ? undefined : Buffer.from(program, "base64");
  });
}

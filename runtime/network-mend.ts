/** What mends a host on which networks cannot be made; undefined where the error says it itself. @param code Of the error. */
export function mendNetwork(code: string | undefined): string | undefined {
  switch (code) {
    case "EPERM":
    case "EACCES":
    case "EROFS":
      return "run the agent with CAP_NET_ADMIN and a writable /proc/sys/net (root has them; in a container add them)";
    case undefined:
      return undefined;
    default:
      return "load the kernel modules: modprobe -a bridge veth nf_tables nf_conntrack_netlink; the kernel loads the rest";
  }
}

/** What Docker gives to containers and hides from them; steps and `slipway oci` do as it does. */

/** The device nodes of every /dev: name, major and minor number. @see OCI runtime specification, config-linux.md, "Default Devices" */
export const standardDevices = [
  ["null", 1, 3],
  ["zero", 1, 5],
  ["full", 1, 7],
  ["random", 1, 8],
  ["urandom", 1, 9],
  ["tty", 5, 0],
] as const;

/** Paths that show the host, or let it be changed. @see moby, daemon/pkg/oci/defaults.go */
export const maskedPaths = [
  "/proc/acpi",
  "/proc/asound",
  "/proc/interrupts",
  "/proc/kcore",
  "/proc/keys",
  "/proc/latency_stats",
  "/proc/sched_debug",
  "/proc/scsi",
  "/proc/timer_list",
  "/proc/timer_stats",
  "/sys/devices/virtual/powercap",
  "/sys/firmware",
] as const;

/** Paths of /proc that may be read only. @see the same */
export const readonlyPaths = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"] as const;

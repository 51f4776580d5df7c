/**
 * The system calls that a step may make, by profile.
 *
 * `default` is Docker's default policy for a container with Docker's default capabilities, and refuses on top what has
 * since been a way into kernels. `nested` also lets a step build and run containers of its own inside its user namespace.
 *
 * Every call of syscall-table.ts is listed below; what is not, because it is newer than this table or never existed, is
 * answered ENOSYS, as a kernel without it would: programs then fall back on what they used before. A refused call answers
 * EPERM. 32-bit programs (i386, x32, ARM) do not run: their calls have other numbers and a kernel interface of their own.
 * An i386 or ARM call kills the process, because a program that expects no answer to `exit` would not end on an errno. An
 * x32 call is answered ENOSYS, as by the many kernels that are built without x32.
 */
import { EPERM, ENOSYS } from "./linux.ts";
import { abis } from "./seccomp-abi.ts";
import {
  type Answer,
  type Clause,
  type Decision,
  type FilterRules,
  SECCOMP_RET_ALLOW,
  SECCOMP_RET_ERRNO,
  SECCOMP_RET_KILL_PROCESS,
} from "./seccomp-compile.ts";
import type { Architecture } from "./syscall-table.ts";

export type SeccompProfile = "default" | "nested";

const EAFNOSUPPORT = 97;
/** What a table's rules answer. */
export const answers = {
  allow: SECCOMP_RET_ALLOW,
  EPERM: SECCOMP_RET_ERRNO | EPERM,
  ENOSYS: SECCOMP_RET_ERRNO | ENOSYS,
  EAFNOSUPPORT: SECCOMP_RET_ERRNO | EAFNOSUPPORT,
} as const satisfies Record<string, Answer>;
type AnswerName = keyof typeof answers;

/** Calls and their answer, with another one for some values of one argument. */
export interface ProfileRule {
  readonly calls: string;
  readonly answer: AnswerName;
  readonly except?: {
    readonly argument: number;
    readonly answer: AnswerName;
    /** Only the low 32 bits count: the kernel takes these arguments as an int, whatever is above (CVE-2019-10063). */
    readonly values: readonly number[] | { readonly anyBitOf: number };
  };
}

// linux/sched.h: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. CLONE_NEWTIME is none of clone's flags.
const namespaceFlags = 0x7e02_0000;
const clone = (flags: number): ProfileRule => ({
  calls: "clone",
  answer: "allow",
  except: { argument: 0, answer: "EPERM", values: { anyBitOf: flags } },
});

/** AF_UNSPEC, UNIX, INET, INET6, NETLINK, PACKET. The others answer what a kernel without them does. */
const addressFamilies = [0, 1, 2, 10, 16, 17];

/** PER_LINUX, PER_LINUX32, both with UNAME26; ADDR_NO_RANDOMIZE for debuggers and sanitizers; "what is it now?". */
const personalities = [0, 8, 0x2_0000, 0x2_0008, 0x4_0000, 0xffff_ffff];

const TIOCSTI = 0x5412; // types into the terminal, as if its user had
const TIOCLINUX = 0x541c; // the same by way of the console's selection
const TIOCSETD = 0x5423; // loads line disciplines (CVE-2017-2636, CVE-2020-14416, CVE-2023-6546)

/** What both profiles say. */
const common: readonly ProfileRule[] = [
  {
    answer: "allow",
    calls: `
      read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 sendfile splice tee vmsplice
      copy_file_range lseek close close_range dup dup2 dup3 fcntl flock pipe pipe2 select pselect6 poll ppoll
      epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4
      io_setup io_submit io_cancel io_getevents io_pgetevents io_destroy`,
  },
  {
    answer: "allow",
    calls: `
      open openat openat2 creat name_to_handle_at stat lstat fstat newfstatat statx access faccessat faccessat2
      getdents getdents64 getcwd chdir fchdir chroot mkdir mkdirat rmdir mknod mknodat link linkat symlink symlinkat
      readlink readlinkat unlink unlinkat rename renameat renameat2 chmod fchmod fchmodat fchmodat2 chown lchown fchown
      fchownat umask utime utimes utimensat futimesat truncate ftruncate fallocate fadvise64 readahead sync syncfs fsync
      fdatasync sync_file_range statfs fstatfs statmount listmount cachestat
      setxattr lsetxattr fsetxattr setxattrat getxattr lgetxattr fgetxattr getxattrat
      listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat
      inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark`,
  },
  {
    answer: "allow",
    calls: `
      mmap munmap mremap mprotect brk madvise mincore msync mlock mlock2 munlock mlockall munlockall mseal
      remap_file_pages memfd_create memfd_secret membarrier pkey_alloc pkey_free pkey_mprotect map_shadow_stack
      process_mrelease`,
  },
  {
    answer: "allow",
    calls: `
      fork vfork execve execveat exit exit_group wait4 waitid gettid getpid getppid getpgid setpgid getpgrp getsid setsid
      set_tid_address set_robust_list get_robust_list rseq futex futex_wait futex_wake futex_requeue futex_waitv
      prctl arch_prctl seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
      ptrace process_vm_readv process_vm_writev pidfd_open pidfd_send_signal uretprobe restart_syscall`,
  },
  {
    answer: "allow",
    calls: `
      kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait
      rt_sigsuspend rt_sigreturn sigaltstack pause`,
  },
  {
    answer: "allow",
    calls: `
      getuid geteuid getgid getegid setuid setgid setreuid setregid getresuid setresuid getresgid setresgid setfsuid
      setfsgid getgroups setgroups capget capset`,
  },
  {
    answer: "allow",
    calls: `
      sched_yield sched_setparam sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max
      sched_get_priority_min sched_rr_get_interval sched_setaffinity sched_getaffinity sched_setattr sched_getattr
      getpriority setpriority ioprio_get ioprio_set getrlimit setrlimit prlimit64 getrusage times getcpu
      uname sysinfo getrandom`,
  },
  {
    answer: "allow",
    calls: `
      time gettimeofday nanosleep clock_gettime clock_getres clock_nanosleep alarm getitimer setitimer
      timer_create timer_settime timer_gettime timer_getoverrun timer_delete
      timerfd_create timerfd_settime timerfd_gettime adjtimex clock_adjtime`,
  },
  {
    answer: "allow",
    calls: `
      connect accept accept4 sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown bind listen getsockname
      getpeername setsockopt getsockopt
      shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
      mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr`,
  },

  // Protocols that builds do not speak are loaded on demand and seldom looked at: AF_ALG, AF_VSOCK, AF_RDS, AF_TIPC, AF_KEY ….
  // A socketpair is a socket of that family, too.
  {
    calls: "socket socketpair",
    answer: "EAFNOSUPPORT",
    except: { argument: 0, answer: "allow", values: addressFamilies },
  },
  { calls: "personality", answer: "EPERM", except: { argument: 0, answer: "allow", values: personalities } },
  { calls: "ioctl", answer: "allow", except: { argument: 1, answer: "EPERM", values: [TIOCSTI, TIOCLINUX, TIOCSETD] } },

  // Large interfaces with a history of privilege escalations, and no need for them in a build.
  { calls: "io_uring_setup io_uring_enter io_uring_register userfaultfd bpf perf_event_open", answer: "EPERM" },
  // The kernel's keyrings are only partly separated by namespaces.
  { calls: "add_key request_key", answer: "EPERM" },
  // Opens files by inode, past every directory (the "shocker" escape).
  { calls: "open_by_handle_at", answer: "EPERM" },
  // The machine's, not the container's.
  {
    answer: "EPERM",
    calls: `
      init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct syslog
      settimeofday clock_settime iopl ioperm vhangup quotactl quotactl_fd fanotify_init`,
  },
  // Placement of memory: tells about other processes' memory, and about the machine's. Docker asks CAP_SYS_NICE for it.
  {
    answer: "EPERM",
    calls: "mbind get_mempolicy set_mempolicy set_mempolicy_home_node migrate_pages move_pages",
  },
  // 16-bit segments, for 32-bit programs, which do not run here (CVE-2015-5157, CVE-2017-17053).
  { calls: "modify_ldt", answer: "EPERM" },
  { calls: "sysfs ustat", answer: "EPERM" },

  // As a kernel without them answers: removed, never there, or so new that everybody has something to fall back on.
  {
    answer: "ENOSYS",
    calls: `
      uselib _sysctl create_module get_kernel_syms query_module nfsservctl getpmsg putpmsg afs_syscall tuxcall security
      vserver lookup_dcookie epoll_ctl_old epoll_wait_old set_thread_area get_thread_area
      lsm_get_self_attr lsm_set_self_attr lsm_list_modules file_getattr file_setattr`,
  },
];

const profiles: Readonly<Record<SeccompProfile, readonly ProfileRule[]>> = {
  default: [
    ...common,
    clone(namespaceFlags),
    // Its flags lie in memory, where no filter can look; the C libraries go on with clone.
    { calls: "clone3", answer: "ENOSYS" },
    { calls: "unshare setns sethostname setdomainname keyctl", answer: "EPERM" },
    {
      answer: "EPERM",
      calls: `
        mount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount mount_setattr`,
    },
    { calls: "kcmp pidfd_getfd process_madvise", answer: "EPERM" },
  ],
  // What buildah, podman and dockerd need inside a user namespace that gives them CAP_SYS_ADMIN. keyctl: runc and crun
  // make a session keyring for each container.
  nested: [
    ...common,
    { calls: "clone clone3 unshare setns sethostname setdomainname keyctl", answer: "allow" },
    {
      answer: "allow",
      calls: `
        mount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount mount_setattr`,
    },
    { calls: "kcmp pidfd_getfd process_madvise", answer: "allow" },
  ],
};

/**
 * Calls that a build makes most often. Those whose arguments are looked at count most: only for them does a kernel since
 * 5.11 run the filter at all.
 */
const frequency: Readonly<Record<string, number>> = {
  ...Object.fromEntries(["ioctl"].map((name) => [name, 64])),
  ...Object.fromEntries(["socket", "clone"].map((name) => [name, 16])),
  ...Object.fromEntries(
    (
      "read write close openat newfstatat fstat statx lseek mmap mprotect munmap brk futex poll epoll_wait " +
      "epoll_pwait sendto recvfrom sendmsg recvmsg rt_sigaction rt_sigprocmask getdents64 readlink readlinkat getpid"
    )
      .split(" ")
      .map((name) => [name, 8]),
  ),
};

/** A profile's table, for those who print it or compare with it. */
export function profileTable(profile: SeccompProfile): readonly ProfileRule[] {
  return profiles[profile];
}

/** The rules of a profile for an architecture's numbers. Calls that the architecture has not are left out. */
export function profileRules(profile: SeccompProfile, architecture: Architecture): FilterRules {
  const { auditArch, numbers } = abis[architecture];
  const calls = new Map<number, Decision>();
  for (const rule of profiles[profile]) {
    for (const name of rule.calls.trim().split(/\s+/)) {
      const number = numbers.get(name);
      if (number !== undefined) calls.set(number, decision(rule));
    }
  }
  const frequencies = Object.entries(frequency).map(([name, count]) => [numbers.get(name) ?? -1, count] as const);
  return {
    architectures: [
      { auditArch, calls, unlisted: [{ from: 0, answer: answers.ENOSYS }], frequency: new Map(frequencies) },
    ],
    otherArchitectures: SECCOMP_RET_KILL_PROCESS,
  };
}

function decision({ answer, except }: ProfileRule): Decision {
  if (except === undefined) return { clauses: [], otherwise: answers[answer], argumentBits: 64 };
  const { argument, values } = except;
  const clause = (value: number, mask: number, name: AnswerName): Clause => ({
    all: [{ index: argument, operator: "MASKED_EQ", value: BigInt(value), mask: BigInt(mask) }],
    answer: answers[name],
  });
  if ("anyBitOf" in values) {
    return { clauses: [clause(0, values.anyBitOf, answer)], otherwise: answers[except.answer], argumentBits: 64 };
  }
  return {
    clauses: values.map((value) => clause(value, 0xffff_ffff, except.answer)),
    otherwise: answers[answer],
    argumentBits: 64,
  };
}

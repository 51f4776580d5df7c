/**
 * Errors of validation programs, each with a mend: the program as it was meant must pass.
 *
 * The table of docs/oci.md shows both. A mend changes what a program gets wrong, and nothing of what it checks.
 */
export interface Mend {
  readonly programs: readonly string[];
  /** One sentence, with the place. */
  readonly why: string;
  readonly changes: readonly Change[];
}

/** In a file of the suite, or of Go's own packages where the path begins with `GOROOT/`. */
export interface Change {
  readonly file: string;
  readonly from: string;
  readonly to: string;
}

export const mends: readonly Mend[] = [
  {
    programs: ["linux_cgroups_pids", "linux_cgroups_relative_pids", "delete_resources"],
    why: "compares the addresses of two numbers (util/linux_resources_pids.go:25, Limit is a pointer since runtime-spec 1.3)",
    changes: [
      {
        file: "validation/util/linux_resources_pids.go",
        from: "lpd.Limit == config.Linux.Resources.Pids.Limit",
        to: "*lpd.Limit == *config.Linux.Resources.Pids.Limit",
      },
    ],
  },
  {
    programs: ["hooks"],
    why: "wants words that its hooks do not write, from a file that it has removed before (hooks.go:78, util/test.go:313)",
    changes: [
      {
        file: "validation/hooks/hooks.go",
        from: "\tconfig := util.LifecycleConfig{\n",
        to: "\tbundleDir, _ := util.PrepareBundle()\n\tconfig := util.LifecycleConfig{\n\t\tBundleDir: bundleDir,\n",
      },
      {
        file: "validation/hooks/hooks.go",
        from: String.raw`"pre-start1 called\npre-start2 called\npost-start1\npost-start2\npost-stop1\npost-stop2\n"`,
        to: String.raw`"pre-start1 called\npre-start2 called\npost-start1 called\npost-start2 called\npost-stop1 called\npost-stop2 called\n"`,
      },
      { file: "validation/hooks/hooks.go", from: "\t} else {\n", to: "\t} else if err != nil {\n" },
    ],
  },
  {
    programs: ["prestart"],
    why: "wants prestart hooks in start, as specified before 1.1; now they are a part of create (runtime.md, lifecycle, step 3)",
    changes: [
      {
        file: "validation/prestart/prestart.go",
        from: 'strings.Contains(string(outputData), "pre-start called")',
        to: 'string(outputData) == "pre-start called\\n" {\n\t\t\t\t\treturn nil\n\t\t\t\t} else if false',
      },
    ],
  },
  {
    programs: ["poststart_fail"],
    why: "wants a failing poststart hook to be a warning, as specified before 1.1; now it MUST be an error (runtime.md, step 9)",
    changes: [
      {
        file: "validation/poststart_fail/poststart_fail.go",
        from: String.raw`runErr != nil || string(outputData) != "post-start called\n"`,
        to: 'runErr == nil || string(outputData) != ""',
      },
    ],
  },
  {
    programs: ["misc_props"],
    why: "starts /runtimetest, which it has not put into the bundle (misc_props.go:47)",
    changes: [
      {
        file: "validation/misc_props/misc_props.go",
        from: "\tannotationConfig.AddAnnotation(",
        to: '\tannotationConfig.SetProcessArgs([]string{"true"})\n\tannotationConfig.AddAnnotation(',
      },
    ],
  },
  {
    programs: ["pidfile"],
    why: "kills a container whose program, true, has ended (pidfile.go:31, 60); that MUST be an error",
    changes: [{ file: "validation/pidfile/pidfile.go", from: '[]string{"true"}', to: '[]string{"sleep", "60"}' }],
  },
  {
    programs: ["start"],
    why: "wants start without a process to succeed, in the check that says it MUST be an error (start.go:112)",
    changes: [
      {
        file: "validation/start/start.go",
        from: "util.SpecErrorOK(t, err == nil, specerror.NewError(specerror.StartWithProcUnsetGenError",
        to: 'r.Kill("KILL")\n\tutil.SpecErrorOK(t, err != nil, specerror.NewError(specerror.StartWithProcUnsetGenError',
      },
    ],
  },
  {
    programs: ["process_capabilities_fail"],
    why: "wants an error for an unknown capability; since 1.1 the specification wants a warning (config.md, process.capabilities)",
    changes: [
      {
        file: "validation/process_capabilities_fail/process_capabilities_fail.go",
        from: "if err == nil {",
        to: "if err != nil {",
      },
    ],
  },
  {
    programs: ["process_rlimits"],
    why: "Go itself raises RLIMIT_NOFILE in the program that looks at it (syscall/rlimit.go)",
    changes: [
      {
        file: "GOROOT/src/syscall/rlimit.go",
        from: "\t\tsetrlimit(RLIMIT_NOFILE, &nlim)\n",
        to: "",
      },
    ],
  },
  {
    programs: ["linux_cgroups_memory", "linux_cgroups_relative_memory"],
    why: "sets memory.kernel, which kernels from 5.16 on do not limit: refused by name",
    changes: [
      {
        file: "validation/linux_cgroups_memory/linux_cgroups_memory.go",
        from: "\t\tg.SetLinuxResourcesMemoryKernel(c.limit)\n",
        to: "",
      },
      {
        file: "validation/linux_cgroups_relative_memory/linux_cgroups_relative_memory.go",
        from: "\tg.SetLinuxResourcesMemoryKernel(limit)\n",
        to: "",
      },
      {
        file: "validation/util/linux_resources_memory.go",
        from: "*lm.Kernel == *config.Linux.Resources.Memory.Kernel",
        to: "true",
      },
      {
        file: "validation/util/linux_resources_memory.go",
        from: "*config.Linux.Resources.Memory.Kernel, *lm.Kernel)",
        to: "*lm.Kernel, *lm.Kernel)",
      },
    ],
  },
  {
    programs: ["linux_cgroups_blkio", "linux_cgroups_relative_blkio"],
    why: "sets and reads blkio.weight and blkio.leaf_weight, which went with CFQ in Linux 5.0; BFQ has blkio.bfq.weight and no leaf weight",
    changes: [
      ...[
        "g.SetLinuxResourcesBlockIOLeafWeight(leafWeight)",
        "g.AddLinuxResourcesBlockIOLeafWeightDevice(major, minor, leafWeight)",
      ].flatMap((from) =>
        ["linux_cgroups_blkio", "linux_cgroups_relative_blkio"].map((name) => ({
          file: `validation/${name}/${name}.go`,
          from,
          to: "_ = leafWeight",
        })),
      ),
      {
        file: "cgroups/cgroups_v1.go",
        from: 'fileName := strings.Join([]string{"blkio", name}, ".")',
        to: 'if strings.HasPrefix(name, "leaf") {\n\t\t\tcontinue\n\t\t}\n\t\tfileName := strings.Replace("blkio."+name, "blkio.weight", "blkio.bfq.weight", 1)',
      },
      {
        // blkio.bfq.weight_device begins with the weight of all others.
        file: "cgroups/cgroups_v1.go",
        from: 'elem := strings.Split(part, " ")\n\t\t\t\tmajor,',
        to: 'elem := strings.Split(part, " ")\n\t\t\t\tif elem[0] == "default" {\n\t\t\t\t\tcontinue\n\t\t\t\t}\n\t\t\t\tmajor,',
      },
      {
        file: "validation/util/linux_resources_blkio.go",
        from: "if lbd.LeafWeight == nil || config.Linux.Resources.BlockIO.LeafWeight == nil {",
        to: "if false {",
      },
      {
        file: "validation/util/linux_resources_blkio.go",
        from: 't.Ok(*lbd.LeafWeight == *config.Linux.Resources.BlockIO.LeafWeight, "blkio leafWeight is set correctly")\n\tt.Diagnosticf("expect: %d, actual: %d", *config.Linux.Resources.BlockIO.LeafWeight, *lbd.LeafWeight)\n',
        to: "",
      },
      {
        file: "validation/util/linux_resources_blkio.go",
        from: 't.Ok(*wd.LeafWeight == *device.LeafWeight, fmt.Sprintf("blkio leafWeight for %d:%d is set correctly", device.Major, device.Minor))\n\t\t\t\tt.Diagnosticf("expect: %d, actual: %d", *device.LeafWeight, *wd.LeafWeight)\n',
        to: "",
      },
    ],
  },
];

import { describe, expect, test } from "vitest";
import { UsageError } from "../../cli/arguments.ts";
import { parseBuildArgs, parseCaches, parseFields, parseOutputs } from "../../cli/image-build-options.ts";
import type { Context } from "../../cli/verb.ts";

const context = { directory: "/here", environment: { NAMED: "from outside" } } as unknown as Context;

describe("parseFields", () => {
  test.for([
    ["a=1,b=2", { a: "1", b: "2" }],
    ["a", { a: "" }],
    ["", { "": "" }],
    ["a=1,", { a: "1", "": "" }],
    ['"a=1,2",b=x=y', { a: "1,2", b: "x=y" }],
    ['"a=say ""hi"""', { a: 'say "hi"' }],
  ] as const)("reads %j", ([text, fields]) => {
    expect(Object.fromEntries(parseFields("--x", text))).toEqual(fields);
  });

  test.for(['"a=1', "a=1,a=2", '"a"b=1'])("refuses %j", (text) => {
    expect(() => parseFields("--x", text)).toThrow(UsageError);
  });
});

test("parseBuildArgs takes values from the environment, and leaves out what it lacks", () => {
  expect([...parseBuildArgs(["A=1", "NAMED", "ABSENT", "B=", "A=2=3"], context)]).toEqual([
    ["A", "2=3"],
    ["NAMED", "from outside"],
    ["B", ""],
  ]);
  expect(() => parseBuildArgs(["=x"], context)).toThrow(UsageError);
});

test("parseCaches tells names from paths", () => {
  const places = ["./c", "/c", "registry.example/c:1", "type=registry,ref=r/c", "type=local,src=c", "dest=d,mode=max"];
  expect(parseCaches("--cache-from", places, context)).toEqual([
    { kind: "directory", path: "/here/c" },
    { kind: "directory", path: "/c" },
    { kind: "registry", name: "registry.example/c:1" },
    { kind: "registry", name: "r/c" },
    { kind: "directory", path: "/here/c" },
    { kind: "directory", path: "/here/d" },
  ]);
  expect(() => parseCaches("--cache-to", ["type=gha"], context)).toThrow(UsageError);
});

test("parseOutputs reads what Docker's users write", () => {
  const { outputs, names, compression } = parseOutputs(
    [
      "out",
      "type=tar,dest=f.tar",
      "type=oci,dest=o.tar,compression=zstd",
      "type=oci,dest=o,tar=false",
      'type=image,"name=a,b",push=true',
    ],
    context,
  );
  expect(outputs).toEqual([
    { kind: "local", directory: "/here/out" },
    { kind: "tar", path: "/here/f.tar" },
    { kind: "oci", path: "/here/o.tar", isDirectory: false },
    { kind: "oci", path: "/here/o", isDirectory: true },
    { kind: "registry" },
  ]);
  expect([names, compression]).toEqual([["a", "b"], "zstd"]);
  for (const text of ["type=oci", "type=x,dest=y", "type=oci,dest=x,compression=rar", "type=oci,dest=x,colour=red"])
    expect(() => parseOutputs([text], context)).toThrow(UsageError);
});

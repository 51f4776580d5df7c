"use strict";
// Lets this thread load our own TypeScript, compiled once and kept: each thread has a loader of its own. Without what is
// kept, it takes 15 MB and a tenth of a second more.

const module_ = require("node:module");
const path = require("node:path");
const { setFlagsFromString } = require("node:v8");

const root = path.resolve(__dirname, "..");

// Inside our own tree, never the shared temporary directory where another user could leave prepared bytecode for root.
module_.enableCompileCache(path.join(root, "node_modules", ".cache", "slipway"));

// What strips types is WebAssembly. To compile its hot functions a second time takes longer than a command gains by it, and V8
// sometimes ends the process when it looks through the stack for that ("Check failed: it->second.Size() > offset"). The flag is
// read when a module is made; while it differs from its default, nothing that V8 has compiled before counts. A proxy, for
// whoever asks what is a module meanwhile, and only for what Node makes itself: what others compile may become as fast as it can.
const { Module } = WebAssembly;
const patient = new Proxy(Module, {
  construct(target, args, newTarget) {
    const make = () => Reflect.construct(target, args, newTarget === patient ? target : newTarget);
    if (!/\bnode:internal\/deps\/amaro\b/.test(new Error().stack)) return make();
    if (WebAssembly.Module === patient) WebAssembly.Module = Module;
    setFlagsFromString("--wasm-tiering-budget=1000000000");
    try {
      return make();
    } finally {
      setFlagsFromString("--wasm-tiering-budget=13000000");
    }
  },
});
WebAssembly.Module = patient;

// Node strips types everywhere but below node_modules, where we live once installed as a package.
if (root.split(path.sep).includes("node_modules")) {
  const { readFileSync } = require("node:fs");
  const { fileURLToPath, pathToFileURL } = require("node:url");
  // The function is experimental, what it does is what Node does by itself elsewhere.
  const withoutWarnings = (work) => {
    const { emitWarning } = process;
    process.emitWarning = () => {};
    try {
      return work();
    } finally {
      process.emitWarning = emitWarning;
    }
  };
  const ours = `${pathToFileURL(root).href}/`;
  const isOurs = (url) =>
    url.startsWith(ours) && url.endsWith(".ts") && !url.slice(ours.length).includes("node_modules/");
  module_.registerHooks({
    load(url, context, nextLoad) {
      if (!isOurs(url)) return nextLoad(url, context);
      const typed = readFileSync(fileURLToPath(url), "utf8");
      return {
        format: "module",
        source: withoutWarnings(() => module_.stripTypeScriptTypes(typed)),
        shortCircuit: true,
      };
    },
  });
}

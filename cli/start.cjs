"use strict";
// Runs main.ts on a Node that is new enough.

require("../runtime/load-typescript.cjs");
require("./main.ts");

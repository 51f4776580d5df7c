/** One build: its jobs on the left, the log of the chosen job on the right, both live. */
import { api } from "./api.js";
import { go } from "./app.js";
import { h, refChip, statusIcon, toast } from "./dom.js";
import { ago, bytes, count, elapsed } from "./format.js";
import { LogView, StepLog } from "./log.js";

/** Of a longer log the page shows the end; the whole is a click away. */
const tailBytes = 16 << 20;

export function buildPage(main, id) {
  const page = new BuildPage(main, id);
  return () => page.close();
}

class BuildPage {
  #id;
  #build;
  #job;
  #attempt;
  #source;
  #stream = 0;
  /** Step logs by `job/attempt/step`. */
  #logs = new Map();
  #views = new Map();
  #collapsed = new Set();
  #follows = true;
  #isDirty = false;
  #closed = false;
  #timer;
  #resize;
  #head = h("div", { class: "build-head" });
  #jobs = h("nav", { class: "jobs", "aria-label": "Jobs" });
  #problems = h("div", { class: "problems" });
  #logHead = h("div", { class: "log-head" });
  #steps = h("div", { class: "steps", tabindex: "0" });
  #state = h("span", { class: "stream-state" });

  constructor(main, id) {
    this.#id = id;
    const hashed = /^#job=(\d+)$/.exec(location.hash)?.[1];
    this.#job = hashed === undefined ? undefined : Number(hashed);
    main.append(
      this.#head,
      this.#problems,
      h("div", { class: "panes" }, this.#jobs, h("section", { class: "log" }, this.#logHead, this.#steps)),
    );
    this.#steps.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#resize = new ResizeObserver(() => {
      // Headers stay in sight while long lines scroll sideways under them.
      this.#steps.style.setProperty("--view-width", `${this.#steps.clientWidth}px`);
      this.#dirty();
    });
    this.#resize.observe(this.#steps);
    this.#timer = setInterval(() => this.#tick(), 1000);
    void this.#open();
  }

  close() {
    this.#closed = true;
    this.#source?.close();
    this.#resize.disconnect();
    clearInterval(this.#timer);
  }

  async #open() {
    try {
      this.#build = await api("GET", `/api/builds/${this.#id}`);
    } catch (error) {
      this.#head.replaceChildren(h("p", { class: "empty" }, `Cannot show this build: ${error.message}`));
      return;
    }
    if (this.#closed) return;
    this.#job ??= interestingJob(this.#build);
    this.#drawAll();
    this.#connect();
  }

  /** One stream: the build's state and the logs of the chosen job. EventSource reconnects by itself and says where it was. */
  #connect() {
    this.#source?.close();
    const stream = ++this.#stream;
    const source = new EventSource(`/api/builds/${this.#id}/events?tail=${tailBytes}&job=${this.#job ?? "none"}`);
    this.#source = source;
    const on = (name, handler) =>
      source.addEventListener(name, (event) => {
        if (stream === this.#stream && !this.#closed) handler(JSON.parse(event.data));
      });
    on("snapshot", (build) => {
      // The server begins from the start, so must we.
      this.#logs.clear();
      this.#views.clear();
      this.#build = build;
      this.#drawAll();
    });
    on("build", (build) => {
      this.#build = { ...this.#build, ...build };
      this.#drawHead();
      this.#drawJobs();
    });
    on("job", (job) => {
      this.#build = {
        ...this.#build,
        jobs: this.#build.jobs.map((old) => (old.position === job.position ? job : old)),
      };
      this.#drawJobs();
      if (job.position === this.#job) this.#drawSteps();
    });
    on("log", (event) => {
      this.#logOf(event.job, event.attempt, event.step).append(event);
      const view = this.#views.get(`${event.job}/${event.attempt}/${event.step}`);
      if (view) view.grew = true;
      this.#dirty();
    });
    on("end", () => {
      source.close();
      this.#connected("");
    });
    source.addEventListener("open", () => this.#connected(this.#build.finishedAtMs === undefined ? "live" : ""));
    source.addEventListener("error", () => {
      if (stream !== this.#stream || this.#closed) return;
      this.#connected("reconnecting");
      // An answer that is no event stream (a proxy's 502, a 401) ends an EventSource for good.
      if (source.readyState === EventSource.CLOSED)
        setTimeout(() => stream === this.#stream && !this.#closed && this.#connect(), 2000);
    });
  }

  #connected(state) {
    this.#state.className = `stream-state ${state}`;
    this.#state.textContent = state;
  }

  #logOf(job, attempt, step) {
    const key = `${job}/${attempt}/${step}`;
    let log = this.#logs.get(key);
    if (!log) this.#logs.set(key, (log = new StepLog()));
    return log;
  }

  #drawAll() {
    this.#drawHead();
    this.#drawProblems();
    this.#drawJobs();
    this.#drawSteps();
  }

  #drawHead() {
    const build = this.#build;
    const { event } = build;
    const isOver = build.finishedAtMs !== undefined;
    document.title = `${isOver ? "" : "● "}#${build.number} ${build.status} · ${build.repository.name} · Slipway`;
    this.#head.className = `build-head ${build.status}`;
    this.#head.replaceChildren(
      statusIcon(build.status),
      h(
        "div",
        { class: "what" },
        h("h1", {}, build.title ?? event.commit.slice(0, 12)),
        h(
          "div",
          { class: "sub" },
          h(
            "a",
            { class: "repo", href: `/?repository=${encodeURIComponent(build.repository.id)}`, "data-link": true },
            build.repository.name,
          ),
          h("span", { class: "number" }, `#${build.number}`),
          refChip(event),
          build.untrusted &&
            h("span", { class: "note", title: "The commit may be a stranger's: it has fewer rights" }, "untrusted"),
          h("code", { title: event.commit }, event.commit.slice(0, 8)),
          build.author && h("span", { class: "author" }, build.author),
          h(
            "time",
            {
              datetime: new Date(build.createdAtMs).toISOString(),
              title: new Date(build.createdAtMs).toLocaleString(),
            },
            ago(build.createdAtMs),
          ),
          build.rerunOf && h("a", { href: `/builds/${build.rerunOf}`, "data-link": true }, "repeats an earlier build"),
        ),
      ),
      h("div", { class: "took", "data-took": "build" }, elapsed(build)),
      h(
        "div",
        { class: "actions" },
        !isOver &&
          h(
            "button",
            {
              class: "plain danger",
              type: "button",
              onclick: () => this.#cancel(),
              disabled: build.cancelReason !== undefined,
            },
            build.cancelReason === undefined ? "Cancel" : "Canceling…",
          ),
        h("button", { class: "plain", type: "button", onclick: () => this.#rerun() }, "Run again"),
      ),
    );
  }

  #drawProblems() {
    const { reason, diagnostics, status } = this.#build;
    this.#problems.replaceChildren(
      ...(reason ? [h("p", { class: `banner ${status}` }, reason)] : []),
      ...(diagnostics ? [h("pre", { class: "diagnostics", tabindex: "0" }, diagnostics.formatted)] : []),
    );
    this.#head.parentElement?.classList.toggle("no-jobs", this.#build.jobs.length === 0);
  }

  #drawJobs() {
    this.#jobs.replaceChildren(
      ...this.#build.jobs.map((job) => {
        const current = job.position === this.#job;
        const sub =
          job.status === "queued" && job.attempts.length === 0 && job.needs.length > 0
            ? `after ${job.needs.join(", ")}`
            : job.reason;
        return h(
          "a",
          {
            href: `#job=${job.position}`,
            class: `job ${job.status}${current ? " current" : ""}`,
            "aria-current": current ? "true" : undefined,
            onclick: (event) => this.#choose(event, job.position),
          },
          statusIcon(job.status),
          h(
            "span",
            { class: "what" },
            h("span", { class: "name" }, job.name),
            sub && h("span", { class: "sub", title: sub }, sub),
          ),
          h("span", { class: "took", "data-took": `job ${job.position}` }, elapsed(job)),
        );
      }),
    );
  }

  #choose(event, position) {
    event.preventDefault();
    if (position === this.#job) return;
    this.#job = position;
    this.#attempt = undefined;
    history.replaceState(null, "", `#job=${position}`);
    this.#logs.clear();
    this.#views.clear();
    this.#follows = true;
    this.#drawJobs();
    this.#drawSteps();
    this.#steps.scrollTop = 0;
    this.#connect();
  }

  #drawSteps() {
    const job = this.#build.jobs.find(({ position }) => position === this.#job);
    if (!job) {
      this.#logHead.replaceChildren();
      this.#steps.replaceChildren(
        h("p", { class: "empty" }, this.#build.jobs.length > 0 ? "Choose a job" : "Nothing was run"),
      );
      return;
    }
    const attempt = job.attempts.find(({ n }) => n === this.#attempt) ?? job.attempts.at(-1);
    const items = [
      statusIcon(attempt?.status ?? job.status),
      h("h2", {}, job.name),
      attempt?.agent && h("span", { class: "agent" }, `on ${attempt.agent}`),
      this.#state,
      h("span", { class: "grow" }),
      job.attempts.length > 1 && this.#attemptSelect(job, attempt),
      h(
        "button",
        {
          class: "plain small",
          type: "button",
          title: "Show when each line came",
          onclick: () => this.#steps.classList.toggle("times"),
        },
        "Times",
      ),
      h(
        "button",
        { class: "plain small", type: "button", title: "Go to the end and stay there", onclick: () => this.#toEnd() },
        "Follow",
      ),
    ];
    this.#logHead.replaceChildren(...items.filter(Boolean));
    const steps =
      attempt?.steps ??
      job.stepNames.map((name, position) => ({
        name,
        position,
        status: job.status === "skipped" || job.status === "canceled" ? job.status : "queued",
      }));
    const notice = attempt?.reason ?? (attempt ? undefined : job.reason);
    this.#steps.replaceChildren(
      ...(notice ? [h("p", { class: `banner ${attempt?.status ?? job.status}` }, notice)] : []),
      ...steps.map((step) => this.#step(job, attempt, step)),
      ...(attempt && attempt.services.length > 0 ? [h("h3", { class: "services" }, "Services")] : []),
      ...(attempt?.services ?? []).map((service) => this.#step(job, attempt, service)),
    );
    this.#dirty();
  }

  #attemptSelect(job, attempt) {
    const options = job.attempts.map(({ n, status }) =>
      h("option", { value: n, selected: n === attempt?.n }, `attempt ${n}: ${status}`),
    );
    const change = (event) => {
      this.#attempt = Number(event.target.value);
      this.#drawSteps();
    };
    return h("select", { "aria-label": "Attempt", onchange: change }, ...options);
  }

  #step(job, attempt, step) {
    const key = `${job.position}/${attempt?.n ?? 0}/${step.position}`;
    const isOpen = !this.#collapsed.has(key);
    let view = this.#views.get(key);
    if (!view) {
      view = new LogView(this.#logOf(job.position, attempt?.n ?? 0, step.position));
      this.#views.set(key, view);
    }
    const raw = `/api/builds/${this.#id}/log?job=${job.position}&step=${step.position}&attempt=${attempt?.n ?? 1}`;
    const note = h("a", { class: "cut", href: raw, target: "_blank", rel: "noopener" });
    const section = h(
      "section",
      { class: `step ${step.status}${isOpen ? " open" : ""}` },
      h(
        "header",
        {},
        h(
          "button",
          {
            class: "step-toggle",
            type: "button",
            "aria-expanded": String(isOpen),
            onclick: () => this.#toggle(key, section),
          },
          statusIcon(step.status, step.allowedFailure ? "failure, allowed" : step.status),
          h("span", { class: "name" }, step.name),
          step.allowedFailure && h("span", { class: "note" }, "failure allowed"),
          step.reason && h("span", { class: "reason", title: step.reason }, step.reason),
          !step.reason && step.exitCode > 0 && h("span", { class: "reason" }, `exit code ${step.exitCode}`),
        ),
        step.usage && h("span", { class: "usage", title: usageTitle(step.usage) }, usageText(step.usage)),
        step.startedAtMs !== undefined && h("a", { class: "raw", href: raw, target: "_blank", rel: "noopener" }, "raw"),
        h("span", { class: "took", "data-took": `step ${step.position}` }, elapsed(step)),
      ),
      step.refused && h("p", { class: "refused" }, refusedText(step.refused)),
      step.imageDigest && h("p", { class: "image" }, `Image ${step.imageDigest}`),
      note,
      view.element,
    );
    view.element.hidden = !isOpen;
    view.isOpen = isOpen;
    view.note = note;
    view.grew = true;
    return section;
  }

  #toggle(key, section) {
    const view = this.#views.get(key);
    view.isOpen = !view.isOpen;
    if (view.isOpen) this.#collapsed.delete(key);
    else this.#collapsed.add(key);
    section.classList.toggle("open", view.isOpen);
    section.querySelector("button").setAttribute("aria-expanded", String(view.isOpen));
    view.element.hidden = !view.isOpen;
    this.#dirty();
  }

  #toEnd() {
    this.#follows = true;
    this.#dirty();
  }

  #scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.#steps;
    this.#follows = scrollTop + clientHeight >= scrollHeight - 40;
    this.#dirty();
  }

  /** Draws at most once a frame, however many events came. */
  #dirty() {
    if (this.#isDirty) return;
    this.#isDirty = true;
    requestAnimationFrame(() => {
      this.#isDirty = false;
      if (!this.#closed && this.#build) this.#drawLines();
    });
  }

  #drawLines() {
    const isLive = this.#build.finishedAtMs === undefined;
    const prefix = `${this.#job}/`;
    const views = [...this.#views].filter(
      ([key, view]) => key.startsWith(prefix) && view.isOpen && view.element.isConnected,
    );
    const draw = () => {
      const frame = this.#steps.getBoundingClientRect();
      for (const [, view] of views) {
        const top = frame.top - view.element.getBoundingClientRect().top;
        view.draw(top, top + frame.height);
      }
    };
    for (const [key, view] of views) this.#drawNote(key, view);
    draw();
    if (this.#follows && isLive && this.#steps.scrollHeight - this.#steps.clientHeight - this.#steps.scrollTop > 1) {
      this.#steps.scrollTop = this.#steps.scrollHeight;
      draw();
    }
  }

  #drawNote(key, view) {
    const log = this.#logs.get(key);
    const isCut = log !== undefined && (log.dropped > 0 || log.skippedBytes > 0);
    view.note.hidden = !isCut;
    if (!isCut) return;
    const more = log.dropped > 0 ? ` and ${count(log.dropped)} lines after that` : "";
    const what =
      log.skippedBytes > 0 ? `the first ${bytes(log.skippedBytes)}${more}` : `the first ${count(log.dropped)} lines`;
    view.note.textContent = `${what} are not shown here: open the raw log`;
  }

  /** Moves the clocks of what is running. */
  #tick() {
    if (!this.#build || this.#build.finishedAtMs !== undefined) return;
    const job = this.#build.jobs.find(({ position }) => position === this.#job);
    const attempt = job?.attempts.find(({ n }) => n === this.#attempt) ?? job?.attempts.at(-1);
    for (const element of document.querySelectorAll("[data-took]")) {
      const [kind, position] = element.dataset.took.split(" ");
      const list = kind === "job" ? this.#build.jobs : [...(attempt?.steps ?? []), ...(attempt?.services ?? [])];
      const thing = kind === "build" ? this.#build : list.find((item) => item.position === Number(position));
      if (thing && thing.finishedAtMs === undefined) element.textContent = elapsed(thing);
    }
  }

  async #cancel() {
    try {
      await api("POST", `/api/builds/${this.#id}/cancel`, {});
    } catch (error) {
      toast(error.message);
    }
  }

  async #rerun() {
    try {
      const build = await api("POST", `/api/builds/${this.#id}/rerun`, {});
      if (build?.id) go(`/builds/${build.id}`);
    } catch (error) {
      toast(error.message);
    }
  }
}

/** The job somebody who opens the page wants to see: the one that failed, else the one that runs, else the first. */
function interestingJob({ jobs }) {
  for (const status of ["failure", "error", "running"]) {
    const job = jobs.find((candidate) => candidate.status === status);
    if (job) return job.position;
  }
  return jobs[0]?.position;
}

/** The one number that is looked for most. */
function usageText({ memoryPeakBytes, cpuTimeMs }) {
  return memoryPeakBytes === undefined ? `${(cpuTimeMs / 1000).toFixed(1)} s cpu` : bytes(memoryPeakBytes);
}

/** What a step's network has refused: the most frequent destinations, and how much more there is. */
function refusedText({ destinations, unlistedCount }) {
  const shown = destinations.slice(0, 20).map(({ address, port, protocol, count: packets }) => {
    const host = address.includes(":") ? `[${address}]` : address;
    return `${host}${port === 0 ? "" : `:${port}`}/${protocol}${packets === 1 ? "" : ` (${count(packets)} times)`}`;
  });
  if (destinations.length > 20) shown.push(`${destinations.length - 20} more destinations`);
  if (unlistedCount > 0) shown.push(`${count(unlistedCount)} packets to others`);
  return `Its network refused ${shown.join(", ")}`;
}

/** All that is known of what a step used. */
function usageTitle(usage) {
  const { cpuTimeMs, cpuThrottledMs = 0, cpuThrottledPeriods = 0, memoryPeakBytes, pidsPeak, diskBytes } = usage;
  const parts = [`CPU time ${(cpuTimeMs / 1000).toFixed(2)} s`];
  if (cpuThrottledPeriods > 0) {
    parts.push(`kept from the CPU for ${(cpuThrottledMs / 1000).toFixed(2)} s (${count(cpuThrottledPeriods)} times)`);
  }
  if (memoryPeakBytes !== undefined) parts.push(`peak memory ${bytes(memoryPeakBytes)}`);
  if (pidsPeak !== undefined) parts.push(`at most ${count(pidsPeak)} processes`);
  const { ioReadBytes, ioWriteBytes, ioReadOperations, ioWriteOperations } = usage;
  for (const [did, size, operations] of [
    ["read", ioReadBytes, ioReadOperations],
    ["wrote", ioWriteBytes, ioWriteOperations],
  ]) {
    if (!size && !operations) continue;
    parts.push(`${did} ${bytes(size ?? 0)}${operations ? ` (${count(operations)} operations)` : ""}`);
  }
  if (diskBytes !== undefined) parts.push(`added ${bytes(diskBytes)} to the disk`);
  return parts.join(", ");
}

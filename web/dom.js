/**
 * Makes elements. Text is only ever set as text: nothing that came from a repository, a log or a forge is parsed as HTML
 * anywhere in this dashboard.
 */
export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

const shapes = {
  success: "M5.2 10.4l3.1 3.1 6.5-6.8",
  failure: "M6.4 6.4l7.2 7.2M13.6 6.4l-7.2 7.2",
  error: "M10 5.2v6M10 14.6v.2",
  canceled: "M5.800 10h8.400",
  skipped: "M7 6l5 4-5 4M13.500 6v8",
  queued: "M10 6v4.200l2.800 1.700",
  running: "M10 3.200a6.800 6.800 0 0 1 6.800 6.800",
};

/** The sign of a status: shape and colour, and its word for those who see neither. */
export function statusIcon(status, title = status) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("class", `status-icon ${status in shapes ? status : "queued"}`);
  svg.setAttribute("role", "img");
  const name = document.createElementNS(svg.namespaceURI, "title");
  name.textContent = title;
  const circle = document.createElementNS(svg.namespaceURI, "circle");
  circle.setAttribute("cx", "10");
  circle.setAttribute("cy", "10");
  circle.setAttribute("r", status === "running" ? "6.8" : "8.6");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", shapes[status] ?? shapes.queued);
  svg.append(name, circle, path);
  return svg;
}

/** What was built: branch, tag or pull request. */
export function refChip(event) {
  if (event.pullRequest)
    return h("span", { class: "chip" }, `pull request ${event.pullRequest.number} → ${event.branch ?? ""}`);
  if (event.tag) return h("span", { class: "chip tag" }, event.tag);
  return h("span", { class: "chip" }, event.branch ?? event.ref);
}

let toastTimer;
export function toast(text) {
  const element = document.getElementById("toast");
  element.textContent = text;
  element.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => element.classList.remove("shown"), 5000);
}

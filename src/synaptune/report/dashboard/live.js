"use strict";
// Updates an open page: polls the status of its study and replaces only the changed parts.
const main = document.querySelector("main[data-live]");
const statusLine = document.querySelector("[data-status]");
// [ms]; a page without a status line polls less often, because it has to request its parts.
const POLL_INTERVAL = statusLine ? 2000 : 5000, REQUEST_TIMEOUT = 60000;
// [ms] while the server draws the figures of the page
const DRAWING_INTERVAL = 300;
let version = main ? main.dataset.version : "", updatedAt = Date.now(), lost = false, study = null;
let isDrawing = false;

async function fetchJson(address) {
  const response = await fetch(address, {
    signal: AbortSignal.timeout(REQUEST_TIMEOUT), headers: { Accept: "application/json" },
  });
  if (!response.ok) throw new Error(response.status);
  return response.json();
}

// State of a part that the reader changed: open details, scroll positions and checked boxes.
const saveState = (part) => ({
  open: [...part.querySelectorAll("details")].map((element) => element.open),
  scroll: [...part.querySelectorAll(".scroll, pre")].map(
    (element) => [element.scrollLeft, element.scrollTop],
  ),
  checked: new Set([...part.querySelectorAll("input:checked")].map((element) => element.value)),
});
function restoreState(part, state) {
  [...part.querySelectorAll("details")].forEach((element, index) => {
    element.open = state.open[index] ?? element.open;
  });
  [...part.querySelectorAll(".scroll, pre")].forEach((element, index) => {
    [element.scrollLeft, element.scrollTop] = state.scroll[index] ?? [0, 0];
  });
  part.querySelectorAll("input[type=checkbox]").forEach((element) => {
    element.checked = state.checked.has(element.value);
  });
}

function replaceParts(parts) {
  // The first visible part keeps its position if parts above it change their height.
  const anchor = [...main.children].find((part) => part.getBoundingClientRect().bottom > 0);
  const before = anchor?.getBoundingClientRect().top;
  const keys = new Set(parts.map((part) => part.key));
  [...main.children].filter((part) => !keys.has(part.id)).forEach((part) => part.remove());
  parts.forEach((part, index) => {
    let section = document.getElementById(part.key);
    if (!section) {
      section = document.createElement("section");
      section.id = part.key;
    }
    if (main.children[index] !== section) main.insertBefore(section, main.children[index] ?? null);
    if (part.html === undefined) return;
    const state = saveState(section);
    section.innerHTML = part.html;
    section.dataset.digest = part.digest;
    restoreState(section, state);
  });
  updateContents(parts);
  showButtons();
  if (anchor?.isConnected && scrollY > 0) scrollBy(0, anchor.getBoundingClientRect().top - before);
}

function updateContents(parts) {
  const list = document.querySelector(".toc ol");
  if (!list) return;
  list.replaceChildren(...parts.filter((part) => part.title).map((part) => {
    const entry = document.createElement("li"), link = document.createElement("a");
    link.href = "#" + part.key;
    link.textContent = part.title;
    entry.append(link);
    return entry;
  }));
}

function showAge() {
  if (!statusLine) return;
  const age = Math.round((Date.now() - updatedAt) / 1000);
  statusLine.querySelector("small").textContent =
    lost ? `the dashboard has not answered for ${age} s` : `updated ${age} s ago`;
  statusLine.classList.toggle("lost", lost);
}

// Shows [ended trials, budget] of a search; other phases have no bar.
function showProgress(progress) {
  let bar = statusLine.querySelector("progress");
  if (!progress) return bar?.remove();
  if (!bar) {
    bar = document.createElement("progress");
    bar.ariaHidden = "true";
    statusLine.querySelector("small").before(bar);
  }
  [bar.max, bar.value] = [progress[1], progress[0]];
}

async function poll() {
  try {
    if (document.hidden) return;
    if (statusLine) {
      study = await fetchJson(statusLine.dataset.status);
      statusLine.querySelector("span").textContent = study.text;
      for (const state of ["running", "interrupted", "ended"]) {
        statusLine.classList.toggle(state, study.state === state);
      }
      showProgress(study.bar);
    }
    if (main && (!study || study.version !== version)) {
      const digests = [...main.children].map((part) => part.dataset.digest).join(",");
      const address = main.dataset.live;
      const separator = address.includes("?") ? "&" : "?";
      const update = await fetchJson(`${address}${separator}live=${digests}`);
      replaceParts(update.parts);
      version = update.version;
      isDrawing = version.includes("~");
    }
    [updatedAt, lost] = [Date.now(), false];
  } catch {
    [lost, isDrawing] = [true, false]; // the server may come back, so polling continues
  } finally {
    showAge();
    setTimeout(poll, isDrawing ? DRAWING_INTERVAL : POLL_INTERVAL);
  }
}

// Shows the buttons that need this script.
function showButtons() {
  for (const button of document.querySelectorAll("button[data-copies]")) {
    button.hidden = !navigator.clipboard;
  }
  for (const button of document.querySelectorAll("button[data-posts]")) button.hidden = false;
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-posts]");
  if (!button) return;
  const response = await fetch(button.dataset.posts, { method: "POST" });
  if (response.ok) location.reload();
  else button.textContent = "not changed";
});
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copies]");
  if (!button) return;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent);
  button.textContent = "Copied";
});
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((element) => { element.open = true; });
});
showButtons();
if (statusLine) setInterval(showAge, 1000);
if (main || statusLine) poll();

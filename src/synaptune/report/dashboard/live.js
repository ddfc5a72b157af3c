"use strict";
// Keeps an open page up to date: asks whether its study has changed, and replaces only the parts that did.
const main = document.querySelector("main[data-live]");
const line = document.querySelector("[data-status]");
const EVERY = line ? 2000 : 5000, ANSWER_WITHIN = 60000; // ms; a page without a status has nothing cheap to ask
let version = main ? main.dataset.version : "", refreshed = Date.now(), lost = false, study = null;

async function ask(address) {
  const answer = await fetch(address, { signal: AbortSignal.timeout(ANSWER_WITHIN), headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(answer.status);
  return answer.json();
}

// What the reader did to a part: opened folds, places in what scrolls.
const keep = (part) => ({
  open: [...part.querySelectorAll("details")].map((each) => each.open),
  places: [...part.querySelectorAll(".scroll, pre")].map((each) => [each.scrollLeft, each.scrollTop]),
});
function restore(part, kept) {
  [...part.querySelectorAll("details")].forEach((each, at) => { each.open = kept.open[at] ?? each.open; });
  [...part.querySelectorAll(".scroll, pre")].forEach((each, at) => { [each.scrollLeft, each.scrollTop] = kept.places[at] ?? [0, 0]; });
}

function replace(parts) {
  // The part in view stays where it is, whatever grows above it.
  const seen = [...main.children].find((part) => part.getBoundingClientRect().bottom > 0);
  const before = seen?.getBoundingClientRect().top;
  const wanted = new Set(parts.map((part) => part.key));
  [...main.children].filter((part) => !wanted.has(part.id)).forEach((part) => part.remove());
  parts.forEach((part, at) => {
    let there = document.getElementById(part.key);
    if (!there) {
      there = document.createElement("section");
      there.id = part.key;
    }
    if (main.children[at] !== there) main.insertBefore(there, main.children[at] ?? null);
    if (part.html === undefined) return;
    const kept = keep(there);
    there.innerHTML = part.html;
    there.dataset.digest = part.digest;
    restore(there, kept);
  });
  contents(parts);
  offer();
  if (seen?.isConnected && scrollY > 0) scrollBy(0, seen.getBoundingClientRect().top - before);
}

function contents(parts) {
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

function tell() {
  if (!line) return;
  const age = Math.round((Date.now() - refreshed) / 1000);
  line.querySelector("small").textContent = lost ? `the dashboard has not answered for ${age} s` : `updated ${age} s ago`;
  line.classList.toggle("lost", lost);
}

// The bar of a search: there is none in its other phases.
function show(wanted) {
  let bar = line.querySelector("progress");
  if (!wanted) return bar?.remove();
  if (!bar) {
    bar = document.createElement("progress");
    bar.ariaHidden = "true";
    line.querySelector("small").before(bar);
  }
  [bar.max, bar.value] = [wanted[1], wanted[0]];
}

async function look() {
  try {
    if (document.hidden) return;
    if (line) {
      study = await ask(line.dataset.status);
      line.querySelector("span").textContent = study.text;
      line.classList.toggle("running", study.running);
      line.classList.toggle("ended", !study.running);
      show(study.bar);
    }
    if (main && (!study || study.version !== version)) {
      const digests = [...main.children].map((part) => part.dataset.digest).join(",");
      const address = main.dataset.live;
      const found = await ask(`${address}${address.includes("?") ? "&" : "?"}live=${digests}`);
      replace(found.parts);
      version = found.version;
    }
    [refreshed, lost] = [Date.now(), false];
  } catch {
    lost = true; // it may come back: ask again
  } finally {
    tell();
    setTimeout(look, EVERY);
  }
}

function offer() {
  for (const button of document.querySelectorAll("button[data-copies]")) button.hidden = !navigator.clipboard;
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copies]");
  if (!button) return;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent);
  button.textContent = "Copied";
});
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
offer();
if (line) setInterval(tell, 1000);
if (main || line) look();

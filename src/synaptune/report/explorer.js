
// The interactive view of the trials (explorer.py): chosen pairs of columns, and the trials by worker.
for (const view of document.querySelectorAll("[data-explorer]")) {
  const { columns, trials } = JSON.parse(document.getElementById("trial-data").textContent);
  const W = Math.min(760, Math.max(320, view.parentElement.clientWidth || 760)), H = 380;
  const left = 62, right = 12, top = 12, bottom = 30;
  const tip = view.querySelector(".tip"), selects = [...view.querySelectorAll("select")];
  const known = trials.filter((trial) => trial.loss !== null).sort((a, b) => a.loss - b.loss);
  known.forEach((trial, at) => { trial.rank = at / Math.max(1, known.length - 1); });
  const paint = (rank) => `var(--loss-${5 - Math.min(4, Math.floor(5 * rank))})`;
  const show = (value) => value === null || value === undefined ? "unknown" : String(+value.toPrecision(5));
  const make = (parent, name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const label = (svg, x, y, text, anchor) =>
    make(svg, "text", { x, y, "text-anchor": anchor, "font-size": 12, fill: "var(--muted)" }, text);
  const watch = (element, trial) => {
    element.dataset.trial = trial.number;
    const facts = columns.map((column, at) => `${column.name} ${show(trial.cells[at])}`).join(" \u00b7 ");
    element.addEventListener("pointerenter", () => {
      tip.textContent = `Trial ${trial.number}, ${trial.state} \u00b7 ${facts}`;
      tip.hidden = false;
    });
    element.addEventListener("click", () => {
      const row = document.getElementById(`trial-${trial.number}`);
      document.querySelectorAll("tr.chosen").forEach((other) => other.classList.remove("chosen"));
      row?.classList.add("chosen");
      row?.scrollIntoView({ block: "center" });
    });
  };
  function scale(column, from, to) {
    const log = columns[column].log, bend = (value) => log ? Math.log10(value) : value;
    const cells = trials.map((trial) => trial.cells[column]).filter((value) => value !== null).map(bend);
    let low = Math.min(...cells), high = Math.max(...cells);
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    const place = (value) => from + (bend(value) - low) / (high - low) * (to - from);
    const ticks = [0, 0.5, 1].map((part) => low + part * (high - low));
    return { place, ticks: ticks.map((value) => log ? 10 ** value : value) };
  }
  function drawPairs() {
    const svg = view.querySelector('[data-view="pairs"]'), [x, y] = selects.map((select) => +select.value);
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.replaceChildren();
    const across = scale(x, left, W - right), up = scale(y, H - bottom, top);
    const points = trials.filter((trial) => trial.cells[x] !== null && trial.cells[y] !== null)
      .map((trial) => ({ trial, x: across.place(trial.cells[x]), y: up.place(trial.cells[y]) }));
    const ranked = points.filter((point) => point.trial.rank !== undefined), step = 18, width = 34;
    for (let a = left; a < W - right - 1; a += step) for (let b = top; b < H - bottom - 1; b += step) {
      let sum = 0, weight = 0;
      for (const point of ranked) {
        const near = Math.exp(-((point.x - a - step / 2) ** 2 + (point.y - b - step / 2) ** 2) / (2 * width ** 2));
        [sum, weight] = [sum + near * point.trial.rank, weight + near];
      }
      if (weight > 0.6) make(svg, "rect", { x: a, y: b, width: step, height: step, fill: paint(sum / weight), opacity: 0.45 });
    }
    across.ticks.forEach((value, at) => label(svg, across.place(value), H - 10, show(+value.toPrecision(4)), ["start", "middle", "end"][at]));
    up.ticks.forEach((value) => label(svg, left - 8, up.place(value) + 4, show(+value.toPrecision(4)), "end"));
    for (const point of points) {
      const fill = point.trial.rank === undefined ? "var(--bad)" : paint(point.trial.rank);
      watch(make(svg, "circle", { cx: point.x, cy: point.y, r: 5, fill, stroke: "var(--ink)", "stroke-width": 0.6 }), point.trial);
    }
  }
  function drawTimes() {
    const timed = trials.filter((trial) => trial.span), svg = view.querySelector('[data-view="times"]');
    if (!timed.length) return;
    const rows = 1 + Math.max(...timed.map((trial) => trial.span[2])), height = 16;
    const first = Math.min(...timed.map((trial) => trial.span[0])), last = Math.max(...timed.map((trial) => trial.span[1]));
    const place = (time) => left + (time - first) / Math.max(1e-9, last - first) * (W - left - right);
    svg.setAttribute("viewBox", `0 0 ${W} ${rows * height + 28}`);
    for (let row = 0; row < rows; row++) label(svg, left - 8, row * height + 12, String(row + 1), "end");
    for (const trial of timed) {
      const [begin, end, row] = trial.span, fill = trial.rank === undefined ? "var(--bad)" : paint(trial.rank);
      watch(make(svg, "rect", { x: place(begin), y: row * height + 2, width: Math.max(1.5, place(end) - place(begin) - 0.5), height: height - 4, fill }), trial);
    }
    [0, 0.5, 1].forEach((part, at) => label(svg, place(first + part * (last - first)), rows * height + 18,
      `${((first + part * (last - first)) / 60).toFixed(1)} min`, ["start", "middle", "end"][at]));
  }
  selects.forEach((select, axis) => {
    columns.forEach((column, at) => select.append(new Option(column.name, at)));
    select.value = axis;
    select.addEventListener("change", drawPairs);
  });
  view.hidden = false;
  drawPairs();
  drawTimes();
}


// The interactive view of the trials (explorer.py): chosen pairs of columns, and the trials by worker.
for (const view of document.querySelectorAll("[data-explorer]")) {
  const { columns, trials } = JSON.parse(document.getElementById("trial-data").textContent);
  const W = Math.min(760, Math.max(320, view.parentElement.clientWidth || 760)), H = 380;
  const left = 62, right = 12, top = 12, bottom = 30;
  const FIRST_PARAMETER = 2; // column after evaluation and objective
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
  // The mean rank near a place, as bands between contour lines; nothing far from every trial.
  function drawContours(svg, ranked) {
    const step = 8, width = 36, least = 0.5, columns = Math.floor((W - right - left) / step), rows = Math.floor((H - bottom - top) / step);
    const field = [];
    for (let row = 0; row <= rows; row++) for (let column = 0; column <= columns; column++) {
      const x = left + column * step, y = top + row * step;
      let sum = 0, weight = 0;
      for (const point of ranked) {
        const near = Math.exp(-((point.x - x) ** 2 + (point.y - y) ** 2) / (2 * width ** 2));
        [sum, weight] = [sum + near * point.trial.rank, weight + near];
      }
      field.push({ x, y, rank: weight ? sum / weight : 1, weight });
    }
    const cross = (a, b, key, level) => {
      const part = (level - a[key]) / (b[key] - a[key]), mix = (name) => a[name] + part * (b[name] - a[name]);
      return { x: mix("x"), y: mix("y"), rank: mix("rank"), weight: mix("weight") };
    };
    // The part of a polygon in which key is at least level, or at most for sign -1; and the new edge.
    const clip = (corners, key, level, sign) => {
      const kept = [], edge = [];
      corners.forEach((a, at) => {
        const b = corners[(at + 1) % corners.length], inside = (corner) => sign * (corner[key] - level) >= 0;
        if (inside(a)) kept.push(a);
        if (inside(a) !== inside(b)) { const met = cross(a, b, key, level); kept.push(met); edge.push(met); }
      });
      return { kept, edge };
    };
    const write = (corners) => corners.map((corner) => `${corner.x.toFixed(1)} ${corner.y.toFixed(1)}`).join("L");
    const bands = ["", "", "", "", ""], lines = ["", "", "", ""];
    for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
      const at = row * (columns + 1) + column, a = field[at], b = field[at + 1], c = field[at + columns + 2], d = field[at + columns + 1];
      for (const triangle of [[a, b, c], [a, c, d]]) {
        let rest = clip(triangle, "weight", least, 1).kept;
        for (let band = 0; band < 5 && rest.length > 2; band++) {
          const level = (band + 1) / 5, low = band < 4 ? clip(rest, "rank", level, -1) : { kept: rest, edge: [] };
          if (low.kept.length > 2) bands[band] += `M${write(low.kept)}Z`;
          if (band < 4 && low.edge.length === 2) lines[band] += `M${write(low.edge)}`;
          rest = band < 4 ? clip(rest, "rank", level, 1).kept : [];
        }
      }
    }
    bands.forEach((path, band) => {
      if (path) make(svg, "path", { d: path, fill: paint((band + 0.5) / 5), stroke: paint((band + 0.5) / 5), "stroke-width": 0.5, class: "band" });
    });
    lines.forEach((path) => { if (path) make(svg, "path", { d: path, fill: "none", stroke: "var(--ink)", "stroke-width": 1, opacity: 0.55, class: "contour" }); });
  }
  function drawPairs() {
    const svg = view.querySelector('[data-view="pairs"]'), [x, y] = selects.map((select) => +select.value);
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.replaceChildren();
    const across = scale(x, left, W - right), up = scale(y, H - bottom, top);
    const points = trials.filter((trial) => trial.cells[x] !== null && trial.cells[y] !== null)
      .map((trial) => ({ trial, x: across.place(trial.cells[x]), y: up.place(trial.cells[y]) }));
    // The objective over itself, or over the order of the trials, has no contours.
    if (Math.min(x, y) >= FIRST_PARAMETER) drawContours(svg, points.filter((point) => point.trial.rank !== undefined));
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
    const [seconds, unit] = last < 120 ? [1, "s"] : last < 7200 ? [60, "min"] : [3600, "h"];
    const digits = last - first < 4 * seconds ? 1 : 0;
    [0, 0.5, 1].forEach((part, at) => label(svg, place(first + part * (last - first)), rows * height + 18,
      `${((first + part * (last - first)) / seconds).toFixed(digits)} ${unit}`, ["start", "middle", "end"][at]));
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

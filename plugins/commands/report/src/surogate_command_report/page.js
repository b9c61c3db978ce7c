"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs, main = document.getElementById("main"), tip = document.getElementById("tip");
  const shown = runs.map(() => true), color = i => `var(--run${i % 6})`;
  const root = document.documentElement;
  if (matchMedia("(prefers-color-scheme: dark)").matches) root.classList.add("dark");
  document.getElementById("theme").onclick = () => root.classList.toggle("dark");

  // ------------------------------------------------------------ small helpers
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.filter(one => one !== null && one !== undefined));
    return node;
  };
  const svg = (tag, attributes = {}, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const round = (value, digits = 4) => String(Number(value.toPrecision(digits)));
  const bytes = value => { for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) if (Math.abs(value) >= size) return round(value / size) + " " + unit; return value + " B"; };
  const many = value => { for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) if (Math.abs(value) >= size) return round(value / size) + unit; return Math.abs(value) < 1e-3 && value ? value.toExponential(2) : round(value); };
  const exact = value => typeof value === "number" ? (Number.isInteger(value) ? value.toLocaleString("en") : many(value)) : String(value);
  const tell = (name, value) => name === "memory" ? bytes(value) : name === "loss" ? round(value, 5) : many(value);
  const section = (title, wide, note) => {
    const node = el("section", wide ? { class: "wide" } : {});
    if (title) node.append(el("h2", {}, title, note ? el("small", {}, note) : null));
    main.append(node);
    return node;
  };
  const table = (heads, rows) => el("table", {},
    el("thead", {}, el("tr", {}, ...heads.map(head => el("th", head.startsWith("#") ? { class: "n" } : {}, head.replace("#", ""))))),
    el("tbody", {}, ...rows.map(row => el("tr", {}, ...row.map((cell, i) => el("td", heads[i].startsWith("#") ? { class: "n" } : {}, cell))))));
  const named = i => runs.length > 1 ? [el("i", { style: `background:${color(i)};width:10px;height:10px;border-radius:3px;display:inline-block;margin-right:6px` }), runs[i].name] : [];

  // ------------------------------------------------------------ legend
  const charts = [];
  if (runs.length > 1) {
    const bar = el("div", { class: "bar legend wide" });
    runs.forEach((run, i) => {
      const button = el("button", { type: "button", "aria-pressed": "true", title: run.directory }, el("i", { style: `background:${color(i)}` }), run.name);
      button.onclick = () => { shown[i] = !shown[i]; button.setAttribute("aria-pressed", shown[i]); charts.forEach(chart => chart.draw()); };
      bar.append(button);
    });
    main.append(bar);
  }
  runs.forEach((run, i) => {
    const box = section("", true);
    if (runs.length > 1) box.append(el("h2", {}, ...named(i)));
    const figures = el("div", { class: "figures" });
    for (const [label, value, unit] of run.figures)
      figures.append(el("div", {}, el("span", {}, label), el("b", {}, unit === "bytes" ? bytes(value) : exact(value)), el("span", {}, unit === "bytes" ? "" : unit)));
    box.append(figures);
  });

  // ------------------------------------------------------------ curves
  const view = { low: null, high: null };
  const ticks = (low, high, count) => {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 2.5, 5, 10].find(one => one * power >= raw) * power;
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
    return found;
  };
  const logTicks = (low, high) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const one of high / low > 300 ? [1] : [1, 2, 5]) if (one * 10 ** power >= low && one * 10 ** power <= high) found.push(one * 10 ** power);
    return found.length > 1 ? found : [low, high];
  };

  function chart(name, title, unit, wide) {
    const box = section("", wide), W = wide ? 1180 : 570, H = wide ? 330 : 200, L = 62, R = 26, T = 12, B = 26;
    const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
    let log = name === "grad_norm";
    const button = el("button", { type: "button", "aria-pressed": log, title: "logarithmic axis" }, "log");
    const heading = el("h2", {}, title, el("small", {}, unit));
    box.append(el("div", { class: "title" }, heading, button), drawing);
    button.onclick = () => { log = !log; button.setAttribute("aria-pressed", log); draw(); };
    let place = null;

    function draw() {
      drawing.replaceChildren();
      const parts = runs.map((run, i) => ({ run, i, c: run.curves[name] })).filter(one => shown[one.i] && one.c && one.c.x.length);
      if (!parts.length) { place = null; return; }
      const from = view.low ?? Math.min(...parts.map(one => one.c.x[0])), to = view.high ?? Math.max(...parts.map(one => Math.max(one.c.x[one.c.x.length - 1], one.run.phases.length ? one.run.phases[one.run.phases.length - 1][0] : 0)));
      let low = Infinity, high = -Infinity;
      const take = value => { if (value === null || (log && value <= 0)) return; if (value < low) low = value; if (value > high) high = value; };
      for (const { run, c } of parts) {
        c.x.forEach((x, k) => { if (x >= from && x <= to) { take((c.lo || c.y)[k]); take((c.hi || c.y)[k]); } });
        if (name === "loss") run.evals.forEach(([x, y]) => { if (x >= from && x <= to) take(y); });
      }
      if (!isFinite(low)) { low = log ? 0.1 : 0; high = 1; }
      if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low = log ? low / 2 : low - pad; high = log ? high * 2 : high + pad; }
      if (!log) { const pad = (high - low) * 0.04; low = low >= 0 && low < (high - low) * 0.6 ? 0 : low - pad; high += pad; }
      const across = Math.max(1, to - from), X = x => L + (x - from) / across * (W - L - R);
      const scale = log ? Math.log : value => value, bottom = scale(low), range = scale(high) - bottom || 1;
      const Y = y => H - B - (scale(log ? Math.max(y, low) : y) - bottom) / range * (H - B - T);
      place = { from, to, X, Y, parts, L, R, W, H, T, B };
      for (const at of log ? logTicks(low, high) : ticks(low, high, wide ? 6 : 4)) {
        drawing.append(svg("line", { class: "grid", x1: L, x2: W - R, y1: Y(at), y2: Y(at) }), svg("text", { x: L - 7, y: Y(at) + 4, "text-anchor": "end" }, name === "memory" ? bytes(at) : many(at)));
      }
      for (const at of ticks(from, to, wide ? 9 : 5)) if (Number.isInteger(at)) drawing.append(svg("text", { x: X(at), y: H - 8, "text-anchor": "middle" }, at.toLocaleString("en")));
      drawing.append(svg("line", { class: "axis", x1: L, x2: W - R, y1: H - B, y2: H - B }));
      const clip = `clip-${name.replace(/\W/g, "-")}`, hold = svg("clipPath", { id: clip });
      hold.append(svg("rect", { x: L, y: T - 8, width: W - L - R, height: H - B - T + 10 }));
      const inside = svg("g", { "clip-path": `url(#${clip})` });
      drawing.append(hold, inside);
      if (name === "loss") marks(inside, place);
      for (const { run, i, c } of parts) {
        if (c.lo) {
          const up = c.x.map((x, k) => `${X(x).toFixed(1)},${Y(c.hi[k]).toFixed(1)}`), down = c.x.map((x, k) => `${X(x).toFixed(1)},${Y(c.lo[k]).toFixed(1)}`).reverse();
          inside.append(svg("polygon", { points: [...up, ...down].join(" "), fill: color(i), opacity: 0.25, stroke: color(i), "stroke-width": 0.5 }));
        }
        inside.append(svg("polyline", { points: c.x.map((x, k) => `${X(x).toFixed(1)},${Y(c.y[k]).toFixed(1)}`).join(" "), fill: "none", stroke: color(i), "stroke-width": c.x.length > 300 ? 1.3 : 1.7, "stroke-linejoin": "round" }));
        if (name === "loss") {
          if (run.evals.length > 1) inside.append(svg("polyline", { points: run.evals.map(([x, y]) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join(" "), fill: "none", stroke: "var(--ink)", "stroke-width": 1, opacity: 0.7 }));
          for (const [x, y] of run.evals) inside.append(svg("circle", { cx: X(x), cy: Y(y), r: run.evals.length > 80 ? 1.8 : 3.2, fill: color(i), stroke: "var(--ink)", "stroke-width": 1.2 }));
        }
      }
      drawing.append(svg("line", { class: "cross", y1: T, y2: H - B, visibility: "hidden" }), svg("rect", { class: "span", y: T, height: H - B - T, x: -9, width: 0, fill: color(0), opacity: 0.12 }));
    }

    // phases as a ribbon for each run, decisions as lines, checkpoints as ticks
    function marks(inside, { X, T, H, B, parts, to }) {
      parts.forEach(({ run, i }, row) => {
        run.phases.slice(0, -1).forEach(([step, phase], k) => {
          const x = X(step), end = X(Math.min(run.phases[k + 1][0], to)), strip = svg("rect", { x, y: T - 8 + 5 * row, width: Math.max(1, end - x), height: 4, fill: `var(--${phase})`, class: "phase", "data-phase": phase });
          strip.append(svg("title", {}, `${run.name}: ${phase} from step ${step}`));
          inside.append(strip);
        });
        for (const step of run.checkpoints) inside.append(svg("line", { x1: X(step), x2: X(step), y1: H - B - 4, y2: H - B, stroke: color(i), opacity: 0.8, class: "checkpoint" }));
        for (const event of run.events) if (event.kind === "decision") {
          const line = svg("line", { x1: X(event.step), x2: X(event.step), y1: T, y2: H - B, stroke: event.stop ? "var(--stop)" : color(i), "stroke-width": 1.4, "stroke-dasharray": "4 3", class: "decision" });
          line.append(svg("title", {}, `step ${event.step}: ${event.text} (${event.owner})`));
          inside.append(line);
        }
      });
    }

    const at = event => { const box = drawing.getBoundingClientRect(); return place.from + ((event.clientX - box.left) / box.width * W - L) / (W - L - R) * (place.to - place.from); };
    let begun = null;
    drawing.onpointerdown = event => { if (place) begun = at(event); };
    drawing.onpointerup = event => {
      if (begun === null || !place) return;
      const ends = [begun, at(event)].sort((a, b) => a - b);
      begun = null;
      if (ends[1] - ends[0] > (place.to - place.from) / 80) { view.low = Math.max(0, Math.round(ends[0])); view.high = Math.round(ends[1]); charts.forEach(one => one.draw()); }
    };
    drawing.ondblclick = () => { view.low = view.high = null; charts.forEach(one => one.draw()); };
    drawing.onpointerleave = () => { tip.hidden = true; charts.forEach(one => one.cross(null)); };
    drawing.onpointermove = event => {
      if (!place) return;
      const step = at(event);
      if (begun !== null) { const span = drawing.querySelector(".span"), ends = [begun, step].sort((a, b) => a - b); span.setAttribute("x", place.X(ends[0])); span.setAttribute("width", place.X(ends[1]) - place.X(ends[0])); }
      if (step < place.from || step > place.to) { tip.hidden = true; return; }
      charts.forEach(one => one.cross(step));
      const lines = [el("div", { class: "soft" }, `step ${Math.round(step).toLocaleString("en")}`)];
      for (const { run, i, c } of place.parts) {
        let k = c.x.findIndex(x => x > step);
        k = k < 0 ? c.x.length - 1 : Math.max(0, k - 1);
        const extra = c.lo && c.hi[k] !== c.lo[k] ? ` (${tell(name, c.lo[k])} to ${tell(name, c.hi[k])})` : "", phase = name === "loss" ? run.phases.filter(one => one[0] <= step && one[1]).pop() : null;
        lines.push(el("div", {}, ...named(i), " ", el("b", {}, tell(name, c.y[k])), extra, phase ? el("span", { class: "soft" }, ` ${phase[1]}`) : null));
        if (name === "loss") for (const one of run.events) if (one.kind === "decision" && Math.abs(place.X(one.step) - place.X(step)) < 6) lines.push(el("div", {}, one.text));
      }
      tip.replaceChildren(...lines);
      tip.hidden = false;
      tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
      tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
    };
    function cross(step) {
      const line = drawing.querySelector(".cross");
      if (!line || !place) return;
      const inside = step !== null && step >= place.from && step <= place.to;
      line.setAttribute("visibility", inside ? "visible" : "hidden");
      if (inside) { line.setAttribute("x1", place.X(step)); line.setAttribute("x2", place.X(step)); }
    }
    draw();
    charts.push({ draw, cross });
    return box;
  }
  data.curves.forEach(([name, title, unit], k) => {
    const box = chart(name, title, unit, k === 0);
    if (k) return;
    const phases = [...new Set(runs.flatMap(run => run.phases.map(one => one[1]).filter(Boolean)))];
    box.append(el("div", { class: "key" }, ...phases.map(phase => el("span", {}, el("i", { style: `background:var(--${phase})` }), phase)), el("span", {}, runs.some(run => run.evals.length) ? "○ evaluation" : ""), el("span", {}, "drag to zoom, double click to see all")));
  });

  // ------------------------------------------------------------ what happened
  const happened = runs.flatMap((run, i) => run.events.map(event => ({ ...event, i })));
  if (happened.length) {
    const box = section("Phases, advice and decisions", true);
    box.append(table(["#step", "what", "why", ...(runs.length > 1 ? ["run"] : [])], happened.map(event => [
      event.step.toLocaleString("en"),
      el("span", { class: "tag" }, event.kind === "decision" ? (event.stop ? "stop" : `rate × ${round(event.scale_lr ?? 1)}`) : event.advice ? "advice" : event.phase ? "phase" : "note"),
      event.text + (event.owner ? ` — ${event.owner}` : ""), ...(runs.length > 1 ? [el("span", {}, ...named(event.i))] : [])])));
    runs.forEach(run => { if (run.more_events) box.append(el("p", { class: "soft" }, `${run.name}: ${run.more_events} more in metrics.jsonl`)); });
  }

  // ------------------------------------------------------------ figures of each run
  const hues = ["var(--run0)", "var(--run1)", "var(--run2)", "var(--run3)", "var(--run4)", "var(--run5)"];
  const split = (pairs, unit) => {
    const whole = pairs.reduce((sum, one) => sum + one[1], 0) || 1;
    return el("div", {}, el("div", { class: "split" }, ...pairs.map(([name, value], k) => el("div", { style: `width:${value / whole * 100}%;background:${hues[k % 6]}`, title: name }))),
      el("div", { class: "key" }, ...pairs.map(([name, value], k) => el("span", {}, el("i", { style: `background:${hues[k % 6]}` }), `${name} ${unit === "bytes" ? bytes(value) : round(value) + " " + unit} (${(value / whole * 100).toFixed(1)} %)`))));
  };
  runs.forEach((run, i) => {
    const head = title => runs.length > 1 ? [title, run.name] : [title];
    const put = (title, node, wide = false) => { const [text, note] = head(title), box = section(text, wide, note); box.append(...[].concat(node)); };
    if (run.time.length) put("Time", split(run.time, "s"));
    if (run.parts.length) put("A step, by part", split(run.parts, "ms"));
    if (run.plan.length) put("Plan and measurement", table(["", "#planned", "#measured", "#ratio"], run.plan.map(([name, one, two]) => [name, name.startsWith("memory") ? bytes(one) : exact(one), name.startsWith("memory") ? bytes(two) : exact(two), round(two / one, 3)])));
    if (run.memory_plan.length) put("Planned memory", split(run.memory_plan, "bytes"));
    const sides = Object.entries(run.ledger);
    if (sides.length) put("Data", table(["", "#rows", "#tokens"], [...new Set(sides.flatMap(([, counts]) => Object.keys(counts)))].filter(fate => sides.some(([, counts]) => typeof counts[fate] === "number" && counts[fate])).map(fate => [fate, exact(run.ledger.rows?.[fate] ?? ""), exact(run.ledger.tokens?.[fate] ?? "")])));
    if (run.pieces.length) put("Lengths", split(run.pieces, "pieces"));
    if (run.observers.length) put("Loggers and observers", table(["plugin", "#ms a step"], run.observers.map(([name, value]) => [name, exact(value)])));
    if (run.generations.length) put("Generations", table(["checkpoint", "prompt", "text"], run.generations.map(([from, ...said]) => [from, ...said.map(text => el("span", { class: "said" }, text))])), true);
    if (run.notices.length) put("Notices", el("details", {}, el("summary", {}, `${run.notices.length}`), ...run.notices.map(text => el("div", {}, text))));
    if (run.next.length) put("Next", run.next.map(text => el("div", {}, el("code", {}, text))));
  });

  // ------------------------------------------------------------ configuration and versions
  const configs = runs.map(run => new Map(run.config.map(([key, value, origin]) => [key, [value, origin]])));
  const keys = [...new Set(configs.flatMap(config => [...config.keys()]))].sort();
  const differs = key => new Set(configs.map(config => config.get(key)?.[0])).size > 1;
  const set = key => configs.some(config => config.get(key) && config.get(key)[1] !== "default");
  if (keys.length) {
    const box = section("Configuration", true), find = el("input", { placeholder: "find a key", "aria-label": "find a key" }), hold = el("div");
    const all = el("button", { type: "button", "aria-pressed": "false" }, "defaults too"), only = el("button", { type: "button", "aria-pressed": runs.length > 1 }, "differences");
    const draw = () => {
      const wanted = keys.filter(key => key.includes(find.value.trim()) && (find.value || all.getAttribute("aria-pressed") === "true" || set(key)) && (only.getAttribute("aria-pressed") === "false" || runs.length < 2 || differs(key)));
      hold.replaceChildren(table(["key", ...runs.flatMap(run => [runs.length > 1 ? run.name : "value", "from"])], wanted.map(key => [el("code", {}, key), ...configs.flatMap(config => { const [value, origin] = config.get(key) || ["", ""]; return [el("code", {}, value), el("span", { class: "soft" }, origin)]; })])));
    };
    for (const button of [all, only]) button.onclick = () => { button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "false"); draw(); };
    find.oninput = draw;
    box.append(el("div", { class: "bar" }, find, all, runs.length > 1 ? only : null), hold);
    draw();
  }
  const plugins = [...new Set(runs.flatMap(run => Object.keys(run.plugins)))].sort();
  if (plugins.length) section("Versions", true).append(table(["plugin", ...runs.map(run => runs.length > 1 ? run.name : "version")], plugins.map(name => [name, ...runs.map(run => run.plugins[name] || "")])));
  main.append(el("p", { class: "soft wide" }, `surogate ${data.version}`));
  root.dataset.ready = Math.round(performance.now());
})();

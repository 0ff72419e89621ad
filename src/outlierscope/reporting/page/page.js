"use strict";
(() => {
const root = document.documentElement;
const make = (name, attributes = {}, ...inside) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...inside);
  return node;
};
const unpack = async (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};
const say = (text) => { document.getElementById("status").textContent = text; };

// ---- light and dark
const preferred = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
const setDark = (dark) => {
  root.classList.toggle("dark", dark);
  themeButton.setAttribute("aria-pressed", String(dark));
  for (const plot of document.querySelectorAll(".plot.drawn")) Plotly.relayout(plot, { template: template() });
};
const template = () => {
  const style = getComputedStyle(root), colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
  return { layout: {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
    xaxis: axis, yaxis: axis,
    hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left" },
    scene: { xaxis: { gridcolor: colour("--line") }, yaxis: { gridcolor: colour("--line") }, zaxis: { gridcolor: colour("--line") } },
  } };
};
themeButton.addEventListener("click", () => setDark(!root.classList.contains("dark")));
preferred.addEventListener("change", (event) => setDark(event.matches));
root.classList.toggle("dark", preferred.matches);
themeButton.setAttribute("aria-pressed", String(preferred.matches));

// ---- explanations of terms
const tooltip = document.getElementById("tooltip");
let terms = {};
const hide = () => {
  tooltip.hidden = true;
  document.querySelector("[aria-describedby=tooltip]")?.removeAttribute("aria-describedby");
};
const explain = (button) => {
  hide();
  tooltip.textContent = terms[button.dataset.term] ?? "";
  tooltip.hidden = !tooltip.textContent;
  const place = button.getBoundingClientRect();
  const left = Math.max(8, Math.min(place.left, innerWidth - tooltip.offsetWidth - 8));
  tooltip.style.left = `${left + scrollX}px`;
  tooltip.style.top = `${place.bottom + scrollY + 6}px`;
  button.setAttribute("aria-describedby", "tooltip");
};
const termOf = (event) => event.target instanceof Element ? event.target.closest("button.term") : null;
for (const kind of ["mouseover", "focusin", "click"]) document.addEventListener(kind, (event) => {
  const button = termOf(event);
  if (button) explain(button); else if (kind !== "mouseover" || !tooltip.contains(event.target)) hide();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

// ---- tables
const shown = (value) => {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(4));
};
const reader = (column) => column.texts ? (row) => column.texts[column.codes[row]] : (row) => column.values[row];
const quote = (value) => {
  let text = value === null || value === undefined ? "" : String(value);
  // A spreadsheet would run what begins like a formula.
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const ROW = 30;
const showTable = (host, name, table, caption, withFilters) => {
  const columns = table.columns.map((column) => ({ ...column, read: reader(column) }));
  let order = Array.from({ length: table.rows }, (_, row) => row);
  let sorted = null, down = false;
  const csv = () => [columns.map((column) => quote(column.name)).join(","), ...order.map((row) => columns.map((column) => quote(column.read(row))).join(","))].join("\r\n") + "\r\n";
  const copy = make("button", { type: "button" }, "Copy CSV"), save = make("button", { type: "button" }, "Download CSV");
  copy.addEventListener("click", async () => { await navigator.clipboard.writeText(csv()); say(`${order.length} rows copied`); copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy CSV"; }, 1500); });
  save.addEventListener("click", () => {
    const link = make("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: `${name}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 5000);
  });
  const count = make("span", { class: "quiet" });
  const tools = make("div", { class: "tools" });
  const filters = [];
  if (withFilters) {
    const search = make("input", { type: "search", placeholder: "Filter: any text, all words must occur", "aria-label": "Filter rows by text" });
    search.addEventListener("input", () => { clearTimeout(search.waiting); search.waiting = setTimeout(refresh, 120); });
    filters.push(() => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      if (!words.length) return null;
      const lower = columns.map((column) => column.texts ? column.texts.map((text) => String(text ?? "").toLowerCase()) : null);
      return (row) => words.every((word) => columns.some((column, index) => lower[index] ? lower[index][column.codes[row]].includes(word) : shown(column.values[row]) === word));
    });
    tools.append(search);
    for (const wanted of ["criterion", "kind", "site"]) {
      const column = columns.find((candidate) => candidate.name === wanted && candidate.texts);
      if (!column || column.texts.length < 2) continue;
      const select = make("select", { "aria-label": `Show one ${wanted}`, "data-column": wanted }, make("option", { value: "" }, `every ${wanted}`));
      for (const text of column.texts) if (text !== null) select.append(make("option", { value: text }, text));
      select.addEventListener("change", () => refresh());
      filters.push(() => {
        if (!select.value) return null;
        const code = column.texts.indexOf(select.value);
        return (row) => column.codes[row] === code;
      });
      tools.append(select);
    }
  }
  tools.append(copy, save, count);
  const body = make("tbody");
  const head = make("tr");
  for (const column of columns) {
    const button = make("button", { type: "button" }, column.name.replaceAll("_", " "));
    const cell = make("th", { scope: "col", "aria-sort": "none" }, button);
    button.addEventListener("click", () => {
      down = sorted === column ? !down : Boolean(column.values);
      sorted = column;
      for (const other of head.children) other.setAttribute("aria-sort", "none");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      refresh();
    });
    head.append(cell);
  }
  const grid = make("div", { class: "grid", tabindex: "0", role: "region", "aria-label": caption },
    make("table", { "aria-rowcount": String(table.rows + 1) }, make("caption", { class: "out" }, caption), make("thead", {}, head), body));
  let from = -1, visible = 0;
  const draw = (again) => {
    const start = Math.max(0, Math.floor(grid.scrollTop / ROW) - 10);
    const stop = Math.min(order.length, start + Math.ceil((grid.clientHeight || 400) / ROW) + 25);
    if (!again && start === from && stop === visible) return;
    from = start; visible = stop;
    const space = (rows) => {
      const cell = make("td", { colspan: String(columns.length) });
      cell.style.height = `${rows * ROW}px`;
      return make("tr", { class: "space", "aria-hidden": "true" }, cell);
    };
    const rows = [];
    if (start) rows.push(space(start));
    for (const row of order.slice(start, stop)) {
      const line = make("tr");
      for (const column of columns) {
        const value = column.read(row), text = shown(value);
        const cell = make("td", typeof value === "number" ? { class: "number" } : {}, text);
        if (text.length > 30) cell.title = text;
        line.append(cell);
      }
      rows.push(line);
    }
    if (stop < order.length) rows.push(space(order.length - stop));
    body.replaceChildren(...rows);
  };
  const refresh = () => {
    const tests = filters.map((filter) => filter()).filter(Boolean);
    order = [];
    for (let row = 0; row < table.rows; row++) if (tests.every((test) => test(row))) order.push(row);
    if (sorted) {
      let rank = sorted.values ?? null;
      if (sorted.texts) {
        const places = new Map(sorted.texts.filter((text) => text !== null).sort().map((text, place) => [text, place]));
        rank = sorted.codes.map((code) => places.get(sorted.texts[code]) ?? null);
      }
      const sign = down ? -1 : 1;
      order.sort((a, b) => rank[a] === null ? (rank[b] === null ? a - b : 1) : rank[b] === null ? -1 : sign * (rank[a] - rank[b]) || a - b);
    }
    count.textContent = `${order.length.toLocaleString("en")} of ${table.rows.toLocaleString("en")} rows`;
    grid.scrollTop = 0;
    draw(true);
  };
  grid.addEventListener("scroll", () => draw(false), { passive: true });
  host.append(tools, grid);
  refresh();
  return { filter(criterion) {
    for (const search of tools.querySelectorAll("input")) search.value = "";
    for (const select of tools.querySelectorAll("select")) select.value = select.dataset.column === "criterion" ? criterion : "";
    refresh();
  } };
};

// ---- figures
let figures = {};
const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"], displayModeBar: "hover" };
const drawFigure = (plot) => {
  if (plot.classList.contains("drawn")) return;
  plot.classList.add("drawn");
  const figure = figures[plot.dataset.figure], narrow = plot.clientWidth < 520;
  const layout = { height: 360, margin: { l: 56, r: 12, t: 8, b: 48 }, ...figure.layout, template: template() };
  layout.legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, ...layout.legend };
  if (narrow) for (const trace of figure.data) if (trace.type === "heatmap") trace.colorbar = { ...trace.colorbar, thickness: 10 };
  Plotly.newPlot(plot, figure.data, layout, config);
};

const start = async () => {
  const content = JSON.parse(await unpack("data"));
  terms = content.terms;
  figures = content.figures;
  let findings = null;
  for (const host of document.querySelectorAll("[data-table]")) {
    const name = host.dataset.table, table = content.tables[name];
    if (host.tagName === "DETAILS") host.addEventListener("toggle", () => { if (host.open && !host.querySelector("table")) showTable(host, name, table, `Numbers of the figure ${name}`, false); });
    else {
      const handle = showTable(host, name, table, host.dataset.caption ?? name, host.classList.contains("long"));
      if (host.classList.contains("long")) findings = handle;
    }
  }
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("a[data-filter]") : null;
    if (link && findings) findings.filter(link.dataset.filter);
  });
  root.dataset.tables = "ready";
  const code = await unpack("plotly");
  document.head.append(Object.assign(document.createElement("script"), { textContent: code }));
  const plots = [...document.querySelectorAll(".plot")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); drawFigure(entry.target); }
  }, { rootMargin: "300px" });
  for (const plot of plots) seen.observe(plot);
  addEventListener("beforeprint", () => plots.forEach(drawFigure));
  root.dataset.figures = "ready";
};
start();
})();

"use strict";
// The pictures of a network's inside, for the server's page and for the files of `llama2np lens` and `attend`.
// Their data is made in llama2np/analysis/interactive.py.

const make = (tag, options = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), options);
  node.append(...children);
  return node;
};
const percent = (p) => `${(100 * p).toFixed(1)} %`;
const MOVES = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

// --- the logit lens: a table; `tell` gets a sentence about the cell that is pointed at or has the focus ---

function lensTable({ names, pieces, spans, rows }, tell) {
  const heads = spans.map(([label, count]) => make("th", { textContent: label, scope: "col", colSpan: count }));
  const body = rows.map((row, layer) => make("tr", {}, make("th", { textContent: names[layer], scope: "row" }),
    ...row.map((best, i) => {
      const about = best.map(([piece, p]) => `${piece} ${percent(p)}`).join(", ");
      const cell = make("td", { textContent: best[0][0], title: about, tabIndex: -1 });
      cell.style.background = `rgb(var(--heat) / ${Math.round(90 * Math.sqrt(best[0][1]))}%)`;
      if (best[0][1] > 0.35) cell.style.color = "var(--mark-ink)";
      const told = () => tell(`${names[layer]}, after ${pieces[i]}: ${about}`);
      cell.addEventListener("mouseenter", told);
      cell.addEventListener("focus", told);
      return cell;
    })));
  const head = make("tr", {}, make("th", { textContent: "read" }), ...heads);
  const table = make("table", { className: "lens" }, make("thead", {}, head), make("tbody", {}, ...body.reverse()));
  table.querySelector("td").tabIndex = 0;
  table.addEventListener("keydown", (event) => {
    const step = MOVES[event.key], cell = event.target.closest("td");
    if (!step || !cell) return;
    const row = table.rows[cell.parentNode.rowIndex + step[0]];
    const next = row && row.cells[cell.cellIndex + step[1]];
    if (next && next.tagName === "TD") { event.preventDefault(); cell.tabIndex = -1; next.tabIndex = 0; next.focus(); }
  });
  return table;
}

// --- attention: a row for each token, a column for each token up to itself; the rest stays blank ---

const LABELLED = 64, WIDEST_LABEL = 110, FONT = 12;

function paintCells(context, weights, size, left, top) {
  const style = getComputedStyle(document.documentElement), colour = style.getPropertyValue("--heat").trim();
  weights.forEach((values, i) => {
    context.fillStyle = style.getPropertyValue("--back");
    context.fillRect(left, top + i * size, values.length * size, size);
    values.forEach((p, j) => {
      context.fillStyle = `rgb(${colour} / ${Math.sqrt(p)})`;
      context.fillRect(left + j * size, top + i * size, size, size);
    });
  });
  context.strokeStyle = style.getPropertyValue("--line");
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(left, top);
  weights.forEach((values, i) => { const x = left + values.length * size; context.lineTo(x, top + i * size); context.lineTo(x, top + (i + 1) * size); });
  context.lineTo(left, top + weights.length * size);
  context.closePath();
  context.stroke();
}

// A canvas of `width` × `height` in CSS's pixels, sharp on every screen.
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`; canvas.style.aspectRatio = `${width} / ${height}`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

class AttentionMap {
  constructor(canvas, tell) {
    Object.assign(this, { canvas, tell, weights: null, row: 0, column: 0 });
    canvas.addEventListener("mousemove", (event) => {
      if (!this.weights) return;
      const box = canvas.getBoundingClientRect(), scale = this.width / box.width;
      this.pointAt(Math.floor(((event.clientY - box.top) * scale - this.top) / this.size),
        Math.floor(((event.clientX - box.left) * scale - this.left) / this.size));
    });
    canvas.addEventListener("keydown", (event) => {
      const step = MOVES[event.key];
      if (step && this.weights) { event.preventDefault(); this.pointAt(this.row + step[0], this.column + step[1]); }
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.weights && this.draw());
  }

  // weights: rows of 1, 2, ... numbers; pieces: the tokens; spans: [label, tokens of it], for the sides of the map.
  show({ weights, pieces, spans }) {
    const same = this.pieces && this.pieces.join() === pieces.join();
    Object.assign(this, { weights, pieces, spans });
    if (!same) { this.row = weights.length - 1; this.column = 0; }
    this.canvas.hidden = false;
    this.draw();
  }

  draw() {
    const count = this.weights.length, labelled = count <= LABELLED;
    this.size = labelled ? Math.max(14, Math.min(26, Math.floor(560 / count))) : Math.max(3, Math.floor(640 / count));
    const measure = this.canvas.getContext("2d");
    measure.font = `${FONT}px system-ui, sans-serif`;
    const widest = Math.max(...this.spans.map(([label]) => measure.measureText(label).width));
    const side = labelled ? Math.ceil(Math.min(widest, WIDEST_LABEL)) + 8 : 1;
    this.left = side; this.top = 1;
    this.width = side + count * this.size + 2;
    const context = sized(this.canvas, this.width, 1 + count * this.size + (labelled ? side : 1));
    paintCells(context, this.weights, this.size, this.left, this.top);
    if (labelled) this.drawLabels(context, count * this.size);
    const style = getComputedStyle(document.documentElement);
    context.strokeStyle = style.getPropertyValue("--bad");
    context.lineWidth = 2;
    context.strokeRect(this.left + this.column * this.size, this.top + this.row * this.size, this.size, this.size);
  }

  drawLabels(context, extent) {
    const style = getComputedStyle(document.documentElement);
    context.font = `${FONT}px system-ui, sans-serif`;
    context.textAlign = "right"; context.textBaseline = "middle";
    let first = 0;
    for (const [label, count] of this.spans) {
      const middle = (first + count / 2) * this.size, here = (at) => first <= at && at < first + count;
      const write = (chosen) => {
        context.fillStyle = style.getPropertyValue(chosen ? "--ink" : "--soft");
        context.fillText(label, 0, 0, WIDEST_LABEL);
      };
      context.save(); context.translate(this.left - 5, this.top + middle); write(here(this.row)); context.restore();
      context.save(); context.translate(this.left + middle, this.top + extent + 5); context.rotate(-Math.PI / 2); write(here(this.column)); context.restore();
      first += count;
    }
  }

  pointAt(row, column) {
    this.row = Math.max(0, Math.min(row, this.weights.length - 1));
    this.column = Math.max(0, Math.min(column, this.weights[this.row].length - 1));
    this.draw();
    const p = this.weights[this.row][this.column];
    this.tell(`${this.pieces[this.row]} (${this.row}) takes ${percent(p)} from ${this.pieces[this.column]} (${this.column})`);
  }
}

// --- many heads: small maps, which are buttons; `choose` gets the number of the one that is pressed ---

function headButtons(maps, columns, choose) {
  const buttons = maps.map(({ title }, i) => {
    const button = make("button", { type: "button" }, make("canvas"), title);
    button.addEventListener("click", () => {
      buttons.forEach((each, j) => each.setAttribute("aria-pressed", String(i === j)));
      choose(i);
    });
    button.setAttribute("aria-pressed", "false");
    return button;
  });
  const draw = () => maps.forEach(({ weights }, i) => {
    const size = 84 / weights.length;
    paintCells(sized(buttons[i].firstChild, 86, 86), weights, size, 1, 1);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
  const box = make("div", { className: "heads" }, ...buttons);
  box.style.gridTemplateColumns = `repeat(${columns}, max-content)`;
  return box;
}

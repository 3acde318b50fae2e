// Draws the lanes of any batch size, width and zoom from the data in the page; shows what is pointed at; finds its rows.
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const escaped = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
  const digits = (value) => value.toFixed(value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2);
  const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

  function bytesText(count) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (count >= (unit ? 1000 : 1024) && unit < 4) { count /= 1024; unit += 1; }
    return unit ? `${digits(count)} ${units[unit]}` : `${Math.round(count)} B`;
  }

  function timeText(ns) {
    const [scale, unit] = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]].find(([least]) => ns >= least) || [1, ns ? "ns" : "s"];
    return `${scale === 1 ? Math.round(ns) : digits(ns / scale)} ${unit}`;
  }

  class Lanes {
    constructor(figure) {
      this.figure = figure;
      this.data = JSON.parse(document.getElementById(`${figure.id}-data`).textContent);
      this.svg = figure.querySelector("svg.lanes");
      this.words = [...this.svg.querySelectorAll(":scope > title, :scope > desc")].map((each) => each.outerHTML).join("");
      this.metric = figure.querySelector("[data-metric][aria-pressed=true]").dataset.metric;
      this.svg.setAttribute("tabindex", "0");
      this.listen();
      this.show(figure.querySelector("select.size").value);
    }

    // The text that a number in the data stands for.
    text(number) { return this.data.strings[number]; }

    show(number) {
      this.step = this.data.steps[number];
      this.read();
      if (!this.step.timed) this.metric = "bytes";
      for (const button of this.figure.querySelectorAll("[data-metric]")) {
        button.disabled = button.dataset.metric === "time" && !this.step.timed;
        button.setAttribute("aria-pressed", button.dataset.metric === this.metric);
      }
      for (const table of document.querySelectorAll(`details[data-of="${this.figure.id}"]`)) {
        table.open = table.dataset.size === String(this.step.size);
        table.hidden = !table.open;
      }
      this.at = null;
      this.figure.querySelector(".detail").replaceChildren();
      this.measure();
      this.zoom(null);
    }

    // Rows of numbers as objects by the names of their columns; operators get the range of their leaves.
    read() {
      const named = (columns) => (row) => Object.fromEntries(columns.map((column, at) => [column, row[at] || 0]));
      const sites = this.data.sites.map(named(this.data.site)), leaf = named(this.data.leaf);
      this.ops = this.step.ops.map(named(this.data.op)).map((op) => ({ ...op, ...sites[op.site] }));
      this.blocks = this.step.blocks.map(named(this.data.block));
      this.leaves = this.step.leaves.map((row) => {
        const op = this.ops[row];
        return op ? { op: row, ns: op.ns, bytes: op.read + op.written, colour: op.colour, name: 0 } : leaf(row);
      });
      for (const [at, { op }] of this.leaves.entries()) {
        if (op >= 0) Object.assign(this.ops[op], { first: this.ops[op].first ?? at, last: at + 1 });
      }
    }

    // Edges of the leaves as parts of 1; what has no width is a hairline.
    measure() {
      const sizes = this.leaves.map((leaf) => leaf[this.metric === "time" ? "ns" : "bytes"]);
      this.total = sizes.reduce((sum, size) => sum + size, 0);
      const thin = this.total ? this.total / 20000 : 1;
      const whole = sizes.reduce((sum, size) => sum + Math.max(size, thin), 0);
      let edge = 0;
      this.edges = [0, ...sizes.map((size) => (edge += Math.max(size, thin) / whole))];
    }

    zoom(number) {
      const block = number === null ? { first: 0, last: this.leaves.length } : this.blocks[number];
      this.range = [this.edges[block.first], this.edges[block.last]];
      this.figure.querySelector("button.out").disabled = number === null;
      const crumbs = number === null ? [] : [...this.blocks.entries()].filter(([, outer]) =>
        outer.depth <= block.depth && outer.first <= block.first && block.last <= outer.last);
      const button = (at, name) => `<button type="button" data-crumb="${at}">${escaped(name)}</button>`;
      this.figure.querySelector(".crumbs").innerHTML = crumbs.length
        ? [button("", "whole step"), ...crumbs.map(([at, outer]) => button(at, this.text(outer.name)))].join(" › ") : "";
      this.draw();
    }

    // Left edge and width, in percent of the picture, of leaves [first, last); null outside of what is shown.
    place({ first, last }) {
      const [from, to] = this.range, scale = 100 / (to - from || 1);
      const left = Math.max(0, (this.edges[first] - from) * scale);
      const right = Math.min(100, (this.edges[last] - from) * scale);
      return right <= left ? null : { left: left.toFixed(3), width: (right - left).toFixed(3) };
    }

    draw() {
      const h = this.data.heights, parts = [];
      let y = 0;
      const lane = (height, content) => {
        parts.push(`<svg y="${y}" height="${height}" width="100%"${y ? "" : ' class="open"'}>${content}</svg>`);
        y += height;
      };
      const caption = (text) => lane(h.caption, `<text x="0" y="${h.caption - 5}" class="caption">${escaped(text)}</text>`);
      const marked = [...this.ops.entries()].filter(([, op]) => op.marks && this.place(op));
      lane(h.mark, marked.map(([at, op]) =>
        `<use href="#mark" x="${this.place(op).left}%" class="${escaped(this.text(op.marks))}" data-o="${at}"/>`).join(""));
      const deepest = Math.max(-1, ...this.blocks.map((block) => block.depth));
      for (let depth = 0; depth <= deepest; depth++) {
        lane(h.block, this.blocks.map((block, at) => block.depth === depth ? this.drawBlock(block, at) : "").join(""));
      }
      for (const [change, sign] of this.step.diff ? Object.entries(this.data.changes) : [["", ""]]) {
        const mine = [...this.ops.entries()].filter(([, op]) => this.text(op.change) === change);
        caption(`${change && `${sign} ${change}: `}${many(mine.length, "operator")}`);
        const classes = (op) => `${change || this.text(op.colour)} ${this.text(op.marks)}`;
        lane(change ? h.change : h.op, mine.map(([at, op]) => this.drawTick(op, classes(op), `data-o="${at}"`)).join(""));
      }
      const nodes = [...this.leaves.entries()].filter(([, leaf]) => leaf.name);
      if (nodes.length) {
        caption(many(nodes.length, "graph node"));
        const tick = ([at, leaf]) => this.drawTick({ first: at, last: at + 1 }, this.text(leaf.colour), `data-n="${at}"`);
        lane(h.node, nodes.map(tick).join(""));
      }
      lane(h.axis, this.drawAxis());
      this.svg.setAttribute("height", y);
      this.svg.innerHTML = this.words + parts.join("");
      this.light();
    }

    drawTick(range, classes, data) {
      const at = this.place(range);
      return at ? `<rect x="${at.left}%" width="${at.width}%" height="100%" class="${escaped(classes)}" ${data}/>` : "";
    }

    drawBlock(block, number) {
      const at = this.place(block), h = this.data.heights.block;
      if (!at) return "";
      const long = this.text(block.name), short = /\.(\d+)$/.exec(long);
      const room = at.width / 100 * this.svg.clientWidth - 6;
      const label = [long, short ? short[1] : ""].find((form) => form.length * 7 <= room) || "";
      return `<svg x="${at.left}%" width="${at.width}%" data-b="${number}">` +
        `<rect width="100%" height="${h - 2}" class="block"/>` +
        `<rect y="${h - 6}" width="100%" height="4" class="${escaped(this.text(block.colour))}"/>` +
        `<text x="4" y="13">${escaped(label)}</text></svg>`;
    }

    drawAxis() {
      const text = this.metric === "time" ? timeText : bytesText, whole = (this.range[1] - this.range[0]) * this.total;
      return [0, 25, 50, 75, 100].map((at) => {
        const anchor = at === 0 ? "start" : at === 100 ? "end" : "middle";
        return `<line x1="${at}%" x2="${at}%" y1="0" y2="5" class="axis"/>` +
          `<text x="${at}%" y="18" text-anchor="${anchor}" class="caption">${text(whole * at / 100)}</text>`;
      }).join("");
    }

    // What a part of the picture stands for: a kind (o operator, n node, b module) and its number.
    named(target) {
      const part = target.closest("[data-o],[data-n],[data-b]");
      if (!part || !this.svg.contains(part)) return null;
      const [kind] = Object.keys(part.dataset);
      return [kind, Number(part.dataset[kind])];
    }

    facts([kind, number]) {
      const time = (ns) => this.step.timed ? timeText(ns) : "";
      if (kind === "b") {
        const block = this.blocks[number], leaves = this.leaves.slice(block.first, block.last);
        const sum = (name) => leaves.reduce((all, leaf) => all + leaf[name], 0);
        return [this.text(block.path), [["time", time(sum("ns"))], ["bytes", bytesText(sum("bytes"))]]];
      }
      if (kind === "o") return [this.text(this.ops[number].op), this.opFacts(this.ops[number], time)];
      const node = this.leaves[number], op = this.ops[node.op];
      return [this.text(node.name), [
        ["launch", this.text(node.launch)], ["buffers", this.text(node.arguments)], ["node's time", time(node.ns)],
        ["operator", op ? this.text(op.op) : "no operator claims this node"], ...(op ? this.opFacts(op, time) : []),
      ]];
    }

    opFacts(op, time) {
      const change = this.text(op.change), source = this.data.sources[op.place];
      const kernels = this.leaves.slice(op.first, op.last).filter((leaf) => leaf.name).map((leaf) => this.text(leaf.name));
      return [
        ["change", change && `${this.data.changes[change]} ${change}${op.note ? `: ${this.text(op.note)}` : ""}`],
        ["line", [this.text(op.place), this.text(op.function)].filter(Boolean).join(" in ")],
        ["source", source ? this.text(source) : ""], ["module", this.text(op.module)],
        ["called as", this.text(op.api)], ["shapes", this.text(op.shapes)],
        ["bytes", `${bytesText(op.read)} read, ${bytesText(op.written)} written`],
        ["operations", op.flops ? op.flops.toLocaleString("en") : ""], ["time", time(op.ns)],
        ["roofline", op.share >= 0 && op.ns ? `${(op.share / 10).toFixed(1)} %` : ""],
        ["kernels", kernels.join("\n")], ["reads", this.text(op.inputs)], ["writes", this.text(op.outputs)],
        ["findings", (op.findings || []).map((number) => this.data.findings[number]).join("\n")],
      ];
    }

    tell(named, x, y) {
      const brief = ["line", "module", "change", "bytes", "time", "roofline", "findings"], [title, rows] = this.facts(named);
      const lines = rows.filter(([name, value]) => value && brief.includes(name)).map(([name, value]) => `${name}: ${value}`);
      tip.textContent = [title, ...lines].join("\n");
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
      tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 12) : y + 18}px`;
    }

    detail() {
      const [title, rows] = this.facts(this.at), list = document.createElement("dl"), head = document.createElement("h4");
      head.textContent = title;
      for (const [name, value] of rows.filter(([, each]) => each)) {
        const row = document.createElement("div");
        row.append(document.createElement("dt"), document.createElement("dd"));
        row.firstChild.textContent = name;
        row.lastChild.textContent = value;
        list.append(row);
      }
      this.figure.querySelector(".detail").replaceChildren(head, list);
    }

    // A module is zoomed into; of an operator or node the rows of its line and its kernel are lit.
    choose(named) {
      const [kind, number] = this.at = named;
      this.detail();
      if (kind === "b") { this.zoom(number); return; }
      this.light();
      const op = kind === "o" ? this.ops[number] : this.ops[this.leaves[number].op];
      const name = (kind === "n" ? this.leaves[number] : this.leaves[op.first]).name || op.op;
      const row = (mark) => document.getElementById(`${this.figure.id}-${this.step.size}-${mark}`);
      const rows = [op && row(`p${op.place}`), row(`k${name}`)].filter(Boolean);
      for (const lit of document.querySelectorAll("tr.lit")) lit.classList.remove("lit");
      for (const found of rows) found.classList.add("lit");
      if (rows.length) rows[0].scrollIntoView({ block: "nearest" });
    }

    light() {
      for (const part of this.svg.querySelectorAll(".at")) part.classList.remove("at");
      const one = this.at && `[data-${this.at[0]}="${this.at[1]}"]`;
      const part = one && this.svg.querySelector(`rect${one}, ${one} > .block`);
      if (part) part.classList.add("at");
    }

    // Arrows: left and right along a lane, up to the module around, down to what is inside.
    move(key) {
      const shown = (rows, kind, filter) =>
        [...rows.entries()].filter(([, row]) => filter(row) && this.place(row)).map(([at]) => [kind, at]);
      const first = this.at && this.at[0] === "n" ? ["o", this.leaves[this.at[1]].op] : this.at;
      if (!first || first[1] < 0) { this.at = [...shown(this.blocks, "b", Boolean), ...shown(this.ops, "o", Boolean)][0]; return; }
      const [kind, number] = first, here = (kind === "b" ? this.blocks : this.ops)[number], depth = here.depth ?? Infinity;
      const around = (row) => row.first <= here.first && here.last <= row.last && row.depth < depth;
      const inside = (row) => here.first <= row.first && row.last <= here.last && (row.depth ?? depth + 1) === depth + 1;
      const along = kind === "b" ? shown(this.blocks, "b", (row) => row.depth === depth) : shown(this.ops, "o", Boolean);
      const next = {
        ArrowUp: () => shown(this.blocks, "b", around).pop(),
        ArrowDown: () => kind === "b" && [...shown(this.blocks, "b", inside), ...shown(this.ops, "o", inside)][0],
        ArrowLeft: () => along[along.findIndex(([, at]) => at === number) - 1],
        ArrowRight: () => along[along.findIndex(([, at]) => at === number) + 1],
      }[key]();
      this.at = next || first;
    }

    key(event) {
      if (event.key === "Escape") this.zoom(null);
      else if (event.key === "Enter" && this.at) this.choose(this.at);
      else if (event.key.startsWith("Arrow")) {
        this.move(event.key);
        if (!this.at) return;
        this.light();
        this.detail();
        const box = (this.svg.querySelector(".at") || this.svg).getBoundingClientRect();
        this.tell(this.at, box.left, box.bottom);
      } else return;
      event.preventDefault();
    }

    listen() {
      const { figure, svg } = this;
      figure.querySelector("select.size").addEventListener("change", (event) => this.show(event.target.value));
      figure.addEventListener("click", (event) => {
        const { metric, crumb } = event.target.dataset, named = this.named(event.target);
        if (metric) { this.metric = metric; this.show(this.data.steps.indexOf(this.step)); }
        if (crumb !== undefined) this.zoom(crumb === "" ? null : Number(crumb));
        if (event.target.closest("button.out")) this.zoom(null);
        if (named) this.choose(named);
      });
      svg.addEventListener("pointermove", (event) => {
        const named = this.named(event.target);
        if (named) this.tell(named, event.clientX, event.clientY); else tip.hidden = true;
      });
      for (const leaving of ["pointerleave", "blur"]) svg.addEventListener(leaving, () => { tip.hidden = true; });
      svg.addEventListener("keydown", (event) => this.key(event));
      new ResizeObserver(() => this.draw()).observe(figure.querySelector(".canvas"));
    }
  }

  for (const figure of document.querySelectorAll("figure.step")) new Lanes(figure);
})();

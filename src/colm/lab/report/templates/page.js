// Values under the pointer, series and columns to switch, and tables to sort. Everything can be read without it.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (name, text = "", properties = {}) => Object.assign(document.createElement(name), {textContent: text, ...properties});
  const numbers = text => text ? text.split(" ").map(Number) : [];

  // ---- Plots ----

  const tip = document.body.appendChild(make("div", "", {className: "tip", hidden: true}));
  const count = value => value.toLocaleString("en-US", {maximumFractionDigits: 1});
  const show = {
    number: value => value && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e4) ? value.toExponential(3) : value.toPrecision(4),
    share: value => (100 * value).toFixed(1) + "%",
  };

  function follow(svg) {
    const [left, right, bottom, top] = numbers(svg.dataset.box), [x0, x1, y0, y1] = numbers(svg.dataset.view);
    const {width, height} = svg.viewBox.baseVal;
    const lines = all("[data-x]", svg).map(group => ({group, x: numbers(group.dataset.x), y: numbers(group.dataset.y)}));
    const across = x => width * (left + (right - left) * (x - x0) / (x1 - x0));
    const down = y => height * (bottom + (top - bottom) * (y - y0) / (y1 - y0));
    const cursor = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
    cursor.setAttribute("class", "cursor");

    const leave = () => { tip.hidden = true; cursor.removeAttribute("d"); };
    const move = event => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const near = lines.filter(line => !line.group.hasAttribute("hidden") && line.x.length).map(line => {
        const distances = line.x.map(x => Math.abs(across(x) - point.x));
        const at = distances.indexOf(Math.min(...distances));
        return {name: line.group.dataset.name, x: line.x[at], y: line.y[at], distance: distances[at]};
      });
      if (!near.length) return leave();
      const nearest = near.reduce((one, other) => other.distance < one.distance ? other : one);
      const shown = near.filter(one => Math.abs(across(one.x) - across(nearest.x)) < 0.04 * width);
      tip.replaceChildren(make("div", `${svg.dataset.label} ${count(nearest.x)}`), ...shown.map(one => {
        const place = one.x === nearest.x ? "" : ` at ${count(one.x)}`;
        return make("div", `${one.name} ${show[svg.dataset.kind](one.y)}${place}`.trim());
      }));
      cursor.setAttribute("d", shown.map(one => {
        const [x, y] = [across(one.x), down(one.y)];
        return `M ${x - 4} ${y} a 4 4 0 1 0 8 0 a 4 4 0 1 0 -8 0`;
      }).join(" "));
      tip.hidden = false;
      const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
      tip.style.left = `${Math.max(8, Math.min(event.clientX + 16, room))}px`;
      tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 16)}px`;
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("pointerleave", leave);
    svg.querySelector("title")?.remove();  // the browser would show it over the values; the label stays
  }

  function switchSeries(item) {
    const button = make("button", "", {type: "button"});
    button.append(...item.childNodes);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      const off = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!off));
      for (const group of all(`figure [data-series="${item.dataset.style}"]`)) group.toggleAttribute("hidden", off);
    });
    item.append(button);
  }

  // ---- Tables ----

  const read = cell => {
    const text = (cell.dataset.value ?? cell.textContent).replaceAll(",", "").replaceAll("\u2212", "-");
    return parseFloat(text.match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/)?.[0]);
  };

  function sortRows(table, column) {
    const head = table.tHead.rows[0].cells[column], words = head.classList.contains("left");
    const before = head.getAttribute("aria-sort");
    const sign = (before ? before === "descending" : words) ? 1 : -1;  // numbers begin with the largest
    const compare = (one, other) => {
      if (words) return sign * one.textContent.localeCompare(other.textContent, "en", {numeric: true});
      const [a, b] = [read(one), read(other)];
      return isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) : sign * (a - b);  // missing values come last
    };
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    table.tBodies[0].append(...rows.sort((one, other) => compare(one.cells[column], other.cells[column])));
  }

  function switchColumns(table, heads) {
    const box = make("details", "", {className: "columns"});
    box.append(make("summary", "Columns"));
    heads.slice(1).forEach((head, i) => {
      const label = make("label"), check = make("input", "", {type: "checkbox", checked: true});
      label.append(check, ` ${head.innerText.replace(/-\n/, "-").replace(/\s+/g, " ").trim()}`);
      check.addEventListener("change", () => {
        for (const row of table.rows) row.cells[i + 1].hidden = !check.checked;
      });
      box.append(label);
    });
    table.parentElement.before(box);
  }

  function serve(table) {
    const heads = [...table.tHead.rows[0].cells];
    if (heads.length > 3) switchColumns(table, heads);
    if (table.tBodies[0].rows.length < 2) return;
    heads.forEach((head, column) => {
      const button = make("button", "", {type: "button", title: "Sort"});
      button.append(...head.childNodes);
      button.addEventListener("click", () => sortRows(table, column));
      head.append(button);
    });
  }

  // ---- Folded parts ----

  function unfold(section) {
    const groups = all(":scope > details.group", section);
    if (groups.every(group => group.open)) return;
    const button = make("button", "Open all", {type: "button", className: "unfold"});
    button.addEventListener("click", () => groups.forEach(group => { group.open = true; }));
    groups[0].before(button);
  }

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not([open]):not(.columns)");
    folded.forEach(each => { each.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach(each => { each.open = false; }));

  all("figure svg[data-box]").forEach(follow);
  all(".legend li").forEach(switchSeries);
  all("table.sortable").forEach(serve);
  all("section").forEach(unfold);
})();

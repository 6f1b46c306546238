"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);

  /* -- buttons of which one is pressed ---------------------------------------------------------------- */

  function onSwitch(name, change) {
    const group = one(`[data-switch="${name}"]`);
    if (!group) return () => "";
    const value = () => one('[aria-pressed="true"]', group).dataset.value;
    group.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      for (const other of all("button", group)) other.setAttribute("aria-pressed", String(other === button));
      change();
    });
    return value;
  }

  /* -- tables: sorting and filtering ------------------------------------------------------------------- */

  function cellValue(row, column) {
    const cell = row.cells[column];
    const text = (cell.dataset.value ?? cell.textContent).trim();
    const number = Number(text.replace("%", ""));
    return text !== "" && Number.isFinite(number) ? number : text.toLowerCase();
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b));
  }

  for (const table of all("table.sortable")) {
    const heads = all("th", table);
    heads.forEach((head, column) => {
      head.addEventListener("click", () => {
        const up = head.dataset.sorted ? head.dataset.sorted === "down" : !head.classList.contains("n");
        for (const other of heads) delete other.dataset.sorted;
        head.dataset.sorted = up ? "up" : "down";
        const rows = all("tbody tr", table).map((row) => [cellValue(row, column), row]);
        rows.sort((a, b) => (up ? 1 : -1) * compare(a[0], b[0]));
        one("tbody", table).append(...rows.map((pair) => pair[1]));
      });
    });
    const key = table.dataset.switched;
    const input = one(`[data-filter="${table.id}"]`);
    const output = input.nextElementSibling;
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const wanted = chosen();
      let shown = 0;
      for (const row of all("tbody tr", table)) {
        const text = row.textContent.toLowerCase();
        row.hidden = !((!wanted || row.dataset[key] === wanted) && words.every((word) => text.includes(word)));
        shown += row.hidden ? 0 : 1;
      }
      output.textContent = words.length ? `${shown} rows` : "";
    };
    const chosen = onSwitch(key, filter);
    input.addEventListener("input", filter);
    filter();
  }

  /* -- the drawing ------------------------------------------------------------------------------------- */

  const viewer = one("#viewer");
  if (!viewer) return;
  const canvas = one("#canvas");
  const details = one("#details");
  const find = one("#find");
  const hits = one("#hits");
  const drawings = new Map([[`${canvas.dataset.which} ${canvas.dataset.folding}`, one("svg", canvas)]]);
  for (const template of all("template[data-which]")) {
    drawings.set(`${template.dataset.which} ${template.dataset.folding}`, template);
  }
  let svg, width, height, scale, current = -1, found = [];

  async function unpacked(template) {
    if (!template.dataset.packed) return template.content.firstElementChild;
    if (!("DecompressionStream" in window)) return null;
    const bytes = Uint8Array.from(atob(template.dataset.packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const holder = document.createElement("div");
    holder.innerHTML = await new Response(stream).text();
    return holder.firstElementChild;
  }

  async function show() {
    const key = `${which()} ${folding()}`;
    let drawing = drawings.get(key);
    if (drawing instanceof HTMLTemplateElement) {
      drawing = await unpacked(drawing);
      if (!drawing) {
        hits.textContent = "This browser cannot unpack the drawing; a newer one can.";
        return;
      }
      drawings.set(key, drawing);
      if (key !== `${which()} ${folding()}`) return; /* another button was pressed meanwhile */
    }
    canvas.replaceChildren(drawing);
    svg = drawing;
    [width, height] = svg.getAttribute("viewBox").split(" ").slice(2).map(Number);
    details.hidden = true;
    const fitted = Math.min(viewer.clientWidth / width, (0.7 * window.innerHeight) / height);
    zoom(Math.max(Math.min(fitted, 1), Math.min(viewer.clientWidth / width, 1), 0.7));
    viewer.style.height = `${Math.min(height * scale + 20, 0.76 * window.innerHeight, 900)}px`;
    viewer.scrollTo(0, 0);
    search();
  }

  function zoom(wanted, x = viewer.clientWidth / 2, y = viewer.clientHeight / 2) {
    const before = scale ?? wanted;
    scale = Math.min(Math.max(wanted, 0.03), 6);
    const left = (viewer.scrollLeft + x) * (scale / before) - x;
    const top = (viewer.scrollTop + y) * (scale / before) - y;
    svg.style.width = `${width * scale}px`;
    svg.style.height = `${height * scale}px`;
    viewer.scrollTo(left, top);
  }

  const fit = () => zoom(Math.min(viewer.clientWidth / width, viewer.clientHeight / height));
  const steps = { in: () => zoom(scale * 1.3), out: () => zoom(scale / 1.3), full: () => zoom(1), fit };
  for (const button of all("[data-zoom]")) button.addEventListener("click", () => steps[button.dataset.zoom]());
  viewer.addEventListener("keydown", (event) => {
    const step = { "+": "in", "=": "in", "-": "out", 0: "fit", 1: "full" }[event.key];
    if (step && !event.ctrlKey && !event.metaKey) steps[step]();
  });
  viewer.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const area = viewer.getBoundingClientRect();
    zoom(scale * Math.exp(-event.deltaY / 400), event.clientX - area.left, event.clientY - area.top);
  }, { passive: false });

  let drag = null;
  viewer.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button !== 0) return;
    drag = { x: event.clientX, y: event.clientY, left: viewer.scrollLeft, top: viewer.scrollTop, moved: false };
  });
  window.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    drag.moved ||= Math.hypot(dx, dy) > 4;
    viewer.classList.toggle("dragging", drag.moved);
    if (drag.moved) viewer.scrollTo(drag.left - dx, drag.top - dy);
  });
  window.addEventListener("pointerup", (event) => {
    const moved = drag?.moved;
    drag = null;
    viewer.classList.remove("dragging");
    if (!moved && viewer.contains(event.target)) choose(event.target.closest?.("g.n"));
  });

  function choose(box) {
    for (const other of all(".chosen, .near", svg)) other.classList.remove("chosen", "near");
    details.hidden = !box;
    if (!box) return;
    box.classList.add("chosen");
    details.textContent = one("title", box).textContent;
    const key = box.dataset.k;
    for (const link of all("g[data-f]", svg)) {
      if (link.dataset.f === key || link.dataset.t === key) link.classList.add("near");
    }
  }

  /* -- search ------------------------------------------------------------------------------------------ */

  function search(closer = false) {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = [];
    current = -1;
    for (const box of all("g.n", svg)) {
      const text = `${box.dataset.s} ${box.dataset.n}`.toLowerCase();
      const hit = words.length > 0 && words.every((word) => text.includes(word));
      box.classList.toggle("found", hit);
      box.classList.toggle("dim", words.length > 0 && !hit);
      if (hit) found.push(box);
    }
    hits.textContent = words.length ? `${found.length} found` : "";
    if (found.length) next(1, closer);
  }

  function next(step, closer) {
    if (!found.length) return;
    current = (current + step + found.length) % found.length;
    if (closer && scale < 0.9) zoom(1);
    const box = found[current].getBoundingClientRect(), area = viewer.getBoundingClientRect();
    viewer.scrollBy(box.x + box.width / 2 - area.x - area.width / 2, box.y + box.height / 2 - area.y - area.height / 2);
    hits.textContent = `${current + 1} of ${found.length}`;
  }

  find.addEventListener("input", () => search());
  find.addEventListener("keydown", (event) => {
    if (event.key === "Enter") next(event.shiftKey ? -1 : 1, true);
  });
  for (const button of all(".go")) {
    button.addEventListener("click", () => {
      find.value = button.dataset.find;
      one("#graph").scrollIntoView();
      search(true);
    });
  }

  const which = onSwitch("which", show);
  const folding = onSwitch("folding", show);
  show();
})();

// Two models or settings side by side: detections lost, gained, changed, and the first difference.

const KINDS = { lost: "only in A", gained: "only in B", changed: "changed", same: "the same" };
const KIND_COLORS = { lost: "#ff4d3d", gained: "#4ade80", changed: "#ffb020", same: "#5db4ff" };

function compareSection() {
  const C = D.compare;
  const other = { boxes: unpack(C.detections.page_boxes), labels: C.detections.labels, scores: C.detections.scores, masks: C.detections.masks };
  const own = { boxes: detections.pageBoxes, labels: detections.labels, scores: detections.scores, masks: detections.masks };
  let current = C.changes.find((change) => change.kind !== "same") ?? C.changes[0] ?? null;
  const shown = (key) => C.changes.filter((change) => change[key] !== null);
  const side = (key, found, label) => new Figure({
    source: D.image.source, size: D.image.page, label, tall: 460,
    point: (x, y) => {
      const hits = shown(key).filter((change) => inside(found.boxes.row(change[key]), x, y)).sort((p, q) => area(found.boxes.row(p[key])) - area(found.boxes.row(q[key])));
      if (hits.length) pick(hits[0]);
    },
    draw: (pen) => {
      for (const change of shown(key).reverse()) {
        if (change.kind === "same" && change !== current) pen.box(found.boxes.row(change[key]), { color: KIND_COLORS.same, width: 1.5, halo: true, alpha: 0.8 });
      }
      for (const change of shown(key).reverse()) {
        if (change.kind !== "same" && change !== current) pen.box(found.boxes.row(change[key]), { color: KIND_COLORS[change.kind], width: 1.8, halo: true });
      }
      if (!current) return;
      if (current[key] === null) { // where it would be
        const [theirs, name] = key === "a" ? [other, "b"] : [own, "a"];
        pen.box(theirs.boxes.row(current[name]), { color: KIND_COLORS[current.kind], width: 2, dashed: true, halo: true });
        return;
      }
      const index = current[key];
      if (found.masks) drawMask(pen, found.masks.pasted[index], KIND_COLORS[current.kind]);
      pen.box(found.boxes.row(index), { color: KIND_COLORS[current.kind], width: 3, halo: true });
      pen.tag(`${className(found.labels[index])} ${fixed(found.scores[index])}`, found.boxes.row(index)[0], found.boxes.row(index)[1], KIND_COLORS[current.kind]);
    },
  });
  const left = side("a", own, "Detections of A");
  const right = side("b", other, "Detections of B");
  const info = el("div", {});
  const rows = [];
  const pick = (change) => {
    current = change;
    rows.forEach(([row, of]) => row.classList.toggle("chosen", of === change));
    left.redraw();
    right.redraw();
    info.replaceChildren(...(change ? describe(change) : []));
  };
  const describe = (change) => {
    const step = D.steps.find(({ id }) => id === change.step);
    return [
      el("p", {}, el("b", {}, change.kind === "changed" ? `Changed: IoU of the boxes ${fixed(change.iou, 3)}${change.mask_iou === null ? "" : `, of the masks ${fixed(change.mask_iou, 3)}`}.` : `This detection is ${KINDS[change.kind]}${change.kind === "same" ? " in both" : ""}.`)),
      step ? el("p", { class: "note" }, "First difference: ", el("a", { href: `#${step.id}` }, step.title), `. ${change.text}`) : null,
      change.fate ? el("p", { class: "note" }, `In ${change.kind === "lost" ? "B" : "A"}: ${change.fate}`) : null,
    ].filter(Boolean);
  };
  const cells = (change) => {
    const of = change.a !== null ? [own, change.a] : [other, change.b];
    const step = D.steps.find(({ id }) => id === change.step);
    return [
      el("span", { class: "dot", style: `display:inline-block;margin-right:9px;background:${KIND_COLORS[change.kind]}` }), KINDS[change.kind], className(of[0].labels[of[1]]),
      change.a === null ? "–" : fixed(own.scores[change.a]), change.b === null ? "–" : fixed(other.scores[change.b]), step ? step.title : "–"];
  };
  const rank = Object.keys(KINDS);
  const sorted = [...C.changes].sort((p, q) => rank.indexOf(p.kind) - rank.indexOf(q.kind));
  const list = el("table", {},
    el("thead", {}, el("tr", {}, ["Change", "Class", "Score in A", "Score in B", "First difference"].map((head) => el("th", {}, head)))),
    el("tbody", {}, sorted.map((change) => {
      const [dot, kind, ...rest] = cells(change);
      const button = el("button", { type: "button", class: "plain", style: "background:none;padding:0;color:inherit", onclick: () => pick(change) }, kind);
      const row = el("tr", { "data-change": change.kind }, el("td", {}, dot, button), rest.map((cell) => el("td", {}, cell)));
      rows.push([row, change]);
      return row;
    })));
  const number = (kind) => C.changes.filter((change) => change.kind === kind).length;
  pick(current);
  return el("section", { class: "stage", id: "compare" },
    el("h2", {}, el("span", { class: "number" }, String(D.steps.length + (D.training ? 2 : 1))), "Comparison"),
    el("p", { class: "look" }, "For each detection that differs, the first stage at which the two runs diverge."),
    el("div", { class: "facts" }, el("span", {}, "A ", el("b", {}, C.a)), el("span", {}, "B ", el("b", {}, C.b)),
      Object.keys(KINDS).map((kind) => el("span", {}, `${KINDS[kind]} `, el("b", {}, count(number(kind)))))),
    el("div", { class: "body" },
      el("div", { class: "row" }, el("div", { class: "c6" }, left.host, el("p", { class: "caption" }, `A: ${plural(own.scores.length, "detection")}`)),
        el("div", { class: "c6" }, right.host, el("p", { class: "caption" }, `B: ${plural(other.scores.length, "detection")}`))),
      legend(...Object.keys(KINDS).map((kind) => [KINDS[kind], KIND_COLORS[kind]])),
      el("div", { class: "row", style: "margin-top:20px" }, el("div", { class: "c7 scroll" }, C.changes.length ? list : el("p", { class: "note" }, "Neither has a detection.")),
        el("div", { class: "c5 panel" }, el("h3", {}, "The chosen one"), info))));
}

// Both NMS steps: the candidates before and after, and who suppressed whom.

// groupName(group) -> text; of: what kept ones are called; pick(index) chooses a candidate.
function nmsExplorer({ selection, noun, groupName, chosenIndex, pick, filter = null }) {
  let shown = Math.min(60, selection.order.length);
  let after = false;
  let group = -1;
  const info = el("div", {});
  const list = () => selection.order.filter((i) => !selection.filtered(i) && (group < 0 || selection.groups.values[i] === group) && (!after || selection.kept.values[i] >= 0)).slice(0, shown);
  const figure = imageFigure({
    label: "Candidates of NMS. Click a box to see what became of it.",
    zoom: () => {
      const index = chosenIndex();
      if (index === null || index < 0) return chosen.object === null ? [] : [objects[chosen.object].box];
      const by = selection.suppressor ? selection.suppressor.values[index] : -1;
      return (by >= 0 ? [index, by] : [index]).map((i) => Array.from(selection.boxes.row(i)));
    },
    point: (x, y) => {
      const under = list().filter((i) => inside(selection.boxes.row(i), x, y)).sort((a, b) => area(selection.boxes.row(a)) - area(selection.boxes.row(b)));
      if (!under.length) return;
      // Clicks at one place go through the boxes that lie there, from the smallest.
      pick(under[(under.indexOf(chosenIndex()) + 1) % under.length]);
    },
    keys: (dx, dy) => {
      const all = list();
      if (all.length) pick(all[(all.indexOf(chosenIndex()) + dx + dy + all.length) % all.length]);
    },
    draw: (pen) => {
      drawObjects(pen);
      for (const i of list().reverse()) {
        const kept = selection.kept.values[i] >= 0;
        pen.box(selection.boxes.row(i), { color: kept ? ON_IMAGE.other : "#ffffff", width: kept ? 1.8 : 1, alpha: kept ? 0.95 : 0.45, halo: kept });
      }
      const index = chosenIndex();
      if (index === null || index < 0) return;
      const by = selection.suppressor ? selection.suppressor.values[index] : -1;
      if (by >= 0) {
        pen.box(selection.boxes.row(by), { color: ON_IMAGE.suppressor, width: 2.5, halo: true });
        pen.tag(`suppressed by ${by}, IoU ${fixed(selection.iou.values[index])}`, selection.boxes.row(by)[0], selection.boxes.row(by)[3], ON_IMAGE.suppressor, true);
      } else if (selection.suppressor) {
        selection.suppressor.values.forEach((other, i) => { if (other === index) pen.box(selection.boxes.row(i), { color: ON_IMAGE.suppressor, width: 1, dashed: true, alpha: 0.7 }); });
      }
      pen.box(selection.boxes.row(index), { color: ON_IMAGE.chosen, width: 3, halo: true });
    },
  });
  function update() {
    const index = chosenIndex();
    const total = selection.order.filter((i) => !selection.filtered(i)).length;
    const kept = selection.kept.values.filter((v) => v >= 0).length;
    const cut = selection.rank ? selection.rank.values.filter((v) => v >= selection.limit).length : null;
    const dropped = selection.suppressor ? selection.suppressor.values.filter((v) => v >= 0).length : null;
    const filtered = selection.order.length - total;
    const lines = [
      el("h3", {}, "In numbers"),
      table(["", ""], [
        ["candidates", count(total)], ...(filtered ? [["filtered out before", count(filtered)]] : []),
        ["suppressed", dropped === null ? NOT_AVAILABLE : count(dropped)],
        [`beyond the cap of ${count(selection.limit)}`, cut === null ? NOT_AVAILABLE : count(cut)],
        [`kept as ${noun}s`, count(kept)], ["IoU threshold", String(selection.threshold)],
      ].map((cells) => ({ cells }))),
    ];
    lines[1].querySelector("thead").remove();
    if (index !== null && index >= 0) {
      const victims = selection.suppressor ? Array.from(selection.suppressor.values).filter((v) => v === index).length : 0;
      lines.push(el("h3", { style: "margin-top:16px" }, `Candidate ${index}`),
        el("p", { class: "note" }, `${groupName(selection.groups.values[index])}; ${candidateText(selection, index, noun)}.`),
        el("p", { class: "caption" }, `Box (${boxText(Array.from(selection.boxes.row(index)))})`),
        victims ? el("p", { class: "note" }, `It suppressed ${plural(victims, "box")}.`.replace("boxs", "boxes")) : null);
      const by = selection.suppressor ? selection.suppressor.values[index] : -1;
      if (by >= 0) lines.push(el("p", {}, el("button", { type: "button", class: "plain", onclick: () => pick(by) }, `Go to candidate ${by}`)));
    } else lines.push(el("p", { class: "note", style: "margin-top:14px" }, "Click a box, or use the arrow keys."));
    info.replaceChildren(...lines.filter(Boolean));
    figure.redraw();
  }
  onChoice(update);
  const toggle = segments(["Before NMS", "After NMS"], 0, (i) => { after = i === 1; figure.redraw(); }, "Before or after NMS");
  return el("div", {},
    el("div", { class: "controls" }, toggle.host, slider("boxes shown, best first", Math.min(600, selection.order.length), shown, (n) => { shown = n; figure.redraw(); }),
      filter ? filter((value) => { group = value; figure.redraw(); }) : null),
    el("div", { class: "row" },
      el("div", { class: "c8" }, figure.host, legend(["kept", ON_IMAGE.other], ["suppressed or cut", "var(--faint)"], ["chosen", ON_IMAGE.chosen], ["its suppressor, or the boxes it suppressed", ON_IMAGE.suppressor], ...(objects ? [["object", ON_IMAGE.truth, true]] : []))),
      el("div", { class: "c4 panel" }, info)));
}

function proposalsStage() {
  if (!rpn) return notAvailable("Candidates and suppression");
  return nmsExplorer({
    selection: rpn, noun: "proposal", groupName: (g) => `Level ${D.levels[g]?.name ?? g}`,
    chosenIndex: () => chosen.candidate, pick: (i) => choose({ candidate: i }),
    filter: (change) => el("label", {}, "level", el("select", { onchange: (event) => change(Number(event.target.value)) },
      el("option", { value: -1 }, "all"), D.levels.map(({ name }, i) => el("option", { value: i }, name)))),
  });
}

function classNmsStage() {
  if (!box) return notAvailable("Class rows and suppression");
  const labels = [...new Set(box.groups.values)].sort((a, b) => a - b).filter((label) => label > 0);
  const rows = box.order.filter((i) => !box.filtered(i));
  if (!rows.length) return el("p", { class: "note" }, `No class of any proposal scores above the threshold of ${D.score_thresh}: there is nothing to suppress.`);
  const cut = box.rank ? rows.filter((i) => box.rank.values[i] >= box.limit) : [];
  return el("div", {},
    el("p", { class: "note", style: "margin-bottom:14px" }, `Of ${count(proposals.scores.length * (D.classes.length - 1))} pairs of a proposal and a class, ${count(rows.length)} score above ${D.score_thresh}.`),
    nmsExplorer({
      selection: box, noun: "detection", groupName: (label) => `Class ${className(label)}`,
      chosenIndex: () => chosen.classCandidate, pick: (i) => choose({ classCandidate: i }),
      filter: (change) => el("label", {}, "class", el("select", { onchange: (event) => change(Number(event.target.value)) },
        el("option", { value: -1 }, "all"), labels.map((label) => el("option", { value: label }, className(label))))),
    }),
    cut.length ? el("details", { class: "tensors" }, el("summary", {}, `What the cap of ${count(box.limit)} cut (${count(cut.length)})`),
      table(["Rank", "Class", "Score", "Proposal"], cut.slice(0, 200).map((i) => ({ cells: [count(box.rank.values[i] + 1), className(box.groups.values[i]), fixed(box.scores.values[i], 3), String(box.parents.values[i])] })))) : null);
}

// Stages before the RPN: the image before and after the transform, and the feature pyramid.

function transformStage() {
  const [originalH, originalW] = D.image.original;
  const [pageH, pageW] = D.image.page;
  const [paddedH, paddedW] = D.image.padded;
  const before = new Figure({
    source: D.image.source, size: [originalH, originalW], label: "The image as it was given", tall: 470,
    draw: (pen) => {
      const scale = originalW / pageW;
      if (objects) objects.forEach((object, i) => pen.box(object.page_box.map((v) => v * scale), { color: i === chosen.object ? ON_IMAGE.chosen : ON_IMAGE.truth, dashed: true, halo: true, width: i === chosen.object ? 2 : 1.2 }));
    },
  });
  const after = new Figure({
    source: D.image.batch, size: [paddedH, paddedW], label: "The batch that the backbone sees", tall: 470,
    draw: (pen) => {
      const padding = { color: "#0000", fill: "#8886" };
      if (paddedW > RESIZED_W) pen.box([RESIZED_W, 0, paddedW, paddedH], padding);
      if (paddedH > RESIZED_H) pen.box([0, RESIZED_H, RESIZED_W, paddedH], padding);
      drawObjects(pen);
    },
  });
  onChoice(() => { before.redraw(); after.redraw(); });
  const { mean, std } = D.image;
  const factor = RESIZED_W / originalW;
  const sides = objects?.map((object) => Math.min(object.box[2] - object.box[0], object.box[3] - object.box[1])) ?? [];
  const smallest = sides.length ? ` The shortest side of an object is ${fixed(Math.min(...sides), 1)} pixels.` : "";
  return el("div", { class: "row" },
    el("div", { class: "c6" }, before.host, el("p", { class: "caption" }, `Before: ${times(D.image.original)} pixels (height × width)`)),
    el("div", { class: "c6" }, after.host, el("p", { class: "caption" },
      `After: resized to ${times(D.image.resized)}, a factor of ${fixed(factor, 3)}; padded to ${times(D.image.padded)}.${smallest}`)),
    mean ? el("p", { class: "note c12" }, `Each channel becomes (pixel − mean) / std, with mean (${mean.map((v) => fixed(v, 3)).join(", ")}) and std (${std.map((v) => fixed(v, 3)).join(", ")}). In the picture, ${fixed(D.image.range[0])} is black and ${fixed(D.image.range[1])} is white.`) : null);
}

function featuresStage() {
  let level = 0;
  let channel = -1; // position in the sheet; -1 for the principal components
  let cursor = [RESIZED_W / 2, RESIZED_H / 2];
  const colors = D.levels.map(({ colors: source }) => picture(source, () => maps.redraw()));
  const sheets = D.levels.map(({ sheet }) => picture(sheet.source, () => { maps.redraw(); drawTiles(); }));
  const tiles = el("div", { class: "tiles" });
  const caption = el("p", { class: "caption" });
  const fieldCaption = el("p", { class: "caption" });
  const [paddedH, paddedW] = D.image.padded;
  const move = (x, y) => {
    cursor = [Math.max(0, Math.min(RESIZED_W - 0.01, x)), Math.max(0, Math.min(RESIZED_H - 0.01, y))];
    update();
  };
  const keys = (dx, dy) => move(cursor[0] + dx * D.levels[level].stride[1], cursor[1] + dy * D.levels[level].stride[0]);
  const cell = () => {
    const [dy, dx] = D.levels[level].stride;
    const [column, row] = [Math.floor(cursor[0] / dx), Math.floor(cursor[1] / dy)];
    return { row, column, box: [column * dx, row * dy, (column + 1) * dx, (row + 1) * dy] };
  };
  const maps = new Figure({
    size: [RESIZED_H, RESIZED_W], label: "Feature map of the level", hover: move, point: move, keys,
    draw: (pen) => {
      const frame = [0, 0, paddedW, paddedH];
      if (channel < 0) pen.image(colors[level], frame);
      else {
        const { columns, tile: [h, w] } = D.levels[level].sheet;
        const [x, y] = [(channel % columns) * w, Math.floor(channel / columns) * h];
        pen.c.imageSmoothingEnabled = false;
        pen.c.drawImage(sheets[level], x, y, w, h, 0, 0, paddedW * pen.scale, paddedH * pen.scale);
      }
      pen.box(cell().box, { color: "#fff", width: 2, halo: true });
    },
  });
  const view = imageFigure({
    label: "Receptive field on the image", hover: move, point: move, keys,
    draw: (pen) => {
      const { box: b } = cell();
      const field = D.levels[level].field;
      if (field) {
        const [x, y] = [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2];
        const big = 1e5;
        pen.box([x - (field[0] ?? big), y - (field[1] ?? big), x + (field[2] ?? big), y + (field[3] ?? big)], { color: ON_IMAGE.other, width: 2, halo: true, fill: "#5db4ff26" });
      }
      pen.box(b, { color: ON_IMAGE.chosen, width: 2, halo: true });
      if (chosen.anchor !== null) drawChosenAnchor(pen);
    },
  });
  function drawTiles() {
    const { columns, tile: [h, w], channels, strengths } = D.levels[level].sheet;
    tiles.replaceChildren(...channels.map((name, index) => {
      const canvas = el("canvas");
      canvas.width = w;
      canvas.height = h;
      canvas.getContext("2d").drawImage(sheets[level], (index % columns) * w, Math.floor(index / columns) * h, w, h, 0, 0, w, h);
      return el("button", {
        type: "button", title: `channel ${name}, strongest activation ${strengths[index]}`, "aria-label": `channel ${name}`,
        "aria-pressed": index === channel, onclick: () => { channel = index === channel ? -1 : index; drawTiles(); update(); },
      }, canvas);
    }));
  }
  function update() {
    const { name, stride, field, channels, sheet, height, width } = D.levels[level];
    const { row, column } = cell();
    caption.textContent = channel < 0
      ? `Level ${name}: ${channels} channels of ${height} × ${width}. Their three principal components are red, green and blue.`
      : `Level ${name}, channel ${sheet.channels[channel]}: strongest activation ${sheet.strengths[channel]}.`;
    const across = field ? field.map((side) => (side === null ? null : side)) : null;
    const fieldText = !across ? `receptive field ${NOT_AVAILABLE}`
      : across.includes(null) ? "receptive field of more than 512 pixels"
        : `receptive field ${fixed(across[1] + across[3], 0)} × ${fixed(across[0] + across[2], 0)} pixels`;
    fieldCaption.textContent = `Row ${row}, column ${column}: stride ${fixed(stride[0], 0)} × ${fixed(stride[1], 0)} pixels, ${fieldText}.`;
    maps.redraw();
    view.redraw();
  }
  const pick = segments(D.levels.map(({ name }) => `Level ${name}`), 0, (index) => { level = index; channel = -1; drawTiles(); update(); }, "Level");
  onChoice(({ anchor }) => {
    const place = anchor === null ? null : anchorPlace(anchor);
    if (place) {
      level = place.level;
      channel = -1;
      pick.set(level, true);
      const [dy, dx] = D.levels[level].stride;
      cursor = [Math.min(RESIZED_W - 0.01, (place.column + 0.5) * dx), Math.min(RESIZED_H - 0.01, (place.row + 0.5) * dy)];
      drawTiles();
    }
    update();
  });
  return el("div", {},
    el("div", { class: "controls" }, pick.host),
    el("div", { class: "row" },
      el("div", { class: "c6" }, maps.host, caption),
      el("div", { class: "c6" }, view.host, fieldCaption)),
    el("h3", { style: "margin:18px 0 8px" }, "Channels, the strongest activation first"), tiles);
}

// An image element of a data URI; done() once it can be drawn.
function picture(source, done) {
  const image = new Image();
  image.onload = done;
  image.src = source;
  return image;
}

function drawChosenAnchor(pen) {
  const b = chosen.anchor === null ? null : boxOfAnchor(chosen.anchor);
  if (b) pen.box(b, { color: ON_IMAGE.anchor, width: 2, dashed: true, halo: true });
}

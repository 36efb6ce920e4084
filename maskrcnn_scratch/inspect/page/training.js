function trainingSection() { return el("section", { class: "stage", id: "training" }); }

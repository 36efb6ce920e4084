function compareSection() { return el("section", { class: "stage", id: "compare" }); }

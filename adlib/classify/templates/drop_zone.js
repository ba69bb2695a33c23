// Sends chosen or dropped files to the kernel in parts, since servers drop messages above 10 MB.
const PART = 4 * 2 ** 20; // bytes

function filesOf(entry) {
  if (entry.isFile) {
    return new Promise((done, fail) => {
      entry.file((file) => done([{ file, name: entry.fullPath.slice(1) }]), fail);
    });
  }
  const reader = entry.createReader();
  const batch = () => new Promise((done, fail) => reader.readEntries(done, fail));
  return (async () => {
    const found = [];
    for (let entries = await batch(); entries.length; entries = await batch()) {
      for (const one of entries) found.push(...(await filesOf(one)));
    }
    return found;
  })();
}

async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  return (await Promise.all(entries.map(filesOf))).flat();
}

function build(el) {
  el.innerHTML = `<div class="adlib-drop" role="group" aria-label="Scans">
    <button type="button" data-kind="files">Choose scans</button>
    <button type="button" data-kind="folder">Choose a folder</button>
    <span>or drop them here</span>
    <small>NIfTI (.nii, .nii.gz), .mgz, a pair of .hdr and .img, DICOM as zip, folder or files; several at once</small>
    <input type="file" data-kind="files" multiple hidden>
    <input type="file" data-kind="folder" webkitdirectory hidden>
    <small role="status"></small></div>`;
  return el.firstElementChild;
}

function render({ model, el }) {
  const zone = build(el);
  const status = zone.querySelector("[role=status]");
  let resume = () => {};
  model.on("msg:custom", () => resume());

  async function send(files) {
    if (!files.length || zone.ariaBusy === "true") return;
    zone.ariaBusy = "true";
    model.send({ files: files.map(({ file, name }) => ({ name, size: file.size })) });
    const total = files.reduce((sum, { file }) => sum + file.size, 0);
    let sent = 0;
    for (const [number, { file }] of files.entries()) {
      if (sent + file.size > model.get("most")) continue;
      for (let start = 0; start < file.size; start += PART) {
        const part = await file.slice(start, start + PART).arrayBuffer();
        const arrived = new Promise((done) => { resume = done; });
        model.send({ number }, undefined, [part]);
        await arrived;
        sent += part.byteLength;
        status.textContent = `receiving: ${Math.round((100 * sent) / total)} %`;
      }
    }
    model.send({ end: true });
    status.textContent = "";
    zone.ariaBusy = "false";
  }

  zone.querySelector("input[multiple]").accept = model.get("accept").join(",");
  for (const input of zone.querySelectorAll("input")) {
    zone.querySelector(`button[data-kind=${input.dataset.kind}]`).onclick = () => input.click();
    input.onchange = async () => {
      await send([...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name })));
      input.value = "";
    };
  }
  zone.ondragover = (event) => { event.preventDefault(); zone.classList.add("over"); };
  zone.ondragleave = () => zone.classList.remove("over");
  zone.ondrop = async (event) => {
    event.preventDefault();
    event.stopPropagation();
    zone.classList.remove("over");
    send(await dropped(event.dataTransfer));
  };

  if (!document.body.dataset.voila) return; // JupyterLab has a title and landmarks of its own
  document.getElementById("rendered_cells")?.setAttribute("role", "main");
  const title = document.title;
  model.on("change:progress", () => { document.title = [model.get("progress"), title].filter(Boolean).join(" · "); });
}

export default { render };

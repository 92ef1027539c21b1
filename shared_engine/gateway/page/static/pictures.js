/** Images for a message: chosen, pasted or dropped. They are sent as they are. */

import { byId, el, icon, note } from "./dom.js";
import { bytes } from "./format.js";

const MOST_BYTES = 20 * 2 ** 20;

export function choosePictures() {
  const list = byId("pictures");
  const composer = byId("composer");
  let chosen = [];

  const show = () => {
    list.hidden = chosen.length === 0;
    list.replaceChildren(
      ...chosen.map((picture) => {
        const remove = () => {
          chosen = chosen.filter((each) => each !== picture);
          show();
          byId("message").focus();
        };
        const button = el("button", { class: "quiet icon-only", type: "button", title: `Remove ${picture.name}`, onclick: remove }, icon("close"));
        return el("li", {}, el("img", { src: picture.url, alt: picture.name }), button);
      }),
    );
  };
  const add = async (files) => {
    for (const file of files) {
      if (!file.type.startsWith("image/")) note(`${file.name} is not an image`, "error");
      else if (file.size > MOST_BYTES) note(`${file.name} is larger than ${bytes(MOST_BYTES)}`, "error");
      else chosen.push({ name: file.name, url: await dataUrlOf(file) });
    }
    show();
  };

  byId("picture-files").addEventListener("change", async ({ target }) => {
    await add([...target.files]);
    target.value = ""; // so that the same file can be chosen again
  });
  byId("message").addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length === 0) return;
    event.preventDefault();
    add(files);
  });
  composer.addEventListener("dragover", (event) => {
    event.preventDefault();
    composer.classList.add("target");
  });
  composer.addEventListener("dragleave", () => composer.classList.remove("target"));
  composer.addEventListener("drop", (event) => {
    event.preventDefault();
    composer.classList.remove("target");
    add([...event.dataTransfer.files]);
  });
  return {
    get count() {
      return chosen.length;
    },
    /** Those chosen; none are left. */
    take() {
      const taken = chosen;
      chosen = [];
      show();
      return taken;
    },
    put(pictures) {
      chosen = [...pictures];
      show();
    },
  };
}

function dataUrlOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

// What happens in the page without asking the server: reading the class beneath the pointer, opacity, pasting.
(() => {
  "use strict";
  const decoded = new WeakMap(); // image -> {text, ids}; the element stays when its result is replaced

  async function inflate(text, bytes) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    return bytes === "2" ? new Uint16Array(buffer) : new Uint8Array(buffer);
  }

  function idsOf(image) {
    const text = image.dataset.ids;
    if (decoded.get(image)?.text !== text) {
      decoded.set(image, { text, ids: inflate(text, image.dataset.bytes), names: JSON.parse(image.dataset.names) });
    }
    return decoded.get(image);
  }

  function silence() {
    for (const each of document.querySelectorAll(".zoo-label.is-shown, .zoo-legend .is-here")) {
      each.classList.remove("is-shown", "is-here");
    }
  }

  // x and y are from 0 to 1, so that the same place is read in every image of the page.
  async function read(image, x, y) {
    const width = Number(image.dataset.width), height = Number(image.dataset.height);
    const { ids, names } = idsOf(image);
    const column = Math.min(Math.floor(x * width), width - 1), row = Math.min(Math.floor(y * height), height - 1);
    const name = names[(await ids)[row * width + column]];
    if (x !== place.x || y !== place.y) return; // the pointer has moved on
    const label = image.querySelector(".zoo-label");
    label.textContent = name;
    label.style.left = `${100 * x}%`;
    label.style.top = `${100 * y}%`;
    label.style.setProperty("--to-left", x > 0.6 ? 1 : 0);
    label.style.setProperty("--up", y > 0.2 ? 1 : 0);
    label.classList.add("is-shown");
    for (const item of image.parentElement.querySelectorAll(".zoo-legend li")) {
      item.classList.toggle("is-here", item.dataset.name === name);
    }
  }

  let place = { x: NaN, y: NaN };
  function follow(event) {
    const image = event.target.closest?.(".zoo-image");
    if (!image) {
      place = { x: NaN, y: NaN };
      return silence();
    }
    const box = image.getBoundingClientRect();
    place = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
    for (const each of image.closest(".zoo-results").querySelectorAll(".zoo-image")) read(each, place.x, place.y);
  }
  document.addEventListener("pointermove", follow);
  document.addEventListener("pointerdown", follow);
  document.documentElement.addEventListener("pointerleave", () => {
    place = { x: NaN, y: NaN };
    silence();
  });

  window.zooOpacity = (percent) => document.documentElement.style.setProperty("--zoo-opacity", percent / 100);

  document.addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])].find((file) => file.type.startsWith("image/"));
    const target = document.querySelector("#zoo-input .upload-container");
    if (!pasted || !target) return;
    event.preventDefault();
    const carried = new DataTransfer();
    carried.items.add(pasted);
    target.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
  });
})();

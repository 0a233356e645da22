// A browser starts no worker for a page that was opened from a folder (file://); the search runs in a frame then.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentDocument;
      inside.open();
      inside.write("<body></body>");
      inside.close();
      const view = this.frame.contentWindow;
      const tell = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      view.postMessage = (data) => setTimeout(tell, 0, data);
      const load = (source) =>
        new Promise((done, failed) => {
          const script = inside.createElement("script");
          Object.assign(script, { src: new URL(source, location.href).href, onload: done, onerror: failed });
          inside.body.append(script);
        });
      view.importScripts = (...sources) => Promise.all(sources.map(load));
      this.ready = load(url);
    }

    postMessage(data) {
      const view = this.frame.contentWindow;
      this.ready.then(() => view.dispatchEvent(new view.MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}

// Browsers start no workers for pages that are opened from a disk. There the script of the search
// runs in a hidden frame, which has the functions of a worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.append(frame);
      const scope = frame.contentWindow;
      scope.addEventListener = (_, listener) => (this.listener = listener);
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = scope.document.createElement("script");
      script.src = url;
      this.loaded = new Promise((done) => (script.onload = done));
      scope.document.body.append(script);
    }
    postMessage(data) {
      this.loaded.then(() => this.listener({ data }));
    }
    terminate() {}
  };
}

// What tests ask of an open notebook: `window.book`, over JupyterLab's own objects. Added to the
// page before it loads; needs LabApp.expose_app_in_browser.
window.book = {
  said: [], // what the kernel complained of in no cell: as it handled messages of widgets

  panel() {
    const app = window.jupyterapp;
    return app && Array.from(app.shell.widgets("main")).find((widget) => widget.sessionContext);
  },
  kernel() {
    return this.panel()?.sessionContext.session?.kernel;
  },
  idle() {
    return this.kernel()?.status === "idle" && !this.panel().sessionContext.pendingInput;
  },

  // Resolves when the notebook is shown and its kernel has answered.
  async ready() {
    const panel = this.panel();
    await Promise.all([panel.revealed, panel.context.ready, panel.sessionContext.ready]);
    await this.kernel().info;
    this.kernel().iopubMessage.connect((_, { header, parent_header, content }) => {
      if (!parent_header.msg_type?.startsWith("comm_")) return;
      if (header.msg_type === "error") this.said.push(content.traceback.join("\n"));
      if (header.msg_type === "stream" && content.name === "stderr") this.said.push(content.text);
    });
  },

  // What was said since the last call. JupyterLab's ipywidgets asks every new kernel for its
  // widgets, on a comm of its own that a kernel which did not import ipywidgets refuses: not our
  // trouble, unlike a message to a widget that is shown and that the kernel does not know.
  trouble() {
    const control = "No such comm target registered: jupyter.widget.control";
    const shown = JSON.stringify(this.cells());
    const lines = this.said.splice(0).flatMap((text) => text.trimEnd().split(/\n(?=No such comm)/));
    return lines.filter((line) => {
      const comm = line.match(/^No such comm: (\S+)$/)?.[1];
      return line !== control && (comm === undefined || shown.includes(comm));
    });
  },

  // The promise's value, or an error after so many milliseconds.
  within(milliseconds, promise) {
    const late = new Promise((_, fail) =>
      setTimeout(() => fail(new Error(`not done within ${milliseconds} ms`)), milliseconds));
    return Promise.race([promise, late]);
  },

  cells() {
    return Array.from(this.panel().content.model.cells).map((model) => ({
      type: model.type,
      source: model.sharedModel.getSource(),
      number: model.executionCount ?? null,
      outputs: model.outputs?.toJSON() ?? [],
      tags: model.getMetadata("tags") ?? [],
    }));
  },

  // Forgets the stored outputs and counts, so that what is there afterwards was made now.
  async runAll() {
    await window.jupyterapp.commands.execute("notebook:clear-all-cell-outputs");
    await window.jupyterapp.commands.execute("notebook:run-all-cells");
  },

  // Adds a code cell at the end and runs it; its number.
  async append(source) {
    const notebook = this.panel().content;
    notebook.model.sharedModel.addCell({ cell_type: "code", source });
    notebook.activeCellIndex = notebook.model.cells.length - 1;
    await window.jupyterapp.commands.execute("notebook:run-cell");
    return notebook.activeCellIndex;
  },

  // Runs code in the kernel, behind what is queued there, in no cell and no history; the reply.
  async run(code, expressions) {
    const request = { code, store_history: false, user_expressions: expressions };
    return (await this.kernel().requestExecute(request).done).content;
  },
};

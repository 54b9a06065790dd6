"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const BLUE = "#1f5fa8", ORANGE = "#c8641b", INK = "#1d2733", SOFT = "#8a95a1", LINE = "#e4e8ed";
  const PAGE = 10; // rows of the table that are there at once
  const number = (value) => value.toLocaleString("en-US");
  const several = (value, one, more = `${one}s`) => `${number(value)} ${value === 1 ? one : more}`;
  const spectra = (value) => several(value, "spectrum", "spectra");

  // Drawing

  // Anew each time: Plotly.react would keep the first drawing's ranges as those that a double-click goes back to.
  const draw = (id, traces, layout, config = {}) => Plotly.newPlot(element(id), traces, {
    font: { family: "system-ui, Helvetica Neue, Arial, sans-serif", size: 12, color: INK },
    margin: { l: 56, r: 12, t: 12, b: 44 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    hoverlabel: { bgcolor: "#fff", bordercolor: SOFT, font: { color: INK } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: SOFT, activecolor: BLUE },
    ...layout,
  }, { responsive: true, displayModeBar: false, displaylogo: false, showTips: false, ...config });

  const axis = (title, more = {}) => ({
    title: { text: title, standoff: 8 }, gridcolor: LINE, zeroline: false, linecolor: SOFT, ticks: "outside", ticklen: 4,
    tickcolor: SOFT, ...more,
  });

  const decades = (most) => { // a logarithmic colour scale for numbers from 1 up
    const top = Math.max(1, Math.log10(most)), ticks = [];
    for (let decade = 0; decade <= top; decade += 1) ticks.push(decade);
    return {
      cmin: 0, cmax: top, colorscale: [[0, "#8fc1e3"], [0.5, "#2f79b5"], [1, "#08264d"]],
      colorbar: { thickness: 10, outlinewidth: 0, title: { text: "spectra", font: { size: 11 } }, tickvals: ticks, ticktext: ticks.map((t) => number(10 ** t)), len: 0.8 },
    };
  };

  const nothing = (id, label) => draw(id, [], {
    xaxis: { visible: false }, yaxis: { visible: false },
    annotations: [{ text: `${label}:<br>no values`, showarrow: false, font: { color: SOFT } }],
  });

  function drawSky() {
    const sky = data.sky, still = { visible: false, fixedrange: true };
    const line = ([x, y], colour, width, name) => ({
      x, y, mode: "lines", line: { color: colour, width }, hoverinfo: "skip", name, showlegend: Boolean(name),
    });
    const words = ([x, y, text], xanchor) => text.map((word, i) => ({
      x: x[i], y: y[i], text: word, xanchor, xshift: xanchor === "left" ? 8 : 0, showarrow: false, borderpad: 0,
      bgcolor: "rgba(255,255,255,0.75)", font: { size: 11, color: "#5b6775" },
    }));
    const scale = decades(Math.max(1, ...sky.rows));
    draw("sky", [
      line(sky.grid, LINE, 1), line(sky.edge, SOFT, 1),
      {
        x: sky.x, y: sky.y, mode: "markers", showlegend: false, customdata: sky.cell,
        text: sky.rows.map((rows, i) => `RA ${sky.ra[i]}°, Dec ${sky.dec[i]}°<br>${spectra(rows)}`),
        hovertemplate: "%{text}<extra></extra>",
        marker: { size: 7, color: sky.rows.map((rows) => Math.log10(rows)), ...scale },
      },
      line(sky.plane, ORANGE, 1.5, "Galactic plane"),
    ], {
      annotations: [...words(sky.hours, "center"), ...words(sky.degrees, "left")],
      margin: { l: 8, r: 8, t: 8, b: 8 }, showlegend: true,
      legend: { x: 0, y: 0, bgcolor: "rgba(0,0,0,0)" },
      xaxis: { ...still, range: [-2.95, 3.1] }, yaxis: { ...still, range: [-1.5, 1.5], scaleanchor: "x" },
    }).then((plot) => plot.on("plotly_click", (event) => {
      const cell = event.points[0].customdata;
      if (cell === undefined) return;
      element("search").value = `cell ${cell}`;
      search();
      element("rows").scrollIntoView();
    }));
  }

  function drawHistogram({ label, log, edges, rows }, place) {
    const id = `histogram-${place}`;
    if (!rows.length) return nothing(id, label);
    return draw(id, [{
      x: edges, y: [...rows, 0], mode: "lines", line: { shape: "hv", color: BLUE, width: 1.2 }, fill: "tozeroy",
      fillcolor: "rgba(31,95,168,0.35)",
      text: rows.map((count, i) => `${number(edges[i])} to ${number(edges[i + 1])}: ${spectra(count)}`),
      hovertemplate: "%{text}<extra></extra>",
    }], {
      hovermode: "x",
      xaxis: axis(label, log ? { type: "log", dtick: 1, tickformat: "~s" } : {}),
      yaxis: axis("spectra", { rangemode: "tozero", tickformat: "~s", ...(Math.max(...rows) < 5 ? { dtick: 1 } : {}) }),
    });
  }

  function drawHardness() {
    const { middles, rows, known } = data.hardness;
    if (!known) return nothing("hardness", "hard_ms and hard_hm");
    const { cmin, cmax, ...scale } = decades(Math.max(...rows.flat()));
    return draw("hardness", [{
      type: "heatmap", x: middles, y: middles, customdata: rows.map((line) => line.map(spectra)), zmin: cmin, zmax: cmax, ...scale,
      z: rows.map((line) => line.map((count) => (count ? Math.log10(count) : null))), hoverongaps: false,
      hovertemplate: "hard_ms %{x:.2f}, hard_hm %{y:.2f}<br>%{customdata}<extra></extra>",
    }], {
      xaxis: axis("hard_ms, soft to medium", { range: [-1, 1], dtick: 0.5 }),
      yaxis: axis("hard_hm, medium to hard", { range: [-1, 1], dtick: 0.5 }),
    });
  }

  // Plotly moves the labels of a logarithmic axis that begin with 0 or 1 aside; these begin with a space of no width.
  const PLAIN = "\u200b>6~g";

  // A bin that is not above zero drops out of the axis' lower end, as far as no one will look.
  const BELOW = 1e-6;

  function steps(edges, values, floor) {
    const x = values.flatMap((_, i) => [edges[i], edges[i + 1]]);
    const y = values.flatMap((value) => [Math.max(value, floor), Math.max(value, floor)]);
    return { x, y, mode: "lines", hoverinfo: "skip" };
  }

  function drawSpectrum(row) {
    const { edges, rate, error, counts, background, together } = data.rows.spectra[row];
    const middles = rate.map((_, i) => (edges[i] + edges[i + 1]) / 2);
    const inCounts = document.querySelector("input[name=shown]:checked").value === "counts";
    const bins = rate.map((value, i) => `${edges[i]} to ${edges[i + 1]} keV<br>`
      + (inCounts ? `${several(counts[i], "count")}<br>${background[i]} scaled background counts`
        : `${value} ± ${error[i]} counts/s/keV<br>${several(counts[i], "count")}`));
    let end = 0;
    const joined = together.map((bins) => {
      const low = edges[end];
      let counted = 0, variance = 0;
      for (const last = end + bins; end < last; end++) {
        const width = edges[end + 1] - edges[end];
        counted += rate[end] * width, variance += (error[end] * width) ** 2;
      }
      const high = edges[end], value = counted / (high - low), spread = Math.sqrt(variance) / (high - low);
      return { low, high, middle: (low + high) / 2, value, bottom: value - spread, top: value + spread };
    });
    const upper = joined.map(({ top }) => top);
    const shown = (inCounts ? [...counts, ...background] : rate).filter((value) => value > 0);
    const least = shown.length ? Math.min(...shown) : Math.max(...upper, BELOW) / 10;
    const most = inCounts ? Math.max(...shown, 1) : Math.max(...upper, least);
    const floor = least * BELOW;
    const line = (values, colour, name) => ({ ...steps(edges, values, floor), line: { color: colour, width: 1.4 }, name });
    const place = (values) => values.map((value) => (value === null ? null : Math.max(value, floor)));
    const traces = inCounts
      ? [line(counts, BLUE, "source region"), line(background, ORANGE, "background, scaled")]
      : [{ ...line(rate, "#a9c4e0"), line: { color: "#a9c4e0", width: 1 } }, {
        x: joined.flatMap(({ low, high, middle }) => [low, high, null, middle, middle, null]),
        y: place(joined.flatMap(({ value, bottom, top }) => [value, value, null, bottom, top, null])),
        mode: "lines", hoverinfo: "skip", line: { color: BLUE, width: 1.6 },
      }];
    traces.push({
      x: middles, y: (inCounts ? counts : rate).map((value) => Math.max(value, floor)),
      text: bins, mode: "markers", marker: { opacity: 0 }, hovertemplate: "%{text}<extra></extra>", showlegend: false,
    });
    const low = Math.max(0.1, edges[0]), high = edges[edges.length - 1];
    const range = (bottom, top) => [Math.log10(bottom), Math.log10(top)];
    draw("spectrum", traces, {
      margin: { l: 70, r: 12, t: 28, b: 48 }, hovermode: "x", showlegend: inCounts, dragmode: "zoom",
      legend: { orientation: "h", x: 0, y: 1.08 },
      xaxis: axis("energy (keV)", { type: "log", range: range(low * 0.96, high * 1.04), tickformat: PLAIN, nticks: window.innerWidth < 700 ? 4 : 8, hoverformat: ".3~g" }),
      yaxis: axis(inCounts ? "counts in the bin" : "counts / s / keV",
        { type: "log", range: range(least / 2, most * 1.5), exponentformat: "power", nticks: 6,
          tickformat: inCounts ? PLAIN : "" }),
    }, { displayModeBar: true, doubleClick: "reset",
      modeBarButtons: [["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"], ["toImage"]] });
    const below = inCounts ? 0 : rate.filter((value) => value <= 0).length;
    element("remark").textContent = "Drag to zoom, double-click to go back."
      + (inCounts ? "" : " All bins (pale), and put together to about 3σ, for display only, with errors.")
      + (below ? ` Bins that are not above zero, and so below this axis: ${number(below)} of ${number(rate.length)}.` : "");
  }

  // The table

  const facts = Object.fromEntries(data.rows.facts.map((fact) => [fact.name, fact.values]));
  const meanings = Object.fromEntries(data.rows.facts.map((fact) => [fact.name, fact.meaning]));
  const all = data.rows.spectra.map((_, row) => row);
  const fixed = (digits) => (value) => value.toFixed(digits);
  const columns = [
    { title: "source", name: "name" },
    { title: "detection", name: "detection_id", key: facts.object_id },
    { title: "observed", name: "gti_mjd_obs", values: data.rows.dates },
    { title: "exposure", unit: "ks", name: "exposure", text: (value) => fixed(1)(value / 1000) },
    { title: "net counts", name: "src_cnts_aper_b", text: (value) => number(Math.round(value)) },
    { title: "S/N", name: "flux_significance_b", text: fixed(1) },
    { title: "off axis", unit: "arcmin", name: "theta", text: fixed(2) },
    { title: "bins", name: "n_bins", text: number },
    { title: "hardness (h–m)", name: "hard_hm", text: fixed(2) },
    { title: "split", name: "split" },
  ].map((column) => ({ values: facts[column.name], meaning: meanings[column.name], ...column }));
  const state = { column: columns[4], down: true, page: 0, found: all, cell: null, row: null };

  function compare(column, down) {
    const values = column.key || column.values;
    return (a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x === null || y === null) return (x === null) - (y === null); // nulls last, either way
      const order = typeof x === "number" ? x - y : x < y ? -1 : Number(x > y);
      return (down ? -order : order) || a - b;
    };
  }

  function search() {
    const query = element("search").value.trim().toLowerCase();
    const cell = /^cell (\d+)$/.exec(query);
    state.cell = cell && Number(cell[1]);
    state.found = all.filter((row) => (cell ? facts.healpix[row] === state.cell
      : (facts.name[row] || "").toLowerCase().includes(query) || facts.detection_id[row].includes(query)));
    state.page = 0;
    showTable();
  }

  const sampled = all.length < data.total && `${number(all.length)} of ${number(data.total)} rows`;
  const any = `chandra-spectra plot ${data.folder} --name NAME draws any row.`;

  function found() {
    const count = number(state.found.length);
    if (sampled && state.cell !== null) {
      const rows = data.sky.rows[data.sky.cell.indexOf(state.cell)] || 0;
      return `the sample has ${count} of ${spectra(rows)} in this cell`;
    }
    return state.found.length < all.length ? `${count} found${sampled ? " in the sample" : ""}` : "";
  }

  function showTable() {
    const rows = [...state.found].sort(compare(state.column, state.down));
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    const body = element("table").tBodies[0];
    body.replaceChildren(...rows.slice(state.page * PAGE, (state.page + 1) * PAGE).map((row) => {
      const line = document.createElement("tr");
      line.tabIndex = 0;
      line.dataset.detection = facts.detection_id[row];
      line.setAttribute("aria-selected", row === state.row);
      columns.forEach(({ values, text }) => {
        const place = line.insertCell();
        place.className = text ? "number" : "";
        place.textContent = values[row] === null ? "" : text ? text(values[row]) : values[row];
      });
      line.addEventListener("click", () => choose(row));
      line.addEventListener("keydown", (event) => {
        if (event.key === "Enter") choose(row);
      });
      return line;
    }));
    [...element("table").tHead.rows[0].cells].forEach((head, i) => {
      if (columns[i] === state.column) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    element("found").textContent = found();
    element("page").textContent = `page ${number(state.page + 1)} of ${number(pages)}`;
    element("back").disabled = state.page === 0;
    element("forth").disabled = state.page === pages - 1;
    element("nothing").hidden = rows.length > 0;
    element("nothing").textContent = sampled ? `Nothing found among the ${sampled} in this page; ${any}`
      : all.length ? "Nothing found." : "The folder has no rows.";
  }

  const TITLE = { name: 1, detection_id: 1, object_id: 1, obsid: 1, obi: 1, region_id: 1, cycle: 1 }; // what heads the spectrum

  function choose(row) {
    state.row = row;
    element("one").hidden = false;
    element("title").textContent = [facts.name[row], facts.detection_id[row],
      `${fixed(1)(facts.exposure[row] / 1000)} ks`, several(facts.source_counts[row], "count")].filter(Boolean).join(", ");
    const lines = data.rows.facts.filter(({ name, values }) => !(name in TITLE || values[row] === null));
    element("facts").querySelector("tbody").replaceChildren(...lines.map(({ name, unit, meaning, values }) => {
      const line = document.createElement("tr");
      line.title = meaning;
      const value = values[row];
      const text = typeof value === "boolean" ? (value ? "yes" : "no") : Number.isInteger(value) || typeof value === "string"
        ? String(value) : String(Number(value.toPrecision(name === "ra" || name === "dec" || name.includes("mjd") ? 8 : 5)));
      const date = name === "gti_mjd_obs" && data.rows.dates[row];
      [name, date ? `MJD ${text}` : text, date ? `(${date})` : unit].forEach((content, i) => {
        const place = line.insertCell();
        place.className = i === 1 ? "number" : "";
        place.textContent = content;
      });
      return line;
    }));
    [...element("table").tBodies[0].rows].forEach((line) => {
      line.setAttribute("aria-selected", line.dataset.detection === facts.detection_id[row]);
    });
    drawSpectrum(row);
  }

  function begin() {
    const head = element("table").tHead.insertRow();
    columns.forEach((column) => {
      const place = document.createElement("th");
      place.className = column.text ? "number" : "";
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = column.title;
      button.title = column.meaning;
      if (column.unit) {
        const unit = document.createElement("span");
        unit.className = "unit";
        unit.textContent = ` ${column.unit}`;
        button.append(unit);
      }
      button.addEventListener("click", () => {
        state.down = state.column === column ? !state.down : Boolean(column.text);
        state.column = column;
        state.page = 0;
        showTable();
      });
      place.append(button);
      head.append(place);
    });
    element("sampled").textContent = sampled
      ? `A sample: ${sampled}, evenly spaced in the order of their net counts. Table and search hold no others; ${any}`
      : (all.length > 1 ? `All ${number(all.length)} rows.` : all.length ? "The only row." : "");
    const turn = (by) => () => { state.page += by; showTable(); };
    element("back").addEventListener("click", turn(-1));
    element("forth").addEventListener("click", turn(1));
    element("search").addEventListener("input", search);
    document.querySelectorAll("input[name=shown]").forEach((input) => {
      input.addEventListener("change", () => drawSpectrum(state.row));
    });
    showTable();
    if (all.length) choose([...all].sort(compare(state.column, state.down))[0]);
    drawSky();
    data.histograms.forEach(drawHistogram);
    drawHardness();
  }

  begin();
})();

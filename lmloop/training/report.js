"use strict";
document.documentElement.classList.add("js");

function words(v) {
  const size = Math.abs(v);
  if (v === 0) return "0";
  if (size < 1e-3) return v.toExponential(1).replace(".0e", "e").replace("e+", "e");
  for (const [scale, suffix] of [[1e12, " T"], [1e9, " B"], [1e6, " M"], [1e3, " k"]])
    if (size >= scale && size >= 1e4) return String(Number((v / scale).toPrecision(3))) + suffix;
  return String(Number(v.toPrecision(4)));
}

function before(xs, x) {  // index of the last value that is at most x, at least 0
  let low = 0, high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle + 1; else high = middle;
  }
  return Math.max(0, low - 1);
}

function chart(figure) {
  const source = figure.querySelector("script[type='application/json']");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const plot = figure.querySelector(".plot"), readout = figure.querySelector(".readout");
  const atEnd = readout.textContent;
  const main = data.series.reduce((a, b) => (b.x.length > a.x.length ? b : a)).x;
  const line = document.createElement("div");
  line.className = "cursor";
  plot.append(line);
  const dots = data.series.map(series => {
    const dot = document.createElement("div");
    dot.className = "dot " + series.kind;
    plot.append(dot);
    return dot;
  });
  const percent = ([low, high], v) => 100 * (v - low) / (high - low);
  let index = main.length - 1;

  function show(to) {
    index = Math.min(Math.max(to, 0), main.length - 1);
    const x = main[index], said = [words(x) + " tokens"];
    line.style.left = percent(data.x, x) + "%";
    data.series.forEach((series, k) => {
      let i = before(series.x, x);
      if (series.kind !== "step" && series.kind !== "validation" && i + 1 < series.x.length
          && series.x[i + 1] - x < x - series.x[i]) i += 1;
      const known = series.x[i] <= x || series.kind !== "validation";
      const top = 100 - percent(data.y, series.y[i]);
      dots[k].hidden = !known || top < 0 || top > 100;
      dots[k].style.left = percent(data.x, series.x[i]) + "%";
      dots[k].style.top = top + "%";
      if (known) said.push((data.series.length > 1 ? series.label + " " : "") + words(series.y[i]));
    });
    readout.textContent = said.join("  ·  ");
    plot.setAttribute("aria-valuenow", index);
    plot.setAttribute("aria-valuetext", said.join(", "));
    figure.classList.add("read");
  }
  function hide() {
    figure.classList.remove("read");
    readout.textContent = atEnd;
  }
  function point(event) {
    const box = plot.getBoundingClientRect();
    const x = data.x[0] + (event.clientX - box.left) / box.width * (data.x[1] - data.x[0]);
    const i = before(main, x);
    show(i + 1 < main.length && main[i + 1] - x < x - main[i] ? i + 1 : i);
  }
  plot.setAttribute("role", "slider");
  plot.setAttribute("aria-valuemin", 0);
  plot.setAttribute("aria-valuemax", main.length - 1);
  plot.setAttribute("aria-valuenow", index);
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", () => { if (document.activeElement !== plot) hide(); });
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(index); });
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", event => {
    const far = Math.max(1, Math.round(main.length / 20));
    const by = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -far, PageUp: far,
                Home: -main.length, End: main.length}[event.key];
    if (by === undefined) { if (event.key === "Escape") hide(); return; }
    event.preventDefault();
    show(index + by);
  });
}

function stepper(box) {
  const moments = [...box.querySelectorAll("article")], slider = box.querySelector("input");
  if (!slider) return;
  function show() {
    const at = Number(slider.value);
    moments.forEach((moment, k) => { moment.hidden = k !== at; });
    slider.setAttribute("aria-valuetext", moments[at].dataset.label);
    box.querySelectorAll("button").forEach(button => {
      button.disabled = moments[at + Number(button.dataset.by)] === undefined;
    });
  }
  slider.addEventListener("input", show);
  box.querySelectorAll("button").forEach(button => button.addEventListener("click", () => {
    slider.value = Number(slider.value) + Number(button.dataset.by);
    show();
  }));
  show();
}

document.querySelectorAll("figure.chart").forEach(chart);
document.querySelectorAll("[data-samples]").forEach(stepper);

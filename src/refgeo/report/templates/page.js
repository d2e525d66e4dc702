(() => {
  "use strict";
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const swap = JSON.parse(document.getElementById("swap").textContent);
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  // Figures are stored in light colors; in the dark every known color is replaced by its counterpart.
  const recolor = (value) => {
    if (typeof value === "string") return Object.hasOwn(swap, value) ? swap[value] : value;
    if (Array.isArray(value)) return value.map(recolor);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, recolor(inner)]));
    return value;
  };
  const options = { displayModeBar: false, responsive: true, showTips: false };
  const drawn = new Set();
  const draw = (node) => {
    const spec = structuredClone(specs[node.dataset.figure]);
    const { data, layout } = isDark() ? recolor(spec) : spec;
    drawn.add(node);
    return Plotly.react(node, data, layout, options);
  };

  const seen = new IntersectionObserver(
    (entries) => entries.forEach((entry) => {
      if (!entry.isIntersecting) return;
      seen.unobserve(entry.target);
      draw(entry.target);
    }),
    { rootMargin: "900px 0px" },
  );
  document.querySelectorAll(".plot").forEach((node) => seen.observe(node));
  window.addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach((node) => drawn.has(node) || draw(node)));

  const repaint = () => drawn.forEach(draw);
  system.addEventListener("change", repaint);
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    repaint();
  });

  document.querySelectorAll("[data-switch]").forEach((control) => control.addEventListener("change", (event) => {
    document.querySelectorAll(`[data-of="${control.dataset.switch}"]`).forEach((group) => {
      group.hidden = group.dataset.group !== event.target.value;
    });
  }));

  // A link to a claim also opens its rule.
  const openTarget = () => document.getElementById(location.hash.slice(1))?.querySelector("details")?.setAttribute("open", "");
  window.addEventListener("hashchange", openTarget);
  openTarget();
})();

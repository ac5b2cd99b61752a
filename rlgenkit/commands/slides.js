
const all = [...document.querySelectorAll("section")];
const now = () => all.findIndex((s) => s.getBoundingClientRect().bottom > innerHeight / 2);
const go = (k) => {
  k = Math.max(0, Math.min(all.length - 1, k));
  all[k].scrollIntoView();
  history.replaceState(null, "", `#${k + 1}`);
};
addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, PageDown: 1, " ": 1, ArrowLeft: -1, PageUp: -1 }[event.key];
  if (event.target.closest("summary") && event.key === " ") return;
  if (step) go(now() + step);
  else if (event.key === "Home") go(0);
  else if (event.key === "End") go(all.length - 1);
  else return;
  event.preventDefault();
});
if (location.hash) go(Number(location.hash.slice(1)) - 1);
